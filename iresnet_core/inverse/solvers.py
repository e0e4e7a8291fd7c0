"""The solvers of the contraction inverse: a table with one row a solver, and the solver that combines the others."""

import math
from collections.abc import Callable

from iresnet_core.backends import Array, device_of
from iresnet_core.inverse.anderson_acceleration import OBSERVED, SLOW_RATE, anderson
from iresnet_core.inverse.fixed_point import FixedPoint, Progress, picard
from iresnet_core.inverse.newton_krylov import newton

__all__ = ["SOLVERS", "Solver", "accelerated"]

# The mean Jacobian is worth its d^3 operations up to this dimension d, and up to so many times the samples of a batch.
LARGEST_DIMENSION, DIMENSIONS_PER_SAMPLE = 1024, 4


def accelerated(problem: FixedPoint, x: Array, max_iter: int) -> Progress:
    """Anderson's method; the plain iteration where that gains too little, and Newton's where either stays slow.

    Preconditioned by the mean Jacobian of the batch where g has one and it is cheap. In a compiled program, which
    cannot look at its progress, Anderson's method throughout, without the preconditioner.
    """
    xp = problem.backend.xp
    start, preconditioner = _begun(problem, x)
    if problem.backend.is_tracing(start.residual):  # of g's weights as well
        return anderson(problem, start, max_iter)[0]
    state, useless, slow = anderson(problem, start, max_iter, judged=True, preconditioner=preconditioner)
    while bool(useless) and not bool(slow):
        left = max_iter - int(xp.max(state.evaluations))
        before, state = state, picard(problem, x, min(left, OBSERVED), begun=state)
        if left <= OBSERVED or bool(xp.all(state.done)):
            return state
        slow = xp.any(~state.done & (state.residual > SLOW_RATE**OBSERVED * before.residual))
    return newton(problem, x, max_iter, begun=state) if bool(slow) else state


def _begun(problem: FixedPoint, x: Array) -> tuple[Progress, Array | None]:
    """Return the first iterate, and the preconditioner (I + J0)^-T from the same evaluation, J0 the mean Jacobian."""
    backend, xp = problem.backend, problem.backend.xp
    d = math.prod(x.shape[1:])
    cheap = not backend.is_tracing(x) and d <= min(LARGEST_DIMENSION, DIMENSIONS_PER_SAMPLE * x.shape[0])
    linearized = getattr(problem.g, "with_mean_jacobian", lambda x: None)(x) if cheap else None
    if linearized is None:
        return problem.begin(x), None
    image, mean = linearized
    start = problem.begin(x, image)
    if backend.is_tracing(mean) or not bool(xp.all(xp.isfinite(mean))):
        return start, None
    transposed = xp.eye(d, dtype=mean.dtype, device=device_of(mean)) + xp.matrix_transpose(mean)
    sign, log_determinant = xp.linalg.slogdet(transposed)
    if not (float(sign) > 0 and float(log_determinant) >= d * math.log1p(-problem.constant) - 1):
        return start, None  # J0 is no mean of contractions by the constant, which the iteration will show.
    return start, xp.linalg.inv(transposed)


# A function (problem, first iterate, evaluations at most) -> progress.
Solver = Callable[[FixedPoint, Array, int], Progress]

# The solvers of `invert`.
SOLVERS: dict[str, Solver] = {
    "picard": picard,
    "anderson": accelerated,
    "newton": newton,
}
