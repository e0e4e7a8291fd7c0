"""TensorFlow backend: eager, in ``tf.function``, and compiled by XLA (``jit_compile=True``).

A function that calls the package is compiled with ``tf.function(..., autograph=False)``, as `Backend.jit` does:
AutoGraph would rewrite the package's own Python, which needs no rewriting, and fails on parts of it.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from iresnet_core.backends import convolution
from iresnet_core.backends.base import NO_HOST_DRAW, Array, Backend, NoiseKind, Noted, Pullback
from iresnet_core.backends.host_noise import draw
from iresnet_core.backends.host_noise import generator as numpy_generator
from iresnet_core.backends.numpy import NumPyBackend
from iresnet_core.backends.tensorflow import namespace
from iresnet_core.backends.tensorflow.batch import batch_of_unknown_size, known_shape
from iresnet_core.backends.tensorflow.seed import SeedStream
from iresnet_core.backends.tensorflow.tape import not_recording, recording, some_tape_records
from iresnet_core.errors import DerivativeError, InvalidArgumentError

__all__ = ["TensorFlowBackend"]

# TensorFlow's convolutions on a CPU know channels-last data only.
_LAYOUT = {1: "NWC", 2: "NHWC", 3: "NDHWC"}


class TensorFlowBackend(Backend):
    """TensorFlow tensors and variables, differentiated by persistent tapes."""

    name = "tensorflow"
    xp = namespace
    differentiates = True

    # --- arrays ---

    def owns(self, kind: type) -> bool:
        """Say whether `kind` is a tensor, with values or symbolic, or a variable."""
        return issubclass(kind, tf.Tensor | tf.Variable)

    def to_numpy(self, x: Array) -> Any:
        """Copy to the host."""
        return np.array(x)

    def from_numpy(self, x: Any, like: Array | None = None) -> Array:
        """Copy, to the device of `like`."""
        return namespace.asarray(np.array(x), device=None if like is None else like.device)

    def frozen(self, x: Array) -> Array:
        """Return a tensor, which nobody can change: of a variable, its value now.

        In a graph a tensor that has its value stays as it is, since a copy would have none.
        """
        return x if self.is_tracing() and not isinstance(x, tf.Variable) else tf.identity(x)

    # --- noise ---

    def generator(self, rng: Any) -> Any:
        """Return NumPy's generator for an int seed, TensorFlow's stateless one for a seed tensor.

        None stays None, TensorFlow's own global generator.
        """
        if isinstance(rng, tf.Tensor):
            return SeedStream(rng)
        return rng if rng is None or isinstance(rng, tf.random.Generator | SeedStream) else _host_generator(rng)

    def sample(self, kind: NoiseKind, shape: tuple[int, ...], like: Array, rng: Any) -> Array:
        """Draw as TensorFlow does for None, a tf.random.Generator and a seed tensor, anew on every call of a program.

        For an int seed and for NumPy's generators the host draws, once in a traced program; a seed then gives the same
        noise as on every other backend.
        """
        source = self.generator(rng)
        if source is None or isinstance(source, tf.random.Generator | SeedStream):
            return _native_draw(kind, known_shape(shape), like.dtype, tf.random if source is None else source)
        if None in shape:
            raise InvalidArgumentError(
                "an int seed or a generator of NumPy's draws on the host, which does not know the size of this batch "
                "while the program is traced. Pass a tf.random.Generator, a seed tensor or noise=, or give the batch "
                "a known size."
            )
        return tf.cast(self.from_numpy(draw(kind, shape, source), like), like.dtype)

    def uniform(self, shape: tuple[int, ...], rng: Any) -> Any:
        """Draw from the same generator as `sample`; for the host, which a traced program has for a seed only."""
        source = self.generator(rng)
        if source is not None and not isinstance(source, tf.random.Generator | SeedStream):
            return np.asarray(source.random(shape))
        if self.is_tracing():
            raise InvalidArgumentError(
                f"{NO_HOST_DRAW} An int seed as rng is a constant too; probes and lengths are then the same on every "
                "call."
            )
        if isinstance(source, SeedStream):
            return source.fractions(shape).numpy()
        return (tf.random if source is None else source).uniform(shape, dtype=tf.float64).numpy()

    # --- convolution and factorisation ---

    def conv(
        self,
        x: Array,
        kernel: Array,
        *,
        stride: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        groups: int,
    ) -> Array:
        """Call TensorFlow's convolution group by group; go tap by tap with a stride, dilation or many groups."""
        window, axes = kernel.shape[2:], len(kernel.shape) - 2
        if not _native(window, stride, dilation, groups):
            return convolution.conv(
                namespace, x, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
            )
        last = tf.pad(_channels_last(x), [(0, 0), *padding, (0, 0)])
        images = [
            tf.nn.convolution(part, taps, 1, "VALID", data_format=_LAYOUT[axes])
            for part, taps in zip(tf.split(last, groups, axis=-1), _filters(kernel, groups), strict=True)
        ]
        return _channels_first(images[0] if groups == 1 else tf.concat(images, axis=-1))

    def conv_transpose(
        self,
        y: Array,
        kernel: Array,
        *,
        spatial: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        groups: int,
    ) -> Array:
        """Call TensorFlow's transposed convolution, or go tap by tap, as in `conv`."""
        window, axes = kernel.shape[2:], len(kernel.shape) - 2
        if not _native(window, stride, dilation, groups):
            return convolution.conv_transpose(
                namespace,
                y,
                kernel,
                spatial=spatial,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
            )
        extent = [n + lo + hi for n, (lo, hi) in zip(spatial, padding, strict=True)]
        batch = tf.shape(y)[0] if y.shape[0] is None else y.shape[0]
        shape = (batch, *extent, kernel.shape[1])
        images = [
            tf.nn.conv_transpose(part, taps, shape, 1, "VALID", data_format=_LAYOUT[axes])
            for part, taps in zip(tf.split(_channels_last(y), groups, axis=-1), _filters(kernel, groups), strict=True)
        ]
        whole = images[0] if groups == 1 else tf.concat(images, axis=-1)
        inner = tuple(slice(lo, lo + n) for n, (lo, _) in zip(spatial, padding, strict=True))
        return _channels_first(whole[(slice(None), *inner)])

    def bits(self, x: Array) -> Array:
        """Read the memory in another way."""
        return tf.bitcast(tf.stop_gradient(x), tf.int32)

    def logistic(self, x: Array) -> Array:
        """Call ``tf.sigmoid``."""
        return tf.sigmoid(x)

    def erf(self, x: Array) -> Array:
        """Call ``tf.math.erf``."""
        return tf.math.erf(x)

    def is_positive_definite(self, matrix: Array) -> bool:
        """LAPACK's potrf on the host.

        TensorFlow's own factorisation writes every refusal into the log, and may leave a factor without NaN behind.
        """
        return _HOST.is_positive_definite(np.asarray(matrix))

    def is_accelerated(self, x: Array) -> bool:
        """Whether a concrete tensor is on another device than the CPU."""
        return not self.is_tracing(x) and "CPU" not in x.device.upper()

    # --- derivatives ---

    def vjp(self, fn: Callable[[Array], Array], x: Array) -> tuple[Array, Pullback]:
        """Record `fn` on a persistent tape; the pullback is itself recorded by the tapes around it."""
        point = tf.identity(x)
        with recording(), tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(point)
            value = fn(point)

        def pullback(u: Array) -> Array:
            return tf.convert_to_tensor(
                tape.gradient(value, point, output_gradients=u, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            )

        return value, pullback

    def may_differentiate(self, *arrays: Array) -> bool:
        """Say whether a program is being traced, or a tape of this thread records."""
        return self.is_tracing() or some_tape_records()

    def stop_gradient(self, x: Array) -> Array:
        """Call ``tf.stop_gradient``."""
        return tf.stop_gradient(x)

    def no_grad(self) -> AbstractContextManager[Any]:
        """Pause all tapes of this thread."""
        return not_recording()

    def map_cotangent(self, x: Array, fn: Callable[[Array], Array]) -> Array:
        """Set a custom gradient; what `fn` returns refuses to be differentiated, also by what it closes over."""

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def unchanged(x: Array) -> tuple[Array, Callable[..., Array]]:
            def pulled_back(cotangent: Array) -> Array:
                with batch_of_unknown_size(cotangent):
                    return _first_order_only(fn(cotangent), x, cotangent)

            return tf.identity(x), pulled_back

        return unchanged(x)

    def recomputed(self, fn: Callable[..., Noted], arrays: Sequence[Array]) -> Noted:
        """Call ``tf.recompute_grad``, which orders the second evaluation behind what its cotangents need."""
        if not self.may_differentiate(*arrays):
            return fn(*arrays)
        said = None

        def evaluated(*arrays: Array) -> tuple[Array, ...]:
            nonlocal said
            out, said = fn(*arrays)
            return out

        return tuple(tf.recompute_grad(evaluated)(*arrays)), said

    # --- programs ---

    def is_tracing(self, *arrays: Array) -> bool:
        """Say whether a graph is being built."""
        return not tf.executing_eagerly()

    def batch_of_unknown_size(self, x: Array) -> AbstractContextManager[Any]:
        """Let None mean the size that a graph finds out when it runs."""
        return batch_of_unknown_size(x) if len(x.shape) and x.shape[0] is None else nullcontext()

    def knows_size(self, extent: Any) -> bool:
        """Whether it is not None, as in a graph for batches of any size."""
        return extent is not None

    def is_constant(self, *arrays: Array) -> bool:
        """Say whether all are eager tensors; the value of a variable is known outside of graphs only."""
        if not self.is_tracing():
            return True
        return not any(isinstance(x, tf.Variable) or tf.is_symbolic_tensor(x) for x in arrays)

    def while_loop(
        self,
        cond: Callable[..., Any],
        body: Callable[..., tuple[Any, ...]],
        state: tuple[Any, ...],
        max_iter: int,
    ) -> tuple[Any, ...]:
        """Loop in Python, or by ``tf.while_loop`` in a graph."""
        if not self.is_tracing():
            return super().while_loop(cond, body, state, max_iter)
        start = tuple(tf.convert_to_tensor(x) for x in state)

        def step(*state: Array) -> tuple[Array, ...]:
            return tuple(
                tf.convert_to_tensor(new, dtype=old.dtype) for new, old in zip(body(*state), state, strict=True)
            )

        # Stopped, so that no tape keeps the loop's intermediate results, which XLA could not hand out.
        return tuple(map(tf.stop_gradient, tf.while_loop(cond, step, start, maximum_iterations=max_iter)))

    def concretely(self, fn: Callable[[], Any]) -> Any:
        """Leave the graph; a variable of the traced program is read as it is at the time of tracing."""
        with tf.init_scope():
            return fn()

    def jit(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return the ``tf.function``, whose Python is taken as it is (no AutoGraph)."""
        compiled: Callable[..., Any] = tf.function(fn, autograph=False)
        return compiled


_HOST = NumPyBackend()


def _host_generator(rng: Any) -> Any:
    try:
        return numpy_generator(rng)
    except InvalidArgumentError as error:
        if isinstance(rng, int):
            raise
        raise InvalidArgumentError(
            "rng must be None, an int seed, a seed tensor (2,), a tf.random.Generator or a numpy.random.Generator "
            f"here, got {type(rng).__name__}."
        ) from error


def _native_draw(kind: NoiseKind, shape: tuple[int, ...], dtype: Any, source: Any) -> Array:
    """Draw from ``tf.random`` or one of its generators."""
    if kind == "gaussian":
        return source.normal(shape, dtype=dtype)
    if kind == "rademacher":
        return tf.cast(2 * source.uniform(shape, 0, 2, dtype=tf.int32) - 1, dtype)
    raise InvalidArgumentError(f"noise must be 'rademacher' or 'gaussian', got {kind!r}.")


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _first_order_only(mapped: Array, *sources: Array) -> tuple[Array, Callable[..., Array]]:
    """Return `mapped`, and refuse to differentiate it with respect to itself or what it depends on."""

    def refuse(cotangent: Array) -> Array:
        raise DerivativeError(
            "a second derivative through the implicit gradient of an inverse was asked for, which would be wrong: the "
            "solve in the backward pass is not differentiated. Use first derivatives only, or unroll the iteration."
        )

    return tf.identity(mapped), refuse


def _native(window: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int) -> bool:
    """Whether TensorFlow's convolutions are right for this geometry, and take no more products than there are taps.

    They have no derivative on a CPU where they are dilated, nor in groups, which are therefore taken one by one. With
    a stride, those of TensorFlow 2.21 return wrong numbers on a CPU for one input channel, and their
    derivative by the kernel writes beyond its memory.
    """
    plain = all(n == 1 for n in (*stride, *dilation))
    return plain and len(window) in _LAYOUT and (groups == 1 or groups < math.prod(window))


def _channels_last(x: Array) -> Array:
    return namespace.moveaxis(x, 1, -1)


def _channels_first(x: Array) -> Array:
    return namespace.moveaxis(x, -1, 1)


def _filters(kernel: Array, groups: int) -> list[Array]:
    """Return one kernel (*window, in / groups, out / groups) for each group."""
    axes = len(kernel.shape) - 2
    parts: list[Array] = tf.split(tf.transpose(kernel, (*range(2, axes + 2), 1, 0)), groups, axis=-1)
    return parts
