"""Where a square operator is: a disc around a multiple of the identity, which makes a contraction of it.

With ||A - s I|| <= r < 1 + s is I + A = (1 + s) (I + B), B = (A - s I) / (1 + s) of norm c = r / (1 + s) < 1. So
operators of any size are within reach whose spectrum keeps away from -1 to one side: for a symmetric A with eigenvalues
in [low, high] s is the middle and r half the length, and c is below 1 exactly where low is above -1.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from iresnet_core.backends import device_of
from iresnet_core.errors import NotContractiveError, ShapeError, UnknownLipschitzError
from iresnet_core.lipschitz.bounds import lipschitz_bound
from iresnet_core.lipschitz.probabilistic import probabilistic_bound
from iresnet_core.lipschitz.scaling import prepared
from iresnet_core.lipschitz.statements import (
    ALLOWANCE,
    Statement,
    checked_statement,
    is_symmetric,
    refute,
    refute_by_diagonal,
    wrong,
)
from iresnet_core.operators import (
    Counted,
    Dense,
    LinearLayer,
    LinearOperator,
    Matrices,
    Normal,
    Shifted,
    SparseMatrix,
    as_operator,
    require_linear,
)

__all__ = ["Enclosed", "enclosed", "square_operator"]

# What is said where nothing is known that would make a contraction of A.
HOW = (
    "Pass spectrum=(low, high) with low > -1 if A is symmetric (spectrum=(0, None) for diffusion), disc=(s, r) with "
    "||A - s I|| <= r < 1 + s or, for logdet, half_plane=low with v^T A v >= low ||v||^2 if it is not; or make A "
    "smaller by a shorter time step, or normalize(A, 0.9)."
)
# How much a computed bound on the entries of a sparse matrix is raised for its rounding.
SLACK = 1e-12
# How far above the norm a probabilistic bound may be: some 120 products, and some 200.
INTERVAL, DISC = 0.02, 0.005
# Constant of a contraction beyond which the square is the better way to a determinant.
LARGEST_CONSTANT = 0.99
# Middles of a disc that are tried for sparse matrices, in units of the middle of the diagonal, and for others, in units
# of the norm: the first suits operators without a large antisymmetric part.
SPARSE_MIDDLES, MIDDLES = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0), (0.5, 2.0)


class Enclosed(NamedTuple):
    """An operator A with ||A - centre I|| <= radius.

    Attributes
    ----------
    operator : Counted
        A; it knows how many products were taken of it.
    centre, radius : float
        The disc.
    symmetric : bool
        Whether A is known to be symmetric.
    transpose : bool
        Whether products with A^T are there.
    half_plane : float, optional
        1 + low, a bound from below on the singular values of I + A, where the disc is that of (I + A)^T (I + A) - I,
        whose logarithm of the determinant is twice that of I + A. Such a disc may reach -1 by rounding.
    """

    operator: Counted
    centre: float
    radius: float
    symmetric: bool
    transpose: bool
    half_plane: float | None = None

    @property
    def normal(self) -> bool:
        """Whether the disc is that of (I + A)^T (I + A) - I."""
        return self.half_plane is not None

    @property
    def least(self) -> float:
        """A bound from below on the singular values of I + A."""
        return self.divisor - self.radius if self.half_plane is None else self.half_plane

    @property
    def divisor(self) -> float:
        """1 + s, by which I + A is divided."""
        return 1 + self.centre

    @property
    def constant(self) -> float:
        """A bound on the norm of B."""
        return self.radius / self.divisor

    @property
    def contraction(self) -> LinearOperator:
        """B."""
        operator = Normal(self.operator) if self.normal else self.operator
        return operator if self.centre == 0 else Shifted(operator, self.centre, self.divisor)


def square_operator(A: Any, *, like: Any = None) -> LinearOperator:
    """Return `A` as a square operator of which there is I + A."""
    operator = as_operator(A, like=like)
    if operator.shape[0] != operator.shape[1]:
        raise ShapeError(f"I + A needs a square operator, got {operator!r} of shape {operator.shape}.")
    return operator


def enclosed(
    A: Any,
    *,
    lipschitz: float | None = None,
    spectrum: tuple[float, float | None] | None = None,
    disc: tuple[float, float | None] | None = None,
    half_plane: float | None = None,
    may_square: bool = False,
    rng: Any = None,
) -> Enclosed:
    """Return an operator with a disc that makes a contraction of it.

    What is stated is taken on trust; what is not is found: for a sparse matrix from its entries (Gershgorin, and
    ||A||^2 <= ||A||_1 ||A||_inf), for other operators by `lipschitz_bound`.

    Parameters
    ----------
    A : anything `as_operator` takes, square
    lipschitz : float, optional
        A bound on ||A||, below 1.
    spectrum : (low, high), optional
        A is symmetric with its eigenvalues there; None for a `high` that is to be found.
    disc : (s, r), optional
        ||A - s I|| <= r; None for an `r` that is to be found.
    half_plane : float, optional
        v^T A v >= low ||v||^2, with low > -1: the numerical range is to the right of -1. No disc around a multiple of
        the identity follows from that which would be of use, but one for (I + A)^T (I + A).
    may_square : bool
        Whether that may be answered where nothing is stated, and the entries of a sparse matrix tell a half-plane.
    rng : None, int or generator
        For probabilistic bounds.

    Raises
    ------
    NotContractiveError
        If no such disc keeps away from -1.
    UnknownLipschitzError
        If nothing bounds A, because neither entries nor products with the transpose are there.
    InvalidArgumentError, ShapeError
        For arguments that make no sense, products that are not linear, and a transpose that is none.
    """
    operator = square_operator(A)
    statement = checked_statement(lipschitz, spectrum, disc, half_plane)
    symmetric = is_symmetric(operator, spectrum is not None)
    counted, transpose = Counted(operator, symmetric and operator.entries is None), True
    if operator.entries is None and not isinstance(operator, SparseMatrix):
        transpose = require_linear(
            counted, symmetric=symmetric, see=lambda v, image: refute(operator, statement, v, image)
        )
    else:
        refute_by_diagonal(operator, statement)

    # An end of an interval may be off by more than a disc, which has to keep away from -1.
    close = INTERVAL if spectrum is not None else DISC

    def bound(of: LinearOperator) -> float:
        return _bound(of, transpose, rng, close)

    centre: float
    radius: float | None
    if lipschitz is not None:
        centre, radius = 0.0, statement.first
    elif spectrum is not None:
        centre, radius = _of_interval(counted, statement, bound)
    elif disc is not None:
        centre, radius = statement.first, statement.second
        if centre > -1 and radius is None:
            radius = bound(Shifted(counted, centre, 1.0))
    elif half_plane is not None:
        return _of_half_plane(counted, statement.first, bound)
    elif isinstance(operator, SparseMatrix):
        centre, radius = _of_entries(operator, symmetric)
        if may_square and not symmetric and radius > LARGEST_CONSTANT * (1 + centre):
            low = _left_end(operator)
            if low > -1:
                return _of_half_plane(counted, low, bound)
        if not radius < 1 + centre:
            centre, radius = _of_norms(counted, bound)
    else:
        centre, radius = _of_norms(counted, bound)
    if not (centre > -1 and radius is not None and 0 <= radius < 1 + centre):
        raise _refusal(operator, centre, radius, statement.name)
    radius = max(radius, 1e-12 * (1 + centre))
    return Enclosed(counted, centre, radius, symmetric, transpose)


def _refusal(operator: LinearOperator, centre: float, radius: float | None, stated: str) -> NotContractiveError:
    what = f"{stated}= says" if stated else "its bounds say"
    disc = f"||A|| <= {radius:.6g}" if centre == 0 else f"||A - s I|| <= {radius} with s = {centre:.6g}"
    return NotContractiveError(
        f"nothing keeps I + A regular, A the {operator!r}: {what} {disc}, which does not exclude the eigenvalue -1. "
        f"{HOW} If A has eigenvalues below -1, the step is unstable and log det(I + A) may not exist."
    )


def _bound(operator: LinearOperator, transpose: bool, rng: Any, close: float) -> float:
    """An upper bound on the norm, as a number."""
    backend = operator.backend
    if not transpose:
        raise UnknownLipschitzError(
            "nothing bounds an operator that is known by matvec alone. Pass rmatvec, lipschitz= with a bound on ||A||, "
            "or spectrum=(low, high) if A is symmetric."
        )
    if backend.is_tracing(operator.like):
        raise UnknownLipschitzError("a program that is being compiled cannot look for bounds: pass lipschitz=.")
    plain = _plain(operator)
    with backend.no_grad():
        if isinstance(plain, Matrices | LinearLayer):
            value = backend.stop_gradient(lipschitz_bound(plain).value)
        else:
            scaled, scale = prepared(plain)
            value = scale * probabilistic_bound(scaled, rng, close)
        return float(backend.xp.max(value))


def _plain(operator: LinearOperator) -> LinearOperator:
    """The operator as a matrix or a layer, where it is one, whose norm more is known of than of products."""
    if isinstance(operator, Counted):
        return operator if operator.operator.entries is None else operator.operator
    if not isinstance(operator, Shifted):
        return operator
    inner = _plain(operator.operator)
    if not isinstance(inner, Matrices | Dense):
        return operator
    identity = inner.backend.xp.eye(inner.shape[0], dtype=inner.like.dtype, device=device_of(inner.like))
    return Matrices((inner.matrix() - operator.shift * identity) / operator.divisor)


def _of_interval(
    operator: Counted, statement: Statement, bound: Callable[[LinearOperator], float]
) -> tuple[float, float]:
    low, high = statement.first, statement.second
    if low <= -1:
        raise NotContractiveError(
            f"spectrum= allows eigenvalues of A from {low:g} on, and I + A is regular for certain only above -1. {HOW}"
        )
    if high is None:
        inner = operator.operator
        if isinstance(inner, SparseMatrix):
            centre, radius = _of_entries(inner, True)
            high = centre + radius
        else:
            high = bound(operator)
        if high < low - ALLOWANCE * (1 + abs(low)):
            raise wrong(operator, statement, f"no eigenvalue of A is above {high:.6g}")
        high = max(high, low)  # what rounding leaves of a multiple of the identity
    return 0.5 * (low + high), 0.5 * (high - low) * (1 + SLACK)


def _of_half_plane(operator: Counted, low: float, bound: Callable[[LinearOperator], float]) -> Enclosed:
    """Singular values of I + A lie between 1 + low and 1 + ||A||."""
    if low <= -1:
        raise NotContractiveError(f"half_plane={low:g} does not exclude the eigenvalue -1 of A. {HOW}")
    inner = operator.operator
    norm = _norm_of_entries(inner, 0.0) if isinstance(inner, SparseMatrix) else bound(operator)
    root = 1 + max(norm, low)
    least, largest = (1 + low) ** 2 * (1 - SLACK), root * root * (1 + SLACK)
    return Enclosed(operator, 0.5 * (least + largest) - 1, 0.5 * (largest - least), True, True, 1 + low)


def _left_end(matrix: SparseMatrix) -> float:
    """Below the eigenvalues of the symmetric part, by Gershgorin's discs."""
    xp = matrix.backend.xp
    symmetric = SparseMatrix(0.5 * (matrix.rows + matrix.rows.T), matrix.like)
    diagonal, sums = symmetric.diagonal(), symmetric.row_sums()
    return float(xp.min(diagonal - (sums - xp.abs(diagonal)))) - SLACK * float(xp.max(sums))


