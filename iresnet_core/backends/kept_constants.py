"""Constants on a device, kept from one call to the next: to send one there makes the host wait for the device."""

import threading
from collections.abc import Callable, Hashable
from typing import Any

from iresnet_core.backends.base import Array

__all__ = ["KeptConstants"]

# Larger ones are made anew, and of more than this number the oldest are dropped, so that little memory is held.
LARGEST, MOST = 2**14, 256


class KeptConstants:
    """Arrays by the function and the numbers that they are made from; nobody writes into them."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Array] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any], send: Callable[[Any], Array]) -> Array:
        """Return ``send(make())``, or what it was the last time."""
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        host = make()
        array = send(host)
        if host.size <= LARGEST:
            with self._lock:
                if len(self._kept) >= MOST:
                    self._kept.pop(next(iter(self._kept)), None)
                self._kept[key] = array
        return array
