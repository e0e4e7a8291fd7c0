"""What the core asks of its arguments, with errors that say what was seen and what to try."""

import math
import operator
from collections.abc import Mapping, Set
from difflib import get_close_matches
from typing import Any

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.errors import (
    DeviceError,
    DtypeError,
    InvalidArgumentError,
    NonFiniteError,
    NotContractiveError,
    ShapeError,
)

__all__ = [
    "refuse_expansion",
    "require_batch",
    "require_contraction",
    "require_finite",
    "require_floating",
    "require_nonnegative",
    "require_nonnegative_int",
    "require_options",
    "require_positive",
    "require_positive_int",
    "require_same_device",
    "require_same_dtype",
    "require_shape",
    "which_samples",
]

_LISTED = 5  # samples that a message names


def require_floating(backend: Backend, x: Array, name: str) -> None:
    """Refuse arrays that are not real floating-point numbers of at most 64 bits."""
    if not backend.xp.isdtype(x.dtype, "real floating"):
        raise DtypeError(f"{name} must hold real floating-point numbers, got {x.dtype}. Convert it, say to float64.")
    if not backend.has_values(x):
        raise DeviceError(
            f"{name} of shape {tuple(x.shape)} is on the device {device_of(x)}, where arrays have no values. Give it "
            "values first: in PyTorch module.to_empty(device=...) and load_state_dict, or load_state_dict(assign=True)."
        )
    if backend.xp.finfo(x.dtype).bits > 64:
        raise DtypeError(f"{name} has dtype {x.dtype}; the certificates are written for at most float64.")


def require_finite(backend: Backend, x: Array, name: str, *, samples: bool = False) -> None:
    """Refuse NaN and infinity; nothing is looked at while a compiler traces.

    With `samples`, `x` is a batch, and the message says which of its samples hold some.
    """
    if backend.is_tracing(x):
        return
    if backend.all_finite(x):
        return
    xp = backend.xp
    finite = xp.isfinite(x)
    bad = int(xp.sum(xp.astype(~finite, xp.int32)))
    kind = "NaN" if bool(xp.any(xp.isnan(x))) else "infinity"
    where = f", in {which_samples(backend, finite)}" if samples else ""
    raise NonFiniteError(f"{name} of shape {tuple(x.shape)} holds {bad} non-finite entries ({kind}){where}.")


def which_samples(backend: Backend, good: Array) -> str:
    """Name the samples for which not all of the flags (batch, ...) are set, counted from 0, the first few of them."""
    flags = backend.to_numpy(good)
    bad = [str(k) for k, flag in enumerate(flags.reshape(flags.shape[0], -1).all(axis=1)) if not flag]
    listed = ", ".join(bad[:_LISTED]) + (f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else "")
    return f"sample{'s' if len(bad) > 1 else ''} {listed} of the batch"


def require_same_dtype(first: Array, first_name: str, second: Array, second_name: str) -> None:
    """Refuse two dtypes in one computation, which would be promoted differently by every framework."""
    if first.dtype != second.dtype:
        raise DtypeError(
            f"{first_name} has dtype {first.dtype} and {second_name} has {second.dtype}; convert one of them."
        )


def require_same_device(backend: Backend, first: Array, first_name: str, second: Array, second_name: str) -> None:
    """Refuse arrays on two devices, between which nothing is moved unasked."""
    if not backend.are_together(first, second):
        raise DeviceError(
            f"{first_name} is on the device {device_of(first)} and {second_name} on {device_of(second)}: move one."
        )


def require_batch(x: Array, name: str) -> None:
    """Refuse arrays without a batch axis and at least one event axis."""
    if len(x.shape) < 2:
        raise ShapeError(
            f"{name} must have shape (batch, ...), got {tuple(x.shape)}. One sample x is x[None], "
            "a batch of scalars is x[:, None]."
        )
    if math.prod(x.shape[1:]) == 0:
        raise ShapeError(f"{name} of shape {tuple(x.shape)} has samples without entries.")


def require_positive_int(value: Any, name: str) -> int:
    """Refuse anything but a positive whole number."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise InvalidArgumentError(f"{name} must be a positive whole number, got {value!r}.")
    return number


def require_nonnegative_int(value: Any, name: str) -> int:
    """Refuse anything but a whole number from 0 on."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or number < 0:
        raise InvalidArgumentError(f"{name} must be a whole number >= 0, got {value!r}.")
    return number


def require_options(options: Mapping[str, Any], known: Set[str]) -> None:
    """Refuse options that do not exist, and name the one that was probably meant."""
    unknown = sorted(set(options) - known)
    if unknown:
        near = get_close_matches(unknown[0], known, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise InvalidArgumentError(
            f"there is no option {', '.join(unknown)}; the options are {', '.join(sorted(known))}.{meant}"
        )


def require_shape(value: Any, name: str) -> tuple[int, ...]:
    """Return a sequence of positive whole numbers as a tuple."""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise InvalidArgumentError(f"{name} must be a sequence of whole numbers such as (3, 8, 8), got {value!r}.")
    return tuple(require_positive_int(n, f"every entry of {name}") for n in value)


def _number(value: Any, name: str) -> float:
    """Return a number as a float; refuse text, truth values and whatever has no single value that a float holds."""
    try:
        if isinstance(value, str | bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgumentError(f"{name} must be a number, got {value!r}.") from None


def require_nonnegative(value: Any, name: str) -> float:
    """Refuse negative numbers, NaN and infinity."""
    number = _number(value, name)
    if not 0 <= number < math.inf:  # NaN is neither; a compiler that takes numbers for variables knows no isfinite
        raise InvalidArgumentError(f"{name} must be a finite number >= 0, got {value!r}.")
    return number


def require_positive(value: Any, name: str) -> float:
    """Return a positive finite number."""
    number = _number(value, name)
    if not 0 < number < math.inf:
        raise InvalidArgumentError(f"{name} must be a finite number > 0, got {value!r}.")
    return number


def require_contraction(lipschitz: Any, source: str) -> float:
    """Return the constant as a float; refuse constants that are no number or not below 1."""
    constant = _number(lipschitz, f"the Lipschitz constant ({source})")
    if not 0 <= constant < math.inf:
        raise InvalidArgumentError(f"the Lipschitz constant ({source}) must be a number >= 0, got {lipschitz!r}.")
    if constant >= 1:
        raise NotContractiveError(
            f"the Lipschitz constant of g ({source}) is {constant:.6g}; x + g(x) is certified invertible only below 1. "
            "Scale the weights, for example with normalize(g, 0.9)."
        )
    return constant


def refuse_expansion(what: str, factor: float, constant: float, rounding: float) -> None:
    """Refuse a map that was seen to expand by a `factor` above its Lipschitz constant.

    Parameters
    ----------
    what : str
        Where it was seen, to begin the sentence of the error.
    factor, constant : float
        What was seen, and what was stated.
    rounding : float
        Relative rounding error of the factor; a hundred times as much is allowed.

    Raises
    ------
    NonFiniteError, NotContractiveError
        If the factor is not finite, or too large.
    """
    if not math.isfinite(factor):
        raise NonFiniteError(f"{what} of g holds NaN or infinity.")
    if factor > constant * (1 + max(1e-6, 100 * rounding)) + 1e-30:
        raise NotContractiveError(
            f"{what} expanded by {factor:.4g}, more than the stated Lipschitz constant {constant:.4g} of g. The "
            "constant is wrong, or the branch is no contraction."
        )
