"""The invertible residual block as a Keras layer."""

from collections.abc import Iterator
from typing import Any, Self

import keras

import iresnet_core as core
from iresnet_core.adapters.keras.branch import (
    convolution_options,
    learned_layers,
    require_one_function,
    shape_behind,
    steps_of,
)
from iresnet_core.adapters.keras.layer import FlowLayer
from iresnet_core.adapters.keras.tensors import checkpointed, kernel_of
from iresnet_core.adapters.keras.weight import CappedWeight
from iresnet_core.adapters.shared.learned_steps import ConcatenationStep, caps_of, linear_layers
from iresnet_core.adapters.shared.residual import ResidualMethods
from iresnet_core.adapters.shared.steps import Step
from iresnet_core.adapters.shared.weight import CappedLayer
from iresnet_core.branches import Activation as CoreActivation
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows import Shape
from iresnet_core.operators import LinearLayer

__all__ = ["InvertibleResidual"]


@keras.saving.register_keras_serializable(package="iresnet_core")
class InvertibleResidual(ResidualMethods, FlowLayer):
    """``z = x + g(x)`` with a certified Lip(g) <= coeff < 1.

    Notes
    -----
    In training the norms of matrices are estimated by a step of a subspace iteration a pass, and those of convolutions
    are certified. In evaluation all are certified: eagerly once for given weights, and in a compiled program by the
    program itself, from the weights with which it runs. Nothing needs to be called.

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

    conditioning: Any
    capped: list[CappedWeight]
    """What caps the linear layers; .keras files know it by this name."""
    _event_shape: Shape | None = None

    def _take_net(self, net: Any) -> None:
        # No attribute of the class, which would hide the layer on PyTorch.
        self.conditioning = None
        if self.declared is not None:
            self.net: Any = keras.Sequential(list(net)) if isinstance(net, list | tuple) else net
            return
        self.net = list(net) if isinstance(net, tuple) else net
        steps = self._steps()
        linear = linear_layers(steps)
        if not any(layer in steps for layer in linear):
            raise InvalidArgumentError(f"a residual branch needs at least one Dense or convolution layer, got {net!r}.")
        if len({id(layer) for layer in linear}) < len(linear):
            names = [layer.name for layer in linear]
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidArgumentError(f"the layer {twice!r} comes twice in the branch; make another one.")
        checkpointed(self, "net", linear)
        checkpointed(self, "learned", learned_layers(self.net))
        self.capped = []

    def _build_for(self, event_shape: Shape) -> None:
        self._event_shape = self._seen = event_shape
        if self.declared is not None:
            if not self.net.built:
                self.net.build((None, *event_shape))
            return
        if isinstance(self.net, keras.Sequential) and not self.net.built:
            self.net.build((None, *event_shape))
        capped: list[CappedWeight] = []
        steps = self._steps()
        shape = self._build_steps(steps, event_shape, iter(caps_of(steps, self.cap)), capped)
        if shape != event_shape:
            raise ShapeError(
                f"a residual branch keeps the shape, but that of {self.name!r} makes {shape} of {event_shape}."
            )
        for layer in self._flatten_layers(include_self=False):
            if not layer.built:  # activations, which are never called
                layer.build((None, *event_shape))
                layer.built = True
        self.capped = checkpointed(self, "capped", capped)
        if self.context_features is not None:
            width = capped[0].capped_layer().free().output_shape[-1]
            self.conditioning = keras.layers.Dense(width, use_bias=False, dtype=self.dtype, name="conditioning")
            self.conditioning.build((None, self.context_features))

    def _build_steps(self, steps: list[Any], shape: Shape, caps: Iterator[float], capped: list[CappedWeight]) -> Shape:
        """Build the steps, and cap the linear layers among them; return the shape of a sample at the end."""
        for step in steps:
            if isinstance(step, ConcatenationStep):
                self._build_steps(step.steps, shape, caps, capped)
            if isinstance(step, Step):
                step.build(shape)
            elif not isinstance(step, CoreActivation):
                if convolution_options(step) is not None and len(shape) != step.rank + 1:
                    raise ShapeError(
                        f"{type(step).__name__} {step.name!r} takes samples of {step.rank + 1} axes, the channels "
                        f"last; those of {self.name!r} have shape {shape}."
                    )
                if not step.built:
                    step.build((None, *shape))
                capped.append(CappedWeight(step, next(caps), shape, dtype=self.dtype, name=f"cap_{len(capped)}"))
            shape = shape_behind(step, shape)
        return shape

    def _own_shape(self) -> Shape | None:
        if self._event_shape is not None or self.declared is not None:
            return self._event_shape
        last = next((step for step in reversed(self._steps()) if not isinstance(step, CoreActivation)), None)
        return (last.units,) if isinstance(last, keras.layers.Dense) else None  # a block keeps the shape

    def _steps(self) -> list[Any]:
        return steps_of(self.net)

    def _states(self) -> list[Any]:
        if not self.built:
            raise InvalidArgumentError(
                f"{self.name!r} is not built: call it with data once, or make it part of a Flow."
            )
        return list(self.capped)

    def _declared_branch(self, training: bool) -> Any:
        net = self.net
        if training:
            require_one_function(net)
        return (lambda x: net(x, training=training)) if net._call_has_training_arg else net

    def _linear_map(self, checked: bool) -> LinearLayer:
        return core.Dense(keras.ops.transpose(kernel_of(self.conditioning)), checked=checked)

    def plain(self) -> keras.Sequential:
        """Return the branch g as a network of ordinary layers, whose kernels are the certified ones in use.

        It shares nothing with the block, which stays as it is: x + plain()(x) is what the block computes in evaluation.

        Raises
        ------
        InvalidArgumentError
            For a branch of declared constant, for a conditional one, and if the block is not built.
        """
        self._require_plain()
        if self.declared is not None:
            raise InvalidArgumentError(
                "a branch of declared constant is a plain network already: keras.models.clone_model."
            )
        capped = self.capped_layers()
        net = keras.Sequential([type(layer).from_config(layer.get_config()) for layer in self._net_layers()])
        net.build((None, *(self._event_shape or ())))
        for layer, own in zip(linear_layers(steps_of(net)), capped, strict=True):
            weight = own.certified().weight
            kernel = keras.ops.transpose(weight) if isinstance(layer, keras.layers.Dense) else weight
            layer.kernel.assign(kernel)
            if layer.use_bias:
                layer.bias.assign(own.bias)
        return net

    def _net_layers(self) -> list[Any]:
        return list(self.net) if isinstance(self.net, list | tuple) else list(self.net.layers)

    def capped_layers(self) -> list[CappedLayer]:
        """Return the capped linear layers with their free parameters; none for a branch of declared constant.

        Raises
        ------
        InvalidArgumentError
            If the block is not built yet.
        """
        return [] if self.declared is not None else [state.capped_layer() for state in self._states()]

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return the same shape."""
        return tuple(input_shape)

    def call(self, x: Any, context: Any = None, training: bool = False) -> Any:
        """Return x + g(x) for x (batch, ...)."""
        if self._event_shape is not None and tuple(x.shape[1:]) != self._event_shape:
            raise ShapeError(
                f"{self.name!r} was built for samples of shape {self._event_shape}, got {tuple(x.shape[1:])}. Make "
                "another block for another size, on which the norm of a convolution depends."
            )
        return super().call(x, context, training=training)

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
            "condition": None if self.condition is None else serialize(self.condition),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the block and its net."""
        net, deserialize = config["net"], keras.saving.deserialize_keras_object
        made = [deserialize(layer) for layer in net] if isinstance(net, list) else deserialize(net)
        condition = config.get("condition")
        return cls(**{**config, "net": made, "condition": condition and deserialize(condition)})