def _norm_of_entries(matrix: SparseMatrix, centre: float) -> float:
    """A bound on ||A - s I|| from the sums of the rows and the columns."""
    xp, diagonal = matrix.backend.xp, matrix.diagonal()
    moved = xp.abs(diagonal - centre) - xp.abs(diagonal)
    sums = [float(xp.max(matrix.row_sums(transposed) + moved)) for transposed in (False, True)]
    return math.sqrt(sums[0] * sums[1]) * (1 + SLACK)


def _of_entries(matrix: SparseMatrix, symmetric: bool) -> tuple[float, float]:
    """A disc from the entries, certified: Gershgorin's if A is symmetric, else the norms of the rows and columns."""
    xp, diagonal = matrix.backend.xp, matrix.diagonal()
    if symmetric:
        rows = matrix.row_sums() - xp.abs(diagonal)
        low, high = float(xp.min(diagonal - rows)), float(xp.max(diagonal + rows))
        return 0.5 * (low + high), 0.5 * (high - low) * (1 + SLACK) + SLACK * max(abs(low), abs(high))
    middle, best = 0.5 * (float(xp.min(diagonal)) + float(xp.max(diagonal))), (0.0, math.inf)
    for share in SPARSE_MIDDLES:
        centre = share * middle
        if centre <= -1:
            continue
        radius = _norm_of_entries(matrix, centre)
        if radius / (1 + centre) < best[1] / (1 + best[0]):
            best = centre, radius
    return best


def _of_norms(operator: Counted, bound: Callable[[LinearOperator], float]) -> tuple[float, float]:
    """A disc from bounds on norms: that of A itself, or of A less a multiple of the identity."""
    norm = bound(operator)
    if norm < 1:
        return 0.0, norm
    radius = math.inf
    for share in MIDDLES:
        radius = bound(Shifted(operator, share * norm, 1.0))
        if radius < 1 + share * norm:
            return share * norm, radius
    return 0.0, norm
