"""The invertible residual block as a Keras layer."""

import math
from typing import Any, Self

import keras

import iresnet_core as core
from iresnet_core.adapters.keras.branch import convolution_options, linear_layers, steps_of
from iresnet_core.adapters.keras.layer import FlowLayer
from iresnet_core.adapters.keras.tensors import constant, same
from iresnet_core.adapters.keras.weight import CappedWeight
from iresnet_core.backends import get_backend
from iresnet_core.branches import Activation, conditioned, require_context
from iresnet_core.common import require_nonnegative
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows import Layer, Shape
from iresnet_core.lipschitz import layer_cap, training_constant

__all__ = ["InvertibleResidual"]


@keras.saving.register_keras_serializable(package="iresnet_core")
class InvertibleResidual(FlowLayer):
    """``z = x + g(x)`` with a certified Lip(g) <= coeff < 1.

    Parameters
    ----------
    net : list of layers, keras.Sequential or a layer
        The branch g: Dense and Conv1D-3D (strides 1, channels last) with activations, as layers or as their
        `activation`. Their kernels stay the free parameters; the block scales them where it uses them. With
        `lipschitz`, any layer.
    coeff : float
        Bound on the Lipschitz constant of the block, in (0, 1).
    per_layer : bool
        Cap every linear layer at `coeff` (Behrmann et al. 2019) instead of at its share coeff^(1/L).
    lipschitz : float, optional
        Constant of a layer that the core cannot certify, as the caller's declaration, on which all bounds then rest;
        where it is above `coeff`, the output is scaled down.
    context_features : int, optional
        Size of a conditioning vector; an unconstrained linear map of it is added after the first linear layer, so that
        the Lipschitz constant in x stays.

    Raises
    ------
    UnknownLipschitzError
        If `net` holds a layer whose constant is not known, and `lipschitz` is not given.
    ShapeError
        If a convolution has strides; when it is built, if the layers do not keep the shape.
    NotContractiveError
        If `coeff` is not in (0, 1).
    InvalidArgumentError
        If there is no linear layer, or one comes twice.

    Notes
    -----
    In training the norms are estimated by two steps of a warm-started power iteration a pass, in evaluation they are
    certified and kept until the weights change. A compiled program cannot certify: it carries the last certificate over
    by Weyl's inequality, so that its weights are below the cap as well, by more the more they have changed since then.
    `FlowModel` certifies before it evaluates, predicts and saves; in a compiled function of your own call `certify()`
    beforehand.

    Examples
    --------
    >>> import numpy as np
    >>> block = InvertibleResidual([keras.layers.Dense(8, activation="elu"), keras.layers.Dense(2)], coeff=0.9)
    >>> x = np.array([[1.0, -1.0]], "float32")
    >>> bool(np.abs(block.inverse(block(x)) - x).max() < 1e-4)
    True
    >>> block.lipschitz <= 0.9
    True
    """

    def __init__(
        self,
        net: Any,
        coeff: float = 0.9,
        *,
        per_layer: bool = False,
        lipschitz: float | None = None,
        context_features: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.context_features = context_features
        self.conditioning: Any = None
        self.coeff, self.per_layer = coeff, per_layer
        self.declared = None if lipschitz is None else require_nonnegative(lipschitz, "lipschitz")
        if self.declared is not None and isinstance(net, list | tuple):
            net = keras.Sequential(list(net))
        self.net: Any = list(net) if isinstance(net, tuple) else net
        self._event_shape: Shape | None = None
        self._kept: tuple[core.Chain, list[Any]] | None = None
        if self.declared is not None:
            layer_cap([], coeff)  # checks coeff
            if context_features is not None:
                raise InvalidArgumentError("context_features needs a net of known layers, not one with lipschitz=.")
            return
        steps = steps_of(net)
        linear = linear_layers(steps)
        if not linear:
            raise InvalidArgumentError(f"a residual branch needs at least one Dense or convolution layer, got {net!r}.")
        if len({id(layer) for layer in linear}) < len(linear):
            names = [layer.name for layer in linear]
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidArgumentError(f"the layer {twice!r} comes twice in the branch; make another one.")
        self.cap = layer_cap(steps, coeff, per_layer=per_layer)
        self.capped: list[CappedWeight] = []

    @property
    def takes_context(self) -> bool:  # type: ignore[override]
        """Whether the block is conditional."""
        return self.context_features is not None

    def _build_for(self, event_shape: Shape) -> None:
        shape: Any = (None, *event_shape)
        self._event_shape = event_shape
        if self.declared is not None:
            if not self.net.built:
                self.net.build(shape)
            return
        if isinstance(self.net, keras.Sequential) and not self.net.built:
            self.net.build(shape)
        capped: list[CappedWeight] = []
        for step in steps_of(self.net):
            if isinstance(step, Activation):
                continue
            if convolution_options(step) is not None and len(shape) != step.rank + 2:
                raise ShapeError(
                    f"{type(step).__name__} {step.name!r} takes samples of {step.rank + 1} axes, the channels last; "
                    f"those of {self.name!r} have shape {event_shape}."
                )
            if not step.built:
                step.build(shape)
            capped.append(CappedWeight(step, self.cap, tuple(shape[1:]), dtype=self.dtype, name=f"cap_{len(capped)}"))
            shape = step.compute_output_shape(shape)
        if tuple(shape[1:]) != event_shape:
            raise ShapeError(
                f"a residual branch keeps the shape, but that of {self.name!r} makes {tuple(shape[1:])} of "
                f"{event_shape}."
            )
        for layer in self._flatten_layers(include_self=False):
            if not layer.built:  # activations, which are never called
                layer.build((None, *event_shape))
                layer.built = True
        self.capped = capped
        if self.context_features is not None:
            width = capped[0].free_layer().output_shape[-1]
            self.conditioning = keras.layers.Dense(width, use_bias=False, dtype=self.dtype, name="conditioning")
            self.conditioning.build((None, self.context_features))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return the same shape."""
        return tuple(input_shape)

    @property
    def lipschitz(self) -> float:
        """Certified Lipschitz constant of the branch with its present weights."""
        return self._constant if self.declared is not None else float(self._certified_chain().lipschitz)

    @property
    def _constant(self) -> float:
        """What the caps make of the block's constant."""
        if self.declared is not None:
            return min(self.declared, self.coeff)
        steps = steps_of(self.net)
        known = [step.lipschitz for step in steps if isinstance(step, Activation)]
        return math.prod(known) * self.cap ** (len(steps) - len(known))

    def certify(self) -> None:
        """Certify the weights that changed since they were certified last; only compiled programs need the call."""
        for weight in self._weights():
            weight.certify()

    def spectral_penalty(self, weight: float) -> Any:
        """Return `weight` times the sum of the squared norms of the kernels (report, Eq. 11)."""
        if self.declared is not None:
            raise InvalidArgumentError(f"{self.name!r} has a declared constant, and no weights to penalise.")
        return core.spectral_penalty([capped.free_layer() for capped in self._weights()], weight)

    def core_layer(self, *, training: bool = False, context: Any = None) -> Layer:
        """Return the core's residual block with the weights in use."""
        if self.declared is not None:
            return core.ResidualBlock(self._opaque_branch(training), lipschitz=self._constant)
        if training:
            chain = self._chain([capped.trained_layer() for capped in self._weights()])
            conditioned = self._conditioned(chain, context, training=True)
            return core.ResidualBlock(conditioned, lipschitz=training_constant(self._constant))
        return core.ResidualBlock(self._conditioned(self._certified_chain(), context))

    def _shape_layer(self) -> Layer:
        return core.ResidualBlock(lambda x: x, lipschitz=0.0)  # keeps the shape, with any conditioning

    def _conditioned(self, chain: core.Chain, context: Any, *, training: bool = False) -> core.Chain:
        """Add the conditioning after the first linear layer."""
        if self.context_features is None:
            return chain
        if context is not None:
            context = keras.ops.convert_to_tensor(context, dtype=self.compute_dtype)
        require_context(context, self.context_features)
        single = not training and context.shape[0] == 1  # one condition for all samples
        return core.Chain(conditioned(chain.layers, self.conditioning(context), single=single))

    def call(self, x: Any, context: Any = None, training: bool = False) -> Any:
        """Return x + g(x) for x (batch, ...)."""
        if self._event_shape is not None and tuple(x.shape[1:]) != self._event_shape:
            raise ShapeError(
                f"{self.name!r} was built for samples of shape {self._event_shape}, got {tuple(x.shape[1:])}. Make "
                "another block for another size, on which the norm of a convolution depends."
            )
        return super().call(x, context, training=training)

    def _opaque_branch(self, training: bool) -> Any:
        assert self.declared is not None
        net, scale = self.net, min(1.0, self.coeff / self.declared) if self.declared > 0 else 1.0

        def branch(x: Any) -> Any:
            value = net(x, training=training) if net._call_has_training_arg else net(x)
            return value if scale == 1.0 else scale * value

        return branch

    def _weights(self) -> list[CappedWeight]:
        if self.declared is None and not self.built:
            raise InvalidArgumentError(
                f"{self.name!r} is not built: call it with data once, or make it part of a FlowModel."
            )
        return [] if self.declared is not None else list(self.capped)

    def _chain(self, linear: list[Any]) -> core.Chain:
        """Return the core's chain, with these linear layers between the activations."""
        following = iter(linear)
        return core.Chain([s if isinstance(s, Activation) else next(following) for s in steps_of(self.net)])

    def _certified_chain(self) -> core.Chain:
        """Return the chain of certified weights; the last one again, if neither they nor the biases have changed."""
        weights = self._weights()
        parameters = [constant(v) for layer in linear_layers(steps_of(self.net)) for v in layer.variables]
        backend = get_backend(*parameters)
        if backend.is_tracing(*parameters) or backend.may_differentiate(*(v.value for v in self.trainable_variables)):
            return self._chain([capped.certified_layer() for capped in weights])
        if self._kept is not None:
            chain, copies = self._kept
            if all(a.dtype == b.dtype and same(a, b) for a, b in zip(copies, parameters, strict=True)):
                return chain
        with backend.no_grad():
            chain = self._chain([capped.certified_layer() for capped in weights])
        self._kept = chain, parameters
        return chain

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        net = self.net
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "net": [serialize(layer) for layer in net] if isinstance(net, list | tuple) else serialize(net),
            "coeff": self.coeff,
            "per_layer": self.per_layer,
            "lipschitz": self.declared,
            "context_features": self.context_features,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the block and its net."""
        net, deserialize = config["net"], keras.saving.deserialize_keras_object
        made = [deserialize(layer) for layer in net] if isinstance(net, list) else deserialize(net)
        return cls(**{**config, "net": made})
