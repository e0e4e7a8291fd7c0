"""How samples of a data set become what a model takes, and back: images in a row, or with their channels last."""

import math
from dataclasses import dataclass

import numpy as np

from iresnet_core.errors import ShapeError

__all__ = ["SampleLayout"]


@dataclass(frozen=True)
class SampleLayout:
    """The two shapes of a sample.

    Attributes
    ----------
    data_shape : tuple of int
        In the data set; images have their channels first.
    model_shape : tuple of int
        In the model: the same, the channels last, or all entries in a row.
    """

    data_shape: tuple[int, ...]
    model_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        known = (self.data_shape, self._channels_last(), (math.prod(self.data_shape),))
        if self.model_shape not in known:
            raise ShapeError(f"a model of samples {self.model_shape} does not fit data of shape {self.data_shape}.")

    def _channels_last(self) -> tuple[int, ...]:
        return (*self.data_shape[1:], self.data_shape[0])

    def to_model(self, x: np.ndarray) -> np.ndarray:
        """Return samples (n, *data_shape) as the model takes them."""
        if tuple(x.shape[1:]) != self.data_shape:
            raise ShapeError(f"the model was made for samples of shape {self.data_shape}, got {tuple(x.shape[1:])}.")
        if len(self.model_shape) == len(self.data_shape) > 1 and self.model_shape != self.data_shape:
            return np.ascontiguousarray(np.moveaxis(x, 1, -1))
        return x.reshape(len(x), *self.model_shape)

    def to_data(self, x: np.ndarray) -> np.ndarray:
        """Return samples (n, *model_shape) as they are in the data set."""
        if tuple(x.shape[1:]) != self.model_shape:
            raise ShapeError(f"the model has samples of shape {self.model_shape}, got {tuple(x.shape[1:])}.")
        if len(self.model_shape) == len(self.data_shape) > 1 and self.model_shape != self.data_shape:
            return np.ascontiguousarray(np.moveaxis(x, -1, 1))
        return x.reshape(len(x), *self.data_shape)
