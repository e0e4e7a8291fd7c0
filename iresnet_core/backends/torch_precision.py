"""Computing in the dtype of the arrays, whatever precision the program around has chosen for its own layers.

Autocast lowers float32 products to half precision, and PyTorch's settings let float32 products be taken in TF32 or
bfloat16 (cuDNN's convolutions are by default). The error bounds of the core count on the precision of the dtype.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

__all__ = ["full_precision", "own_dtype"]

Array = Any

_KINDS = ("cpu", "cuda")
# The name and the value of the setting; the second pair before PyTorch 2.9, which had none for the CPU.
_BY_NAME = hasattr(torch.backends, "fp32_precision")
_SETTING, _FULL = ("fp32_precision", "ieee") if _BY_NAME else ("allow_tf32", False)


def own_dtype(x: Array) -> AbstractContextManager[Any]:
    """Context without autocast on the device of `x`."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def full_precision() -> AbstractContextManager[Any]:
    """Context without autocast on any device, in which float32 products are taken in float32.

    The latter is a setting of the process. It is changed where it is lowered, and put back afterwards; not in a
    compiled program, which runs with the settings of its caller.
    """
    if torch.compiler.is_compiling():
        return _without_autocast() if any(map(torch.is_autocast_enabled, _KINDS)) else nullcontext()
    return _full_precision()


@contextmanager
def _without_autocast() -> Iterator[None]:
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@contextmanager
def _full_precision() -> Iterator[None]:
    chosen = [(where, getattr(where, _SETTING)) for where in _products()]
    lowered = [(where, precision) for where, precision in chosen if precision not in (_FULL, "none")]
    for where, _ in lowered:
        setattr(where, _SETTING, _FULL)
    try:
        if any(map(torch.is_autocast_enabled, _KINDS)):
            with _without_autocast():
                yield
        else:
            yield
    finally:
        for where, precision in lowered:
            setattr(where, _SETTING, precision)


def _products() -> tuple[Any, ...]:
    """Where PyTorch keeps how float32 products are taken, for the devices that are in use."""
    here: Any = torch.backends
    there = torch.cuda.is_initialized()
    if not _BY_NAME:
        return (here.cuda.matmul, here.cudnn) if there else ()
    host = (here.mkldnn.matmul, here.mkldnn.conv)
    return (*host, here.cuda.matmul, here.cudnn.conv) if there else host
