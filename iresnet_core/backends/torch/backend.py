"""PyTorch backend: eager, under torch.compile and torch.func, on the device of its arrays."""

import math
import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad

from iresnet_core.backends.base import NO_HOST_DRAW, Array, Backend, NoiseKind, Noted, Pullback
from iresnet_core.backends.host_noise import draw
from iresnet_core.backends.host_noise import generator as numpy_generator
from iresnet_core.backends.kept_constants import KeptConstants
from iresnet_core.backends.torch import namespace
from iresnet_core.backends.torch.autograd import (
    BilinearForm,
    ByHand,
    Entrywise,
    MapCotangent,
    MapCotangentInReverse,
    ScaledProduct,
)
from iresnet_core.backends.torch.compilation import (
    compiled_loop,
    constant_tensor,
    evaluated_once,
    fixed_number,
    holds_values,
    inside_functorch,
    is_batched,
    is_fixed_size,
    makes_plain_tensors,
    program_of,
    records_plainly,
)
from iresnet_core.backends.torch.convolution import conv, conv_kernel_gradient, conv_transpose
from iresnet_core.backends.torch.elimination import calculated_bits, writes_onnx
from iresnet_core.backends.torch.linalg import inverse_and_log_determinant
from iresnet_core.backends.torch.noise import TracedSeed, last_draw, random_signs, replayed, seeded_generator
from iresnet_core.backends.torch.precision import (
    certified_precision,
    full_precision,
    lowered_products,
    lowers,
    own_dtype,
)
from iresnet_core.backends.torch.recomputation import pullback, pulled_back, recomputed
from iresnet_core.errors import InvalidArgumentError

__all__ = ["TorchBackend"]

# Steps between two looks at the condition of a loop on an accelerator, each of which waits for the device.
STEPS_A_LOOK = 8
_CONSTANTS = KeptConstants()


