"""Computing in the dtype of the arrays, whatever precision the program around has chosen for its own layers.

Autocast lowers float32 products to half precision, and PyTorch's settings let float32 products be taken in TF32 or
bfloat16 (cuDNN's convolutions are by default). The error bounds of the core count on the precision of the dtype.

Autocast also lowers the products of a backward pass that runs inside of it, even those of operations that were recorded
where it was off. Those are recorded with a backward pass that switches it off again.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils import _pytree as pytree

from iresnet_core.errors import InvalidArgumentError

__all__ = [
    "as_lowered",
    "certified_precision",
    "full_precision",
    "has_lowered_products",
    "in_same_precision",
    "lowered_products",
    "lowers",
    "own_dtype",
    "saving_hooks",
]

Array = Any

_KINDS = ("cpu", "cuda")
# What autocast lowers, and what has such products in its derivative, by name.
# fmt: off
_LOWERED = frozenset((
    "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "addbmm", "baddbmm", "chain_matmul",
    "einsum", "tensordot", "inner", "dot", "vdot", "outer", "ger", "linear", "bilinear", "conv1d", "conv2d",
    "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution.default",
    "scaled_dot_product_attention", "cdist", "vecdot", "multi_dot", "cholesky", "cholesky_ex", "cholesky_solve",
    "cholesky_inverse", "det", "logdet", "slogdet", "eig", "eigh", "eigvals", "eigvalsh", "inv", "inv_ex", "inverse",
    "lstsq", "lu", "lu_factor", "lu_factor_ex", "lu_solve", "matrix_exp", "matrix_norm", "matrix_power", "pinv",
    "pinverse", "qr", "solve", "solve_ex", "solve_triangular", "svd", "svdvals", "tensorinv", "tensorsolve",
    "triangular_solve",
))
# fmt: on
# The name and the value of the setting; the second pair before PyTorch 2.9, which had none for the CPU.
_BY_NAME = hasattr(torch.backends, "fp32_precision")
_SETTING, _FULL = ("fp32_precision", "ieee") if _BY_NAME else ("allow_tf32", False)
# The kind of device that has such products, and the value of the setting.
_LOWER = {"tf32": ("cuda", "tf32" if _BY_NAME else True), "bfloat16": ("cpu", "bf16")}


def own_dtype(x: Array) -> AbstractContextManager[Any]:
    """Context without autocast on the device of `x`, on the way back too."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False) if torch.compiler.is_compiling() else _without_autocast()


def full_precision() -> AbstractContextManager[Any]:
    """Context without autocast on any device, in which float32 products are taken in float32.

    The latter is a setting of the process. It is changed where it is lowered, and put back when no thread is inside any
    more; not in a compiled program, which runs with the settings of its caller, nor in `lowered_products`.
    """
    return own_dtypes() if torch.compiler.is_compiling() or has_lowered_products() else _full_precision()


def certified_precision() -> AbstractContextManager[Any]:
    """Context of `full_precision` that is also one in `lowered_products`."""
    return own_dtypes() if torch.compiler.is_compiling() else _full_precision()


def own_dtypes() -> AbstractContextManager[Any]:
    """Context without autocast on any device, with the settings of the program around."""
    if not any(map(torch.is_autocast_enabled, _KINDS)):
        return nullcontext()
    return _autocast_off() if torch.compiler.is_compiling() else _without_autocast()


def lowered_products(precision: str, x: Array) -> AbstractContextManager[Any]:
    """Context in which float32 products are taken in "tf32" or "bfloat16", and `full_precision` does not undo it.

    It is a setting of the process too: while any thread is in full precision, that goes before. Not in a compiled
    program.

    Raises
    ------
    InvalidArgumentError
        If the device of `x` has no such products.
    """
    if precision == "float32":
        return nullcontext()
    if precision not in _LOWER:
        raise InvalidArgumentError(f"precision must be float32, {' or '.join(_LOWER)}, got {precision!r}.")
    here = [name for name, (kind, _) in _LOWER.items() if kind == x.device.type and (_BY_NAME or kind == "cuda")]
    if precision not in here:
        raise InvalidArgumentError(
            f"products in {precision} are those of {'an NVIDIA GPU' if precision == 'tf32' else 'a processor'}"
            f"{'' if _BY_NAME else ' and of PyTorch 2.9 or newer'}, and the arrays are on {x.device}; try precision "
            f"{' or '.join([*here, 'float32'])}."
        )
    return nullcontext() if torch.compiler.is_compiling() else _lowered_products(*_LOWER[precision])


