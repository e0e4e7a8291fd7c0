"""The classifier of Behrmann et al. (2019): an invertible residual network with a pooled linear head."""

from collections.abc import Sequence
from typing import Any, Self

import keras

from iresnet_core.adapters.keras.branch import Activation
from iresnet_core.adapters.keras.building import build_layers
from iresnet_core.adapters.keras.fitting import PreparedModel
from iresnet_core.adapters.keras.flow import FlowModel
from iresnet_core.adapters.keras.layer import ActNorm
from iresnet_core.training import planned_features

__all__ = ["Classifier"]


@keras.saving.register_keras_serializable(package="iresnet_core")
class Classifier(PreparedModel):
    """Invertible features and a linear head (Behrmann et al. 2019, Sec. 5.1).

    The features are injective padding, then stages of residual blocks (ActNorm, convolutions 3 - 1 - 3) with a Squeeze
    between two stages; the head is ActNorm, the activation, the mean over the pixels and a linear layer. ``features``
    is a `FlowModel`, so that the network that classifies can also be trained as a density.

    Parameters
    ----------
    input_shape : sequence of int
        (*spatial, channels), with 1, 2 or 3 spatial axes that every Squeeze halves.
    classes : int
        Number of classes.
    padding : int
        Zero channels that are appended.
    widths : sequence of int
        Hidden channels of the blocks, one number a stage.
    blocks : sequence of int
        Blocks, one number a stage.
    coeff : float
        Bound on the Lipschitz constant of every block.
    activation : str
        One of the core's.

    Raises
    ------
    InvalidArgumentError
        If `widths` and `blocks` do not go together.
    ShapeError
        If the spatial extent cannot be halved as often as there are further stages.

    Notes
    -----
    It returns logits: compile it with ``SparseCategoricalCrossentropy(from_logits=True)``.

    Examples
    --------
    >>> import numpy as np
    >>> model = Classifier((8, 8, 1), 10, padding=3, widths=(16, 16), blocks=(1, 1))
    >>> images = np.random.default_rng(0).standard_normal((5, 8, 8, 1))
    >>> tuple(model.initialize(images)(images).shape)
    (5, 10)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        *,
        padding: int = 0,
        widths: Sequence[int] = (32, 64, 128),
        blocks: Sequence[int] = (7, 7, 7),
        coeff: float = 0.9,
        activation: str = "elu",
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        super().__init__(dtype=policy.variable_dtype, **kwargs)
        plan, channels = planned_features(
            input_shape[-1],
            len(input_shape) - 1,
            classes=classes,
            padding=padding,
            widths=widths,
            blocks=blocks,
            coeff=coeff,
            activation=activation,
        )
        self._arguments = {
            "input_shape": list(input_shape),
            "classes": classes,
            "padding": padding,
            "widths": list(widths),
            "blocks": list(blocks),
            "coeff": coeff,
            "activation": activation,
        }
        options = {"dtype": self.dtype}
        self.features = FlowModel(build_layers(plan, self.dtype), input_shape, **options)
        self.normalization = ActNorm(**options)
        self.normalization.build((None, *self.features.latent_shape))
        self.activation = Activation(activation, **options)
        self.linear = keras.layers.Dense(classes, **options)
        self.linear.build((None, channels))
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        """Return logits (batch, classes) of images x (batch, *input_shape)."""
        z = self.activation(self.normalization(self.features.encode(x, training=training), training=training))
        return self.linear(keras.ops.mean(z, axis=tuple(range(1, len(z.shape) - 1))))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return (batch, classes)."""
        return (input_shape[0], self.linear.units)

    @property
    def initialized(self) -> bool:
        """Whether every ActNorm has its parameters."""
        return self.features.initialized and self.normalization.initialized

    def initialize(self, x: Any) -> Self:
        """Initialise every ActNorm from images x (batch, *input_shape), unless it is already; returns the model."""
        self.features.initialize(x)
        self.normalization.initialize(self.features.encode(x))
        return self

    def certify(self) -> Self:
        """Certify the weights that changed since they were certified last; returns the model."""
        self.features.certify()
        return self

    @property
    def lipschitz(self) -> float:
        """Largest certified constant of a block."""
        return self.features.lipschitz

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {"name": self.name, "dtype": self.dtype, "trainable": self.trainable, **self._arguments}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the model."""
        return cls(**config)
