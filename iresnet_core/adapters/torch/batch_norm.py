"""Batch normalisation of the features that a classifier reads, over the samples of all processes."""

import torch
from torch import Tensor, nn

from iresnet_core.adapters.torch.processes import summed

__all__ = ["BatchNorm"]


class BatchNorm(nn.Module):
    """``z = (x - mean) / sqrt(variance + eps)`` per channel (Ioffe and Szegedy 2015), without a scale of its own.

    In training mean and variance are those of the joined batch of all processes, for which PyTorch's own layer asks for
    GPUs; in evaluation they are running averages. An `ActNorm` behind it has the scale and the shift.

    Parameters
    ----------
    channels : int
        Their number. Samples are (batch, channels, *spatial), of any floating dtype.
    """

    # The loss does not depend on the means of the features, so that nothing keeps them from moving. With PyTorch's own
    # momentum of 0.1 the averages lag behind them, under Adam by several standard deviations; with 0.9, that of the
    # code of Behrmann et al. (2019), they have the noise of a single batch.
    MOMENTUM, EPS = 0.5, 1e-5
    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def initialize(self, x: Tensor) -> "BatchNorm":
        """Begin the running averages with the statistics of x (batch, channels, *spatial)."""
        with torch.no_grad():
            mean, variance = _statistics(x)
            self.mean.copy_(mean)
            self.variance.copy_(variance)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (batch, channels, *spatial)."""
        mean, variance = self.mean, self.variance
        if self.training:
            mean, variance = _statistics(x)
            with torch.no_grad():
                self.mean.lerp_(mean.to(self.mean.dtype), self.MOMENTUM)
                self.variance.lerp_(variance.to(self.variance.dtype), self.MOMENTUM)
        shape = (-1, *[1] * (x.ndim - 2))
        return (x - mean.view(shape)) * torch.rsqrt(variance + self.EPS).view(shape)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of every channel; they carry the derivative by the samples of all processes."""
    axes = [k for k in range(x.ndim) if k != 1]
    n = summed(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
    mean = summed(x.sum(axes)) / n
    centered = x - mean.view(-1, *[1] * (x.ndim - 2))
    return mean, summed((centered * centered).sum(axes)) / n
