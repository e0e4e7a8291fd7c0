"""log det(I + A) of a linear operator, which is the same wherever one looks and so has no x.

Below a fixed order, or where that was asked for, the determinant is exact. Beyond it I + A is
(1 + s) (I + B) with a contraction B, see `lipschitz.enclosure`; log det(I + B) comes from the methods that branches
have, with the Jacobian B.
"""

import math
from typing import Any

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.branches import OperatorBranch
from iresnet_core.common import round_up, unit_roundoff, widest, working_dtype
from iresnet_core.determinant.colored_probes import LARGEST_EXACT, colored_logdet
from iresnet_core.determinant.estimator import ProbedMethod
from iresnet_core.determinant.far_side import is_beyond_singular
from iresnet_core.determinant.request import Method, Problem, Request
from iresnet_core.determinant.sparse_factors import is_above, sparse_log_determinant
from iresnet_core.errors import InvalidArgumentError, NotContractiveError, UnknownLipschitzError
from iresnet_core.lipschitz import (
    Enclosed,
    Statement,
    checked_statement,
    enclosed,
    is_symmetric,
    square_operator,
    wrong,
)
from iresnet_core.operators import Counted, LinearOperator, SparseMatrix, require_linear
from iresnet_core.results import LogDet

__all__ = ["operator_logdet"]

# Up to this order "auto" is exact for an operator that is known by its products, for one whose matrix is at hand (a
# determinant of order 1024 takes a tenth of a second), and for a sparse matrix, whose factors may fill up.
PRODUCTS_LIMIT, MATRIX_LIMIT, SPARSE_LIMIT = 64, 1024, 4096
# Beyond the exponential of this a bound on the rounding is infinite, in every dtype.
LARGEST_LOGARITHM = 80.0
# Order of the colours of a sparse matrix where nobody says how many probes there are to be: 5 colours on a line, 13 or
# more on a grid; less where that would be too many.
DEFAULT_ORDER = 4


def operator_logdet(
    A: Any,
    *,
    request: Request,
    methods: dict[str, Method],
    probes_asked: bool,
    known: dict[str, Any],
) -> LogDet:
    """Answer `logdet` without an x; the arrays have the shape of the stack, () for a single operator.

    `probes_asked` says whether somebody chose the number of probes, or it is the default of branches; `known` holds
    what was stated of the operator, see `lipschitz.enclosure.enclosed`.
    """
    operator, statement = square_operator(A), checked_statement(**known)
    backend = operator.backend
    if request.rng == "sample":
        request = request._replace(rng=0)  # an operator has no sample; its answer is to be the same every time
    if request.checkpoint or request.reference is not None:
        raise InvalidArgumentError("checkpoint and reference are for branches; an operator has no use for them.")
    with backend.full_precision():
        chosen, found = _is_exact(operator, request), None
        if chosen is None or isinstance(operator, SparseMatrix):
            try:
                found = enclosed(operator, rng=_seed(request), may_square=True, **known)
            except (UnknownLipschitzError, NotContractiveError) as error:
                unknown = isinstance(error, UnknownLipschitzError) and request.method == "auto"
                if operator.shape[0] > MATRIX_LIMIT or (chosen is None and not unknown):
                    raise
                chosen = chosen or "nothing bounds the operator"
        if found is None:
            result = _exact(operator, statement, chosen or "")
        elif chosen is not None:
            result = _exact_of_sparse(found, statement, chosen)
        else:
            result = _estimated(found, statement, request, methods, probes_asked)
        return _with_tolerance(backend, result, request.tol)


def _with_tolerance(backend: Backend, result: LogDet, tol: float | None) -> LogDet:
    """Say in `reason` that a tolerance is not met, as where rounding is above it."""
    if tol is None or backend.is_tracing(result.bias_bound) or "above tol" in result.reason:
        return result
    errors = [float(backend.xp.max(error)) for error in (result.std_error, result.bias_bound)]
    if max(errors) <= tol:
        return result
    seen = f"tol={tol:g} is not met, std_error is {errors[0]:.2g} and bias_bound, with rounding, {errors[1]:.2g}"
    return result._replace(reason="; ".join(word for word in (result.reason, seen) if word))


def _seed(request: Request) -> Any:
    return None if isinstance(request.rng, str) else request.rng


