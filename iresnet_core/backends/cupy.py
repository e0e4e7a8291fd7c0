"""CuPy backend: NumPy's functions on one GPU."""

import importlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import cupy
import numpy as np

from iresnet_core.backends.base import Array, NoiseKind
from iresnet_core.backends.host_noise import generator
from iresnet_core.backends.kept_constants import KeptConstants
from iresnet_core.backends.numpy_family import NumPyFamily
from iresnet_core.errors import InvalidArgumentError, MissingDependencyError

__all__ = ["CuPyBackend"]

# Each look at the condition of a loop waits for the GPU; up to this number of steps less one are taken in vain.
_STEPS_PER_LOOK = 8
_CONSTANTS = KeptConstants()


def _on_device_of(like: Array | None) -> AbstractContextManager[Any]:
    """Context in which arrays are made on the device of `like`."""
    context: AbstractContextManager[Any] = nullcontext() if like is None else like.device
    return context


def _is_native(rng: Any) -> bool:
    """Say whether `rng` is one of CuPy's generators; the newer kind is lacking on some platforms."""
    kinds = (getattr(cupy.random, name, None) for name in ("RandomState", "Generator"))
    return isinstance(rng, tuple(kind for kind in kinds if kind is not None))


def _uniform(source: Any, shape: tuple[int, ...]) -> Array:
    """Draw float64 numbers in [0, 1) with one of CuPy's generators."""
    if math.prod(shape) == 0:
        return cupy.empty(shape, dtype=np.float64)
    draw_uniform = source.random if hasattr(source, "random") else source.random_sample
    return draw_uniform(size=shape, dtype=np.float64)


def _normal(source: Any, shape: tuple[int, ...]) -> Array:
    """Draw float64 standard normal numbers with one of CuPy's generators."""
    if math.prod(shape) == 0:
        return cupy.empty(shape, dtype=np.float64)
    return source.standard_normal(size=shape, dtype=np.float64)


class CuPyBackend(NumPyFamily):
    """CuPy on the GPU; the arrays of one call lie on one device, which is the current one.

    Raises
    ------
    MissingDependencyError
        If CuPy finds no GPU that it could use.
    """

    name = "cupy"

    def __init__(self) -> None:
        if not cupy.is_available():
            raise MissingDependencyError(
                f"backend 'cupy' needs a GPU: CuPy {cupy.__version__} is installed, but finds no device that it can "
                "use. Check the driver (nvidia-smi, CUDA_VISIBLE_DEVICES) and that the package fits it "
                "(cupy-cuda12x for CUDA 12, cupy-cuda13x for CUDA 13), or use backend('numpy')."
            )
        self.xp = importlib.import_module("array_api_compat.cupy")

    def owns(self, kind: type) -> bool:
        """Say whether `kind` is CuPy's ndarray."""
        return issubclass(kind, cupy.ndarray)

    def to_numpy(self, x: Array) -> Any:
        """Copy to the host."""
        return np.array(x.get())

    def from_numpy(self, x: Any, like: Array | None = None) -> Array:
        """Copy to the device of `like`."""
        with _on_device_of(like):
            return cupy.asarray(np.asarray(x))

    # --- noise ---

    def generator(self, rng: Any) -> Any:
        """Return CuPy's global state for None, one of CuPy's own generators as it is, else NumPy's generator."""
        if rng is None:
            return cupy.random.get_random_state()
        return rng if _is_native(rng) else generator(rng)

    def sample(self, kind: NoiseKind, shape: tuple[int, ...], like: Array, rng: Any) -> Array:
        """Draw on the GPU without `rng` or with a generator of CuPy's, else with NumPy; in float64, then rounded."""
        with _on_device_of(like):
            source = self.generator(rng)
            if not _is_native(source):
                return super().sample(kind, shape, like, source)
            if kind == "gaussian":
                return _normal(source, shape).astype(like.dtype, copy=False)
            if kind == "rademacher":
                return cupy.where(_uniform(source, shape) < 0.5, -1.0, 1.0).astype(like.dtype, copy=False)
        raise InvalidArgumentError(f"noise must be 'rademacher' or 'gaussian', got {kind!r}.")

    def uniform(self, shape: tuple[int, ...], rng: Any) -> Any:
        """Draw from the same generator as `sample` and copy to the host."""
        source = self.generator(rng)
        return _uniform(source, shape).get() if _is_native(source) else super().uniform(shape, source)

    # --- programs ---

    def while_loop(
        self,
        cond: Callable[..., Any],
        body: Callable[..., tuple[Any, ...]],
        state: tuple[Any, ...],
        max_iter: int,
    ) -> tuple[Any, ...]:
        """Loop in Python and look at the condition, which waits for the GPU, every few steps only."""
        for done in range(max_iter):
            if done % _STEPS_PER_LOOK == 0 and not bool(cond(*state)):
                break
            state = body(*state)
        return state

    # --- arrays ---

    def constant_array(self, fn: Callable[..., Any], *numbers: Any, like: Array) -> Array:
        """Evaluated for the first call on a stream, which other streams do not wait for."""
        key = (fn, numbers, like.device.id, cupy.cuda.get_current_stream().ptr)
        return _CONSTANTS.get(key, lambda: fn(*numbers), lambda made: self.from_numpy(made, like))

    def are_together(self, x: Array, y: Array) -> bool:
        """Say whether both arrays are on one device."""
        return bool(x.device == y.device)

    def is_accelerated(self, x: Array) -> bool:
        """Return True: every CuPy array is on a GPU."""
        return True

    def erf(self, x: Array) -> Array:
        """Call ``cupyx.scipy.special.erf``."""
        from cupyx.scipy.special import erf

        with x.device:
            return erf(x)

    def is_positive_definite(self, matrix: Array) -> bool:
        """Ask cuSOLVER, whose refusal CuPy ignores unless it is told to raise."""
        from cupyx import errstate

        with matrix.device, errstate(linalg="raise"):
            return super().is_positive_definite(matrix)

    def frozen(self, x: Array) -> Array:
        """Return a private copy, so that a cached certificate cannot be outdated by a write in place."""
        with x.device:
            return x.copy()
