"""Inverse of x + g(x) = y for a contraction g, per sample, with a certified error."""

import math
import warnings
from typing import Any, Literal, Unpack

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.common import (
    refuse_expansion,
    require_finite,
    require_nonnegative,
    require_options,
    require_positive_int,
    require_same_device,
    require_same_dtype,
    sample_norms,
    unit_roundoff,
    widest,
)
from iresnet_core.errors import (
    InvalidArgumentError,
    NonFiniteError,
    NotConvergedError,
    NotConvergedWarning,
    ShapeError,
)
from iresnet_core.inverse.fixed_point import STALLED, FixedPoint, Progress
from iresnet_core.inverse.implicit_gradient import with_implicit_gradient
from iresnet_core.inverse.of_operator import OperatorEquation
from iresnet_core.inverse.problem import Problem, checked_problem, evaluated
from iresnet_core.inverse.scaling import length_unit
from iresnet_core.inverse.solvers import SOLVERS, Solver
from iresnet_core.lipschitz import Known
from iresnet_core.operators import is_operator
from iresnet_core.results import Inverse

__all__ = ["invert"]

OnFailure = Literal["raise", "warn", "return"]

# Default relative tolerance, by the bits of the working dtype.
DEFAULT_RTOL = {64: 1e-10, 32: 1e-5}
# Evaluations of g at most, unless `max_iter` says otherwise.
MOST_EVALUATIONS = 100_000


