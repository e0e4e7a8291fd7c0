"""The architecture of a flow as plain data, from which each framework's adapter builds its layers."""

import math
from dataclasses import dataclass

from iresnet_core.errors import InvalidArgumentError, ShapeError

__all__ = [
    "ActNormPlan",
    "ConvolutionBlockPlan",
    "DenseBlockPlan",
    "FactorOutPlan",
    "InjectivePadPlan",
    "LayerPlan",
    "LogitPlan",
    "ModelSettings",
    "SqueezePlan",
    "planned_layers",
    "planned_shape",
]

KINDS = ("mlp", "conv")


@dataclass(frozen=True)
class ModelSettings:
    """Size of a flow.

    Attributes
    ----------
    kind : {"mlp", "conv"}
        Dense layers on vectors, or convolutions on images at up to two scales (Behrmann et al. 2019, Sec. 5).
    blocks : int
        Residual blocks; of "conv", at each scale.
    hidden : int
        Width of the hidden layers: units or channels.
    layers : int
        Hidden layers a block; "conv" has two, 3x3 - 1x1 - 3x3.
    activation : str
        Between the layers.
    coeff : float
        What the Lipschitz constant of a block must not exceed.
    alpha : float or None
        Of the logit in front, for images of grey levels; None for none.
    """

    kind: str
    blocks: int
    hidden: int
    layers: int
    activation: str
    coeff: float
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidArgumentError(f"there is no model {self.kind!r}; there are {', '.join(KINDS)}.")
        for name in ("blocks", "hidden", "layers"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.coeff < 1:
            raise InvalidArgumentError(f"coeff must be in (0, 1), got {self.coeff:g}.")
        if self.alpha is not None and not 0 < self.alpha < 0.5:
            raise InvalidArgumentError(f"alpha must be in (0, 0.5), got {self.alpha:g}.")
        if self.kind == "conv" and self.layers != 2:
            raise InvalidArgumentError(f"a block of the model conv has 2 hidden layers, got layers={self.layers}.")


@dataclass(frozen=True)
class LogitPlan:
    """Logit of images."""

    alpha: float


@dataclass(frozen=True)
class ActNormPlan:
    """Affine map per channel."""

    channels: int


@dataclass(frozen=True)
class InjectivePadPlan:
    """Zero channels that are appended."""

    padding: int


@dataclass(frozen=True)
class SqueezePlan:
    """2 x 2 pixels to four channels."""


@dataclass(frozen=True)
class DenseBlockPlan:
    """Residual block of dense layers between these widths, an activation between any two."""

    widths: tuple[int, ...]
    activation: str
    coeff: float


@dataclass(frozen=True)
class ConvolutionBlockPlan:
    """Residual block of convolutions ("same" padding) between these channels, an activation between any two.

    `axes` is the number of spatial axes; with `activation_first` one more activation stands in front.
    """

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    activation: str
    coeff: float
    axes: int = 2
    activation_first: bool = False


@dataclass(frozen=True)
class FactorOutPlan:
    """The first `keep` channels pass through further layers, the others are done."""

    keep: int
    layers: tuple["LayerPlan", ...]


LayerPlan = (
    LogitPlan | ActNormPlan | InjectivePadPlan | SqueezePlan | DenseBlockPlan | ConvolutionBlockPlan | FactorOutPlan
)


def planned_shape(settings: ModelSettings, data_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the samples that the model takes: in a row for "mlp", images for "conv"."""
    return data_shape if settings.kind == "conv" else (math.prod(data_shape),)


def planned_layers(settings: ModelSettings, data_shape: tuple[int, ...]) -> tuple[LayerPlan, ...]:
    """Return the layers of a flow.

    Parameters
    ----------
    settings : ModelSettings
        Kind and size.
    data_shape : tuple of int
        Of one sample, images with their channels first.

    Raises
    ------
    ShapeError
        If the model is "conv" and the samples are no images with an even number of rows and columns.
    """
    first: tuple[LayerPlan, ...] = () if settings.alpha is None else (LogitPlan(settings.alpha),)
    if settings.kind == "mlp":
        size = math.prod(data_shape)
        widths = (size, *(settings.hidden,) * settings.layers, size)
        block = (ActNormPlan(size), DenseBlockPlan(widths, settings.activation, settings.coeff))
        return first + block * settings.blocks + (ActNormPlan(size),)
    if len(data_shape) != 3 or data_shape[1] % 2 or data_shape[2] % 2:
        raise ShapeError(
            "the model conv takes images (channels, height, width) with an even height and width, got samples of "
            f"shape {data_shape}. Use --model mlp."
        )
    return first + _scale(settings, data_shape, scales=2)


def _scale(settings: ModelSettings, shape: tuple[int, ...], scales: int) -> tuple[LayerPlan, ...]:
    """Squeeze, blocks, and the same again on half the channels while pixels and scales last."""
    channels, height, width = 4 * shape[0], shape[1] // 2, shape[2] // 2
    between = (channels, settings.hidden, settings.hidden, channels)
    block = (
        ActNormPlan(channels),
        ConvolutionBlockPlan(between, (3, 1, 3), settings.activation, settings.coeff),
    )
    layers: tuple[LayerPlan, ...] = (SqueezePlan(), *(block * settings.blocks), ActNormPlan(channels))
    if scales > 1 and height % 2 == 0 and width % 2 == 0:
        keep = channels // 2
        layers = (*layers, FactorOutPlan(keep, _scale(settings, (keep, height, width), scales - 1)))
    return layers
