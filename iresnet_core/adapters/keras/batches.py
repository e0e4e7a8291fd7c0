"""The data that `fit` takes, looked at before the training."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from iresnet_core.backends import get_backend
from iresnet_core.common import require_finite
from iresnet_core.errors import InvalidArgumentError

__all__ = ["representative_batch", "require_finite_arrays"]


def require_finite_arrays(data: Any, name: str) -> None:
    """Refuse arrays with NaN or infinity, which a compiled step would write into the weights; datasets are not read."""
    if isinstance(data, list | tuple):
        for part in data:
            require_finite_arrays(part, name)
    elif hasattr(data, "shape"):
        host = data if isinstance(data, np.ndarray) else keras.ops.convert_to_numpy(data)
        if host.dtype.kind == "f":
            require_finite(get_backend(host), host, name)


def representative_batch(data: Any, size: int) -> Any:
    """Return samples to initialise from: of arrays `size` rows, evenly spaced, of datasets the first batch.

    Raises
    ------
    InvalidArgumentError
        If looking at a batch would use it up, as that of a generator.
    """
    if isinstance(data, list | tuple) and data and all(hasattr(part, "shape") for part in data):
        return type(data)(representative_batch(part, size) for part in data)
    if hasattr(data, "shape"):
        return data[:: max(1, data.shape[0] // size)][:size]
    if isinstance(data, keras.utils.PyDataset):
        first = data[0]
    elif isinstance(data, Iterator) or not hasattr(data, "__iter__"):
        raise InvalidArgumentError(
            f"an ActNorm is not initialised yet, and a batch of a {type(data).__name__} cannot be looked at without "
            "using it up. Call initialize(x) with a batch of data before fit."
        )
    else:
        first = next(iter(data))
    return keras.utils.unpack_x_y_sample_weight(first)[0] if isinstance(first, tuple) else first
