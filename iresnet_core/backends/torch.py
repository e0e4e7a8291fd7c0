"""PyTorch engine: eager, under torch.compile and torch.func, on the device of its arrays."""

import math
import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from functools import lru_cache
from typing import Any


import numpy as np
import torch
from torch.autograd import forward_ad

from iresnet_core.backends import torch_namespace as namespace
from iresnet_core.backends.base import NO_FORWARD_MODE, Array, Backend, NoiseKind, Pullback
from iresnet_core.backends.numpy import draw
from iresnet_core.backends.numpy import generator as numpy_generator
from iresnet_core.backends.torch_precision import full_precision, own_dtype
from iresnet_core.errors import DerivativeError, InvalidArgumentError

__all__ = ["Engine"]

# Steps between two looks at the condition of a loop on an accelerator, each of which waits for the device.
STEPS_A_LOOK = 8
_CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}


class _Refused(torch.autograd.Function):
    """The first argument, which depends on the others in a way that is not differentiable here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Array, *sources: Array) -> Array:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Array) -> Any:
        raise DerivativeError(
            "a second derivative through the implicit gradient of an inverse was asked for; it would lack the "
            "derivative of the solution itself. Differentiate once, or differentiate the iteration yourself."
        )


class _MapCotangent(torch.autograd.Function):
    """Identity whose backward pass applies a function to the cotangent."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Array, fn: Callable[[Array], Array]) -> Array:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.fn = inputs[1]

    @staticmethod
    def backward(ctx: Any, *cotangents: Array) -> Any:
        (x,) = ctx.saved_tensors
        (cotangent,) = cotangents
        with torch.no_grad(), full_precision():
            mapped = ctx.fn(cotangent)
        return (_Refused.apply(mapped, x, cotangent) if torch.is_grad_enabled() else mapped), None  # type: ignore[no-untyped-call]