def invert(
    g: Any,
    y: Array,
    *,
    lipschitz: float | None = None,
    solver: str = "anderson",
    rtol: float | None = None,
    atol: float | None = None,
    max_iter: int | None = None,
    start: Array | None = None,
    on_failure: OnFailure = "raise",
    **known: Unpack[Known],
) -> Inverse:
    """Solve x + g(x) = y, sample by sample: ||x - exact|| <= (||r|| + rounding of r) / (1 - c), r = x + g(x) - y.

    Parameters
    ----------
    g : Branch or callable; or a linear operator
        The contraction; g(x) has the shape of x (batch, ...). For a linear operator A, anything square that
        `as_operator` takes but a layer, or two functions (matvec, rmatvec), the solution is (I + A)^-1 y.
    y : array (batch, ...)
        Right-hand sides; of an operator (d,) or (batch, d), for a stack of matrices (..., d).
    lipschitz : float, optional
        Lipschitz constant c < 1 of g in the Euclidean norm; default ``g.lipschitz``. All bounds rest on it.
    solver : {"anderson", "picard", "newton"}
        "anderson" is the best for most: Anderson's method, and where that is slow Newton's. "picard" is the plain
        iteration x <- y - g(x) (Behrmann et al. 2019, Algorithm 1), as a baseline or where g costs next to nothing.
        "newton" is the best where c is close to 1 and the weights are nearly orthogonal.
    rtol, atol : float, optional
        A sample has converged when its error bound is at most ``atol + rtol ||x||``. Default: rtol 1e-10 and atol
        1e-12 in float64, 1e-5 and 1e-7 below. The floor of the dtype is added to it: twice the rounding
        over 1 - c, or over (1 - c)^2 where the iteration has stalled.
    max_iter : int, optional
        Evaluations of g at most. Default: enough for any c-contraction, by Banach's bound c^n / (1 - c) ||x_1 - x_0||,
        but no more than 100,000.
    start : array like y, optional
        First iterate; default y.
    on_failure : {"raise", "warn", "return"}
        What to do where a sample has not converged.
    **known
        What is known of an operator of any norm, as for `logdet`: ``spectrum=(low, high)``, A is symmetric with its
        eigenvalues there, or ``disc=(s, r)``, ||A - s I|| <= r.

    Returns
    -------
    Inverse
        value x (batch, ...) in the dtype of y; error_bound, the certified right side above; residual ``||r||``;
        iterations, the evaluations of g (products with its Jacobian count as such); converged. All but value are per
        sample, (batch,), in the units of y; () for a single right-hand side (d,) of an operator.

    Raises
    ------
    NotContractiveError
        If c >= 1, or two iterates were seen between which g expands by more than c.
    NonFiniteError
        If y or what g returns is not finite.
    NotConvergedError
        If a sample has not converged and ``on_failure="raise"``.
    UnknownLipschitzError, ShapeError, DtypeError, MixedBackendsError, InvalidArgumentError
        For arguments that make no sense.

    Notes
    -----
    Cost: `iterations` evaluations of g, the largest of the batch in time. Half precision is solved in float32.

    Where the backend differentiates, `value` has the implicit derivative with respect to y and to what g closes over
    (`error_bound` and the rest have none): one evaluation of g more, and in the backward pass a solve of its own, whose
    relative tolerance is `rtol` as well. Second derivatives are refused. Inside a compiled function nothing is raised
    about values that are not known yet: look at `converged`.

    "anderson" combines the last five steps so that the linearised residual is least (Walker and Ni 2011). For a `Chain`
    of dense layers and entrywise activations the steps are Newton's with the mean Jacobian of the batch, where d is at
    most 1024 and at most four times the samples. Where all that gains less than it costs, the plain iteration goes on,
    and where either stays slow (a rate above 0.9 over thirty steps) Newton's method. A compiled function, which cannot
    look, only combines steps. "newton" takes inexact Newton steps by GMRES (Knoll and Keyes 2004), as far as they are
    of use. In both, a step that does not shrink the residual is replaced by a plain one.

    The error lies between ``||r|| / (1 + c)`` and ``||r|| / (1 - c)`` whatever the solver. The certificate of a `Chain`
    takes one more evaluation, in float64 and with running error analysis of its rounding; that of a plain callable
    takes none, and its rounding is taken to be 16 units in the last place of its terms. The rounding of whoever
    computed y is not included.

    Examples
    --------
    >>> import numpy as np
    >>> result = invert(lambda x: 0.5 * np.sin(x), np.array([[1.0, -2.0]]), lipschitz=0.5)
    >>> bool(result.converged[0]), bool(result.error_bound[0] < 1e-9)
    (True, True)
    """
    if known:
        require_options(known, set(Known.__annotations__))
    if is_operator(g):
        equation = OperatorEquation(g, y, lipschitz=lipschitz, **known)
        first = None if start is None else equation.as_rows(start, "start")
        options: dict[str, Any] = {"solver": solver, "rtol": rtol, "atol": atol, "max_iter": max_iter}
        return equation.answer(invert(equation.branch, equation.right, start=first, on_failure=on_failure, **options))
    if known:
        raise InvalidArgumentError("spectrum= and disc= are for linear operators that are no layers; pass the matrix.")
    backend = get_backend(y)
    if not isinstance(solver, str) or solver not in SOLVERS:
        raise InvalidArgumentError(f"invert has the solvers {', '.join(SOLVERS)}; got {solver!r}.")
    if on_failure not in ("raise", "warn", "return"):
        raise InvalidArgumentError(f"on_failure must be 'raise', 'warn' or 'return', got {on_failure!r}.")
    if max_iter is not None:
        max_iter = require_positive_int(max_iter, "max_iter")
    with backend.certified_precision(), backend.batch_of_unknown_size(y):
        problem, dtype = checked_problem(g, y, lipschitz)
        bits = backend.xp.finfo(problem.y.dtype).bits
        rtol = DEFAULT_RTOL[bits] if rtol is None else require_nonnegative(rtol, "rtol")
        atol = 0.01 * DEFAULT_RTOL[bits] if atol is None else require_nonnegative(atol, "atol")
        rtol, atol = backend.as_program_constants(rtol, atol)
        limit = _sufficient_evaluations(problem.constant, rtol, bits) if max_iter is None else max_iter
        first = y if start is None else _checked_start(problem, start, y)
        with backend.no_grad():
            progress = _progress(problem, first, SOLVERS[solver], limit, rtol, atol)
            larger = None if _is_finite(backend, progress.residual) else problem.in_larger_units()
            if larger is not None:
                problem = larger
                progress = _progress(problem, first, SOLVERS[solver], limit, rtol, atol)
            _refuse_what_is_no_contraction(problem, progress)
            result = _answer(problem, progress, rtol, atol / problem.unit, dtype, on_failure, solver)
        if not backend.differentiates:
            return result
        steps = max(limit, _sufficient_evaluations(problem.constant, rtol, bits))
        value = with_implicit_gradient(backend, g, y, result.value, problem.constant, rtol, steps)
        return result._replace(value=value)


def _checked_start(problem: Problem, start: Array, y: Array) -> Array:
    get_backend(y, start)
    if tuple(start.shape) != tuple(y.shape):
        raise ShapeError(f"start must have the shape of y, {tuple(y.shape)}, got {tuple(start.shape)}.")
    require_same_dtype(start, "start", y, "y")
    require_same_device(problem.backend, start, "start", y, "y")
    require_finite(problem.backend, start, "start")
    if length_unit(problem.backend, problem.backend.xp.astype(start, problem.y.dtype)) > max(problem.unit, 1.0):
        raise InvalidArgumentError("start is so large that its squares overflow in the units of y; begin from y.")
    return start


def _progress(problem: Problem, first: Array, solver: Solver, max_iter: int, rtol: float, atol: float) -> Progress:
    """Solve from the iterate `first`, in units of y."""
    backend, xp = problem.backend, problem.backend.xp
    x = xp.astype(backend.stop_gradient(first), problem.y.dtype) / problem.unit
    y_norm = sample_norms(xp, problem.y)
    fixed_point = FixedPoint(backend, problem.g, problem.y, y_norm, problem.constant, rtol, atol / problem.unit)
    return solver(fixed_point, x, max_iter)


