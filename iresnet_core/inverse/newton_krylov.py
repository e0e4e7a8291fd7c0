"""Newton's method for x + g(x) = y, each step by GMRES, sample by sample."""

from collections.abc import Callable
from typing import NamedTuple

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

# A step that does not shrink the residual is tried again at these shares of its length, and then replaced.
SHORTER = tuple(2.0**-k for k in (1, 3, 6, 10, 15, 21))
# Evaluations after which the residual has to be below what the plain iteration promises for as many.
OBSERVED = 60

_FIELDS = len(Progress._fields)


class _Search(NamedTuple):
    """What Newton's method remembers of its last steps, per sample.

    `before` is the residual before the last step that was taken, `direction` (batch, ...) the last step, `failures` how
    often it was too long. At `observed` evaluations the residual was `checkpoint`. `hopeless` says that the method was
    slower since such an observation than the plain iteration, which the sample then keeps to.
    """

    before: Array
    direction: Array
    failures: Array
    checkpoint: Array
    observed: Array
    hopeless: Array


def newton(problem: FixedPoint, x: Array, max_iter: int, *, begun: Progress | None = None) -> Progress:
    """Inexact Newton steps (I + J) s = y - g(x) - x, solved by GMRES as far as they will be of use.

    The products are the branch's own, or differences of g (Knoll and Keyes 2004). The forcing term falls with the
    square of the residual's last reduction (Eisenstat and Walker 1996, choice 2). A step that does not shrink the
    residual is undone and tried shorter, six times at most, and then replaced by a plain one, which does by c. A
    sample on which the method is slower than the plain iteration promises to be goes on by that: the evaluations are
    those of the plain iteration and `OBSERVED` more at most. Every product counts as an evaluation of g.
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
        best, search = Progress(*arrays[:_FIELDS]), _Search(*arrays[_FIELDS:])
        # An accelerator looks at the condition of a loop every few steps only.
        exhausted = ~best.done & (most_spent(best) >= max_iter)
        best = best._replace(done=best.done | exhausted)
        force = problem.y - best.image - best.x
        plain = search.hopeless | (search.failures > len(SHORTER)) | (most_spent(best) + 3 > max_iter)
        again = ~plain & (search.failures > 0)
        solve = ~(best.done | plain | again)
        if tracing or bool(xp.any(solve)):
            update, products = _solved(problem, best, force, _forcing(problem, best, search.before), ~solve, max_iter)
        else:
            update, products = force, xp.zeros_like(best.evaluations)
        update = xp.where(per_sample(xp, again, x), search.direction, update)
        update = xp.where(per_sample(xp, plain, x), force, update)
        share = xp.ones_like(best.residual)
        for failures, factor in enumerate(SHORTER, 1):
            share = xp.where(again & (search.failures == failures), xp.full_like(share, factor), share)
        spent = xp.astype(solve, products.dtype) * products
        state = problem.advance(
            best._replace(evaluations=best.evaluations + spent), best.x + per_sample(xp, share, x) * update
        )
        shrunk = ~(state.residual >= best.residual)
        back = ~per_sample(xp, shrunk, x)
        # A step that brings nothing has met the floor of the dtype if it is near, and will be replaced if it is not.
        near = state.residual <= NEAR * problem.noise(sample_norms(xp, state.x), sample_norms(xp, state.image))
        idle = xp.where(near, state.since + (IDLE_STEPS - 1), xp.where(plain, state.since, xp.zeros_like(state.since)))
        state = state._replace(
            x=xp.where(back, best.x, state.x),
            image=xp.where(back, best.image, state.image),
            residual=xp.where(shrunk, state.residual, best.residual),
            since=xp.where(state.since > 0, idle, state.since),
            done=state.done & ~exhausted,
        )
        return (*state, *_searched(problem, search, best, state, update, shrunk | plain))

    arrays = backend.while_loop(unfinished, step, (*state, *_begun(problem, state)), outer)
    return Progress(*arrays[:_FIELDS])


def _begun(problem: FixedPoint, state: Progress) -> _Search:
    xp = problem.backend.xp
    one = xp.where(state.residual > 0, state.residual, xp.ones_like(state.residual))
    never = xp.zeros_like(state.done)
    return _Search(one, state.x, xp.zeros_like(state.evaluations), state.residual, state.evaluations, never)


def _forcing(problem: FixedPoint, best: Progress, before: Array) -> Array:
    """Relative residuals (batch,) to which the next linear solve is of use."""
    xp = problem.backend.xp
    target = (1 - problem.constant) * (problem.atol + problem.rtol * sample_norms(xp, best.x))
    length = xp.where(best.residual > 0, best.residual, xp.ones_like(best.residual))
    forcing = xp.minimum(0.9 * (best.residual / before) ** 2, xp.full_like(length, LOOSEST))
    return xp.maximum(forcing, 0.5 * target / length)


def _searched(
    problem: FixedPoint, search: _Search, best: Progress, state: Progress, update: Array, through: Array
) -> _Search:
    """Note what became of a step: `through` says which samples go on from where they are."""
    xp = problem.backend.xp
    failures = xp.where(through, xp.zeros_like(search.failures), search.failures + 1)
    passed = state.evaluations - search.observed
    due = passed >= OBSERVED
    promised = search.checkpoint * problem.constant ** xp.astype(passed, best.residual.dtype)
    length = xp.where(best.residual > 0, best.residual, xp.ones_like(best.residual))
    return _Search(
        # After a failure the forcing term does not change, since the residual does not.
        before=xp.where(failures > 0, search.before, length),
        direction=update,
        failures=failures,
        checkpoint=xp.where(due, state.residual, search.checkpoint),
        observed=xp.where(due, state.evaluations, search.observed),
        hopeless=search.hopeless | (due & (state.residual > promised)),
    )


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
