"""The state of a training as arrays: tensors there and back, and the comparison with what a model expects."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iresnet_core.errors import RunError

__all__ = ["host", "require_same", "tensor_of"]


def require_same(
    found: Mapping[str, np.ndarray], expected: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
) -> None:
    """Refuse arrays whose names, shapes or dtypes are not those of the model."""
    different = sorted(set(found) ^ set(expected))
    if different:
        raise RunError(f"the checkpoint is that of another model: only one of them has {different[0]}.")
    for name, (shape, dtype) in expected.items():
        if (found[name].shape, found[name].dtype) != (shape, dtype):
            raise RunError(
                f"the checkpoint is that of another model: {name} is {found[name].dtype} of shape {found[name].shape} "
                f"there, {dtype} of shape {shape} here."
            )


def host(tensor: Tensor) -> np.ndarray:
    """Return a tensor as an array."""
    found: np.ndarray = tensor.detach().cpu().numpy()
    return found


def tensor_of(array: np.ndarray) -> Tensor:
    """Return a copy of an array as a tensor."""
    return torch.from_numpy(np.array(array))
