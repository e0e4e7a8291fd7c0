"""What users state of an operator of any norm, and what can be seen of it without bounds."""

import math
from typing import Any, NamedTuple, TypedDict

from iresnet_core.backends import Array
from iresnet_core.errors import InvalidArgumentError, NotContractiveError
from iresnet_core.operators import LinearOperator, SparseMatrix

__all__ = [
    "Known",
    "Statement",
    "checked_statement",
    "is_symmetric",
    "refute",
    "refute_by_diagonal",
    "wrong",
]

# What rounding of entries and products may take of a bound that is stated, in its own units and in those of A.
ALLOWANCE, ROUNDING = 1e-6, 64


class Known(TypedDict, total=False):
    """What may be said of an operator of any norm, see `enclosed`."""

    spectrum: tuple[float, float | None] | None
    disc: tuple[float, float | None] | None


class Statement(NamedTuple):
    """The one thing that is stated, checked to make sense.

    Attributes
    ----------
    name : str
        The argument, "" if nothing is stated.
    first, second : float, float or None
        Its numbers: (c, None), (low, high), (s, r) or (low, None).
    """

    name: str
    first: float
    second: float | None

    @property
    def low(self) -> float:
        """v^T A v >= low ||v||^2, as far as the statement says so."""
        if self.name in ("lipschitz", "disc"):
            middle, radius = (0.0, self.first) if self.name == "lipschitz" else (self.first, self.second)
            return -math.inf if radius is None else middle - radius
        return self.first if self.name else -math.inf


def checked_statement(
    lipschitz: float | None = None,
    spectrum: tuple[float, float | None] | None = None,
    disc: tuple[float, float | None] | None = None,
    half_plane: float | None = None,
) -> Statement:
    """Return what is stated; refuses more than one thing, and numbers that make no sense."""
    everything = {"lipschitz": lipschitz, "spectrum": spectrum, "disc": disc, "half_plane": half_plane}
    stated = {name: value for name, value in everything.items() if value is not None}
    if len(stated) > 1:
        raise InvalidArgumentError(
            f"state one of lipschitz, spectrum, disc and half_plane, got {' and '.join(stated)}."
        )
    for name, value in stated.items():
        first, second = _pair(value, name) if name in ("spectrum", "disc") else (_number(value, name), None)
        if name == "spectrum" and second is not None and second < first:
            raise InvalidArgumentError(f"spectrum must be (low, high) with low <= high, got {value!r}.")
        if (name == "disc" and second is not None and second < 0) or (name == "lipschitz" and first < 0):
            raise InvalidArgumentError(f"{name} must have a radius that is not negative, got {value!r}.")
        return Statement(name, first, second)
    return Statement("", 0.0, None)


def refute(operator: LinearOperator, statement: Statement, v: Array, image: Array) -> None:
    """Refuse a statement that v^T (A v) shows to be wrong, for vectors v (..., d) and their images A v."""
    if not statement.name or operator.backend.is_tracing(image):
        return
    xp = operator.backend.xp
    square, form = xp.sum(v * v, axis=-1), xp.sum(v * image, axis=-1)
    rounding = ROUNDING * float(xp.finfo(operator.like.dtype).eps)
    allowed = ALLOWANCE * (1 + abs(statement.low)) * square
    allowed = allowed + rounding * xp.linalg.vector_norm(image, axis=-1) * square**0.5
    if bool(xp.any(form < statement.low * square - allowed)):
        raise wrong(operator, statement, f"there is a v with {float(xp.min(form / square)):.6g} ||v||^2")


def refute_by_diagonal(operator: LinearOperator, statement: Statement) -> None:
    """Refuse a statement for which an entry a_ii = e_i^T A e_i of a matrix is too small."""
    entries = operator.entries
    if isinstance(operator, SparseMatrix):
        diagonal = operator.diagonal()
    elif entries is not None and tuple(entries.shape[-2:]) == operator.shape:
        diagonal = operator.backend.xp.linalg.diagonal(operator.backend.stop_gradient(entries))
    else:
        return
    refute(operator, statement, operator.backend.xp.ones_like(diagonal)[..., None], diagonal[..., None])


def wrong(operator: LinearOperator, statement: Statement, seen: str) -> NotContractiveError:
    """What is raised for a statement that is refuted."""
    return NotContractiveError(
        f"{statement.name}= is wrong for {operator!r}: it says v^T A v >= {statement.low:.6g} ||v||^2, and {seen}. Is "
        "the sign of A right? If A has eigenvalues below -1, the step is unstable and has to be shorter, and "
        "log det(I + A) may not exist."
    )


def is_symmetric(operator: LinearOperator, stated: bool) -> bool:
    """Whether A is known to be symmetric; refuses entries that are not, where it is said to be."""
    if isinstance(operator, SparseMatrix):
        rows = operator.rows
        known, off = operator.is_symmetric(), abs(rows - rows.T).max()
        near = off <= 1e-6 * abs(rows).max()
    elif operator.entries is not None and tuple(operator.entries.shape[-2:]) == operator.shape:
        backend, entries = operator.backend, operator.entries
        if backend.is_tracing(entries):
            return stated
        xp = backend.xp
        entries = backend.stop_gradient(entries)
        off = float(xp.max(xp.abs(entries - xp.matrix_transpose(entries))))
        known, near = off == 0, off <= 1e-6 * float(xp.max(xp.abs(entries)))
    else:
        return stated
    if stated and not near:
        raise InvalidArgumentError(
            f"spectrum= is for symmetric operators, and {operator!r} differs from its transpose by {off:.3g}. Use "
            "disc=(s, r) with ||A - s I|| <= r < 1 + s."
        )
    return known or stated


def _pair(pair: Any, name: str) -> tuple[float, float | None]:
    """Check two numbers, of which the second may be None."""
    try:
        first, second = pair
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"{name} must be a pair of numbers, got {pair!r}.") from None
    return _number(first, name), None if second is None else _number(second, name)


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"{name} must hold numbers, got {value!r}.") from None
    if not math.isfinite(number):
        raise InvalidArgumentError(f"{name} must be finite, got {value!r}.")
    return number
