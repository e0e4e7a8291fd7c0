"""The classifier of Behrmann et al. (2019) without caps, to compare with: it has no certificate and no inverse."""

from torch import Tensor, nn

from iresnet_core.adapters.torch.batch_norm import BatchNorm
from iresnet_core.adapters.torch.branch import Activation
from iresnet_core.adapters.torch.building import build_branch, build_layers
from iresnet_core.adapters.torch.layer import ActNorm
from iresnet_core.adapters.torch.peers.plain_block import PlainBlock
from iresnet_core.training import ResidualPlan, planned_features

__all__ = ["UncappedClassifier"]


class UncappedClassifier(nn.Module):
    """Blocks of the same shape as those of a `Classifier`, whose branches are ordinary layers.

    Only `iresnet classify --vanilla` and the reproduction of published tables make one. The arguments are those of
    `Classifier`, but for `coeff`.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        padding: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        activation: str,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        # The plan asks for a cap, which these branches are made without.
        plan, channels = planned_features(
            input_shape[0],
            len(input_shape) - 1,
            classes=classes,
            padding=padding,
            widths=widths,
            blocks=blocks,
            coeff=0.5,
            activation=activation,
        )
        self.layers = nn.ModuleList(
            [
                PlainBlock(build_branch(layer, "orthogonal"))
                if isinstance(layer, ResidualPlan)
                else build_layers([layer])[0]
                for layer in plan
            ]
        )
        self.batch_norm = BatchNorm(channels) if batch_norm else None
        self.normalization = ActNorm(channels)
        self.activation = Activation(activation)
        self.linear = nn.Linear(channels, classes)

    def initialize(self, x: Tensor) -> "UncappedClassifier":
        """Initialise every ActNorm from images."""
        for layer in self.layers:
            if isinstance(layer, ActNorm):
                layer.initialize(x)
            x = layer(x)
        if self.batch_norm is not None:
            x = self.batch_norm.initialize(x)(x)
        self.normalization.initialize(x)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of images x (batch, *input_shape)."""
        for layer in self.layers:
            x = layer(x)
        if self.batch_norm is not None:
            x = self.batch_norm(x)
        return self.linear(self.activation(self.normalization(x)).flatten(2).mean(-1))  # type: ignore[no-any-return]
