"""The state of a training that is a part of a run: kept in a file until the part is finished."""

import io
import json
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from iresnet_core.files import digest_of, write_bytes

__all__ = ["Unfinished"]

_NODE = "node"


class Unfinished:
    """A file from which a training goes on after it was interrupted, and the time that it has taken in all.

    Parameters
    ----------
    path : Path
        The file; while there is nothing to go on from there is none.
    digest : str
        Of the settings: a file that was written under others counts for nothing.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self._digest = path, digest
        self._begin, self._before = time.perf_counter(), 0.0

    def seconds(self) -> float:
        """Return the wall time of all sittings so far."""
        return self._before + time.perf_counter() - self._begin

    def read(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Return the values and arrays that `write` was given last; None where there are none, or not for this."""
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            node = json.loads(bytes(arrays.pop(_NODE)))
            hash_found = node.pop("hash")
        except FileNotFoundError:
            return None
        except (EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None  # a file with damage: the training begins anew
        if hash_found != digest_of({**node, "settings": self._digest}, sorted(arrays.items())):
            return None
        self._before = node.pop("wall")
        return node, arrays

    def write(self, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Keep plain values and arrays, whole or not at all."""
        node = json.loads(json.dumps({**values, "wall": self.seconds()}))
        hashed = digest_of({**node, "settings": self._digest}, sorted(arrays.items()))
        text = json.dumps({**node, "hash": hashed}).encode()
        buffer = io.BytesIO()
        np.savez(buffer, **{**arrays, _NODE: np.frombuffer(text, dtype=np.uint8)})  # type: ignore[arg-type]
        write_bytes(self.path, buffer.getvalue())

    def remove(self) -> None:
        """Delete the file, when what the training came to is kept."""
        self.path.unlink(missing_ok=True)
