"""A residual network of ordinary layers: pre-activation bottlenecks with batch normalisation (He et al. 2016)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ResNet"]


class ResNet(nn.Module):
    """ResNet-164 of "Identity Mappings in Deep Residual Networks" for widths (16, 32, 64) and blocks (18, 18, 18).

    Parameters
    ----------
    input_shape : tuple of int
        (channels, height, width).
    classes : int
        Number of classes.
    widths : sequence of int
        Channels inside of the bottlenecks of each stage; four times as many are between them. Each stage after the
        first halves height and width.
    blocks : sequence of int
        Bottlenecks of each stage; a stage without any is left out, but its halving stays.
    """

    def __init__(
        self, input_shape: tuple[int, ...], classes: int, *, widths: Sequence[int], blocks: Sequence[int]
    ) -> None:
        super().__init__()
        first = widths[0]
        layers: list[nn.Module] = []
        stride, channels = 1, first
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            stride = 2 * stride if stage else 1
            for _ in range(count):
                layers.append(_Bottleneck(channels, width, stride))
                channels, stride = 4 * width, 1
        self.stem = nn.Conv2d(input_shape[0], first, 3, padding=1, bias=False)
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of images x (batch, *input_shape)."""
        found: Tensor = self.linear(self.head(self.body(self.stem(x))))
        return found


class _Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, each after normalisation and ReLU."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False),
        )
        changes = stride > 1 or channels != 4 * width
        self.shortcut = nn.Conv2d(channels, 4 * width, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return torch.add(x if self.shortcut is None else self.shortcut(y), self.branch(y))
