"""Newton's method for x + g(x) = y, each step by GMRES, sample by sample."""

from collections.abc import Callable

from iresnet_core.backends import Array
from iresnet_core.common import flatten, per_sample, sample_norms, unit_roundoff
from iresnet_core.inverse.fixed_point import FixedPoint, Progress
from iresnet_core.inverse.krylov_solve import COMPILED_PRODUCTS, MOST_PRODUCTS, gmres

__all__ = ["newton"]

# A linear solve is never asked for less than this share of the residual.
LOOSEST = 0.1
# A step without real progress counts as so many of the plain iteration's where the residual is near to its rounding,
# below this multiple of it.
IDLE_STEPS, NEAR = 5, 1e3

_FIELDS = len(Progress._fields)


def newton(problem: FixedPoint, x: Array, max_iter: int, *, begun: Progress | None = None) -> Progress:
    """Inexact Newton steps (I + J) s = y - g(x) - x, solved by GMRES as far as they will be of use.

    The products are the branch's own, or differences of g (Knoll and Keyes 2004). The forcing term falls with the
    square of the residual's last reduction (Eisenstat and Walker 1996, choice 2). A step that does not shrink the
    residual is undone and replaced by a plain one, which does by c. Every product counts as an evaluation of g.
    `begun` is where another solver left off.
    """
    backend, xp = problem.backend, problem.backend.xp
    state = problem.begin(x) if begun is None else begun
    if x.shape[0] == 0:
        return state
    tracing = backend.is_tracing(x)
    outer = max(1, max_iter // (COMPILED_PRODUCTS + 2)) if tracing else max_iter

    def most_spent(now: Progress) -> Array:
        return xp.max(xp.where(now.done, xp.zeros_like(now.evaluations), now.evaluations))

    def unfinished(*arrays: Array) -> Array:
        now = Progress(*arrays[:_FIELDS])
        return ~xp.all(now.done) & (most_spent(now) < max_iter)

    def step(*arrays: Array) -> tuple[Array, ...]:
        best, (before, plain) = Progress(*arrays[:_FIELDS]), arrays[_FIELDS:]
        # An accelerator looks at the condition of a loop every few steps only.
        exhausted = ~best.done & (most_spent(best) >= max_iter)
        best = best._replace(done=best.done | exhausted)
        force = problem.y - best.image - best.x
        target = (1 - problem.constant) * (problem.atol + problem.rtol * sample_norms(xp, best.x))
        length = xp.where(best.residual > 0, best.residual, xp.ones_like(best.residual))
        forcing = xp.minimum(0.9 * (best.residual / before) ** 2, xp.full_like(length, LOOSEST))
        forcing = xp.maximum(forcing, 0.5 * target / length)
        plain = plain | (most_spent(best) + 3 > max_iter)
        if tracing or not bool(xp.all(best.done | plain)):
            update, products = _solved(problem, best, force, forcing, best.done | plain, max_iter)
        else:
            update, products = force, xp.zeros_like(best.evaluations)
        update = xp.where(per_sample(xp, plain, x), force, update)
        spent = xp.astype(~best.done, products.dtype) * products
        state = problem.advance(best._replace(evaluations=best.evaluations + spent), best.x + update)
        shrunk = ~(state.residual >= best.residual)
        back = ~per_sample(xp, shrunk, x)
        # A step that brings nothing has met the floor of the dtype if it is near, and will be replaced if it is not.
        near = state.residual <= NEAR * problem.noise(sample_norms(xp, state.x), sample_norms(xp, state.image))
        idle = xp.where(near, state.since + (IDLE_STEPS - 1), xp.zeros_like(state.since))
        since = xp.where(state.since > 0, idle, state.since)
        state = state._replace(
            x=xp.where(back, best.x, state.x),
            image=xp.where(back, best.image, state.image),
            residual=xp.where(shrunk, state.residual, best.residual),
            since=since,
            done=state.done & ~exhausted,
        )
        return (*state, length, ~shrunk)

    one = xp.where(state.residual > 0, state.residual, xp.ones_like(state.residual))
    arrays = backend.while_loop(unfinished, step, (*state, one, xp.zeros_like(state.done)), outer)
    return Progress(*arrays[:_FIELDS])


def _product(problem: FixedPoint, state: Progress) -> tuple[Callable[[Array], Array], int]:
    """The map v -> J v for unit vectors (batch, d), and the evaluations that it took to have it."""
    xp, shape = problem.backend.xp, state.x.shape
    known = getattr(problem.g, "jacobian_product", lambda x: None)(state.x)
    if known is not None:
        return lambda v: flatten(xp, known(xp.reshape(v, shape))), 1
    x, image = flatten(xp, state.x), flatten(xp, state.image)
    reach = (1 + sample_norms(xp, state.x))[:, None] * unit_roundoff(problem.backend, state.x.dtype) ** 0.5

    def difference(v: Array) -> Array:
        return (flatten(xp, problem.g(xp.reshape(x + reach * v, shape))) - image) / reach

    return difference, 0


def _solved(
    problem: FixedPoint, state: Progress, force: Array, forcing: Array, idle: Array, max_iter: int
) -> tuple[Array, Array]:
    """GMRES for (I + J) s = force to a relative residual `forcing` (batch,); also the evaluations taken, (batch,).

    Samples that are `idle` are not waited for.
    """
    backend, xp = problem.backend, problem.backend.xp
    multiply, cost = _product(problem, state)
    most = MOST_PRODUCTS
    if not backend.is_tracing(state.x):
        spent = xp.where(idle, xp.zeros_like(state.evaluations), state.evaluations)
        most = max_iter - int(xp.max(spent)) - 1 - cost
    update, products = gmres(backend, multiply, flatten(xp, force), forcing, idle, most)
    return xp.reshape(update, force.shape), products + cost * xp.astype(~idle, products.dtype)
