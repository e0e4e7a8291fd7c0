"""Weights that are kept below their caps, in training and in evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from iresnet_core.backends import Array, get_backend
from iresnet_core.lipschitz import (
    Certificate,
    certificate,
    scaled_by_certificate,
    scaled_in_training,
    scaled_to_cap,
)
from iresnet_core.operators import LinearLayer

__all__ = ["CappedLayer", "CertifiedWeight", "Kept", "training_layers", "with_newest"]

V = TypeVar("V")


# So many sizes of images have their certificates kept, the oldest of which goes for a new one.
MOST_SIZES = 8


@dataclass(frozen=True)
class Kept:
    """Certificates of a weight, by the sizes of the images; never changed, so that threads see all of it or none."""

    weight: Array
    found: Mapping[Any, Certificate]

    def __reduce__(self) -> Any:
        """Copy and pickle nothing: what was certified elsewhere is certified anew."""
        return _nothing, ()

    def __deepcopy__(self, memo: Any) -> None:
        """Copy nothing."""


def with_newest(kept: Mapping[Any, V], size: Any, value: V) -> dict[Any, V]:
    """Return what is kept by the sizes of images, with a new one and without the oldest that are too many."""
    others = {key: known for key, known in kept.items() if key != size}
    return {**dict(list(others.items())[1 - MOST_SIZES :]), size: value}


def _nothing() -> None:
    return None


class CertifiedWeight:
    """Weight in use of one linear layer, ``W min(1, cap / norm)``, from its free weight W.

    In training the norm of a matrix is estimated by a warm-started block power iteration (`training_layers`); that of a
    convolution is certified. In evaluation all are, by the same matrix products in a compiled program, which computes
    them with the weights it is given, and eagerly, where the certificate is kept until the values of the weight are
    others.

    An adapter says how its framework keeps the state: `start` and `advance` for the basis of the power iteration,
    `replace` for the free weight itself.
    """

    cap: float
    kept: Kept | None = None

    def free_layer(
        self, weight: Array, bias: Array | None = None, input_shape: Any = None, *, checked: bool = False
    ) -> LinearLayer:
        """Return the core's linear layer with the weight as it is; `checked` where it need not be looked at."""
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

    def keep(self, kept: Kept) -> None:
        """Keep a certificate, by one assignment."""
        self.kept = kept

    def is_certified(self, weight: Array, input_shape: Any = None) -> bool:
        """Say whether a certificate is kept for just these values."""
        return self._known(weight, input_shape, get_backend(weight).may_differentiate(weight)) is not None

    def _known(self, weight: Array, input_shape: Any, derivative: bool) -> Certificate | None:
        """Return the certificate of a weight with values, if it is kept."""
        kept = self.kept
        found = None if kept is None else kept.found.get(input_shape)
        if kept is None or found is None or (derivative and found.direction is None):
            return None
        return found if get_backend(weight).are_equal(kept.weight, weight) else None

    def certificate(self, weight: Array, input_shape: Any = None) -> Certificate:
        """Return the certificate of a free weight: computed here in a compiled program, else kept."""
        backend = get_backend(weight)
        if backend.is_tracing(weight):
            return certificate(self.free_layer(weight, None, input_shape, checked=True))
        derivative = backend.may_differentiate(weight)
        known = self._known(weight, input_shape, derivative)
        if known is not None:
            return known
        kept = self.kept
        if kept is not None and not backend.are_equal(kept.weight, weight):
            kept = None

        def certified() -> Kept:
            constant = backend.frozen(backend.stop_gradient(weight)) if kept is None else kept.weight
            found = certificate(self.free_layer(constant, None, input_shape), derivative=derivative)
            return Kept(constant, with_newest({} if kept is None else kept.found, input_shape, found))

        with backend.no_grad():
            made = backend.concretely(certified)
        self.keep(made)
        return made.found[input_shape]  # type: ignore[no-any-return]

    def certify(self, weight: Array, input_shape: Any = None) -> bool:
        """Certify the norm of a free weight, unless it was certified last; say whether that was done."""
        if get_backend(weight).is_tracing(weight) or self.is_certified(weight, input_shape):
            return False
        self.certificate(weight, input_shape)
        return True

    def certified_layer(self, weight: Array, bias: Array | None = None, input_shape: Any = None) -> LinearLayer:
        """Return the linear layer scaled by a certified norm."""
        free = self.free_layer(weight, bias, input_shape)
        layer = scaled_by_certificate(free, self.cap, self.certificate(weight, input_shape))
        return layer.capped(self.cap) if get_backend(weight).is_tracing(weight) else layer


class CappedLayer:
    """A linear layer of a branch: its free parameters, as arrays that can be differentiated by, and their cap.

    Attributes
    ----------
    weight, bias : array
        The free parameters as the framework has them; the bias may be None.
    state : CertifiedWeight
        What keeps the weight in use below the cap.
    input_shape : tuple of int or None
        Shape (channels, *spatial) of a convolution's input; it belongs to one call, since others have other sizes.
    cap : float
        Largest norm of the weight in use.
    """

    def __init__(self, weight: Array, bias: Array | None, state: CertifiedWeight, input_shape: Any = None) -> None:
        self.weight, self.bias, self.state, self.input_shape = weight, bias, state, input_shape

    @property
    def cap(self) -> float:
        """Largest norm of the weight in use."""
        return self.state.cap

    def free(self, *, checked: bool = False) -> LinearLayer:
        """Return the core's layer with the free parameters."""
        return self.state.free_layer(self.weight, self.bias, self.input_shape, checked=checked)

    def certified(self) -> LinearLayer:
        """Return the core's layer with the weight in use in evaluation."""
        return self.state.certified_layer(self.weight, self.bias, self.input_shape)

    def certify(self) -> bool:
        """Certify the free weight, unless it was certified last; say whether that was done."""
        return self.state.certify(self.weight, self.input_shape)

    def fill(self) -> None:
        """Scale the free weight so that its certified norm is the cap."""
        with get_backend(self.weight).no_grad():
            bound = self.state.certificate(self.weight, self.input_shape).bound
            self.state.replace(self.weight, scaled_to_cap(self.weight, self.cap, bound))


def training_layers(capped: Sequence[CappedLayer]) -> dict[CertifiedWeight, LinearLayer]:
    """Return the layers with the weights in use in training, all at once, and move the power iterations on."""
    if not capped:
        return {}
    # Entries that are not finite show in the bound of a convolution, else in the output, which is looked at.
    free = [layer.free(checked=True) for layer in capped]
    bases = [layer.state.start(linear) for layer, linear in zip(capped, free, strict=True)]
    weight = free[0].weight
    with get_backend(weight).own_dtype(weight):  # half precision would miss the norms
        found = scaled_in_training(free, [layer.cap for layer in capped], bases)
    states = [layer.state for layer in capped]
    states[0].advance([(state, basis) for state, (_, basis) in zip(states, found, strict=True) if basis is not None])
    return {state: linear for state, (linear, _) in zip(states, found, strict=True)}
