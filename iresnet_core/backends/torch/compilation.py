"""What torch.compile and the transforms of torch.func need: constants, loops, and who is at work on a program."""

import itertools
import math
import operator
from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch.autograd import forward_ad

from iresnet_core.backends.base import Array

__all__ = [
    "compiled_loop",
    "constant_tensor",
    "evaluated_once",
    "fixed_number",
    "holds_values",
    "inside_functorch",
    "is_batched",
    "is_fixed_size",
    "program_of",
    "records_plainly",
]


def inside_functorch() -> bool:
    """Whether a transform of torch.func is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def makes_plain_tensors() -> bool:
    """Whether a tensor made here is one that may be used anywhere: no transform, tracer or mode wraps it."""
    return not (inside_functorch() or torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None)


def holds_values(*arrays: Array) -> bool:
    """Whether torch.export is at work without its compiler, and all tensors have values, as constants have there."""
    if torch.compiler.is_dynamo_compiling() or not torch.compiler.is_compiling() or inside_functorch():
        return False
    return all(type(a) in (torch.Tensor, torch.nn.Parameter) and not a.requires_grad for a in arrays)


def records_plainly(*arrays: Array) -> bool:
    """Whether a graph is recorded for a way back, and nothing else is at work: compiler, transform, forward mode."""
    if torch.compiler.is_compiling() or inside_functorch() or forward_ad._current_level >= 0:
        return False
    return torch.is_grad_enabled() and any(a.requires_grad for a in arrays)


def is_batched(x: Array) -> bool:
    """Whether vmap hides the values of `x`."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return False


def is_fixed_size(extent: Any) -> bool:
    """Whether an extent is a number, and not a variable of the program that is being compiled."""
    # Where a compiler is at work this is loaded already; otherwise it takes long.
    from torch.fx.experimental import symbolic_shapes

    tell = getattr(symbolic_shapes, "has_static_value", None)  # not in PyTorch 2.6
    return isinstance(extent, int) if tell is None else bool(tell(extent))


def fixed_number(number: Any) -> Any:
    """Return a number as a constant of the compiled program, should the compiler take it for a variable."""
    if isinstance(number, float):
        return math.ldexp(*math.frexp(number))
    return operator.index(number) if isinstance(number, int) else number


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def evaluated_once(fn: Callable[..., Any], *numbers: Any) -> Any:
    """Return what `fn` returns, evaluated when the program is compiled."""
    return fn(*numbers)


@lru_cache(maxsize=1024)
def _kept_tensor(fn: Callable[..., Any], numbers: tuple[Any, ...]) -> Array:
    return torch.tensor(fn(*numbers))


def _numbered(number: int) -> Callable[..., Any]:
    """Return a function that evaluates a constant and has its own name, by which the compiler tells constants apart."""

    def evaluated(fn: Callable[..., Any], *numbers: Any) -> Array:
        # The tensor of one export is no constant for the next.
        tensor = _kept_tensor(fn, numbers) if makes_plain_tensors() else torch.tensor(fn(*numbers))
        # With dynamic=True its sizes would be variables that nothing determines. This is what torch._dynamo.mark_static
        # writes, which does nothing while a compiler is at work.
        tensor._dynamo_static_indices = set(range(tensor.ndim))  # type: ignore[union-attr]
        return tensor

    evaluated.__code__ = evaluated.__code__.replace(co_name=f"constant_{number}")
    function: Callable[..., Any] = torch.compiler.assume_constant_result(evaluated)
    return function


_NUMBERED = tuple(map(_numbered, range(512)))
_numbers: dict[Any, int] = {}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _number_of(fn: Callable[..., Any], *numbers: Any) -> int:
    return _numbers.setdefault((fn, numbers), len(_numbers)) % len(_NUMBERED)


def constant_tensor(fn: Callable[..., Any], *numbers: Any) -> Array:
    """Return the tensor of what `fn` returns, evaluated once, when the program is compiled."""
    tensor: Array = _NUMBERED[_number_of(fn, *numbers)](fn, *numbers)
    return tensor


def compiled_loop(
    cond: Callable[..., Any], body: Callable[..., tuple[Any, ...]], state: tuple[Any, ...], max_iter: int
) -> tuple[Any, ...]:
    """Call `torch.while_loop`, whose carried values may share no memory."""
    counter = torch.zeros((), dtype=torch.int64)

    def unfinished(k: Array, *values: Array) -> Array:
        return (k < max_iter) & cond(*values).to(k.device)

    def step(k: Array, *values: Array) -> tuple[Array, ...]:
        return (k + 1, *(v.clone() for v in body(*values)))

    with torch.no_grad():
        return tuple(torch.while_loop(unfinished, step, (counter, *(s.clone() for s in state)))[1:])


def _called(fn: Callable[..., Any], *arrays: Array) -> Any:
    return fn(*arrays)


_PROGRAMS = itertools.count()


@lru_cache(maxsize=256)
def program_of(key: Any) -> Callable[..., Any]:
    """Return the compiled form of ``fn, *arrays -> fn(*arrays)`` for functions that a key stands for.

    Each has a code and a name of its own: PyTorch compiles one code a few times only, and takes numbers for variables
    that were others in a code of the same name.
    """
    own = FunctionType(_called.__code__.replace(co_name=f"program_{next(_PROGRAMS)}"), _called.__globals__)
    compiled: Callable[..., Any] = torch.compile(own, fullgraph=True)
    return compiled
