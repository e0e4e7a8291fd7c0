"""The classifier of Behrmann et al. (2019): an invertible residual network with a pooled linear head."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from iresnet_core.adapters.torch.branch import Activation
from iresnet_core.adapters.torch.building import build_layers
from iresnet_core.adapters.torch.flow import Flow
from iresnet_core.adapters.torch.layer import ActNorm
from iresnet_core.training import planned_features

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """Invertible features and a linear head (Behrmann et al. 2019, Sec. 5.1).

    The features are injective padding, then stages of residual blocks (ActNorm, convolutions 3 - 1 - 3) with a Squeeze
    between two stages; the head is ActNorm, the activation, the mean over the pixels and a linear layer. ``features``
    is a `Flow`, so that the network that classifies can also be trained as a density.

    Parameters
    ----------
    input_shape : sequence of int
        (channels, *spatial), with 1, 2 or 3 spatial axes that every Squeeze halves.
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

    Examples
    --------
    >>> import torch
    >>> model = Classifier((1, 8, 8), 10, padding=3, widths=(16, 16), blocks=(1, 1))
    >>> model(torch.randn(5, 1, 8, 8)).shape
    torch.Size([5, 10])
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
    ) -> None:
        super().__init__()
        plan, channels = planned_features(
            input_shape[0],
            len(input_shape) - 1,
            classes=classes,
            padding=padding,
            widths=widths,
            blocks=blocks,
            coeff=coeff,
            activation=activation,
        )
        self.features = Flow(build_layers(plan), input_shape)
        self.normalization = ActNorm(channels)
        self.activation = Activation(activation)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of images x (batch, *input_shape)."""
        z = self.normalization(self.features.encode(x))
        return self.linear(self.activation(z).flatten(2).mean(-1))  # type: ignore[no-any-return]

    @property
    def lipschitz(self) -> float:
        """Largest certified constant of a block."""
        return self.features.lipschitz

    def extra_repr(self) -> str:
        """Show the number of features."""
        return f"{math.prod(self.features.latent_shape)} features"
