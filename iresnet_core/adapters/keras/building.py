"""The Keras layers that the plan of a flow is made of."""

from typing import Any

import keras

from iresnet_core.adapters.keras.branch import Activation
from iresnet_core.adapters.keras.layer import ActNorm, FactorOut, FlowLayer, InjectivePad, Logit, Squeeze
from iresnet_core.adapters.keras.residual import InvertibleResidual

__all__ = ["Builder"]

_CONVOLUTIONS = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}


class Builder:
    """Makes layers, with parameters from Keras' global seed; see `iresnet_core.training.layer_building.LayerBuilder`.

    Parameters
    ----------
    dtype : str
        Of every layer.
    start : {"orthogonal", "uniform"}, optional
        Weights orthogonal, so that all their singular values are at the cap and none has to grow first, or uniform as
        PyTorch has them; biases at random in both cases. Default: as Keras starts them.
    """

    def __init__(self, dtype: str, *, start: str | None = None) -> None:
        self._options: dict[str, Any] = {"dtype": dtype}
        self._start_of_weights = start

    def logit(self, alpha: float) -> FlowLayer:
        """Logit."""
        return Logit(alpha, **self._options)

    def act_norm(self, channels: int) -> FlowLayer:
        """ActNorm; its channels are those of its input."""
        return ActNorm(**self._options)

    def injective_pad(self, padding: int) -> FlowLayer:
        """InjectivePad."""
        return InjectivePad(padding, **self._options)

    def squeeze(self) -> FlowLayer:
        """Squeeze."""
        return Squeeze(**self._options)

    def factor_out(self, keep: int, layers: list[FlowLayer]) -> FlowLayer:
        """FactorOut."""
        return FactorOut(keep, layers, **self._options)

    def dense(self, inputs: int, outputs: int) -> keras.layers.Layer:
        """Dense; its inputs are those that it is built for."""
        return keras.layers.Dense(outputs, **self._start(inputs), **self._options)

    def convolution(self, inputs: int, outputs: int, kernel: int, axes: int) -> keras.layers.Layer:
        """Conv1D to Conv3D, channels last."""
        same = {"padding": "same", "data_format": "channels_last"}
        return _CONVOLUTIONS[axes](outputs, kernel, **same, **self._start(inputs * kernel**axes), **self._options)

    def _start(self, fan_in: int) -> dict[str, Any]:
        """Start of a linear layer: the biases are those of PyTorch, since without them a branch of sines is odd."""
        if self._start_of_weights is None:
            return {}

        def uniform() -> Any:
            return keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)

        kernel = "orthogonal" if self._start_of_weights == "orthogonal" else uniform()
        return {"kernel_initializer": kernel, "bias_initializer": uniform()}

    def activation(self, name: str) -> keras.layers.Layer:
        """Activation."""
        return Activation(name, **self._options)

    def residual(self, net: list[Any], coeff: float) -> FlowLayer:
        """InvertibleResidual."""
        return InvertibleResidual(net, coeff, **self._options)
