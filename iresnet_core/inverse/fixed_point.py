"""The problem x = y - g(x) for a batch of independent samples, each of which stops on its own, and the plain iteration.

A solver returns the last iterate at which g was evaluated, so that its residual is known and not guessed.
"""

from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.branches import evaluate
from iresnet_core.common import per_sample, sample_norms, unit_roundoff

__all__ = ["STALLED", "FixedPoint", "Progress", "picard"]

# Evaluations without real progress after which a sample has reached the floor of its dtype.
STALLED = 10


class Progress(NamedTuple):
    """Where a solver stands, per sample but for x and image.

    `image` is g(x), `residual` ||x + g(x) - y||. Between two iterates, `excess` is the largest
    ||g(a) - g(b)|| - c ||a - b|| that was seen (c raised by 1e-6), and `expansion` the factor there. `mark` is the
    residual at the last real progress, `since` counts the evaluations after it.
    """

    x: Array
    image: Array
    residual: Array
    evaluations: Array
    excess: Array
    expansion: Array
    mark: Array
    since: Array
    done: Array


class FixedPoint(NamedTuple):
    """The problem x + g(x) = y with its constant c and its tolerance on the error, ``atol + rtol ||x||``."""

    backend: Backend
    g: Any
    y: Array
    y_norm: Array
    constant: float
    rtol: float
    atol: float

    def noise(self, x_norm: Array, image_norm: Array) -> Array:
        """Rounding of x + g(x) - y, without that of g."""
        return 2 * unit_roundoff(self.backend, x_norm.dtype) * (x_norm + image_norm + self.y_norm)

    def begin(self, x: Array, image: Array = None) -> Progress:
        """Evaluate g at the first iterate, if `image` is not its value already."""
        xp = self.backend.xp
        zero = xp.zeros((x.shape[0],), dtype=x.dtype, device=device_of(x))
        count = xp.zeros((x.shape[0],), dtype=xp.int32, device=device_of(x))
        image = evaluate(self.backend, self.g, x) if image is None else image
        residual = sample_norms(xp, x + image - self.y)
        return Progress(x, image, residual, count + 1, zero, zero, residual, count, self._met(x, image, residual))

    def advance(self, state: Progress, x: Array) -> Progress:
        """Evaluate g at the next iterates; samples that are done stay where they are."""
        xp = self.backend.xp
        keep = per_sample(xp, state.done, x)
        x = xp.where(keep, state.x, x)
        image = xp.where(keep, state.image, evaluate(self.backend, self.g, x))
        residual = xp.where(state.done, state.residual, sample_norms(xp, x + image - self.y))
        # A c-contraction gains c^5 in ten evaluations, five of them plain steps; less is rounding.
        progress = residual <= 0.5 * (1 + self.constant**5) * state.mark
        since = xp.where(progress, xp.zeros_like(state.since), state.since + 1)
        step, change = sample_norms(xp, x - state.x), sample_norms(xp, image - state.image)
        excess = change - (1 + 1e-6) * self.constant * step
        worse = excess > state.excess
        return Progress(
            x,
            image,
            residual,
            state.evaluations + xp.astype(~state.done, state.evaluations.dtype),
            xp.where(worse, excess, state.excess),
            xp.where(worse, change / xp.where(step > 0, step, xp.ones_like(step)), state.expansion),
            xp.where(progress, residual, state.mark),
            since,
            state.done | (since >= STALLED) | ~xp.isfinite(residual) | self._met(x, image, residual),
        )

    def _met(self, x: Array, image: Array, residual: Array) -> Array:
        """Which samples have met the tolerance, or cannot come closer since only rounding is left of the residual."""
        xp = self.backend.xp
        size = sample_norms(xp, x)
        noise = self.noise(size, sample_norms(xp, image))
        tolerance = (1 - self.constant) * (self.atol + self.rtol * size)
        return (residual + noise <= tolerance) | (residual <= 0.5 * noise)


def picard(problem: FixedPoint, x: Array, max_iter: int, *, begun: Progress | None = None) -> Progress:
    """Plain iteration x <- y - g(x) (Behrmann et al. 2019, Algorithm 1): the residual shrinks by c or better each time.

    `begun` is where another solver left off; `max_iter` evaluations are then added at most.
    """
    backend, xp = problem.backend, problem.backend.xp

    def unfinished(*state: Array) -> Array:
        return ~xp.all(Progress(*state).done)

    def step(*arrays: Array) -> tuple[Array, ...]:
        state = Progress(*arrays)
        return tuple(problem.advance(state, problem.y - state.image))

    state = problem.begin(x) if begun is None else begun
    return Progress(*backend.while_loop(unfinished, step, tuple(state), max_iter if begun else max_iter - 1))
