"""The modules that the plan of a flow is made of."""

from torch import nn

from iresnet_core.adapters.torch.branch import Activation
from iresnet_core.adapters.torch.layer import ActNorm, FactorOut, InjectivePad, Logit, Squeeze
from iresnet_core.adapters.torch.residual import InvertibleResidual

__all__ = ["Builder"]

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Builder:
    """Makes modules, with parameters from the global generator; see `training.layer_building.LayerBuilder`.

    Parameters
    ----------
    start : {"orthogonal", "uniform"}, optional
        Weights orthogonal, so that all their singular values are at the cap and none has to grow first, or uniform as
        PyTorch has them, which is the default.
    """

    def __init__(self, *, start: str | None = None) -> None:
        self._start_of_weights = start

    def logit(self, alpha: float) -> nn.Module:
        """Logit."""
        return Logit(alpha)

    def act_norm(self, channels: int) -> nn.Module:
        """ActNorm."""
        return ActNorm(channels)

    def injective_pad(self, padding: int) -> nn.Module:
        """InjectivePad."""
        return InjectivePad(padding)

    def squeeze(self) -> nn.Module:
        """Squeeze."""
        return Squeeze()

    def factor_out(self, keep: int, layers: list[nn.Module]) -> nn.Module:
        """FactorOut."""
        return FactorOut(keep, layers)

    def dense(self, inputs: int, outputs: int) -> nn.Module:
        """Linear."""
        return nn.Linear(inputs, outputs)

    def convolution(self, inputs: int, outputs: int, kernel: int, axes: int) -> nn.Module:
        """Conv1d to Conv3d."""
        module: nn.Module = _CONVOLUTIONS[axes](inputs, outputs, kernel, padding="same")
        return module

    def activation(self, name: str) -> nn.Module:
        """Activation."""
        return Activation(name)

    def residual(self, net: list[nn.Module], coeff: float) -> nn.Module:
        """InvertibleResidual."""
        if self._start_of_weights == "orthogonal":
            for layer in net:
                if not isinstance(layer, Activation):
                    nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]
        return InvertibleResidual(nn.Sequential(*net), coeff=coeff)
