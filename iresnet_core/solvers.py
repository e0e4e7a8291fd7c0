"""The solvers of the contraction inverse by name."""

from collections.abc import Callable

from iresnet_core.anderson_acceleration import OBSERVED, SLOW_RATE, anderson
from iresnet_core.backends import Array
from iresnet_core.fixed_point import FixedPoint, Progress, picard
from iresnet_core.newton_krylov import newton

__all__ = ["SOLVERS"]


def accelerated(problem: FixedPoint, x: Array, max_iter: int) -> Progress:
    """Anderson's method; the plain iteration where that gains too little, and Newton's where either stays slow.

    In a compiled program, which cannot look at its progress, Anderson's method throughout.
    """
    xp = problem.engine.xp
    start = problem.begin(x)
    if problem.engine.is_tracing(start.residual):  # of g's weights as well
        return anderson(problem, start, max_iter)[0]
    state, useless, slow = anderson(problem, start, max_iter, judged=True)
    while bool(useless) and not bool(slow):
        left = max_iter - int(xp.max(state.evaluations))
        before, state = state, picard(problem, x, min(left, OBSERVED), begun=state)
        if left <= OBSERVED or bool(xp.all(state.done)):
            return state
        slow = xp.any(~state.done & (state.residual > SLOW_RATE**OBSERVED * before.residual))
    return newton(problem, x, max_iter, begun=state) if bool(slow) else state


SOLVERS: dict[str, Callable[[FixedPoint, Array, int], Progress]] = {
    "picard": picard,
    "anderson": accelerated,
    "newton": newton,
}
