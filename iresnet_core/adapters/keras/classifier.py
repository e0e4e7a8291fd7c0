"""The classifier of Behrmann et al. (2019): an invertible residual network with a pooled linear head."""

from typing import Any, Self

import keras

from iresnet_core.adapters.keras.branch import Activation
from iresnet_core.adapters.keras.building import build_layers
from iresnet_core.adapters.keras.fitting import PreparedModel
from iresnet_core.adapters.keras.flow import Flow
from iresnet_core.adapters.keras.layer import ActNorm
from iresnet_core.adapters.keras.onnx_files import write_classifier
from iresnet_core.adapters.shared.classifier import ClassifierMethods
from iresnet_core.errors import InvalidArgumentError, StorageError

__all__ = ["Classifier"]


@keras.saving.register_keras_serializable(package="iresnet_core")
class Classifier(ClassifierMethods, PreparedModel):
    """Invertible features and a linear head (Behrmann et al. 2019, Sec. 5.1).

    The features are injective padding, then stages of residual blocks (ActNorm, convolutions 3 - 1 - 3) with a Squeeze
    between two stages; the head is batch normalisation, the activation, the mean over the pixels and a linear layer.
    The convolutions start near to orthogonal ones, whose singular values are nearly at their caps.
    ``features`` is a `Flow`, so that the network that classifies can also be trained as a density.

    Notes
    -----
    It returns logits: compile it with ``SparseCategoricalCrossentropy(from_logits=True)``. Each replica of
    `tf.distribute` normalises its own part of a batch.

    Examples
    --------
    >>> import numpy as np
    >>> model = Classifier((8, 8, 1), 10, padding=3, widths=(16, 16), blocks=(1, 1))
    >>> images = np.random.default_rng(0).standard_normal((5, 8, 8, 1))
    >>> tuple(model.initialize(images)(images).shape)
    (5, 10)
    """

    channel_axis = -1

    def _make(self, plan: Any, channels: int) -> None:
        options = {"dtype": self.dtype}
        arguments = self._arguments
        layers = build_layers(plan, self.dtype, start="orthogonal")
        self.features = Flow(layers, arguments["input_shape"], **options)
        self.batch_norm = None
        if arguments["batch_norm"]:
            # The ActNorm behind it has the scale and the shift. The layer for PyTorch says why the momentum is small.
            self.batch_norm = keras.layers.BatchNormalization(
                momentum=0.5, epsilon=1e-5, center=False, scale=False, **options
            )
            self.batch_norm.build((None, *self.features.latent_shape))
        self.normalization = ActNorm(**options)
        self.normalization.build((None, *self.features.latent_shape))
        self.activation = Activation(arguments["activation"], **options)
        self.linear = keras.layers.Dense(arguments["classes"], **options)
        self.linear.build((None, channels))
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        """Return logits (batch, classes) of images x (batch, *input_shape)."""
        z = self.features.encode(x, training=training)
        if self.batch_norm is not None:
            z = self.batch_norm(z, training=training)
        z = self.activation(self.normalization(z, training=training))
        return self.linear(keras.ops.mean(z, axis=tuple(range(1, len(z.shape) - 1))))

    def _batch_normalized_anew(self, z: Any) -> Any:
        assert self.batch_norm is not None
        mean, variance = keras.ops.moments(z, axes=list(range(len(z.shape) - 1)))
        self.batch_norm.moving_mean.assign(mean)
        self.batch_norm.moving_variance.assign(variance)
        return self.batch_norm(z, training=False)

    def _running_statistics(self) -> tuple[Any, Any]:
        assert self.batch_norm is not None
        mean, variance = self.batch_norm.moving_mean, self.batch_norm.moving_variance
        return keras.ops.convert_to_tensor(mean), keras.ops.convert_to_tensor(variance) + self.batch_norm.epsilon

    def _write_onnx(self, path: Any, **options: Any) -> None:
        if options:
            raise InvalidArgumentError(f"export of a classifier takes no {', '.join(options)}: it holds the logits.")
        write_classifier(self, path)

    @classmethod
    def load(cls, path: Any) -> Self:
        """Return the classifier of a .keras file that `save` wrote.

        Raises
        ------
        StorageError
            If the file holds another model.
        """
        model = keras.saving.load_model(path)
        if not isinstance(model, cls):
            raise StorageError(f"{path} holds a {type(model).__name__}, no Classifier.")
        return model

    def _batch_spec(self) -> Any:
        return keras.InputSpec(shape=(None, *self.features.event_shape), dtype=self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return (batch, classes)."""
        return (input_shape[0], self.linear.units)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {"name": self.name, "dtype": self.dtype, "trainable": self.trainable, **self._arguments}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the model; in files from before there was `batch_norm` the head has none."""
        return cls(**{"batch_norm": False, **config})