class _MapCotangentInReverse(_MapCotangent):
    """The same, refusing forward mode in words of ours; torch.compile takes no function that has a `jvp`."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise DerivativeError(NO_FORWARD_MODE)


class _Entrywise(torch.autograd.Function):
    """A function that acts on every entry and its slope, with one hand-written pass back through both."""

    @staticmethod
    def forward(ctx: Any, x: Array, both: Callable[..., Any], bend: Callable[..., Array]) -> tuple[Array, Array]:
        value, slope, *more = both(x)
        ctx.save_for_backward(x, value, slope, *more)
        ctx.both, ctx.bend = both, bend
        ctx.set_materialize_grads(False)
        return value, slope

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        x, *known = ctx.saved_tensors
        of_value, of_slope = cotangents
        if torch.is_grad_enabled():  # a second derivative will be asked for, and what was saved does not carry it
            known = list(ctx.both(x))
        total = None if of_value is None else of_value * known[1]
        if of_slope is not None:
            bend = ctx.bend(x, *known)
            total = of_slope * bend if total is None else torch.addcmul(total, of_slope, bend)
        return total, None, None


class _ByHand(torch.autograd.Function):
    """A function whose first derivative was written by hand."""

    @staticmethod
    def forward(ctx: Any, forward: Any, backward: Any, plainly: Any, *arrays: Any) -> tuple[Array, ...]:
        outputs, kept = forward(*arrays)
        ctx.save_for_backward(*arrays, *kept)
        ctx.backward_by_hand, ctx.plainly, ctx.count = backward, plainly, len(arrays)
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Array) -> Any:
        saved = ctx.saved_tensors
        arrays, needed = saved[: ctx.count], ctx.needs_input_grad[3:]
        with full_precision():
            if not torch.is_grad_enabled():
                return None, None, None, *ctx.backward_by_hand(arrays, saved[ctx.count :], cotangents, needed)
            wanted = [array for array, need in zip(arrays, needed, strict=True) if need]
            found = iter(
                torch.autograd.grad(
                    ctx.plainly(arrays, saved[ctx.count :]), wanted, cotangents, create_graph=True, allow_unused=True, materialize_grads=True
                )
            )
        return None, None, None, *(next(found) if need else None for need in needed)


class _ScaledProduct(torch.autograd.Function):
    """(scale * v) W^T, whose first factor is made again on the way back: memory is dearer than a multiplication."""

    @staticmethod
    def forward(ctx: Any, v: Array, scale: Array, weight: Array) -> Array:
        ctx.save_for_backward(v, scale, weight)
        return torch.nn.functional.linear(scale * v, weight)

    @staticmethod
    def backward(ctx: Any, *cotangents: Array) -> Any:
        v, scale, weight = ctx.saved_tensors
        (of_product,) = cotangents
        of_v, of_scale, of_weight = ctx.needs_input_grad
        inner = of_product @ weight
        width_in, width_out = weight.shape[1], weight.shape[0]
        return (
            (scale * inner).sum_to_size(v.shape) if of_v else None,
            (inner * v).sum_to_size(scale.shape) if of_scale else None,
            of_product.reshape(-1, width_out).T @ (scale * v).reshape(-1, width_in) if of_weight else None,
        )


class _BilinearForm(torch.autograd.Function):
    """left^T A right, which keeps the vectors, not their product."""

    @staticmethod
    def forward(ctx: Any, left: Array, matrix: Array, right: Array) -> Array:
        ctx.save_for_backward(left, right)
        return (left[..., None, :] @ (matrix @ right[..., :, None]))[..., 0, 0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Array) -> Any:
        left, right = ctx.saved_tensors
        return None, (cotangents[0][..., None] * left)[..., :, None] * right[..., None, :], None


def _seeded(seed: Array) -> torch.Generator:
    """Return a generator with the seed that a tensor of whole numbers holds, all of which count."""
    if seed.is_floating_point() or seed.is_complex() or seed.ndim > 1:
        raise InvalidArgumentError(
            f"a seed tensor holds whole numbers, got dtype {seed.dtype} and shape {tuple(seed.shape)}."
        )
    words = np.atleast_1d(seed.cpu().numpy()).astype(np.int64).astype(np.uint32)
    state = int(np.random.SeedSequence(words.tolist()).generate_state(1, np.uint64)[0])
    return torch.Generator(device=seed.device).manual_seed(state % 2**63)


@lru_cache(maxsize=32)
def _signs_of_bytes(dtype: Any, device: Any) -> Array:
    """The eight signs (256, 8) that the bits of every byte stand for."""
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
    return (2 * bits - 1).to(dtype)


def _signs(shape: tuple[int, ...], dtype: Any, device: Any, source: torch.Generator | None) -> Array:
    """Entries +1 and -1 with equal chance, eight of each random byte: numbers are slower to draw than to look up."""
    size = math.prod(shape)
    # Given as None, the generator would rule out sizes that a compiled program is to find out.
    chosen: dict[str, Any] = {} if source is None else {"generator": source}
    words = torch.randint(0, 256, (-(-size // 8), 1), dtype=torch.uint8, device=device, **chosen)
    if torch.compiler.is_compiling() or _inside_functorch():
        masks = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)
        signs = 2 * (words & masks).to(torch.bool).to(dtype) - 1
    else:
        signs = torch.nn.functional.embedding(words[:, 0].to(torch.int64), _signs_of_bytes(dtype, device))
    return signs.reshape(-1)[:size].reshape(shape)


class Engine(Backend):
    """PyTorch: automatic differentiation, native convolutions, `torch.compile`."""

    name = "torch"
    xp = namespace
    differentiates = True

    def owns(self, kind: type) -> bool:
        """Say whether `kind` is a tensor or a subclass, such as a parameter."""
        return issubclass(kind, torch.Tensor)

    def to_numpy(self, x: Array) -> Any:
        """Copy to the host; bfloat16, which NumPy lacks, becomes float32."""
        host = x.detach().cpu()
        return np.array((host.float() if host.dtype == torch.bfloat16 else host).resolve_conj().numpy())

    def from_numpy(self, x: Any, like: Array | None = None) -> Array:
        """Copy, to the device of `like`."""
        return torch.tensor(np.asarray(x), device=None if like is None else like.device)

    # --- noise ---

    def generator(self, rng: Any) -> Any:
        """Return a torch.Generator or None as it is; an int seed is one of NumPy's, the same on every engine.

        A tensor of whole numbers is the seed of a torch.Generator on its device.
        """
        if isinstance(rng, torch.Tensor):
            return _seeded(rng)
        if rng is None or isinstance(rng, torch.Generator | _TracedSeed):
            return rng
        if torch.compiler.is_compiling() and isinstance(rng, int):
            return _TracedSeed(rng)
        try:
            return numpy_generator(rng)
        except InvalidArgumentError as error:
            if isinstance(rng, int):
                raise
            raise InvalidArgumentError(
                f"rng must be None, an int seed, a torch.Generator or a numpy.random.Generator here, got "
                f"{type(rng).__name__}."
            ) from error

    def sample(self, kind: NoiseKind, shape: tuple[int, ...], like: Array, rng: Any) -> Array:
        """Draw with PyTorch on the device of `like`, or, from an int seed or NumPy's generator, on the host."""
        source = self.generator(rng)
        if isinstance(source, _TracedSeed):
            source.draws = (*source.draws, (kind, tuple(map(operator.index, shape))))
            return self.constant_array(_last_draw, source.seed, source.draws, like=like).to(like.dtype)
        if source is not None and not isinstance(source, torch.Generator):
            return self.from_numpy(draw(kind, shape, source), like).to(like.dtype)
        device = like.device if source is None else source.device
        if kind == "gaussian":
            noise = torch.randn(shape, dtype=like.dtype, device=device, generator=source)
        elif kind == "rademacher":
            noise = _signs(shape, like.dtype, device, source)
        else:
            raise InvalidArgumentError(f"noise must be 'rademacher' or 'gaussian', got {kind!r}.")
        return noise.to(like.device)

    def uniform(self, shape: tuple[int, ...], rng: Any) -> Any:
        """Draw on the host."""
        if torch.compiler.is_compiling():
            raise InvalidArgumentError(
                "a number that decides how much is computed cannot be drawn in a compiled function. Pass noise=, for the "
                "roulette a pair (probes, lengths), or use method='arnoldi'."
            )
        source = self.generator(rng)
        if source is not None and not isinstance(source, torch.Generator):
            return np.asarray(source.random(shape))
        device = "cpu" if source is None else source.device
        return torch.rand(shape, dtype=torch.float64, device=device, generator=source).cpu().numpy()

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
        """PyTorch's convolution; uneven padding is put on beforehand."""
        even = [min(pair) for pair in padding]
        extra = [side - least for pair, least in zip(padding, even, strict=True) for side in pair]
        if any(extra):
            # `pad` counts the axes from the last one.
            pairs = [tuple(extra[i : i + 2]) for i in range(0, len(extra), 2)]
            x = torch.nn.functional.pad(x, [side for pair in reversed(pairs) for side in pair])
        convolution = _CONVOLUTIONS[len(padding)]
        with own_dtype(x):
            return convolution(x, kernel, None, tuple(stride), tuple(even), tuple(dilation), groups)

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
        """PyTorch's transposed convolution on the padded extent, of which the inside is kept."""
        padded = [n + sum(pair) for n, pair in zip(spatial, padding, strict=True)]
        # Rows that the strided window never reached are outputs all the same.
        missed = [
            n - ((out - 1) * s + d * (k - 1) + 1)
            for n, out, s, d, k in zip(padded, y.shape[2:], stride, dilation, kernel.shape[2:], strict=True)
        ]
        with own_dtype(y):
            full = torch.ops.aten.convolution.default(
                y,
                kernel,
                None,
                list(stride),
                [0] * len(padded),
                list(dilation),
                True,
                [min(m, max(s, d) - 1) for m, s, d in zip(missed, stride, dilation, strict=True)],
                groups,
            )
        for axis, (n, (before, _)) in enumerate(zip(spatial, padding, strict=True), start=2):
            lacking = before + n - full.shape[axis]
            if lacking > 0:
                pad = [0, 0] * (full.ndim - 1 - axis) + [0, lacking]
                full = torch.nn.functional.pad(full, pad)
            full = full.narrow(axis, before, n)
        return full

    def affine(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """``torch.nn.functional.linear``."""
        with own_dtype(x):
            return torch.nn.functional.linear(x, weight, bias)

    def scaled_product(self, v: Array, scale: Array, weight: Array) -> Array:
        """In eager training through an autograd.Function."""
        if not _records_plainly(v, scale, weight):
            return super().scaled_product(v, scale, weight)
        product: Array = _ScaledProduct.apply(v, scale, weight)  # type: ignore[no-untyped-call]
        return product

    def bilinear_form(self, left: Array, matrix: Array, right: Array) -> Array:
        """In eager training through an autograd.Function."""
        if not _records_plainly(matrix):
            return super().bilinear_form(left, matrix, right)
        form: Array = _BilinearForm.apply(left, matrix, right)  # type: ignore[no-untyped-call]
        return form

    def inverse_with_log_determinant(self, A: Array) -> tuple[Array, Array]:
        """From one LU factorisation."""
        factors, pivots = torch.linalg.lu_factor(A)
        unit = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        return torch.linalg.lu_solve(factors, pivots, unit), factors.diagonal().abs().log().sum()

    def multiply_add(self, a: Array, x: Array, y: Array) -> Array:
        """``torch.addcmul``."""
        return torch.addcmul(a, x, y)

    def all_finite(self, x: Array) -> bool:
        """By the sum, which is not finite if an entry is not; it may overflow, and then the entries are looked at."""
        return math.isfinite(float(x.detach().sum())) or bool(torch.isfinite(x).all())

    def logistic(self, x: Array) -> Array:
        """``torch.sigmoid``."""
        return torch.sigmoid(x)

    def is_positive_definite(self, matrix: Array) -> bool:
        """LAPACK's (or the device's) potrf, which reports its refusal as a number."""
        factor, info = torch.linalg.cholesky_ex(matrix)
        # What is not finite reaches the diagonal of its row.
        return bool((info == 0).all() & torch.isfinite(factor.diagonal(dim1=-2, dim2=-1)).all())

    def has_values(self, x: Array) -> bool:
        """Not on the device "meta"."""
        return bool(x.device.type != "meta")

    def are_together(self, x: Array, y: Array) -> bool:
        """On one device."""
        return bool(x.device == y.device)

    def is_accelerated(self, x: Array) -> bool:
        """Whether the tensor is on another device than the CPU."""
        return bool(x.device.type != "cpu")

    # --- derivatives ---

    def vjp(self, fn: Callable[[Array], Array], x: Array) -> tuple[Array, Pullback]:
        """One retained graph serves all products; `torch.func.vjp` where graphs of that kind cannot be had."""
        if torch.compiler.is_compiling() or _inside_functorch() or torch.is_inference_mode_enabled():
            value, pullback, *_ = torch.func.vjp(fn, x)
            return value, lambda u: pullback(u)[0]
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            point = x if recorded and x.requires_grad else x.detach().requires_grad_()
            value = fn(point)

        def product(u: Array) -> Array:
            if not value.requires_grad:
                return torch.zeros_like(x)
            (out,) = torch.autograd.grad(
                value, point, u, retain_graph=True, create_graph=torch.is_grad_enabled(), materialize_grads=True
            )
            return out

        return value if recorded else value.detach(), product

    def may_differentiate(self, *arrays: Array) -> bool:
        """Whether a graph is being recorded for one of the arrays, or PyTorch is transforming the program.

        ``torch.no_grad`` does not end the latter: forward mode does not heed it.
        """
        if not torch.compiler.is_compiling() and (_inside_functorch() or forward_ad._current_level >= 0):
            return True
        return torch.is_grad_enabled() and any(a.requires_grad for a in arrays)

    def stop_gradient(self, x: Array) -> Array:
        """Detach."""
        return x.detach()

    def unrecorded(self) -> AbstractContextManager[Any]:
        """``torch.no_grad()``."""
        return torch.no_grad()

    def map_cotangent(self, x: Array, fn: Callable[[Array], Array]) -> Array:
        """Through an autograd.Function."""
        function = _MapCotangent if torch.compiler.is_compiling() else _MapCotangentInReverse
        out: Array = function.apply(x, fn)  # type: ignore[no-untyped-call]
        return out

    def entrywise(
        self, x: Array, both: Callable[[Array], tuple[Array, ...]], bend: Callable[..., Array]
    ) -> tuple[Array, Array]:
        """In eager training through an autograd.Function; compilers do as well by themselves."""
        if not _records_plainly(x):
            return super().entrywise(x, both, bend)
        value, slope = _Entrywise.apply(x, both, bend)  # type: ignore[no-untyped-call]
        return value, slope

    def takes_derivatives_by_hand(self, *arrays: Array) -> bool:
        """In eager training; compilers do as well by themselves."""
        return _records_plainly(*arrays)

    def with_derivative_by_hand(
        self,
        forward: Callable[..., tuple[tuple[Array, ...], tuple[Array, ...]]],
        backward: Callable[..., Sequence[Any]],
        plainly: Callable[..., tuple[Array, ...]],
        arrays: Sequence[Any],
    ) -> tuple[Array, ...]:
        """In eager training through an autograd.Function."""
        known = [a for a in arrays if a is not None]
        if not _records_plainly(*known):
            plain, kept = forward(*arrays)
            return plainly(arrays, kept) if self.may_differentiate(*known) else plain
        outputs: tuple[Array, ...] = _ByHand.apply(forward, backward, plainly, *arrays)  # type: ignore[no-untyped-call]
        return outputs

    def first_order_only(self, x: Array) -> Array:
        """As it is while compiling, where PyTorch itself refuses second derivatives."""
        return x if torch.compiler.is_compiling() else super().first_order_only(x)

    # --- programs ---

    def float64(self) -> AbstractContextManager[Any]:
        """Without autocast, and without TF32 or the like where the program is not compiled."""
        return full_precision()

    def is_tracing(self, *arrays: Array) -> bool:
        """Whether torch.compile or torch.export is at work, or vmap hides the values."""
        if torch.compiler.is_compiling():
            return True
        return _inside_functorch() and any(map(_is_batched, arrays))

    def while_loop(
        self,
        cond: Callable[..., Any],
        body: Callable[..., tuple[Any, ...]],
        state: tuple[Any, ...],
        max_iter: int,
    ) -> tuple[Any, ...]:
        """Python loop; `torch.while_loop` under torch.compile."""
        if torch.compiler.is_compiling():
            return _compiled_loop(cond, body, state, max_iter)
        look = 1 if all(a.device.type == "cpu" for a in state) else STEPS_A_LOOK
        blind = _inside_functorch() and any(map(_is_batched, state))  # then the values are hidden, and all steps taken
        for k in range(max_iter):
            if not blind and k % look == 0 and not bool(cond(*state)):
                break
            state = body(*state)
        return state

    def at_compile_time(self, fn: Callable[[], Any]) -> Any:
        """Leave inference mode, whose tensors no later backward pass could save."""
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return fn()
        with torch.inference_mode(False), torch.no_grad():
            return fn()

    def loops_over_products(self) -> bool:
        """Not under torch.compile, whose loops take no ``torch.func.vjp``."""
        return not torch.compiler.is_compiling()

    def frozen(self, x: Array) -> Array:
        """Return a plain tensor with storage of its own; derivatives flow back to `x`."""
        return x.clone() if self.may_differentiate(x) else x.detach().clone()

    def copied(self, x: Array, memo: dict[int, Any]) -> Array:
        """PyTorch's copy; of a result of a recorded computation, which it refuses to copy, a clone with that history."""
        if x.is_leaf:
            return deepcopy(x, memo)
        with torch.enable_grad():
            return x.clone()

    def fixed(self, *numbers: float) -> tuple[float, ...]:
        """With ``dynamic=True`` the compiler takes numbers for variables, which its loops do not capture."""
        return tuple(map(_fixed, numbers)) if torch.compiler.is_compiling() else numbers

    def host_constant(self, fn: Callable[..., Any], *numbers: Any) -> Any:
        """Evaluated once, when the program is compiled."""
        return _evaluated(fn, *map(_fixed, numbers)) if torch.compiler.is_compiling() else fn(*numbers)

    def constant_array(self, fn: Callable[..., Any], *numbers: Any, like: Array) -> Array:
        """Evaluated once, when the program is compiled."""
        if not torch.compiler.is_compiling():
            return self.from_numpy(fn(*numbers), like)
        numbers = tuple(map(_fixed, numbers))
        return _NUMBERED[_number_of(fn, *numbers)](fn, *numbers).to(like.device)

    def jit(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """``torch.compile(fn, fullgraph=True)``."""
        return torch.compile(fn, fullgraph=True)


class _TracedSeed:
    """An int seed in a program that is being compiled: what has been drawn from it is known, and so is the next draw."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.draws: tuple[tuple[Any, tuple[int, ...]], ...] = ()


def _last_draw(seed: int, draws: tuple[tuple[Any, tuple[int, ...]], ...]) -> np.ndarray:
    """Draw everything again, and return the last."""
    source = numpy_generator(seed)
    return [draw(kind, shape, source) for kind, shape in draws][-1]


def _fixed(number: Any) -> Any:
    """A number as one that the compiled program depends on, should the compiler take it for a variable."""
    if isinstance(number, float):
        return math.ldexp(*math.frexp(number))
    return operator.index(number) if isinstance(number, int) else number


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _evaluated(fn: Callable[..., Any], *numbers: Any) -> Any:
    return fn(*numbers)


@lru_cache(maxsize=1024)
def _kept_tensor(fn: Callable[..., Any], numbers: tuple[Any, ...]) -> Array:
    return torch.tensor(fn(*numbers))


def _numbered(number: int) -> Callable[..., Any]:
    """A function of its own name that evaluates a constant: the compiler tells constants apart by that name."""

    def evaluated(fn: Callable[..., Any], *numbers: Any) -> Array:
        return _kept_tensor(fn, numbers)

    evaluated.__code__ = evaluated.__code__.replace(co_name=f"constant_{number}")
    function: Callable[..., Any] = torch.compiler.assume_constant_result(evaluated)
    return function


_NUMBERED = tuple(map(_numbered, range(512)))
_numbers: dict[Any, int] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _number_of(fn: Callable[..., Any], *numbers: Any) -> int:
    return _numbers.setdefault((fn, numbers), len(_numbers)) % len(_NUMBERED)


def _inside_functorch() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def _records_plainly(*arrays: Array) -> bool:
    """Whether a graph is recorded for a backward pass, with nothing else at work: no compiler, transform, forward mode."""
    if torch.compiler.is_compiling() or _inside_functorch() or forward_ad._current_level >= 0:
        return False
    return torch.is_grad_enabled() and any(a.requires_grad for a in arrays)


def _is_batched(x: Array) -> bool:
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False


def _compiled_loop(
    cond: Callable[..., Any], body: Callable[..., tuple[Any, ...]], state: tuple[Any, ...], max_iter: int
) -> tuple[Any, ...]:
    """`torch.while_loop`, whose carried values may share no memory."""
    counter = torch.zeros((), dtype=torch.int64)

    def unfinished(k: Array, *values: Array) -> Array:
        return (k < max_iter) & cond(*values).to(k.device)

    def step(k: Array, *values: Array) -> tuple[Array, ...]:
        return (k + 1, *(v.clone() for v in body(*values)))

    with torch.no_grad():
        return tuple(torch.while_loop(unfinished, step, (counter, *(s.clone() for s in state)))[1:])
