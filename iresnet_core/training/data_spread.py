"""Data that are no grey levels at mean zero and variance one, in float64, before they are cast for the training."""

import numpy as np

from iresnet_core.backends import get_backend
from iresnet_core.errors import DataFileError, InvalidArgumentError
from iresnet_core.flows import Standardize, require_visible_bulk
from iresnet_core.training.sample_arrays import is_image_shape
from iresnet_core.training.sample_layout import SampleLayout

__all__ = ["require_spread", "standardization"]

# Rounding of this part of the standard deviation is not seen in a density: its variance is one part in a million.
_TOLERATED = 1e-3


def standardization(samples: np.ndarray, layout: SampleLayout) -> Standardize:
    """Return the layer that gives samples (n, *data_shape) mean zero and variance one, for samples of the model.

    Columns of a table each get their own numbers, images one pair a channel. A column that is constant is centred.

    Raises
    ------
    DataFileError
        If a few entries are so large that all others would become one point.
    """
    try:
        require_visible_bulk(get_backend(samples), samples, 1)
    except InvalidArgumentError as error:
        raise DataFileError(f"in the samples to train on, which are shuffled, {error}") from None
    axes = (0, 2, 3) if is_image_shape(layout.data_shape) else (0,)
    # Differences from one sample, which rounding hardly touches; sums of numbers far from zero would lose the spread.
    # Entries of at most 1 keep the squares of huge and tiny data within range.
    origin = samples[:1].mean(axis=axes, keepdims=True)
    differences = samples - origin
    largest = np.max(np.abs(differences), axis=axes, keepdims=True)
    largest = np.where(largest > 0, largest, 1.0)
    unit = differences / largest
    mean = origin + largest * np.mean(unit, axis=axes, keepdims=True)
    std = largest * np.std(unit, axis=axes, keepdims=True)
    std = np.where(std > 0, std, 1.0)
    if layout.model_shape == layout.data_shape:
        return Standardize(mean.ravel(), std.ravel(), axis=1)
    if len(layout.model_shape) > 1:
        return Standardize(mean.ravel(), std.ravel(), axis=-1)
    mean, std = (np.broadcast_to(part, (1, *layout.data_shape)) for part in (mean, std))
    return Standardize(mean.ravel(), std.ravel())


def require_spread(samples: np.ndarray, dtype: str, std: np.ndarray, remedy: str) -> None:
    """Refuse a cast that rounds samples (n, *shape) by more than a thousandth of their spread.

    Parameters
    ----------
    samples : array (n, *shape)
        Samples.
    dtype : str
        What they are to be cast to.
    std : array, broadcasts against samples
        Spread of every entry; entries with none are not looked at.
    remedy : str
        What to try, a sentence.

    Raises
    ------
    DataFileError
        If an entry loses its spread; the message names it.
    """
    lost = np.max(np.abs(samples - samples.astype(dtype)), axis=0) / np.where(std > 0, std, np.inf)
    if np.max(lost) > _TOLERATED:
        entry = int(np.argmax(lost))
        largest = np.max(np.abs(samples.reshape(len(samples), -1)[:, entry]))
        raise DataFileError(
            f"{dtype} rounds the samples by up to {np.max(lost):.2g} of their standard deviation (entry {entry}, of "
            f"size {largest:.3g}): they are too far from zero for it. {remedy}"
        )