def _is_exact(operator: LinearOperator, request: Request) -> str | None:
    """Why the answer is to be exact; None if it is not."""
    if request.method == "exact":
        return "as asked for"
    if request.method != "auto" or request.noise is not None:
        return None
    limit = PRODUCTS_LIMIT if operator.entries is None else MATRIX_LIMIT
    limit = SPARSE_LIMIT if isinstance(operator, SparseMatrix) else limit
    limit = limit if request.exact_up_to is None else request.exact_up_to
    if operator.shape[0] > limit:
        return None
    return f"order {operator.shape[0]} is at most {limit}"


def _exact(operator: LinearOperator, statement: Statement, reason: str) -> LogDet:
    """LU factors of I + A in float64.

    They are those of I + A + E, with E of norm at most 8 u d ||I + A||_F; to first order the logarithm changes by
    tr((I + A)^-1 E), and by at most ||(I + A)^-1||_F ||E||_F.
    """
    backend, d = operator.backend, operator.shape[0]
    xp, counted = backend.xp, Counted(operator)
    by_products = operator.entries is None and not isinstance(operator, SparseMatrix)
    symmetric = statement.name == "spectrum" and is_symmetric(operator, True)
    if by_products:
        require_linear(counted, symmetric=symmetric)
    given = operator.like.dtype
    matrix = xp.astype(counted.matrix(), widest(backend))
    identity = xp.eye(d, dtype=matrix.dtype, device=device_of(matrix))
    whole = identity + matrix
    sign, value = xp.linalg.slogdet(whole)
    if not backend.is_tracing(value) and (not bool(xp.all(sign > 0)) or _reaches_zero(backend, whole)):
        raise NotContractiveError(
            f"I + A is on the far side of a singular matrix for {operator!r}: A has eigenvalues at or below -1, and "
            "log det(I + A) does not exist. Is the sign right? An explicit or unstable time step has to be shorter."
        )
    with backend.no_grad():
        fixed = backend.stop_gradient(whole)
        inverse = xp.linalg.inv(fixed)
        unit = unit_roundoff(backend, matrix.dtype) * 8 * d
        if by_products:  # whose rounding is that of their own dtype
            unit = unit + 8 * unit_roundoff(backend, given)
        size = math.log(unit) + _log_norm(xp, inverse) + _log_norm(xp, fixed)
        limit = xp.full_like(size, LARGEST_LOGARITHM)
        bias = xp.where(size < limit, xp.exp(xp.minimum(size, limit)), xp.full_like(size, math.inf))
    result = xp.astype(value, given)
    bias = bias + xp.abs(xp.astype(backend.stop_gradient(result), bias.dtype) - backend.stop_gradient(value))
    products = xp.full(value.shape, counted.products if by_products else d, dtype=xp.int32, device=device_of(result))
    return LogDet(result, xp.zeros_like(result), round_up(backend, bias, given), products, "exact", reason)


def _log_norm(xp: Any, matrices: Array) -> Array:
    """Logarithm of the Frobenius norm of matrices (..., d, d), whose squares may overflow; infinite for NaN."""
    finite = xp.all(xp.isfinite(matrices), axis=(-2, -1))
    matrices = xp.where(finite[..., None, None], matrices, xp.ones_like(matrices))
    largest = xp.max(xp.abs(matrices), axis=(-2, -1))
    size = xp.log(largest) + xp.log(xp.linalg.matrix_norm(matrices / largest[..., None, None]))
    return xp.where(finite, size, xp.full_like(size, math.inf))


def _exact_of_sparse(found: Enclosed, statement: Statement, reason: str) -> LogDet:
    """Sparse LU factors, for a matrix whose disc keeps the singular values of I + A away from zero."""
    operator = found.operator
    assert isinstance(operator.operator, SparseMatrix)
    xp, like, rows = operator.backend.xp, operator.like, operator.operator.rows
    if math.isfinite(statement.low) and not is_above(rows, statement.low):
        raise wrong(operator, statement, "elimination in the symmetric part of A shows that it is not so")
    value, bias = sparse_log_determinant(rows, found.least)
    result, bound = (xp.asarray(number, dtype=xp.float64, device=device_of(like)) for number in (value, bias))
    rounded = xp.astype(result, like.dtype)
    bound = round_up(operator.backend, bound + xp.abs(xp.astype(rounded, xp.float64) - result), like.dtype)
    products = xp.asarray(operator.products, dtype=xp.int32)
    return LogDet(rounded, xp.zeros_like(rounded), bound, products, "exact", f"sparse factors, {reason}")


