"""Arrays of a file as samples: a batch axis, channels first, whole grey levels or real numbers."""

import numpy as np

from iresnet_core.errors import DataFileError, InvalidArgumentError, NonFiniteDataError, ShapeError

__all__ = ["as_samples", "is_image_shape", "samples_from"]

_MOST_CHANNELS = 4


def is_image_shape(event_shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape are images: channels (at most 4), height, width."""
    return len(event_shape) == 3 and event_shape[0] <= _MOST_CHANNELS


def as_samples(
    array: np.ndarray, name: str, levels: int | None, first: int | None = None
) -> tuple[np.ndarray, int | None]:
    """Return samples with a batch axis and their channels first, and the number of their levels.

    `first` is the number of the first sample in its file, for messages; None where the array is the whole file.
    """
    if array.ndim == 0:
        raise ShapeError(f"{name} holds one number, expected samples along the first axis.")
    if array.ndim == 1:
        array = array[:, None]
    if array.size == 0:
        raise ShapeError(f"{name} has shape {array.shape}: no sample, or samples without entries.")
    if levels is None and array.dtype == np.uint8 and array.ndim >= 3:
        levels = 256
    if levels is not None:
        return _channels_first(_as_levels(array, name, levels, first)), levels
    array = array.astype(np.float64)
    _require_finite(array, name, first)
    return _channels_first(array), None


def _as_levels(array: np.ndarray, name: str, levels: int, first: int | None) -> np.ndarray:
    if levels < 2:
        raise InvalidArgumentError(f"levels must be at least 2, got {levels}.")
    _require_finite(array, name, first)
    low, high = array.min(), array.max()
    if low < 0 or high >= levels or not np.array_equal(array, np.floor(array)):
        raise DataFileError(
            f"{name} must hold whole numbers from 0 to {levels - 1}, got {array.dtype} from {low:g} to {high:g}."
        )
    return array.astype(np.uint8 if levels <= 256 else np.int64)


def _require_finite(array: np.ndarray, name: str, first: int | None) -> None:
    if array.dtype.kind != "f":
        return
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        kind = "NaN" if np.isnan(array[tuple(bad[0])]) else "infinity"
        rows = len(np.unique(bad[:, 0]))
        raise NonFiniteDataError(
            f"{name}: {kind} in sample {(first or 0) + bad[0, 0]} at {tuple(int(i) for i in bad[0, 1:])}, and so in "
            f"{rows} of {samples_from(len(array), first)}. Remove or impute them."
        )


def samples_from(n: int, first: int | None) -> str:
    """Return words for n samples of a file, the first of which has the number `first`; None for the whole file."""
    return f"{n} samples" if first is None else f"the samples {first} to {first + n - 1}"


def _channels_first(array: np.ndarray) -> np.ndarray:
    """Return images (n, height, width) or (n, height, width, channels) as (n, channels, height, width)."""
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and not is_image_shape(array.shape[1:]) and array.shape[-1] <= _MOST_CHANNELS:
        return np.ascontiguousarray(np.moveaxis(array, -1, 1))
    return array
