"""What a residual branch may be made of in Keras, and the core's layers for it."""

from collections.abc import Callable, Iterator
from typing import Any

import keras

from iresnet_core.adapters.keras.declared import DeclaredLayer, FourierFeatures
from iresnet_core.adapters.keras.learned import DenseConcatenation, ScaledActivation, slopes_of
from iresnet_core.adapters.shared.learned_steps import ConcatenationStep
from iresnet_core.adapters.shared.steps import FlattenStep, PoolingStep, ReshapeStep, Step
from iresnet_core.branches import Activation as CoreActivation
from iresnet_core.errors import InvalidArgumentError, UnknownLipschitzError

__all__ = [
    "Activation",
    "convolution_options",
    "learned_layers",
    "require_one_function",
    "require_plain",
    "shape_behind",
    "steps_of",
]

_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, *_TRANSPOSED)
_POOLING = (keras.layers.AveragePooling1D, keras.layers.AveragePooling2D, keras.layers.AveragePooling3D)
_LEARNED = (ScaledActivation, DenseConcatenation, keras.layers.PReLU)
_LINEAR = (keras.layers.Dense, *_CONVOLUTIONS)


@keras.saving.register_keras_serializable(package="iresnet_core")
class Activation(keras.layers.Layer):
    """An activation of the core, by name: those that Keras lacks are "lipswish" and "maxmin".

    Parameters
    ----------
    name : str
        See `iresnet_core.Activation`.
    **parameters
        As there; maxmin sorts the last axis unless `axis` says otherwise.

    Examples
    --------
    >>> import numpy as np
    >>> float(Activation("lipswish")(np.zeros((1, 2), "float32"))[0, 0])
    0.0
    """

    def __init__(self, name: str, *, dtype: Any = None, trainable: bool = True, **parameters: Any) -> None:
        super().__init__(dtype=dtype, trainable=trainable)
        if name == "maxmin":
            parameters = {"axis": -1, **parameters}
        self.core = CoreActivation(name, **parameters)

    def call(self, x: Any) -> Any:
        """Apply it to x (batch, ...)."""
        return self.core(x)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the same shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        config = super().get_config()
        return {"name": self.core.name, "dtype": config["dtype"], **self.core.parameters}


# With the parameters that Keras' function has by default, where they are not the core's own defaults.
_FUNCTIONS: dict[Callable[..., Any], CoreActivation] = {
    keras.activations.linear: CoreActivation("identity"),
    keras.activations.elu: CoreActivation("elu"),
    keras.activations.celu: CoreActivation("celu"),
    keras.activations.selu: CoreActivation("selu"),
    keras.activations.relu: CoreActivation("relu"),
    keras.activations.leaky_relu: CoreActivation("leakyrelu", slope=0.2),
    keras.activations.silu: CoreActivation("silu"),
    keras.activations.gelu: CoreActivation("gelu"),
    keras.activations.mish: CoreActivation("mish"),
    keras.activations.softplus: CoreActivation("softplus"),
    keras.activations.softsign: CoreActivation("softsign"),
    keras.activations.tanh: CoreActivation("tanh"),
    keras.activations.hard_tanh: CoreActivation("hardtanh"),
    keras.activations.soft_shrink: CoreActivation("softshrink"),
    keras.activations.sigmoid: CoreActivation("sigmoid"),
    keras.ops.sin: CoreActivation("sin"),
}


def _of_function(function: Any) -> CoreActivation | None:
    """Return the core's activation for what a layer has as its `activation`, or None if the core does not know it."""
    if isinstance(function, keras.layers.Layer):
        return _of_layer(function)
    return _FUNCTIONS.get(function)


def _of_layer(layer: keras.layers.Layer) -> CoreActivation | None:
    """Return the core's activation that a layer computes, or None if it is no activation that the core knows."""
    kind = type(layer)
    if kind is Activation:
        return layer.core
    if kind is keras.layers.Activation:
        return _of_function(layer.activation)
    if kind is keras.layers.ELU:
        return CoreActivation("elu", alpha=float(layer.alpha))
    if kind is keras.layers.LeakyReLU:
        return CoreActivation("leakyrelu", slope=float(layer.negative_slope))
    plain = kind is keras.layers.ReLU and layer.max_value is None and not (layer.negative_slope or layer.threshold)
    if plain:
        return CoreActivation("relu")
    return CoreActivation("identity") if kind is keras.layers.Identity else None


