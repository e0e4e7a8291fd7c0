"""Derivatives that are written by hand or taken by hand, which save memory in training."""

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["DerivativesByHand"]

Array = Any


class DerivativesByHand:
    """Methods of a `Backend` with plain defaults, for one that keeps less with a way back of its own."""

    def entrywise(
        self, x: Array, both: Callable[[Array], tuple[Array, ...]], bend: Callable[..., Array]
    ) -> tuple[Array, Array]:
        """Return a function that acts on every entry of `x`, and its slope; both are differentiable.

        ``both(x)`` gives the two, and more arrays that ``bend(x, *both(x))``, the second derivative, can use: a backend
        may write the backward pass by hand with it.
        """
        value, slope, *_ = both(x)
        return value, slope

    def takes_derivatives_by_hand(self, *arrays: Array) -> bool:
        """Say whether `with_derivative_by_hand` is worth calling here: a derivative of `arrays` is being recorded."""
        return False

    def with_derivative_by_hand(
        self,
        forward: Callable[..., tuple[tuple[Array, ...], tuple[Array, ...]]],
        backward: Callable[..., Sequence[Any]],
        plainly: Callable[..., tuple[Array, ...]],
        arrays: Sequence[Any],
    ) -> tuple[Array, ...]:
        """Return the first of what ``forward(*arrays)`` gives, a tuple of arrays, with the derivative by `arrays`.

        The second is a tuple of arrays to keep: ``backward(arrays, kept, cotangents, needed)`` gives a cotangent for
        each of `arrays`, of which those that are not `needed` may be None. ``plainly(arrays, kept)`` is the same
        program in a form that the backend can differentiate by itself, for second derivatives.
        """
        return plainly(arrays, forward(*arrays)[1])

    def pulled_back(
        self,
        fn: Callable[..., tuple[Array, ...]],
        points: Sequence[Array],
        others: Sequence[Array],
        cotangents: Sequence[Array],
    ) -> tuple[tuple[Array, ...], list[Array]]:
        """Return ``fn(*points)`` and the cotangents of these and of `others`, which `fn` closes over, in this order.

        Points are taken as constants, whatever they depend on.

        It is for what `with_derivative_by_hand` calls on the way back, where `takes_derivatives_by_hand` says yes.
        """
        raise NotImplementedError

    def replayed(self, rng: Any, x: Array) -> Callable[[], Any]:
        """Return a function that makes a source of the random numbers that `rng` is about to give for arrays like x.

        It is for where `takes_derivatives_by_hand` says yes.
        """
        raise NotImplementedError