class TorchBackend(Backend):
    """PyTorch with its automatic differentiation, its own convolutions and `torch.compile`."""

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
        """Return a torch.Generator or None as it is; an int seed is one of NumPy's, the same on every backend.

        A tensor of whole numbers is the seed of a torch.Generator on its device.
        """
        if isinstance(rng, torch.Tensor):
            return seeded_generator(rng)
        if rng is None or isinstance(rng, torch.Generator | TracedSeed):
            return rng
        if torch.compiler.is_compiling() and isinstance(rng, int):
            return TracedSeed(rng)
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
        if isinstance(source, TracedSeed):
            if any(isinstance(n, torch.SymInt) for n in shape):
                raise InvalidArgumentError(
                    "what an int seed draws is a constant of the exported program, and has a size, while this program "
                    "is for batches of any size. Leave rng out, for probes from PyTorch's global generator, or make "
                    "noise= an input of the program."
                )
            source.draws = (*source.draws, (kind, tuple(map(operator.index, shape))))
            return self.constant_array(last_draw, source.seed, source.draws, like=like).to(like.dtype)
        if source is not None and not isinstance(source, torch.Generator):
            return self.from_numpy(draw(kind, shape, source), like).to(like.dtype)
        device = like.device if source is None else source.device
        if kind == "gaussian":
            own: Any = {} if source is None else {"generator": source}  # with None the compiler knows no unknown sizes
            noise = torch.randn(shape, dtype=like.dtype, device=device, **own)
        elif kind == "rademacher":
            noise = random_signs(shape, like.dtype, device, source)
        else:
            raise InvalidArgumentError(f"noise must be 'rademacher' or 'gaussian', got {kind!r}.")
        return noise.to(like.device)

    def uniform(self, shape: tuple[int, ...], rng: Any) -> Any:
        """Draw on the host."""
        if torch.compiler.is_compiling():
            raise InvalidArgumentError(NO_HOST_DRAW)
        source = self.generator(rng)
        if source is not None and not isinstance(source, torch.Generator):
            return np.asarray(source.random(shape))
        device = "cpu" if source is None else source.device
        return torch.rand(shape, dtype=torch.float64, device=device, generator=source).cpu().numpy()

    # --- linear algebra ---

    conv = staticmethod(conv)
    conv_transpose = staticmethod(conv_transpose)
    conv_kernel_gradient = staticmethod(conv_kernel_gradient)

    def affine(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """Call ``torch.nn.functional.linear``, which takes rows in one piece as a single matrix product."""
        with own_dtype(x):
            return torch.nn.functional.linear(x if x.ndim <= 2 else x.contiguous(), weight, bias)

    def gemm(self, a: Array, b: Array, c: Array | None = None) -> Array:
        """Call ``torch.addmm``, whose BLAS adds on the way."""
        with own_dtype(a):
            return torch.mm(a, b) if c is None else torch.addmm(c, a, b)

    def scaled_product(self, v: Array, scale: Array, weight: Array) -> Array:
        """Go through an autograd.Function in eager training."""
        if not records_plainly(v, scale, weight):
            return super().scaled_product(v, scale, weight)
        product: Array = ScaledProduct.apply(v, scale, weight)  # type: ignore[no-untyped-call]
        return product

    def bilinear_form(self, left: Array, matrix: Array, right: Array) -> Array:
        """Go through an autograd.Function in eager training."""
        if not records_plainly(matrix):
            return super().bilinear_form(left, matrix, right)
        form: Array = BilinearForm.apply(left, matrix, right)  # type: ignore[no-untyped-call]
        return form

    inverse_and_log_determinant = staticmethod(inverse_and_log_determinant)

    def add_to_first(self, a: Array, x: Array, y: Array) -> Array:
        """Write into `a`."""
        m = y.shape[0]
        if m == a.shape[0]:
            return self.multiply_add(a, x, y)
        a[:m].addcmul_(x, y)
        return a

    def split(self, x: Array, sizes: Sequence[int], axis: int) -> Sequence[Array]:
        """Call ``torch.split``, whose derivative is put together once, without an array of zeros for every part."""
        return torch.split(x, list(sizes), axis)

    def multiply_add(self, a: Array, x: Array, y: Array) -> Array:
        """Call ``torch.addcmul``."""
        return torch.addcmul(a, x, y)

    def all_finite(self, x: Array) -> bool:
        """Look at the sum, which is not finite if an entry is not; as it may overflow, look at the entries then."""
        return math.isfinite(float(x.detach().sum())) or bool(torch.isfinite(x).all())

    def bits(self, x: Array) -> Array:
        """Read the memory in another way; ONNX has no such operator."""
        return calculated_bits(x.detach()) if writes_onnx() else x.detach().view(torch.int32)

    def swish(self, x: Array) -> Array:
        """Call ``torch.nn.functional.silu``."""
        return torch.nn.functional.silu(x)

    def swish_pullback(self, x: Array, u: Array) -> Array:
        """Call its backward pass."""
        return torch.ops.aten.silu_backward.default(u, x)  # type: ignore[no-any-return]

    def elu(self, x: Array, alpha: float, scale: float, width: float) -> Array:
        """Call the kernel of ``torch.nn.functional.elu``, whose width the exporter to ONNX applies above zero too.

        Steps of training with convolutions take 1.2 times as long without it.
        """
        if writes_onnx():
            return super().elu(x, alpha, scale, width)
        return torch.ops.aten.elu.default(x, alpha, scale, 1 / width)  # type: ignore[no-any-return]

    def logistic(self, x: Array) -> Array:
        """Call ``torch.sigmoid``."""
        return torch.sigmoid(x)

    erf = staticmethod(torch.erf)  # type: ignore[assignment]

    def is_positive_definite(self, matrix: Array) -> bool:
        """Call potrf of LAPACK or of the device, which reports its refusal as a number."""
        factor, info = torch.linalg.cholesky_ex(matrix)
        # What is not finite reaches the diagonal of its row.
        return bool((info == 0).all() & torch.isfinite(factor.diagonal(dim1=-2, dim2=-1)).all())

    def has_values(self, x: Array) -> bool:
        """Say no on the device "meta"."""
        return bool(x.device.type != "meta")

    def are_together(self, x: Array, y: Array) -> bool:
        """Say whether both tensors are on one device."""
        return bool(x.device == y.device)

    def are_equal(self, x: Array, y: Array) -> bool:
        """``torch.equal``, which stops at the first difference."""
        return x.dtype == y.dtype and self.are_together(x, y) and torch.equal(x, y)

    def is_accelerated(self, x: Array) -> bool:
        """Whether the tensor is on another device than the CPU."""
        return bool(x.device.type != "cpu")

    # --- derivatives ---

    def vjp(self, fn: Callable[[Array], Array], x: Array) -> tuple[Array, Pullback]:
        """Let one retained graph serve all products; use `torch.func.vjp` where no graph can be retained."""
        return pullback(fn, x)

    def may_differentiate(self, *arrays: Array) -> bool:
        """Whether a graph is being recorded for one of the arrays, or PyTorch is transforming the program.

        ``torch.no_grad`` does not end the latter: forward mode does not heed it.
        """
        if not torch.compiler.is_compiling() and (inside_functorch() or forward_ad._current_level >= 0):
            return True
        return torch.is_grad_enabled() and any(a.requires_grad for a in arrays)

    def stop_gradient(self, x: Array) -> Array:
        """Detach."""
        return x.detach()

    def no_grad(self) -> AbstractContextManager[Any]:
        """Return ``torch.no_grad()``."""
        return torch.no_grad()

    def map_cotangent(self, x: Array, fn: Callable[[Array], Array]) -> Array:
        """Go through an autograd.Function."""
        function = MapCotangent if torch.compiler.is_compiling() else MapCotangentInReverse
        out: Array = function.apply(x, fn)  # type: ignore[no-untyped-call]
        return out

    def entrywise(
        self, x: Array, both: Callable[[Array], tuple[Array, ...]], bend: Callable[..., Array]
    ) -> tuple[Array, Array]:
        """Go through an autograd.Function in eager training; compilers do as well by themselves."""
        if not records_plainly(x):
            return super().entrywise(x, both, bend)
        value, slope = Entrywise.apply(x, both, bend)  # type: ignore[no-untyped-call]
        return value, slope

    def takes_derivatives_by_hand(self, *arrays: Array) -> bool:
        """Say yes in eager training; compilers do as well by themselves."""
        return records_plainly(*arrays)

    def with_derivative_by_hand(
        self,
        forward: Callable[..., tuple[tuple[Array, ...], tuple[Array, ...]]],
        backward: Callable[..., Sequence[Any]],
        plainly: Callable[..., tuple[Array, ...]],
        arrays: Sequence[Any],
    ) -> tuple[Array, ...]:
        """Go through an autograd.Function in eager training."""
        known = [a for a in arrays if a is not None]
        if not records_plainly(*known):
            plain, kept = forward(*arrays)
            return plainly(arrays, kept) if self.may_differentiate(*known) else plain
        outputs: tuple[Array, ...] = ByHand.apply(forward, backward, plainly, *arrays)  # type: ignore[no-untyped-call]
        return outputs

    def pulled_back(
        self,
        fn: Callable[..., tuple[Array, ...]],
        points: Sequence[Array],
        others: Sequence[Array],
        cotangents: Sequence[Array],
    ) -> tuple[tuple[Array, ...], list[Array]]:
        """Record a graph of its own, which ends at `points` and at `others`."""
        return pulled_back(fn, points, others, cotangents)

    def replayed(self, rng: Any, x: Array) -> Callable[[], Any]:
        """Keep the state of a generator."""
        return replayed(rng, x.device)

    def recomputed(self, fn: Callable[..., Noted], arrays: Sequence[Array]) -> Noted:
        """Go through ``torch.utils.checkpoint``."""
        out: Noted = recomputed(fn, arrays)
        return out

    def by_program(self, fn: Callable[..., Noted], *arrays: Array, key: Any) -> Noted:
        """Go through ``torch.compile``, but in autocast, in forward mode and in the transforms of torch.func."""
        if torch.compiler.is_compiling() or inside_functorch() or forward_ad._current_level >= 0 or lowers():
            return fn(*arrays)
        first, *others = arrays
        if torch.is_grad_enabled() and not first.requires_grad and any(a.requires_grad for a in others):
            first = first.detach().requires_grad_()  # data are treated as the output of a layer, by the same program
        out: Noted = program_of(key)(fn, first, *others)
        return out

    def recomputes_pullbacks(self) -> bool:
        """Say no under torch.compile, where ``torch.func.vjp`` refuses what checkpoints are made of."""
        return not torch.compiler.is_compiling()

    def first_order_only(self, x: Array) -> Array:
        """Return `x` as it is while compiling, where PyTorch itself refuses second derivatives."""
        return x if torch.compiler.is_compiling() else super().first_order_only(x)

    # --- programs ---

    def own_dtype(self, x: Array) -> AbstractContextManager[Any]:
        """Without autocast."""
        return own_dtype(x)

    full_precision = staticmethod(full_precision)
    certified_precision = staticmethod(certified_precision)
    lowered_products = staticmethod(lowered_products)

    def is_tracing(self, *arrays: Array) -> bool:
        """Whether torch.compile or torch.export is at work, or vmap hides the values."""
        if torch.compiler.is_compiling():
            return True
        return inside_functorch() and any(map(is_batched, arrays))

    are_program_constants = staticmethod(holds_values)

    def knows_size(self, extent: Any) -> bool:
        """Whether no compiler takes it for a variable."""
        return not torch.compiler.is_compiling() or is_fixed_size(extent)

    def while_loop(
        self,
        cond: Callable[..., Any],
        body: Callable[..., tuple[Any, ...]],
        state: tuple[Any, ...],
        max_iter: int,
    ) -> tuple[Any, ...]:
        """Loop in Python, or by `torch.while_loop` under torch.compile."""
        if torch.compiler.is_compiling():
            return compiled_loop(cond, body, state, max_iter)
        look = 1 if all(a.device.type == "cpu" for a in state) else STEPS_A_LOOK
        blind = inside_functorch() and any(map(is_batched, state))  # then the values are hidden, and all steps taken
        for k in range(max_iter):
            if not blind and k % look == 0 and not bool(cond(*state)):
                break
            state = body(*state)
        return state

    def concretely(self, fn: Callable[[], Any]) -> Any:
        """Leave inference mode, whose tensors no later backward pass could save."""
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            return fn()
        with torch.inference_mode(False), torch.no_grad():
            return fn()

    def loops_over_products(self) -> bool:
        """Say no under torch.compile, whose loops take no ``torch.func.vjp``."""
        return not torch.compiler.is_compiling()

    def frozen(self, x: Array) -> Array:
        """Return a plain tensor with storage of its own; derivatives flow back to `x`."""
        return x.clone() if self.may_differentiate(x) else x.detach().clone()

    def copied(self, x: Array, memo: dict[int, Any]) -> Array:
        """Copy a leaf as PyTorch does; clone a recorded result, which PyTorch refuses to copy, with its history."""
        if x.is_leaf:
            return deepcopy(x, memo)
        with torch.enable_grad():
            return x.clone()

    def as_program_constants(self, *numbers: float) -> tuple[float, ...]:
        """Fix the numbers: with ``dynamic=True`` the compiler takes them for variables, which its loops cannot use."""
        return tuple(map(fixed_number, numbers)) if torch.compiler.is_compiling() else numbers

    def host_constant(self, fn: Callable[..., Any], *numbers: Any) -> Any:
        """Evaluated once, when the program is compiled."""
        return evaluated_once(fn, *map(fixed_number, numbers)) if torch.compiler.is_compiling() else fn(*numbers)

    def constant_array(self, fn: Callable[..., Any], *numbers: Any, like: Array) -> Array:
        """Evaluated once, when the program is compiled or for the first call."""
        if not torch.compiler.is_compiling():
            if makes_plain_tensors():
                with torch.inference_mode(mode=False):  # it may be needed where gradients are taken
                    return _CONSTANTS.get(
                        (fn, numbers, like.device), lambda: fn(*numbers), lambda made: self.from_numpy(made, like)
                    )
            return self.from_numpy(fn(*numbers), like)
        numbers = tuple(map(fixed_number, numbers))
        return constant_tensor(fn, *numbers).to(like.device)

    def jit(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``torch.compile(fn, fullgraph=True)``."""
        return torch.compile(fn, fullgraph=True)
