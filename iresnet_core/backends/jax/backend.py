"""JAX backend: every array is a constant, every function may be traced by grad, jit or vmap."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from iresnet_core.backends.base import (
    NO_FORWARD_MODE,
    NO_HOST_DRAW,
    Array,
    Backend,
    NoiseKind,
    Noted,
    Pullback,
    device_of,
)
from iresnet_core.backends.host_noise import draw, generator
from iresnet_core.backends.jax.keys import KeyStream, draw_native
from iresnet_core.backends.jax.namespace import EXACT, namespace
from iresnet_core.backends.jax.precision import borrowed, has_float64, x64
from iresnet_core.backends.jax.tracing import (
    concrete_value,
    constants,
    converted_closure,
    no_cotangent,
    once_derivable,
)
from iresnet_core.errors import DerivativeError, DtypeError, InvalidArgumentError

__all__ = ["JaxBackend"]


def _owns(kind: type) -> bool:
    return issubclass(kind, jax.Array | jax.core.Tracer)


class JaxBackend(Backend):
    """JAX: derivatives and loops are transformations of the traced program."""

    name = "jax"
    xp = namespace
    differentiates = True

    def owns(self, kind: type) -> bool:
        """Say whether `kind` is JAX's array or one of its tracers."""
        return _owns(kind)

    def to_numpy(self, x: Array) -> Any:
        """Copy; within grad the value, without its derivative."""
        value = concrete_value(x)
        return np.array(x if value is None else value)  # JAX's own error says that there is no value yet

    def from_numpy(self, x: Any, like: Array | None = None) -> Array:
        """Copy, to the device of `like`.

        Raises
        ------
        DtypeError
            For a dtype that JAX would silently narrow, since its 64-bit types are off.
        """
        host = np.asarray(x)
        kept = jax.dtypes.canonicalize_dtype(host.dtype)
        if kept != host.dtype and not (host.dtype.kind in "iu" and np.all(host == host.astype(kept))):
            raise DtypeError(
                f"JAX has no {host.dtype} arrays while its 64-bit types are off. Set the environment variable "
                "JAX_ENABLE_X64=1 or call jax.config.update('jax_enable_x64', True) at the start of the program, or "
                f"convert to {kept} first."
            )
        return jnp.array(host, dtype=kept, device=None if like is None else device_of(like))

    # --- noise ---

    def generator(self, rng: Any) -> Any:
        """Return a stream of keys for a key; otherwise NumPy's generator, so that a seed means the same everywhere.

        Raises
        ------
        InvalidArgumentError
            Without `rng` in a traced program, whose noise would be the same on every call.
        """
        if isinstance(rng, KeyStream):
            return rng
        if _owns(type(rng)):
            return KeyStream(rng)
        if rng is None and self.is_tracing():
            raise InvalidArgumentError(
                "without rng the noise would be drawn once, while the program is traced, and be the same on every "
                "call. Pass rng=key with a JAX key that is an argument of the traced function, or noise=."
            )
        return generator(rng)

    def sample(self, kind: NoiseKind, shape: tuple[int, ...], like: Array, rng: Any) -> Array:
        """Draw with JAX from a key, else with NumPy in float64 and round, so that float32 runs see the same noise."""
        source = self.generator(rng)
        if isinstance(source, KeyStream):
            return draw_native(kind, shape, like.dtype, source.next())
        return self.from_numpy(draw(kind, shape, source).astype(like.dtype), like)

    def uniform(self, shape: tuple[int, ...], rng: Any) -> Any:
        """Draw from the same generator as `sample`.

        Raises
        ------
        InvalidArgumentError
            For a key without a value, since the numbers decide on the host what is traced.
        """
        source = self.generator(rng)
        if not isinstance(source, KeyStream):
            return np.asarray(source.random(shape))
        if not self.is_constant(source.key):
            raise InvalidArgumentError(
                f"{NO_HOST_DRAW} An int seed, or a key that is no argument of the program, is a constant too; probes "
                "and lengths are then the same on every call."
            )
        with jax.ensure_compile_time_eval(), self.full_precision():
            return np.asarray(jax.random.uniform(source.next(), shape, np.float64))

    def is_accelerated(self, x: Array) -> bool:
        """Whether a concrete array is on another device than the CPU."""
        return not isinstance(x, jax.core.Tracer) and any(device.platform != "cpu" for device in x.devices())

    # --- derivatives ---

    def vjp(self, fn: Callable[[Array], Array], x: Array) -> tuple[Array, Pullback]:
        """Return ``fn(x)`` and the transpose of its derivative."""
        value, pullback = jax.vjp(fn, x)
        return value, lambda u: pullback(u)[0]

    def may_differentiate(self, *arrays: Array) -> bool:
        """Say whether a value is traced, or the whole program."""
        return any(isinstance(x, jax.core.Tracer) for x in arrays) or self.is_tracing()

    def stop_gradient(self, x: Array) -> Array:
        """Return `x` with a zero tangent."""
        return lax.stop_gradient(x)

    def map_cotangent(self, x: Array, fn: Callable[[Array], Array]) -> Array:
        """Return `x` with a derivative rule of its own, to which what `fn` closes over is passed as constants."""
        if not isinstance(x, jax.core.Tracer):
            return x
        converted, closed_over = converted_closure(fn, x)
        wide = has_float64()

        @jax.custom_vjp
        def same(x: Array, *consts: Array) -> Array:
            return x

        def forward(x: Array, *consts: Array) -> tuple[Array, Any]:
            return x, (x, consts)

        def backward(kept: Any, cotangent: Array) -> Any:
            x, consts = kept
            with x64(wide):  # the backward pass runs after the context of the forward pass has been left
                # On what `fn` reads rather than on its result, which depends on it through loops without derivative;
                # on `x` for those that are solutions themselves, and so constants.
                once_derivable(x)
                mapped = converted([once_derivable(c) for c in consts], once_derivable(cotangent))
                return (mapped, *map(no_cotangent, consts))

        same.defvjp(forward, backward)
        return self._reverse_only(same, x, *closed_over)

    # --- products ---

    def rows_times(self, v: Array, matrix: Array) -> Array:
        """Multiply as it is: XLA makes one product of it, and devices that share samples out keep their own."""
        return self.xp.matmul(v, matrix)

    # --- programs ---

    def is_tracing(self, *arrays: Array) -> bool:
        """Say whether jit is at work here, or a value is hidden by vmap; within grad alone values are known."""
        return isinstance(jnp.zeros(()), jax.core.Tracer) or not self.is_constant(*arrays)

    def are_of_one_program(self, x: Array, y: Array) -> bool:
        """Compare the traces to which the tracers belong; arrays with values have none."""
        return getattr(x, "_trace", None) is getattr(y, "_trace", None)

    def is_constant(self, *arrays: Array) -> bool:
        """Say whether the values of all `arrays` are known."""
        return all(concrete_value(x) is not None for x in arrays)

    def knows_size(self, extent: Any) -> bool:
        """Whether it is a number, and not a variable of a program that is exported for any size."""
        return isinstance(extent, int)

    def while_loop(
        self,
        cond: Callable[..., Any],
        body: Callable[..., tuple[Any, ...]],
        state: tuple[Any, ...],
        max_iter: int,
    ) -> tuple[Any, ...]:
        """Loop in Python as long as the condition is known, else with `lax.while_loop`."""
        state = constants(state)
        for done in range(max_iter):
            unfinished = None if self.is_tracing(*state) else concrete_value(cond(*state))
            if unfinished is None:
                return self._native_loop(cond, body, state, max_iter - done)
            if not bool(unfinished):
                break
            state = constants(tuple(body(*state)))
        return state

    def _native_loop(self, cond: Any, body: Any, state: tuple[Any, ...], max_iter: int) -> tuple[Any, ...]:
        """Run the whole loop as one operation, without tangents of what `cond` and `body` close over."""
        state = tuple(map(jnp.asarray, state))
        cond, of_cond = converted_closure(cond, *state)
        body, of_body = converted_closure(body, *state)
        of_cond, of_body = constants((of_cond, of_body))
        _, *result = lax.while_loop(
            lambda carry: (carry[0] < max_iter) & cond(of_cond, *carry[1:]),
            lambda carry: (carry[0] + 1, *body(of_body, *carry[1:])),
            (jnp.zeros((), jnp.int32), *state),
        )
        return tuple(result)

    def concretely(self, fn: Callable[[], Any]) -> Any:
        """Compute while tracing."""
        with jax.ensure_compile_time_eval():
            return fn()

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Context with 64-bit arrays, for this thread only; the switch of the process stays as it is."""
        before = borrowed.here
        borrowed.here = before or not has_float64()
        try:
            with x64(True):
                yield
        finally:
            borrowed.here = before

    def differentiated_in_float64(self, fn: Callable[[Array], Array], x: Array) -> Array:
        """Return ``fn(x)``; where the process has no 64-bit types, with a derivative rule of its own.

        JAX would transpose the float64 operations of `fn` after their context has been left. Forward mode and second
        derivatives, which the rule lacks, are for processes with 64-bit types.
        """
        if not borrowed.here:
            return fn(x)
        converted, closed_over = converted_closure(fn, x)

        @jax.custom_vjp
        def value(x: Array, *consts: Array) -> Array:
            return converted(consts, x)

        def forward(x: Array, *consts: Array) -> tuple[Array, Any]:
            with self.full_precision():
                return converted(consts, x), (x, consts)

        def backward(kept: Any, cotangent: Array) -> Any:
            x, consts = kept
            with self.full_precision():
                inexact = [jnp.issubdtype(c.dtype, jnp.inexact) for c in consts]

                def of_inexact(x: Array, moving: list[Array]) -> Array:
                    moved = iter(moving)
                    return converted([next(moved) if m else c for m, c in zip(inexact, consts, strict=True)], x)

                moving = [once_derivable(c) for m, c in zip(inexact, consts, strict=True) if m]
                value, pullback = jax.vjp(of_inexact, once_derivable(x), moving)
                of_x, found = pullback(jnp.astype(cotangent, value.dtype))
                others = iter(found)
                return (of_x, *(next(others) if m else no_cotangent(c) for m, c in zip(inexact, consts, strict=True)))

        value.defvjp(forward, backward)
        return self._reverse_only(value, x, *closed_over)

    def recomputed(self, fn: Callable[..., Noted], arrays: Sequence[Array]) -> Noted:
        """Return ``fn(*arrays)`` with a derivative rule of its own, which keeps `arrays` and what `fn` closes over.

        Not `jax.checkpoint`, for the reason in `differentiated_in_float64`, and because XLA drops its barriers on a
        CPU, finds that the second evaluation is the first, and keeps that. So the arguments of the second get a zero
        added that depends on the cotangents.
        """
        if not self.may_differentiate(*arrays):
            return fn(*arrays)
        said = None

        def evaluated(*arrays: Array) -> tuple[Array, ...]:
            nonlocal said
            out, said = fn(*arrays)
            return out

        converted, closed_over = converted_closure(evaluated, *arrays)
        count, wide = len(arrays), has_float64()

        @jax.custom_vjp
        def value(*arguments: Array) -> Any:
            return converted(arguments[count:], *arguments[:count])

        def forward(*arguments: Array) -> tuple[Any, Any]:
            with x64(wide):
                return converted(arguments[count:], *arguments[:count]), arguments

        def backward(kept: Any, cotangents: Any) -> Any:
            with x64(wide):
                inexact = [jnp.issubdtype(a.dtype, jnp.inexact) for a in kept]
                first = jnp.ravel(cotangents[0])[:1]
                nothing = jnp.sum(jnp.where(first == first, -0.0, 0.0))
                later = (a + jnp.astype(nothing, a.dtype) if m else a for m, a in zip(inexact, kept, strict=True))
                kept = tuple(map(once_derivable, later))

                def of_inexact(moving: list[Array]) -> Any:
                    moved = iter(moving)
                    merged = [next(moved) if m else a for m, a in zip(inexact, kept, strict=True)]
                    return converted(merged[count:], *merged[:count])

                _, pullback = jax.vjp(of_inexact, [a for m, a in zip(inexact, kept, strict=True) if m])
                found = iter(pullback(cotangents)[0])
                return tuple(next(found) if m else no_cotangent(a) for m, a in zip(inexact, kept, strict=True))

        value.defvjp(forward, backward)
        return self._reverse_only(value, *arrays, *closed_over), said

    def _reverse_only(self, fn: Callable[..., Any], *args: Array) -> Any:
        """Call a function with a derivative rule of its own, which JAX knows in reverse mode only."""
        try:
            return fn(*args)
        except TypeError as error:
            if "forward-mode" in str(error):
                raise DerivativeError(NO_FORWARD_MODE) from error
            raise

    def jit(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Compile with XLA."""
        return jax.jit(fn)

    # --- linear algebra ---

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
        """Call XLA's convolution."""
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=tuple(stride),
            padding=[(int(lo), int(hi)) for lo, hi in padding],
            rhs_dilation=tuple(dilation),
            feature_group_count=groups,
            precision=EXACT,
        )

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
        """Convolve ``y``, spread by the stride, with the mirrored kernel by XLA."""
        out_channels, group_channels, *window = kernel.shape
        grouped = jnp.reshape(kernel, (groups, out_channels // groups, group_channels, *window))
        mirrored = jnp.flip(jnp.swapaxes(grouped, 1, 2), axis=range(3, 3 + len(window)))
        pads = []
        for n, out, k, s, (lo, _), d in zip(spatial, y.shape[2:], window, stride, padding, dilation, strict=True):
            before = d * (k - 1) - lo
            pads.append((before, n - 1 - (out - 1) * s + d * (k - 1) - before))
        return lax.conv_general_dilated(
            y,
            jnp.reshape(mirrored, (groups * group_channels, out_channels // groups, *window)),
            window_strides=(1,) * len(window),
            padding=pads,
            lhs_dilation=tuple(stride),
            rhs_dilation=tuple(dilation),
            feature_group_count=groups,
            precision=EXACT,
        )

    def bits(self, x: Array) -> Array:
        """Read the memory in another way."""
        return lax.bitcast_convert_type(lax.stop_gradient(x), jnp.int32)

    def logistic(self, x: Array) -> Array:
        """Call ``jax.nn.sigmoid``."""
        return jax.nn.sigmoid(x)

    def erf(self, x: Array) -> Array:
        """Call ``lax.erf``."""
        return lax.erf(x)

    def is_positive_definite(self, matrix: Array) -> bool:
        """Look for the NaN that JAX puts where a pivot is not positive."""
        return bool(jnp.all(jnp.isfinite(jnp.linalg.cholesky(matrix))))
