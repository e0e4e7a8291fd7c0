"""Anderson's method for x = y - g(x), safeguarded, sample by sample."""

import math
from typing import Any, NamedTuple

from iresnet_core.backends import Array, device_of
from iresnet_core.common import flatten, per_sample, sample_norms
from iresnet_core.inverse.fixed_point import FixedPoint, Progress

__all__ = ["anderson"]

# Past steps that are combined.
WINDOW = 5
# Steps over which the rate of convergence is observed, and the rate above which another method is tried.
OBSERVED = 30
SLOW_RATE = 0.9
# The gain is judged every so many steps; the first steps do not count. A step costs up to one and a half plain ones, so
# that it has to gain at least this share of the total, logarithms taken.
JUDGED_EVERY, UNSETTLED, LEAST_SHARE = 9, 3, 1 / 4

_FIELDS = len(Progress._fields)


class _History(NamedTuple):
    """The last differences of the residuals, and those plus the differences of the iterates, (batch, d) each.

    `gram` (batch, w, w) holds the inner products of the first, `valid` (batch, w) which of them belong to the sample's
    present history, `plain` (batch,) whether it does without the preconditioner. `steps` () counts, `checkpoint`
    (batch,) is the residual at the last observation, `gain` (batch,) the sum of the logarithms of what combinations and
    preconditioner took off the residual. `slow` () says whether a sample came no further than at the slow rate since
    the observation before, `useless` () whether the gain was not worth its cost.
    """

    residuals: tuple[Array, ...]
    combined: tuple[Array, ...]
    gram: Array
    valid: Array
    plain: Array
    steps: Array
    checkpoint: Array
    early: Array
    gain: Array
    useless: Array
    slow: Array


def anderson(
    problem: FixedPoint, start: Progress, max_iter: int, *, judged: bool = False, preconditioner: Array | None = None
) -> tuple[Progress, Array, Array]:
    """Anderson's method (type II, window 5) on f(x) = y - g(x) - x (Walker and Ni 2011).

    The least-squares step is taken by the normal equations, whose matrix grows by one row per step: scaled to a unit
    diagonal and with a ridge of the size of its rounding, so that a difference which the others nearly span has no say.
    A residual that grew sends the sample back to its best iterate for one plain step, with the history dropped: the
    residual then shrinks by c at least once in every two evaluations.

    With a `preconditioner` P (d, d), near (I + J)^-T for all samples, each step takes force P in place of the force (a
    row vector): a Newton step with a fixed matrix. A sample whose residual it let grow goes on without it.

    `start` is the first iterate, at which g has been evaluated. Returns the progress, whether it was not worth its cost
    (), and whether it was slow (): if it is `judged`, the iteration ends at that.
    """
    backend, xp, x = problem.backend, problem.backend.xp, start.x
    batch, d = x.shape[0], math.prod(x.shape[1:])
    window = min(WINDOW, d)
    slow, share = backend.as_program_constants(SLOW_RATE**OBSERVED, LEAST_SHARE)

    def unfinished(*arrays: Array) -> Array:
        going = ~xp.all(Progress(*arrays[:_FIELDS]).done)
        return going & ~arrays[-1] & ~arrays[-2] if judged else going

    def preconditioned(plain: Array, force: Array) -> Array:
        return force if preconditioner is None else xp.where(plain[:, None], force, xp.matmul(force, preconditioner))

    def step(*arrays: Array) -> tuple[Array, ...]:
        best, history = Progress(*arrays[:_FIELDS]), _unpacked(arrays[_FIELDS:], window)
        force = flatten(xp, problem.y - best.image - best.x)
        weights, gain = _weights(xp, history, force, best.residual)
        update = preconditioned(history.plain, force)
        for i, combined in enumerate(history.combined):
            update = update - weights[:, i, None] * combined
        state = problem.advance(best, xp.reshape(flatten(xp, best.x) + update, x.shape))
        if preconditioner is not None:
            gain = xp.where(history.plain, gain, _beyond_plain(problem, best, state))
        # NaN counts as shrunk: it ends the sample, and is reported.
        shrunk = ~(state.residual >= best.residual)
        residual = flatten(xp, problem.y - state.image - state.x) - force
        combined = preconditioned(history.plain, residual) + flatten(xp, state.x - best.x)
        history = _extended(xp, history, residual, combined, shrunk)
        back = ~per_sample(xp, shrunk, x)
        state = state._replace(
            x=xp.where(back, best.x, state.x),
            image=xp.where(back, best.image, state.image),
            residual=xp.where(shrunk, state.residual, best.residual),
        )
        return (*state, *_packed(_observed(xp, history, state, gain, slow, share)))

    zeros = xp.zeros((batch, d), dtype=x.dtype, device=device_of(x))
    none = ~xp.isfinite(xp.zeros((batch, window), dtype=x.dtype, device=device_of(x)))
    history = _History(
        residuals=(zeros,) * window,
        combined=(zeros,) * window,
        gram=xp.zeros((batch, window, window), dtype=x.dtype, device=device_of(x)),
        valid=none,
        plain=xp.any(none, axis=1) if preconditioner is not None else ~xp.any(none, axis=1),
        steps=xp.zeros((), dtype=xp.int32, device=device_of(x)),
        checkpoint=start.residual,
        early=start.residual,
        gain=xp.zeros_like(start.residual),
        useless=xp.any(none),
        slow=xp.any(none),
    )
    arrays = backend.while_loop(unfinished, step, (*start, *_packed(history)), max_iter - 1)
    return Progress(*arrays[:_FIELDS]), arrays[-2], arrays[-1]