def _layers(net: Any) -> Iterator[keras.layers.Layer]:
    """Yield the layers of nested lists and Sequentials, in the order of application.

    A subclass of Sequential with a `call` of its own is no sequence, and is yielded itself.
    """
    if isinstance(net, keras.Sequential) and type(net).call is keras.Sequential.call:
        net = net.layers
    if isinstance(net, list | tuple):
        for child in net:
            yield from _layers(child)
    else:
        yield net


def steps_of(net: Any) -> list[Any]:
    """Return the steps of a branch, in the order of application: linear Keras layers, and activations of the core.

    The `activation` of a linear layer is a step of its own; the identity is none.

    Raises
    ------
    UnknownLipschitzError
        At a layer or an activation whose Lipschitz constant is not known.
    ShapeError, InvalidArgumentError
        At a convolution that no residual block can have, see `convolution_options`, and at quantised layers and
        regularizers of activities.
    """
    steps: list[Any] = []
    for layer in _layers(net):
        linear = type(layer) in _LINEAR
        other = _other_step(layer)
        if other is not None:
            steps.append(other)
            continue
        known = _of_function(layer.activation) if linear else _of_layer(layer)
        if known is None:
            raise UnknownLipschitzError(_unknown(layer, linear))
        require_plain(layer)
        if linear:
            convolution_options(layer)
            steps.append(layer)
        if known.name != "identity":
            steps.append(known)
    return steps


def learned_layers(net: Any) -> list[keras.layers.Layer]:
    """Return the layers with variables that are no kernels of linear layers."""
    return [layer for layer in _layers(net) if type(layer) in _LEARNED]


def _other_step(layer: Any) -> Step | None:
    """Return the step of a layer that has neither a kernel to cap nor an activation, or None if it is not known."""
    kind = type(layer)
    if kind is DeclaredLayer or kind is FourierFeatures:
        step: Step = layer.step() if kind is DeclaredLayer else layer._waves()
        return step
    if kind is ScaledActivation:
        return layer.step()  # type: ignore[no-any-return]
    if kind is keras.layers.PReLU:
        return slopes_of(layer)
    if kind is DenseConcatenation:
        return ConcatenationStep(steps_of(layer.net), layer._present_angle, -1, shape_behind, layer._build_at)
    if kind is keras.layers.Flatten:
        return FlattenStep()
    if kind is keras.layers.Reshape:
        return ReshapeStep(layer.target_shape)
    if kind in _POOLING:
        if layer.pool_size != layer.strides or layer.padding != "valid" or layer.data_format != "channels_last":
            raise UnknownLipschitzError(
                f"{kind.__name__} {layer.name!r}: the constant of average pooling is known for windows side by side, "
                "channels last: leave strides, padding and data_format as they are."
            )
        return PoolingStep(layer.pool_size, "channels_last")
    return None


