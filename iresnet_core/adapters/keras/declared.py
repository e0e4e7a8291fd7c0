"""Layers for a branch that Keras lacks: one of declared constant, and waves of the input."""

from collections.abc import Sequence
from typing import Any, Self

import keras

from iresnet_core.adapters.shared.steps import DeclaredStep, WavesStep
from iresnet_core.common import require_nonnegative
from iresnet_core.errors import InvalidArgumentError

__all__ = ["DeclaredLayer", "FourierFeatures"]


class _BuiltStep(DeclaredStep):
    """A step that builds its layer."""

    keras_layer: Any

    def build(self, shape: Any) -> None:
        """Make the weights of the layer."""
        if not self.keras_layer.built:
            self.keras_layer.build((None, *shape))


@keras.saving.register_keras_serializable(package="iresnet_core")
class DeclaredLayer(keras.layers.Layer):
    """A layer whose Lipschitz constant you declare, as one layer of a branch: all other layers stay certified.

    Parameters
    ----------
    layer : Layer
        A function that treats the samples of a batch apart.
    lipschitz : float
        Its constant, positive. The block's constant and all error bounds rest on it; a Jacobian product that
        contradicts it raises `NotContractiveError`.
    input_shape, output_shape : tuple of int, optional
        Shape of one sample before and after, where the layer changes it.

    Examples
    --------
    >>> from iresnet_core.adapters.keras import InvertibleResidual
    >>> soft = DeclaredLayer(keras.layers.Activation("log_sigmoid"), lipschitz=1.0)
    >>> block = InvertibleResidual([keras.layers.Dense(8), soft, keras.layers.Dense(2)], coeff=0.9)
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        lipschitz: float,
        *,
        input_shape: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.layer, self.declared = layer, require_nonnegative(lipschitz, "lipschitz")
        if self.declared == 0:
            raise InvalidArgumentError("lipschitz must be positive, since the linear layers share what is left.")
        if (input_shape is None) != (output_shape is None):
            raise InvalidArgumentError("a layer that changes the shape needs input_shape and output_shape.")
        self._shapes: Any = None
        if input_shape is not None and output_shape is not None:
            self._shapes = tuple(input_shape), tuple(output_shape)

    def build(self, input_shape: Any) -> None:
        """Build the layer."""
        if not self.layer.built:
            self.layer.build(input_shape)
        self.built = True

    def call(self, x: Any) -> Any:
        """Call the layer."""
        return self.layer(x)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape behind the layer."""
        return self.layer.compute_output_shape(input_shape)

    def step(self, dtype: Any = None) -> DeclaredStep:
        """Return the step of a branch; what is asked for in another dtype is computed in that of the layer and cast."""
        layer = self.layer

        def apply(x: Any) -> Any:
            value = layer(x)
            return value if dtype is None else keras.ops.cast(value, keras.backend.standardize_dtype(dtype))

        step = _BuiltStep(apply, self.declared, self._shapes, self.step, type(layer).__name__)
        step.keras_layer = self
        return step

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        before, after = self._shapes or (None, None)
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "lipschitz": self.declared,
            "input_shape": before,
            "output_shape": after,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the layer."""
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})


@keras.saving.register_keras_serializable(package="iresnet_core")
class FourierFeatures(keras.layers.Layer):
    """``x -> (cos(W x), sin(W x), some entries of x)`` with fixed frequencies W, see `iresnet_core.FourierFeatures`.

    Parameters
    ----------
    frequencies : sequence of sequence of float, or array (waves, d)
        The matrix W; of whole numbers for x that are angles.
    passed : sequence of int
        The entries of x that are passed on as they are.

    Examples
    --------
    >>> import numpy as np
    >>> np.asarray(FourierFeatures([[1.0]])(np.zeros((1, 1), "float32"))).tolist()
    [[1.0, 0.0]]
    """

    def __init__(self, frequencies: Any, passed: Sequence[int] = (), **options: Any) -> None:
        super().__init__(**options)
        self.frequencies = tuple(tuple(float(entry) for entry in row) for row in frequencies)
        self.passed = tuple(int(index) for index in passed)
        self._step = WavesStep(self.frequencies, self.passed)

    def _waves(self) -> WavesStep:
        """Return the step of a branch."""
        return self._step

    def call(self, x: Any) -> Any:
        """Embed x (batch, d)."""
        return self._step.layer(tuple(x.shape[1:]), x)(x)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the waves and of what is passed on."""
        return (input_shape[0], *self._step.behind)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {**super().get_config(), "frequencies": self.frequencies, "passed": self.passed}
