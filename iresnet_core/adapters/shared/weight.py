"""Weights that are kept below their caps: estimates of their norms in training, certificates in evaluation."""

from collections.abc import Sequence
from typing import Any

from iresnet_core.backends import Array, get_backend
from iresnet_core.lipschitz import (
    Certificate,
    certificate,
    normalize,
    scaled_by_certificate,
    scaled_by_estimate_stack,
    scaled_to_cap,
    weyl_bound,
)
from iresnet_core.operators import LinearLayer

__all__ = ["CappedLayer", "CertifiedWeight", "estimated_layers"]


class CertifiedWeight:
    """Weight in use of one linear layer, ``W min(1, cap / norm)``, from its free weight W.

    In training the norm is estimated by a warm-started block power iteration (`estimated_layers`). In evaluation it is
    certified, once for given weights: whatever changed the weights (an optimizer, loading, another dtype) has them
    certified anew. A compiled program looks at no value, and carries the last certificate over to the present weights
    by Weyl's inequality.

    An adapter says how its framework keeps the state: `free_layer`, `known` and `keep` for the certificate, `start` and
    `advance` for the basis of the power iteration, `replace` for the free weight itself.
    """

    cap: float
    input_shape: Any

    def free_layer(self, weight: Array, bias: Array | None = None, *, checked: bool = False) -> LinearLayer:
        """Return the core's linear layer with the weight as it is; `checked` where it need not be looked at."""
        raise NotImplementedError

    def known(self, weight: Array) -> tuple[Array, Certificate] | None:
        """Return the weight that was certified last and its certificate, or None if it says nothing about `weight`."""
        raise NotImplementedError

    def is_certified(self, weight: Array) -> bool:
        """Say whether the last certificate belongs to just these values."""
        raise NotImplementedError

    def keep(self, weight: Array, found: Certificate) -> None:
        """Keep a weight and its certificate."""
        raise NotImplementedError

    def start(self, free: LinearLayer) -> Array | None:
        """Return the basis from which the power iteration begins in this pass, or None if there is none yet."""
        raise NotImplementedError

    @staticmethod
    def advance(found: Sequence[tuple[Any, Array]]) -> None:
        """Keep the bases that a training pass has found, given with their weights."""
        raise NotImplementedError

    def replace(self, weight: Array, value: Array) -> None:
        """Write a value into the free weight."""
        raise NotImplementedError

    def certify(self, weight: Array) -> bool:
        """Certify the norm of a free weight, unless it was certified last; say whether that was done."""
        backend = get_backend(weight)
        if backend.is_tracing(weight) or self.is_certified(weight):
            return False

        def certified() -> tuple[Array, Certificate]:
            constant = backend.frozen(backend.stop_gradient(weight))
            return constant, certificate(self.free_layer(constant))

        with backend.no_grad():
            self.keep(*backend.concretely(certified))
        return True

    def certified_layer(self, weight: Array, bias: Array | None = None) -> LinearLayer:
        """Return the linear layer scaled by a certified norm."""
        free = self.free_layer(weight, bias)
        backend = get_backend(weight)
        tracing = backend.is_tracing(weight)
        if not tracing:
            self.certify(weight)
        kept = self.known(weight)
        if kept is None:  # a program that is compiled before anything was certified bounds the norm by Gram iteration
            return normalize(free, self.cap)  # type: ignore[no-any-return]
        known_weight, known = kept
        if not tracing:
            return scaled_by_certificate(free, self.cap, known)
        certified = self.free_layer(known_weight, checked=True).weight
        bound = weyl_bound(free.weight, certified, known.bound, free)
        return scaled_by_certificate(free, self.cap, known._replace(bound=bound)).capped(self.cap)


class CappedLayer:
    """A linear layer of a branch: its free parameters, as arrays that can be differentiated by, and their cap.

    Attributes
    ----------
    weight, bias : array
        The free parameters as the framework has them; the bias may be None.
    state : CertifiedWeight
        What keeps the weight in use below the cap.
    cap : float
        Largest norm of the weight in use.
    """

    def __init__(self, weight: Array, bias: Array | None, state: CertifiedWeight) -> None:
        self.weight, self.bias, self.state = weight, bias, state

    @property
    def cap(self) -> float:
        """Largest norm of the weight in use."""
        return self.state.cap

    def free(self, *, checked: bool = False) -> LinearLayer:
        """Return the core's layer with the free parameters."""
        return self.state.free_layer(self.weight, self.bias, checked=checked)

    def certified(self) -> LinearLayer:
        """Return the core's layer with the weight in use in evaluation."""
        return self.state.certified_layer(self.weight, self.bias)

    def certify(self) -> bool:
        """Certify the free weight, unless it was certified last; say whether that was done."""
        return self.state.certify(self.weight)

    def fill(self) -> None:
        """Scale the free weight so that its certified norm is the cap."""
        self.certify()
        kept = self.state.known(self.weight)
        assert kept is not None
        with get_backend(self.weight).no_grad():
            self.state.replace(self.weight, scaled_to_cap(self.weight, self.cap, kept[1].bound))


def estimated_layers(capped: Sequence[CappedLayer]) -> dict[CertifiedWeight, LinearLayer]:
    """Return the layers with the weights in use in training, all at once, and move the power iterations on."""
    if not capped:
        return {}
    # Entries that are not finite show in the output, which is looked at.
    free = [layer.free(checked=True) for layer in capped]
    bases = [layer.state.start(linear) for layer, linear in zip(capped, free, strict=True)]
    weight = free[0].weight
    with get_backend(weight).own_dtype(weight):  # half precision would miss the norms
        found = scaled_by_estimate_stack(free, [layer.cap for layer in capped], bases)
    states = [layer.state for layer in capped]
    states[0].advance([(state, basis) for state, (_, basis) in zip(states, found, strict=True)])
    return {state: linear for state, (linear, _) in zip(states, found, strict=True)}