def _packed(history: _History) -> tuple[Array, ...]:
    return (*history.residuals, *history.combined, *history[2:])


def _unpacked(arrays: tuple[Array, ...], window: int) -> _History:
    return _History(arrays[:window], arrays[window : 2 * window], *arrays[2 * window :])


def _weights(xp: Any, history: _History, force: Array, length: Array) -> tuple[Array, Array]:
    """Coefficients (batch, w) of the differences whose combination is nearest to the force.

    And the logarithm of what it leaves of the force, relative to the length (batch,) of that.
    """
    valid, window = history.valid, len(history.residuals)
    diagonal = xp.linalg.diagonal(history.gram)
    used = valid & (diagonal > 0)
    one, zero = xp.ones_like(diagonal), xp.zeros_like(diagonal)
    scale = xp.where(used, 1 / xp.sqrt(xp.where(used, diagonal, one)), zero)
    right = xp.stack([xp.sum(r * force, axis=-1) for r in history.residuals], axis=-1) * scale
    ridge = 1 + 16 * float(xp.finfo(force.dtype).eps) * window
    identity = xp.eye(window, dtype=force.dtype, device=device_of(force))
    matrix = history.gram * scale[:, :, None] * scale[:, None, :] * (1 - identity) + ridge * identity
    # NaN, of a sample that has ended, would stop the factorisation of all.
    matrix = xp.where(xp.isfinite(matrix), matrix, xp.zeros_like(matrix) + identity)
    solution = xp.linalg.solve(matrix, right[..., None])[..., 0]
    square = xp.where(length > 0, length, xp.ones_like(length)) ** 2
    left = 1 - xp.sum(xp.where(used, solution * right, zero), axis=-1) / square
    eps = float(xp.finfo(force.dtype).eps)
    gain = 0.5 * xp.log(xp.minimum(xp.maximum(left, eps * xp.ones_like(left)), xp.ones_like(left)))
    return xp.where(used, solution * scale, zero), gain


def _beyond_plain(problem: FixedPoint, before: Progress, after: Progress) -> Array:
    """Logarithm of what a step took off the residual beyond the plain iteration, judged by how much g expands there."""
    xp = problem.backend.xp
    lengths = (after.residual, before.residual, sample_norms(xp, after.x - before.x))
    expansion = sample_norms(xp, after.image - before.image)
    usable = (expansion > 0) & (lengths[0] > 0) & (lengths[1] > 0) & (lengths[2] > 0)
    new, old, step, change = (xp.where(usable, a, xp.ones_like(a)) for a in (*lengths, expansion))
    return xp.log(new / old) - xp.log(change / step)


def _extended(xp: Any, history: _History, residual: Array, combined: Array, keep: Array) -> _History:
    """Take in the newest difference and let go of the oldest; where not `keep`, forget all."""
    residuals = (residual, *history.residuals[:-1])
    row = xp.stack([xp.sum(residual * r, axis=-1) for r in residuals], axis=-1)
    # Not `row[:, 1:, None]`: two steps remembered, TensorFlow's graph optimizer makes a wrong program of it.
    older = xp.concat([xp.expand_dims(row[:, 1:], axis=2), history.gram[:, :-1, :-1]], axis=2)
    valid = xp.concat([keep[:, None], history.valid[:, :-1] & keep[:, None]], axis=1)
    return history._replace(
        residuals=residuals,
        combined=(combined, *history.combined[:-1]),
        gram=xp.concat([row[:, None, :], older], axis=1),
        valid=valid,
        plain=history.plain | ~keep,
    )


def _observed(xp: Any, history: _History, state: Progress, gain: Array, slow_rate: float, share: float) -> _History:
    """Look at the rate of convergence now and then, and at what the combinations contribute to it."""
    steps = history.steps + 1
    due = steps % OBSERVED == 0
    slow = xp.any(~state.done & (state.residual > slow_rate * history.checkpoint))
    total = xp.where(steps > UNSETTLED, history.gain + gain, xp.zeros_like(gain))
    early = xp.where(steps == UNSETTLED, state.residual, history.early)
    one = xp.ones_like(early)
    overall = xp.log(xp.where(state.residual > 0, state.residual, one) / xp.where(early > 0, early, one))
    worth = xp.where(state.done, 0 * total, share * overall - total)
    judged = (steps >= JUDGED_EVERY) & (steps % JUDGED_EVERY == 0)
    return history._replace(
        steps=steps,
        checkpoint=xp.where(due, state.residual, history.checkpoint),
        early=early,
        gain=total,
        useless=history.useless | (judged & (xp.sum(worth) < 0)),
        slow=history.slow | (due & slow),
    )