def has_lowered_products() -> bool:
    """Whether this thread is in `lowered_products`."""
    return not torch.compiler.is_compiling() and getattr(_THREAD, "lowered", False)


@contextmanager
def as_lowered(lowered: bool) -> Iterator[None]:
    """Context in which `full_precision` is what it was, or was not, in `lowered_products`: for what belongs to that.

    The settings are those of the program around. A backward pass on a GPU runs in a thread of PyTorch's.
    """
    before = has_lowered_products()
    _THREAD.lowered = lowered
    try:
        yield
    finally:
        _THREAD.lowered = before


def lowers() -> bool:
    """Whether the program around has autocast on, which would lower the products of a backward pass."""
    return any(isinstance(mode, _OwnDtypeOnTheWayBack) for mode in _get_current_function_mode_stack())


def in_same_precision(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that will be called again on the way back, with the contexts of this place that matter then.

    A checkpoint of PyTorch's restores whether autocast is on, but not what we do to the derivatives of products.
    """
    if torch.compiler.is_compiling():
        return fn
    own, lowered = lowers(), has_lowered_products()

    def again(*arrays: Array) -> Any:
        with as_lowered(lowered), _without_autocast() if own else nullcontext():
            return fn(*arrays)

    return again


@contextmanager
def _without_autocast() -> Iterator[None]:
    with _autocast_off(), _OwnDtypeOnTheWayBack():
        yield


@contextmanager
def _autocast_off() -> Iterator[None]:
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


class _OwnDtypeOnTheWayBack(TorchFunctionMode):
    """Context in which products are recorded such that autocast does not lower their derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks = saving_hooks()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() or func.__name__.removeprefix("linalg_") not in _LOWERED:
            return func(*args, **kwargs)
        # Forward mode computes its derivatives here and now. A checkpoint inside of this context is computed again
        # outside of it, and has to save as many tensors as before.
        if forward_ad._current_level >= 0 or saving_hooks() != self.hooks:
            return func(*args, **kwargs)
        leaves, structure = pytree.tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        arrays = [leaves[i] for i in places]
        if not torch.is_grad_enabled() or not any(a.requires_grad for a in arrays):
            return func(*args, **kwargs)
        rest = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        kind: type = tuple

        def product(*arrays: Array) -> Any:
            nonlocal kind
            given = list(rest)
            for i, array in zip(places, arrays, strict=True):
                given[i] = array
            again, options = pytree.tree_unflatten(given, structure)
            out = func(*again, **options)
            kind = type(out)
            return out

        out = _OwnDtype.apply(product, *arrays)  # type: ignore[no-untyped-call]
        return kind(out) if isinstance(out, tuple) else out  # the named tuples of PyTorch


def saving_hooks() -> Any:
    """What is at work on the tensors that operations save, such as a checkpoint; None if nothing is."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


@contextmanager
def _without_saving_hooks() -> Iterator[None]:
    """Context without these hooks, which the transforms of torch.func refuse; they save nothing for later."""
    found = []
    while (hooks := saving_hooks()) is not None:
        found.append(hooks)
        torch._C._autograd._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(found):
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)


class _OwnDtype(torch.autograd.Function):
    """A function of tensors, which is evaluated once more on the way back, and differentiated without autocast."""

    generate_vmap_rule = True

    @staticmethod
    def forward(fn: Callable[..., Any], *arrays: Array) -> Any:
        return fn(*arrays)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.fn, *arrays = inputs
        ctx.save_for_backward(*arrays)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        arrays, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        reached = [i for i, cotangent in enumerate(cotangents) if cotangent is not None]

        def pulled_back(*given: Array) -> tuple[Array, ...]:
            arrays, cotangents = given[: len(needed)], given[len(needed) :]

            def outputs(*wanted: Array) -> tuple[Array, ...]:
                left = iter(wanted)
                out = ctx.fn(*(next(left) if need else a for a, need in zip(arrays, needed, strict=True)))
                return tuple(out[i] for i in reached) if isinstance(out, tuple) else (out,)

            with _autocast_off(), _without_saving_hooks():
                _, pullback, *_ = torch.func.vjp(outputs, *(a for a, need in zip(arrays, needed, strict=True) if need))
                found: tuple[Array, ...] = pullback(cotangents)
            return found

        given = (*arrays, *(cotangents[i] for i in reached))
        # A second derivative is not lowered either.
        recorded = torch.is_grad_enabled()
        found = iter(_OwnDtype.apply(pulled_back, *given) if recorded else pulled_back(*given))  # type: ignore[no-untyped-call]
        return None, *(next(found) if need else None for need in needed)


@contextmanager
def _full_precision() -> Iterator[None]:
    _SETTINGS.enter()
    try:
        with own_dtypes():
            yield
    finally:
        _SETTINGS.leave()


@contextmanager
def _lowered_products(kind: str, value: Any) -> Iterator[None]:
    try:
        _SETTINGS.lower(kind, value)
        with as_lowered(True):
            yield
    finally:
        _SETTINGS.raise_again(kind)


class _Settings:
    """The settings of the process while some thread is in `full_precision`: the last one to leave puts them back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.chosen: dict[Any, Any] = {}  # what the program around has chosen, where we have changed it
        self.lowering = dict.fromkeys(_KINDS, 0)  # threads in `lowered_products`
        self.before: dict[str, dict[Any, Any]] = {}  # what was chosen before that

    def enter(self) -> None:
        with self.lock:
            self.inside += 1
            for where in _products():
                precision = getattr(where, _SETTING)
                if precision not in (_FULL, "none"):
                    self.chosen[where] = precision
                    setattr(where, _SETTING, _FULL)

    def lower(self, kind: str, value: Any) -> None:
        """Choose a lower precision on a kind of device, which the last thread that leaves puts back."""
        with self.lock:
            self.lowering[kind] += 1
            if self.lowering[kind] == 1:
                places = _products_on(kind)
                self.before[kind] = {where: self.chosen.get(where, getattr(where, _SETTING)) for where in places}
                self._choose(dict.fromkeys(places, value))

    def raise_again(self, kind: str) -> None:
        """Leave the lower precision."""
        with self.lock:
            self.lowering[kind] -= 1
            if not self.lowering[kind]:
                self._choose(self.before.pop(kind, {}))

    def _choose(self, values: dict[Any, Any]) -> None:
        """Change settings; while a thread is in full precision, those that it has found."""
        for where, value in values.items():
            if self.inside:
                self.chosen[where] = value
            setattr(where, _SETTING, _FULL if self.inside else value)

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0 and self.chosen:
                for where, precision in self.chosen.items():
                    if getattr(where, _SETTING) == _FULL:  # else somebody has chosen anew in the meantime
                        setattr(where, _SETTING, precision)
                self.chosen = {}


_SETTINGS = _Settings()
_THREAD = threading.local()


def _products() -> tuple[Any, ...]:
    """Where PyTorch keeps how float32 products are taken, for the devices that are in use."""
    return tuple(where for kind in _KINDS for where in _products_on(kind))


def _products_on(kind: str) -> tuple[Any, ...]:
    here: Any = torch.backends
    if kind == "cpu":
        return (here.mkldnn.matmul, here.mkldnn.conv) if _BY_NAME else ()
    if not torch.cuda.is_initialized():
        return ()
    return (here.cuda.matmul, here.cudnn.conv if _BY_NAME else here.cudnn)
