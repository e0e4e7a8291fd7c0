"""The classifier of Behrmann et al. (2019): its plan, and what it hands on to its features."""

from collections.abc import Sequence
from typing import Any, Self

import iresnet_core as core
from iresnet_core.backends import get_backend
from iresnet_core.training import planned_features

__all__ = ["ClassifierMethods"]


class ClassifierMethods:
    """Invertible features and a linear head."""

    features: Any
    channel_axis: int

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
        batch_norm: bool = True,
        **options: Any,
    ) -> None:
        """Make the classifier.

        Parameters
        ----------
        input_shape : sequence of int
            (channels, *spatial), in Keras (*spatial, channels), with 1, 2 or 3 spatial axes that every Squeeze halves.
        classes : int
            Number of classes.
        padding : int
            The number of zero channels that are appended to the images.
        widths : sequence of int
            Hidden channels of the blocks, one number per stage.
        blocks : sequence of int
            Blocks, one number per stage.
        coeff : float
            Bound on the Lipschitz constant of every block.
        activation : str
            The name of an activation of the core.
        batch_norm : bool
            Whether the head begins with batch normalisation, as in the code of Behrmann et al. (2019). Without it the
            logits hang on the means that all images share, and training is several times slower.
        **options
            Options of a Keras model.

        Raises
        ------
        InvalidArgumentError
            If `widths` and `blocks` do not go together.
        ShapeError
            If the spatial extent cannot be halved as often as there are further stages.
        """
        super().__init__(**options)
        plan, channels = planned_features(
            input_shape[-1 if self.channel_axis == -1 else 0],
            len(input_shape) - 1,
            classes=classes,
            padding=padding,
            widths=widths,
            blocks=blocks,
            coeff=coeff,
            activation=activation,
        )
        self._arguments: dict[str, Any] = {
            "input_shape": list(input_shape),
            "classes": classes,
            "padding": padding,
            "widths": list(widths),
            "blocks": list(blocks),
            "coeff": coeff,
            "activation": activation,
            "batch_norm": bool(batch_norm),
        }
        self._make(plan, channels)

    def _make(self, plan: Any, channels: int) -> None:
        """Make the features from their plan, and the head for their channels."""
        raise NotImplementedError

    @property
    def initialized(self) -> bool:
        """Whether every ActNorm has its parameters."""
        return bool(self.features.initialized and self.normalization.initialized)

    batch_norm: Any
    normalization: Any

    def _batch_normalized_anew(self, z: Any) -> Any:
        """Begin the running averages of the batch normalisation with z, and return z normalised."""
        raise NotImplementedError

    def _running_statistics(self) -> tuple[Any, Any]:
        """Return the running means, and the running variances with what is added to them."""
        raise NotImplementedError

    def initialize(self, x: Any) -> Self:
        """Initialise every ActNorm from images x (batch, *input_shape), unless it is already; returns the model.

        The running averages of the batch normalisation begin with those of x.
        """
        self.features.initialize(x)
        if not self.normalization.initialized:
            z = self.features.encode(x)
            if self.batch_norm is not None:
                z = self._batch_normalized_anew(z)
            self.normalization.initialize(z)
        return self

    def certify(self) -> Self:
        """Certify the weights that changed since they were certified last; returns the model."""
        self.features.certify()
        return self

    @property
    def lipschitz(self) -> float:
        """Largest certified constant of a block."""
        return float(self.features.lipschitz)

    def _core_features(self) -> core.Flow:
        """Return features and normalisation as one flow of the core, with certified weights."""
        features = self.features.to_core()
        with get_backend(features.arrays[0]).no_grad():
            layers = [self.normalization.core_layer(training=False)]
            if self.batch_norm is not None:
                mean, variance = self._running_statistics()
                log_scale = -0.5 * get_backend(variance).xp.log(variance)
                layers.insert(0, core.ActNorm(log_scale, -mean, axis=self.channel_axis))
            layers = [layer.astype(features.arrays[0].dtype) for layer in layers]
            return core.Flow([*features.layers, *layers], features.event_shape)
