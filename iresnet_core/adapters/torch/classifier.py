"""The classifier of Behrmann et al. (2019): an invertible residual network with a pooled linear head."""

import math
import os
from typing import Any, Self

from torch import Tensor, nn

from iresnet_core.adapters.shared.classifier import ClassifierMethods
from iresnet_core.adapters.torch.batch_norm import BatchNorm
from iresnet_core.adapters.torch.branch import Activation
from iresnet_core.adapters.torch.building import build_layers
from iresnet_core.adapters.torch.files import read_classifier, write_classifier_file
from iresnet_core.adapters.torch.flow import Flow
from iresnet_core.adapters.torch.layer import ActNorm
from iresnet_core.adapters.torch.program import ClassifierProgram, require_exportable, write_classifier

__all__ = ["Classifier"]


class Classifier(ClassifierMethods, nn.Module):
    """Invertible features and a linear head (Behrmann et al. 2019, Sec. 5.1).

    The features are injective padding, then stages of residual blocks (ActNorm, convolutions 3 - 1 - 3) with a Squeeze
    between two stages; the head is batch normalisation, the activation, the mean over the pixels and a linear layer.
    The convolutions start near to orthogonal ones, whose singular values are nearly at their caps.
    ``features`` is a `Flow`, so that the network that classifies can also be trained as a density.

    Examples
    --------
    >>> import torch
    >>> model = Classifier((1, 8, 8), 10, padding=3, widths=(16, 16), blocks=(1, 1))
    >>> model(torch.randn(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    channel_axis = 1

    def _make(self, plan: Any, channels: int) -> None:
        arguments = self._arguments
        self.features = Flow(build_layers(plan, start="orthogonal"), arguments["input_shape"])
        self.batch_norm = BatchNorm(channels) if arguments["batch_norm"] else None
        self.normalization = ActNorm(channels)
        self.activation = Activation(arguments["activation"])
        self.linear = nn.Linear(channels, arguments["classes"])

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of images x (batch, *input_shape)."""
        return self._logits(self.features.encode(x))

    def _logits(self, z: Tensor) -> Tensor:
        """Return logits (batch, classes) of features z (batch, channels, *spatial)."""
        if self.batch_norm is not None:
            z = self.batch_norm(z)
        z = self.normalization(z)
        return self.linear(self.activation(z).flatten(2).mean(-1))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Show the number of features."""
        return f"{math.prod(self.features.latent_shape)} features"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write arguments and state dict to one safetensors file, without pickle."""
        write_classifier_file(path, self._arguments, self.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return the classifier of a file that `save` wrote, in evaluation mode.

        Raises
        ------
        StorageError
            If the file is no such one.
        """
        arguments, state = read_classifier(path)
        model = cls(**arguments).to(state["linear.weight"].dtype)
        model.load_state_dict(state)
        return model.eval()

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the logits as a program for batches of any size: .onnx, or .pt2 for a program of `torch.export`.

        Raises
        ------
        InvalidArgumentError, MissingDependencyError
            As `Flow.export`.
        """
        require_exportable(path, "encode", None, {})
        write_classifier(ClassifierProgram(self._core_features(), *self._head(), self.channel_axis), path)

    def _batch_normalized_anew(self, z: Tensor) -> Tensor:
        assert self.batch_norm is not None
        return self.batch_norm.initialize(z)(z)  # type: ignore[no-any-return]

    def _running_statistics(self) -> tuple[Tensor, Tensor]:
        assert self.batch_norm is not None
        return self.batch_norm.mean, self.batch_norm.variance + self.batch_norm.EPS

    def _head(self) -> tuple[str, Tensor, Tensor]:
        return self._arguments["activation"], self.linear.weight.detach(), self.linear.bias.detach()