def _reaches_zero(backend: Backend, whole: Array) -> bool:
    """Whether I + A, (..., d, d), has a real eigenvalue at or below zero, so that I + t A is singular for some t <= 1.

    With a positive definite symmetric part it has none, which is cheap to see. For others the eigenvalues are computed.
    """
    with backend.no_grad():
        fixed = backend.stop_gradient(whole)
        if backend.is_positive_definite(0.5 * (fixed + backend.xp.matrix_transpose(fixed))):
            return False
        return is_beyond_singular(backend.to_numpy(fixed))


def _estimated(
    found: Enclosed, statement: Statement, request: Request, methods: dict[str, Method], probes_asked: bool
) -> LogDet:
    """Return log det(I + A) = d log(1 + s) + log det(I + B), by the method that was asked for."""
    operator = found.operator
    if not found.constant < 1:
        raise NotContractiveError(
            f"c = {found.constant:.4g} for (I + A)^T (I + A), A the {operator!r}: its norm is too large beside its "
            f"least singular value {found.least:.4g}. Use method='exact', or make A smaller by a shorter time step."
        )
    backend, given = operator.backend, operator.like.dtype
    xp, d, count = backend.xp, operator.shape[0], math.prod(operator.batch_shape)
    working = working_dtype(backend, given)
    if working != given:
        raise InvalidArgumentError(f"log-determinants of operators need at least float32 products, got {given}.")
    branch = OperatorBranch(found.contraction, found.constant, transpose=found.transpose)
    origin = xp.zeros((count, d), dtype=working, device=device_of(operator.like))
    suited = "lanczos" if found.symmetric and not request.unbiased else "arnoldi"
    method = methods[suited if request.method == "auto" else request.method]
    if method.name == "lanczos" and not found.symmetric:
        raise InvalidArgumentError("method 'lanczos' is for symmetric operators: state spectrum=, or use 'arnoldi'.")
    problem = Problem(backend, branch, origin, branch.jacobian_of_determinant(origin), found.constant, request)
    if request.control_variate == "trace":
        raise InvalidArgumentError("operators have no trace as a control variate; use control_variate='auto'.")
    if found.normal and request.tol is not None:  # the logarithm will be halved
        problem = problem._replace(request=request._replace(tol=2 * request.tol))
    pattern = _pattern(found, request, method)
    result = None
    if pattern is not None and isinstance(method, ProbedMethod):
        result = colored_logdet(problem, method, pattern, None if probes_asked else DEFAULT_ORDER)
        if result is None and request.tol is not None and request.method == "auto":
            reason = f"tol={request.tol:g} would cost as much as the exact answer"
            if operator.shape[0] <= LARGEST_EXACT:
                sparse = isinstance(operator.operator, SparseMatrix)
                if sparse:
                    return _exact_of_sparse(found, statement, reason)
                return _exact(operator.operator, statement, reason)
    if result is None:
        try:
            _, result = method.answer(problem)
        except NotContractiveError as error:
            if not statement.name:
                raise
            raise NotContractiveError(f"{statement.name}= is wrong for {operator!r}: {error}") from error
    assert result is not None
    return _scaled(backend, found, result)


def _pattern(found: Enclosed, request: Request, method: Method) -> Any:
    """Where entries may differ from zero, for probes by colours; None where it is not known or probes are given."""
    pattern = getattr(found.operator.operator, "pattern", None)
    plain = request.noise is not None or request.probe_kind != "rademacher" or request.unbiased or not request.errors
    if pattern is None or plain or method.always_unbiased:
        return None
    if not found.normal:
        return pattern
    step = abs(pattern) + abs(pattern.T)
    return step + step @ step


def _scaled(backend: Backend, found: Enclosed, result: LogDet) -> LogDet:
    """Add d log(1 + s), and count the products of A itself."""
    xp, operator = backend.xp, found.operator
    shape, d = operator.batch_shape, operator.shape[0]

    share = 0.5 if found.normal else 1.0

    def shaped(a: Array) -> Array:
        return xp.reshape(share * a, shape)

    value = result.value + d * math.log(found.divisor)
    bias = result.bias_bound + 4 * unit_roundoff(backend, value.dtype) * xp.abs(backend.stop_gradient(value))
    products = xp.full(shape, operator.products, dtype=xp.int32, device=device_of(value))
    name = "(I + A)^T (I + A) - I" if found.normal else "A"
    where = f"||{name} - {found.centre:.4g} I|| <= {found.radius:.4g}, c = {found.constant:.4g}"
    reason = "; ".join(word for word in (where, result.reason) if word)
    return LogDet(shaped(value), shaped(result.std_error), shaped(bias), products, result.method, reason)