def _is_finite(backend: Backend, x: Array) -> bool:
    """Whether all entries are finite, as far as one can look."""
    return backend.is_tracing(x) or bool(backend.xp.all(backend.xp.isfinite(x)))


def _sufficient_evaluations(constant: float, rtol: float, bits: int) -> int:
    """Evaluations after which a c-contraction has met the tolerance, by the a-priori bound, doubled for safety.

    There is a limit to that: the plain iteration may take 1 / (1 - c) evaluations a digit, the others take fewer.
    """
    target = max(rtol, 2.0 ** (-52 if bits == 64 else -23)) * (1 - constant) ** 2 / 16
    if constant == 0:
        return 8
    return min(MOST_EVALUATIONS, max(16, 2 * math.ceil(math.log(target) / math.log(constant)) + 8))


def _refuse_what_is_no_contraction(problem: Problem, progress: Progress) -> None:
    """Refuse a g that was seen to break its own constant, or to return what is not finite."""
    backend, xp = problem.backend, problem.backend.xp
    if backend.is_tracing(progress.residual):
        return
    suspects = progress.excess > 0
    if bool(xp.any(suspects)):  # rounding alone may do that
        _, rounding = evaluated(problem, progress.x)
        suspects = progress.excess > 4 * rounding
    if bool(xp.any(suspects)):
        worst = float(xp.max(xp.where(suspects, progress.expansion, xp.zeros_like(progress.expansion))))
        refuse_expansion("the difference of two iterates", worst, problem.constant, 0.0)
    bad = ~xp.isfinite(progress.residual)
    if bool(xp.any(bad)):
        count, total = int(xp.sum(xp.astype(bad, xp.int64))), progress.residual.shape[0]
        raise NonFiniteError(f"{problem.name} returned NaN or infinity for {count} of {total} samples.")


def _answer(
    problem: Problem,
    progress: Progress,
    rtol: float,
    atol: float,
    dtype: Any,
    on_failure: OnFailure,
    solver: str,
) -> Inverse:
    """Turn the last iterate into an answer in `dtype`, with its certificate."""
    backend, xp = problem.backend, problem.backend.xp
    c = problem.constant
    unit = problem.unit
    value = xp.astype(progress.x, dtype)
    residual, rounding, floor = _residual(problem, progress, value)
    bound = (residual + rounding) / (1 - c) * (1 + 2.0**-50)
    size = sample_norms(xp, xp.astype(value, bound.dtype))
    # A sample that stalled has the rounding of its whole history: a contraction gathers that up to 1 / (1 - c) times.
    stalled = progress.since >= STALLED
    floor = 2 * floor / (1 - c) * xp.where(stalled, xp.full_like(floor, 1 / (1 - c)), xp.ones_like(floor))
    if value.dtype != problem.y.dtype:
        floor = floor + 2 * unit_roundoff(backend, dtype) * (1 + c) / (1 - c) * xp.astype(size, floor.dtype)
    converged = (bound <= atol + rtol * size + xp.astype(floor, bound.dtype)) & xp.isfinite(bound)
    value, bound, residual = value * unit, bound * unit, residual * unit
    result = Inverse(value, bound, residual, progress.evaluations, converged, bound)
    if backend.is_tracing(bound) or on_failure == "return" or bool(xp.all(converged)):
        return result
    failed = int(xp.sum(xp.astype(~converged, xp.int64)))
    message = (
        f"invert: {failed} of {converged.shape[0]} samples did not reach rtol={rtol:g}, atol={atol * unit:g} in "
        f"{int(xp.max(progress.evaluations))} evaluations of {problem.name} (solver {solver}, c = {c:.4g}); largest "
        f"error bound {float(xp.max(bound)):.3g}. Raise max_iter or the tolerance, or pass on_failure='return'."
    )
    if on_failure == "raise":
        raise NotConvergedError(message)
    warnings.warn(message, NotConvergedWarning, stacklevel=4)
    return result


def _residual(problem: Problem, progress: Progress, value: Array) -> tuple[Array, Array, Array]:
    """Norm of x + g(x) - y at the returned x, a bound on its rounding, and that in the dtype of the solver.

    Below float64 a branch that bounds its own rounding is evaluated in float64.
    """
    backend, xp = problem.backend, problem.backend.xp
    working = problem.y.dtype
    if not problem.g.knows_rounding:
        x, known = xp.astype(value, working), progress.image if value.dtype == working else None
    else:
        x, known = xp.astype(value, widest(backend)), None
    image, rounding = evaluated(problem, x, known)
    ratio = unit_roundoff(backend, working) / unit_roundoff(backend, x.dtype)
    return sample_norms(xp, x + image - xp.astype(problem.y, x.dtype)), rounding, rounding * ratio
