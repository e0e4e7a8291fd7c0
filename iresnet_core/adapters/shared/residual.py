"""The invertible residual block: how a branch becomes the core's chain in training and in evaluation."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import iresnet_core as core
from iresnet_core.adapters.shared.layer import LayerMethods, Weights
from iresnet_core.adapters.shared.learned_steps import ConcatenationStep, learned_arrays
from iresnet_core.adapters.shared.steps import Step
from iresnet_core.adapters.shared.weight import CappedLayer, training_layers, with_newest
from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.branches import Activation
from iresnet_core.common import require_nonnegative
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows import Layer, Shape
from iresnet_core.lipschitz import capped_constant, layer_cap, scaled_by_declaration, training_constant
from iresnet_core.operators import LinearLayer

__all__ = ["ResidualMethods"]


@dataclass(frozen=True)
class KeptChains:
    """Chains of certified weights by the sizes of the images; never changed, so that threads see all of it or none."""

    parameters: list[Array]
    chains: Mapping[Any, core.Chain]
    reference: Array | None = None


class ResidualMethods(LayerMethods):
    """A branch of known or declared constant, capped, certified and conditioned."""

    _is_conditioned_by_core = True
    net: Any
    cap: float
    _seen: Shape | None = None  # the shape of the samples that came last
    _reference: Array | None = None  # inputs that are the reference of the chain in evaluation

    def __init__(
        self,
        net: Any,
        coeff: float = 0.9,
        *,
        per_layer: bool = False,
        lipschitz: float | None = None,
        context_features: int | None = None,
        condition: Any = None,
        **options: Any,
    ) -> None:
        """Make the block.

        Parameters
        ----------
        net : module, layer or list of layers
            The branch g. In PyTorch a Linear, a Conv1d-3d (stride 1) or a (nested) Sequential of them and of
            activations, whose weights are capped from now on by a parametrisation: ``layer.weight`` is the weight in
            use, and ``layer.parametrizations.weight.original`` the free parameter. In Keras a list or a Sequential of
            Dense and Conv1D-3D (strides 1, channels last) and of activations, as layers or as their `activation`. Their
            kernels stay the free parameters, and the block scales them where it uses them. With `lipschitz` it is any
            module or layer.
        coeff : float
            Bound on the Lipschitz constant of the block, in (0, 1).
        per_layer : bool
            Cap every linear layer at `coeff` (Behrmann et al. 2019) instead of at its share coeff^(1/L), for L linear
            layers.
        lipschitz : float, optional
            Constant of a branch that the core cannot certify. It is your declaration, and all bounds then rest on it.
            If it is above `coeff`, the output is scaled down.
        context_features : int, optional
            Size of a conditioning vector. A linear map of it, without a cap, is added after the first linear layer; the
            Lipschitz constant in x does not change.
        condition : Condition or net, optional
            A map of your own in place of that linear one. It may have any constant. If it returns as many entries as
            all hidden layers together have, it is added behind every linear layer but the last.
        **options
            Options of a Keras layer.

        Raises
        ------
        UnknownLipschitzError
            If `net` holds a layer whose constant is not known, and `lipschitz` is not given.
        ShapeError
            If a convolution has a stride; when the shape of the samples is known, if the branch does not keep it.
        NotContractiveError
            If `coeff` is not in (0, 1).
        InvalidArgumentError
            If there is no linear layer, or one comes twice.
        """
        super().__init__(**options)
        if condition is not None and context_features is not None:
            raise InvalidArgumentError("give context_features, or a condition of your own, not both.")
        self.coeff, self.per_layer, self.context_features = coeff, per_layer, context_features
        self.condition = None if condition is None else self._taken_condition(condition)
        self.declared = None if lipschitz is None else require_nonnegative(lipschitz, "lipschitz")
        self._kept: KeptChains | None = None
        if self.declared is None:
            self._take_net(net)
            steps = self._steps()
            self.cap = layer_cap(steps, coeff, per_layer=per_layer)
            self._constant = capped_constant(steps, self.cap)
            self._cap_weights()
        else:
            layer_cap([], coeff)  # checks coeff
            if self.takes_context:
                raise InvalidArgumentError(
                    "context_features and condition need a net of known layers, not one with lipschitz=."
                )
            self._take_net(net)
            self._constant = min(self.declared, coeff)

    # --- what an adapter says ---

    def _take_net(self, net: Any) -> None:
        """Keep the branch where the framework finds it."""
        raise NotImplementedError

    def _cap_weights(self) -> None:
        """Cap the linear layers, where that is possible before the shape of the samples is known."""

    def _steps(self) -> list[Any]:
        """Return linear layers of the framework and activations of the core, in the order of application."""
        raise NotImplementedError

    def _declared_branch(self, training: bool) -> Any:
        """Return a branch whose constant is declared, as a function that treats every sample alone and alike."""
        raise NotImplementedError

    def _linear_map(self, checked: bool) -> LinearLayer:
        """Return the linear map of the condition as the core's layer, with the weight in use."""
        raise NotImplementedError

    # --- what follows from it ---

    @property
    def takes_context(self) -> bool:  # type: ignore[override]
        """Whether the block is conditional."""
        return self.context_features is not None or self.condition is not None

    @property
    def lipschitz(self) -> float:
        """Certified Lipschitz constant of the branch with its present weights, in every mode."""
        if self.declared is not None:
            return float(self._constant)
        with get_backend(self.capped_layers()[0].weight).no_grad():
            return float(self._certified_chain(self.capped_layers()).lipschitz)

    def _refer(self, x: Array) -> None:
        if self.declared is None:
            self._reference = get_backend(x).frozen(x)

    @property
    def _takes_reference(self) -> bool:
        """Whether answers in evaluation may come from a reference: those of convolutions under no condition."""
        if self.declared is not None or self.takes_context:
            return False
        return any(len(layer.weight.shape) > 2 for layer in self.capped_layers())

    def _kept_arrays(self) -> list[Array]:
        """Return the arrays of the kept chains, which never change."""
        kept = self._kept
        return [] if kept is None else [array for chain in kept.chains.values() for array in chain.arrays]

    def _arrays_of(self, capped: list[CappedLayer]) -> list[Array]:
        parameters = [array for layer in capped for array in (layer.weight, layer.bias) if array is not None]
        return parameters + learned_arrays(self._steps())

    def _require_plain(self) -> None:
        """Refuse a branch that is no network by itself."""
        if self.takes_context:
            raise InvalidArgumentError("the branch of a conditional block is no plain network: it takes a condition.")
        if self.declared is not None and self.declared > self.coeff:
            raise InvalidArgumentError(
                f"the block scales its branch down by {self.coeff / self.declared:.3g}, since the declared constant is "
                f"above {self.coeff:g}: copy the net, and multiply its output by that."
            )

    def fill_caps(self) -> Self:
        """Scale the free weights so that every linear layer starts at its cap, from which training is quicker.

        Returns the block. A declared branch stays as it is.
        """
        for layer in self.capped_layers():
            layer.fill()
        return self

    def spectral_penalty(self, weight: float) -> Array:
        """Return `weight` times the sum of the squared norms of the free weights (Behrmann et al. 2019).

        Raises
        ------
        InvalidArgumentError
            If the block has a declared constant, and no weights to penalise.
        """
        if self.declared is not None:
            raise InvalidArgumentError("a block with a declared constant has no weights to penalise.")
        return core.spectral_penalty([layer.free() for layer in self.capped_layers()], weight)

    def core_layer(
        self, context: Array | None = None, *, training: bool | None = None, weights: Weights | None = None
    ) -> Layer:
        """Return the core's residual block with the weights in use, for samples of the size that was seen last."""
        layer = self._layer_of(self.capped_layers(), training=training, weights=weights)
        return layer if context is None or not self.takes_context else layer.given(self._received_context(context))

    def _layer_at(
        self,
        event_shape: Shape,
        context: Array | None = None,
        *,
        training: bool | None = None,
        weights: Weights | None = None,
    ) -> Layer:
        return self._layer_of(self._capped_at(event_shape), training=training, weights=weights)

    def _layer_of(self, capped: list[CappedLayer], *, training: bool | None, weights: Weights | None) -> Layer:
        training = self._is_training(training)
        if self.declared is not None:
            branch, constant = scaled_by_declaration(self._declared_branch(training), self.declared, self.coeff)
            return core.ResidualBlock(branch, lipschitz=constant)
        if not training:
            return core.ResidualBlock(self._certified_chain(capped), condition=self._core_condition(False))
        layers = training_layers(capped) if weights is None else weights
        chain = self._chain([layers[layer.state] for layer in capped])
        constant = training_constant(self._constant)
        return core.ResidualBlock(chain, lipschitz=constant, condition=self._core_condition(True))

    def _core_condition(self, checked: bool) -> Any:
        """Return the map of the condition for the core, with the weights in use; None without one."""
        if self.condition is not None:
            return self.condition.core_condition(checked=checked)
        return None if self.context_features is None else self._linear_map(checked)

    def _shape_layer(self) -> Layer:
        return core.ResidualBlock(lambda x: x, lipschitz=0.0)  # keeps the shape, with any conditioning

    def _chain(self, linear: Iterable[LinearLayer]) -> core.Chain:
        """Return the core's chain, with these linear layers between the activations and the other steps."""
        steps, given = self._steps(), list(linear)
        return core.Chain(self._core_layers(steps, iter(given), self._shape_in_front(steps), given[0].weight))

    def _core_layers(self, steps: list[Any], following: Iterator[LinearLayer], shape: Shape, like: Array) -> list[Any]:
        layers: list[Any] = []
        for step in steps:
            if isinstance(step, Activation):
                layers.append(step)
            elif isinstance(step, ConcatenationStep):
                layers.append(step.around(self._core_layers(step.steps, following, shape, like), like))
                shape = layers[-1].output_shape
            elif isinstance(step, Step):
                layers.append(step.layer(shape, like))
                shape = step.output_shape(shape)
            else:
                layers.append(next(following))
                shape = layers[-1].output_shape
        return layers

    def _shape_in_front(self, steps: list[Any]) -> Shape:
        """Return the shape of one sample of the block, where a step before the first linear layer needs it."""
        first = next(step for step in steps if not isinstance(step, Activation))
        if not isinstance(first, Step):
            return ()
        if first.input_shape is not None:
            return first.input_shape
        if self._seen is None and first.takes_any_shape:
            return ()
        if self._seen is None:
            raise InvalidArgumentError(
                "the shape of the samples, which a layer of the branch changes, is not known yet: call the block with "
                "samples, or bind(shape), or make it part of a Flow."
            )
        return self._seen

    def _certified_chain(self, capped: list[CappedLayer]) -> core.Chain:
        """Return the chain of certified weights; the last one again, if neither they nor the biases have changed.

        Where derivatives are taken it is another one each time, which keeps what it makes once with the last one.
        """
        parameters = self._arrays_of(capped)
        backend = get_backend(*parameters)
        # A compiler or a batching transformation hides the values; other transformations make arrays that die with it.
        if backend.is_tracing(*parameters):
            return self._chain([layer.certified() for layer in capped])
        if not backend.may_differentiate(*parameters):
            return self._kept_chain(backend, capped, parameters)
        chain = self._chain([layer.certified() for layer in capped])
        with backend.no_grad():
            if not backend.may_differentiate(*parameters):
                chain.keeper = self._kept_chain(backend, capped, parameters)
                chain.reference = chain.keeper.reference
        return chain

    def _kept_chain(self, backend: Backend, capped: list[CappedLayer], parameters: list[Array]) -> core.Chain:
        size = tuple(layer.input_shape for layer in capped)
        kept, reference = self._kept, self._reference
        if kept is not None and (
            kept.reference is not reference or not all(map(backend.are_equal, kept.parameters, parameters))
        ):
            kept = None
        if kept is not None and size in kept.chains:
            return kept.chains[size]

        def certified() -> KeptChains:
            copies = [backend.frozen(backend.stop_gradient(a)) for a in parameters] if kept is None else kept.parameters
            chain = self._chain([layer.certified() for layer in capped])
            if _fits(reference, chain):
                chain = chain.with_reference(reference)
            return KeptChains(copies, with_newest({} if kept is None else kept.chains, size, chain), reference)

        with backend.no_grad():
            self._kept = made = backend.concretely(certified)
        return made.chains[size]


def _fits(reference: Array | None, chain: core.Chain) -> bool:
    """Whether a reference is for images of the size of a chain, on its device."""
    if reference is None or tuple(reference.shape[1:]) != tuple(chain.input_shape):
        return False
    return device_of(reference) == device_of(chain.arrays[0])  # type: ignore[no-any-return]