def shape_behind(step: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one sample behind a step."""
    if isinstance(step, CoreActivation):
        return shape
    behind = step.output_shape(shape) if isinstance(step, Step) else step.compute_output_shape((None, *shape))[1:]
    return tuple(behind)


def require_plain(layer: keras.layers.Layer) -> None:
    """Refuse what a block would not do, since it computes with the kernel and does not call the layer."""
    where = f"{type(layer).__name__} {layer.name!r}"
    if getattr(layer, "activity_regularizer", None) is not None:
        raise InvalidArgumentError(
            f"{where} has an activity_regularizer, which would have no effect in a block. Regularise the output of the "
            "block, or the kernel by kernel_regularizer."
        )
    if getattr(layer, "quantization_mode", None) is not None:
        raise InvalidArgumentError(
            f"{where} is quantised ({layer.quantization_mode}): its products are rounded, and what is rounded has no "
            "Lipschitz constant. Quantise the layers outside of the blocks only."
        )


def require_one_function(net: keras.layers.Layer) -> None:
    """Refuse, in training, a branch of declared constant that is not one and the same function of one sample then.

    Raises
    ------
    InvalidArgumentError
        At batch normalisation that is not frozen, dropout and noise.
    """
    for layer in net._flatten_layers():
        rates = [getattr(layer, name) for name in ("rate", "stddev", "dropout") if hasattr(layer, name)]
        random = getattr(layer, "seed_generator", None) is not None and (not rates or any(rates))
        if random or (isinstance(layer, keras.layers.BatchNormalization) and layer.trainable):
            raise InvalidArgumentError(
                f"{type(layer).__name__} {layer.name!r} in a branch with a declared constant is not one function of a "
                "sample in training: it joins the samples of a batch or draws anew in every call, and an inverse or a "
                "log-determinant calls it many times. Set trainable=False for a batch normalisation, put an ActNorm "
                "between the blocks instead, and keep dropout outside of the blocks."
            )


def _unknown(layer: Any, linear: bool) -> str:
    kind = type(layer).__name__
    if linear:
        function = getattr(layer.activation, "__name__", None) or type(layer.activation).__name__
        kind = f"the activation {function} of {kind} {layer.name!r}"
    elif isinstance(layer, keras.layers.Activation):
        kind = f"the activation {getattr(layer.activation, '__name__', layer.activation)} of {layer.name!r}"
    known = ", ".join(sorted({activation.name for activation in _FUNCTIONS.values()} - {"identity"}))
    return (
        f"the Lipschitz constant of {kind} is not known, so that no block with it can be certified. Known are "
        f"{', '.join(kind.__name__ for kind in _LINEAR)}, the activations {known}, ELU, LeakyReLU, PReLU, "
        "ReLU, Activation(name), ScaledActivation(name), DenseConcatenation(net), average pooling, Flatten, Reshape, "
        "FourierFeatures, and lists and Sequential of them. For a layer whose constant you know put "
        "DeclaredLayer(layer, lipschitz) in its place, or pass InvertibleResidual(layer, lipschitz=...)."
    )


def convolution_options(layer: keras.layers.Layer, input_shape: Any = None) -> dict[str, Any] | None:
    """Return the keywords of the core's Convolution for a convolution layer; None for a dense one.

    Those of a transposed convolution have its output padding, and are for `ConvolutionTranspose.for_input`. The padding
    "same" of strides depends on the `input_shape` of one sample.

    Raises
    ------
    InvalidArgumentError
        For channels first.
    """
    if not isinstance(layer, _CONVOLUTIONS):
        return None
    where = f"{type(layer).__name__} {layer.name!r}"
    if layer.data_format != "channels_last":
        raise InvalidArgumentError(
            f"{where} has data_format {layer.data_format!r}; the channels come last here. Pass "
            "data_format='channels_last'."
        )
    padding: Any = layer.padding
    if padding == "causal":
        padding = [(d * (k - 1), 0) for k, d in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
    strides, reach = tuple(layer.strides), [d * (k - 1) + 1 for k, d in _windows(layer)]
    if isinstance(layer, _TRANSPOSED):
        if layer.output_padding is not None:
            raise InvalidArgumentError(f"{where}: leave output_padding=None, with which the extents are whole.")
        same = padding == "same"
        spare = [max(r - s, 0) if same else 0 for r, s in zip(reach, strides, strict=True)]
        more = [max(s - r, 0) for r, s in zip(reach, strides, strict=True)]
        padding = [(n // 2, n - n // 2) for n in spare]
    elif padding == "same" and input_shape is not None and any(s != 1 for s in strides):
        spare = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(input_shape[:-1], strides, reach, strict=True)]
        padding = [(n // 2, n - n // 2) for n in spare]
    return {
        **({"output_padding": tuple(more)} if isinstance(layer, _TRANSPOSED) else {}),
        "stride": strides,
        "padding": padding,
        "dilation": tuple(layer.dilation_rate),
        "groups": getattr(layer, "groups", 1),
        "data_format": "channels_last",
    }


def _windows(layer: Any) -> Iterator[tuple[int, int]]:
    return zip(layer.kernel_size, layer.dilation_rate, strict=True)
