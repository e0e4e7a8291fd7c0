"""The architectures of a flow and of a classifier as plain data, from which each adapter builds its layers.

`adapters/torch/building.py` and `adapters/keras/building.py` hold a table with one constructor for each class of plan.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows import BASE_NAMES, SQUEEZES

__all__ = [
    "ActNormPlan",
    "ActivationPlan",
    "ConvolutionPlan",
    "DensePlan",
    "FactorOutPlan",
    "InjectivePadPlan",
    "LayerPlan",
    "LogitPlan",
    "ModelSettings",
    "ResidualPlan",
    "SqueezePlan",
    "convolution_block",
    "dense_block",
    "planned_features",
    "planned_layers",
    "planned_shape",
    "widest_array",
]

KINDS = ("mlp", "conv")
_MOST_LAYERS = 10_000
_NARROWEST = 0.1  # spread, below which blocks of the first weights see a point
_WIDEST = 1e4  # spread, which float32 still resolves to a thousandth of a unit
_MOST_WEIGHTS = 2**31  # 8 GB in float32, and three times that with the moments of Adam


@dataclass(frozen=True)
class ModelSettings:
    """Size of a flow.

    Attributes
    ----------
    kind : {"mlp", "conv"}
        Dense layers on vectors, or convolutions on images at several scales (Behrmann et al. 2019, Sec. 5).
    blocks : int
        Number of residual blocks; "conv" has as many at each scale.
    hidden : int
        Width of the hidden layers: units or channels.
    layers : int
        Number of hidden layers in a block; in "conv" one is 3x3 - 3x3, and every further one adds a 1x1 between them.
    activation : str
        Name of the activation between the layers.
    coeff : float
        Bound on the Lipschitz constant of a block.
    alpha : float or None
        Parameter of the logit in front, for images of grey levels; None for a flow without a logit.
    standardize : bool
        Whether a layer that brings the data to mean zero and variance one stands in front; for all other data.
    activation_first : bool
        Whether an activation stands in front of the first linear layer of a block too, as in Residual Flows.
    scales : int
        How often "conv" squeezes the images, with half of the channels leaving the flow in between.
    squeeze : {"pixels", "haar"}
        What "conv" makes of 2 x 2 pixels, see `iresnet_core.Squeeze`.
    spread : float
        Standard deviation to which data bring what enters a block, by the ActNorm in front of it. Where it is wide, a
        block of the same Lipschitz constant bends the space at a finer scale. From 0.1 to 10000.
    base : {"normal", "diagonal-normal", "student-t"}
        Density of the latents, see `iresnet_core.flows.named_base`; all but "normal" have parameters that are trained.
    """

    kind: str
    blocks: int
    hidden: int
    layers: int
    activation: str
    coeff: float
    alpha: float | None = None
    standardize: bool = False
    activation_first: bool = False
    scales: int = 2
    spread: float = 1.0
    base: str = "normal"
    squeeze: str = "pixels"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidArgumentError(f"there is no model {self.kind!r}; there are {', '.join(KINDS)}.")
        if self.base not in BASE_NAMES:
            raise InvalidArgumentError(f"there is no base {self.base!r}; there are {', '.join(BASE_NAMES)}.")
        for name in ("blocks", "hidden", "layers", "scales"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.kind != "conv" and self.scales != 2:
            raise InvalidArgumentError(f"scales are for the model conv, got scales={self.scales} for {self.kind}.")
        if self.squeeze not in SQUEEZES:
            raise InvalidArgumentError(f"there is no squeeze {self.squeeze!r}; there are {', '.join(SQUEEZES)}.")
        if self.kind != "conv" and self.squeeze != "pixels":
            raise InvalidArgumentError(f"squeeze={self.squeeze!r} is for the model conv, not for {self.kind}.")
        if not _NARROWEST <= self.spread <= _WIDEST:
            raise InvalidArgumentError(f"a spread is a number from {_NARROWEST:g} to {_WIDEST:g}, got {self.spread:g}.")
        if self.blocks * self.layers > _MOST_LAYERS:
            raise InvalidArgumentError(
                f"{self.blocks} blocks of {self.layers} hidden layers are more than {_MOST_LAYERS} layers."
            )
        if self.blocks * self.layers * self.hidden**2 > _MOST_WEIGHTS:
            raise InvalidArgumentError(
                f"{self.blocks} blocks of {self.layers} hidden layers of width {self.hidden} have more than "
                f"{_MOST_WEIGHTS:.1e} weights; make them fewer or narrower."
            )
        if not 0 < self.coeff < 1:
            raise InvalidArgumentError(f"coeff must be in (0, 1), got {self.coeff:g}.")
        if self.alpha is not None and not 0 < self.alpha < 0.5:
            raise InvalidArgumentError(f"alpha must be in (0, 0.5), got {self.alpha:g}.")


@dataclass(frozen=True)
class LogitPlan:
    """Logit of images."""

    alpha: float


@dataclass(frozen=True)
class ActNormPlan:
    """Affine map per channel, to a standard deviation; under a condition of `context` entries, if there is one."""

    channels: int
    context: int | None = None
    spread: float = 1.0


@dataclass(frozen=True)
class InjectivePadPlan:
    """Zero channels that are appended."""

    padding: int


@dataclass(frozen=True)
class SqueezePlan:
    """2 x 2 pixels to four channels: the pixels, or their Haar wavelets."""

    basis: str = "pixels"


@dataclass(frozen=True)
class FactorOutPlan:
    """Further layers for the first `keep` channels; the other channels are done."""

    keep: int
    layers: tuple["LayerPlan", ...]


@dataclass(frozen=True)
class DensePlan:
    """Dense layer of a branch."""

    inputs: int
    outputs: int


@dataclass(frozen=True)
class ConvolutionPlan:
    """Convolution of a branch; "same" padding keeps the number of pixels along each of its spatial axes."""

    inputs: int
    outputs: int
    kernel: int
    axes: int

    @property
    def middle(self) -> int:
        """The tap along each axis that acts on the pixel itself, with the padding of frameworks."""
        return (self.kernel - 1) // 2

    @property
    def noise_at_start(self) -> float:
        """Standard deviation of the noise around an orthogonal middle, where weights start orthogonal.

        With the matrix alone in the middle of its kernel all singular values of a convolution are equal (Xiao et al.
        2018), but it mixes no pixels. The noise on all of the kernel has a norm of some 0.2 to 0.4 beside it, and
        training begins faster. Bits per dimension on MNIST after 250 steps of batches of 64, with 64 channels, a cap of
        0.98, a rate of 0.02 and without wavelets: 1.353 with it, 1.367 without, and 1.379 where the whole kernel is
        taken for a matrix and made orthogonal, as initialisers of frameworks do it.
        """
        taps = self.kernel**self.axes
        return 0.2 / math.sqrt(max(self.inputs, self.outputs) * taps) if taps > 1 else 0.0


@dataclass(frozen=True)
class ActivationPlan:
    """Activation of a branch, one of the core's."""

    name: str


@dataclass(frozen=True)
class ResidualPlan:
    """Residual block; its branch is a chain of these layers, in the order of application."""

    branch: tuple["BranchPlan", ...]
    coeff: float
    context: int | None = None


BranchPlan = DensePlan | ConvolutionPlan | ActivationPlan
LayerPlan = LogitPlan | ActNormPlan | InjectivePadPlan | SqueezePlan | FactorOutPlan | ResidualPlan


def dense_block(
    widths: Sequence[int], activation: str, coeff: float, *, activation_first: bool = False
) -> ResidualPlan:
    """Return a residual block of dense layers between these widths, with an activation between any two of them.

    With `activation_first` one more activation stands in front.
    """
    branch = _alternating([DensePlan(a, b) for a, b in pairwise(widths)], activation)
    return ResidualPlan((ActivationPlan(activation), *branch) if activation_first else branch, coeff)


def convolution_block(
    channels: Sequence[int],
    kernels: Sequence[int],
    activation: str,
    coeff: float,
    axes: int = 2,
    *,
    activation_first: bool = False,
) -> ResidualPlan:
    """Return a residual block of convolutions between these channels, with an activation between any two of them.

    `axes` is the number of spatial axes; with `activation_first` one more activation stands in front.
    """
    shapes = zip(pairwise(channels), kernels, strict=True)
    branch = _alternating([ConvolutionPlan(a, b, kernel, axes) for (a, b), kernel in shapes], activation)
    return ResidualPlan((ActivationPlan(activation), *branch) if activation_first else branch, coeff)


def _alternating(linear: Sequence[BranchPlan], activation: str) -> tuple[BranchPlan, ...]:
    """Put an activation between any two linear layers."""
    return tuple(part for layer in linear for part in (ActivationPlan(activation), layer))[1:]


def planned_shape(settings: ModelSettings, data_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the samples that the model takes: in a row for "mlp", images for "conv"."""
    return data_shape if settings.kind == "conv" else (math.prod(data_shape),)


def widest_array(settings: ModelSettings, data_shape: tuple[int, ...]) -> int:
    """Return how many numbers of one sample stand between two layers of a branch, at most; memory goes by that."""
    size = math.prod(data_shape)
    if settings.kind == "mlp":
        return max(size, settings.hidden)
    pixels = math.prod(data_shape[1:]) // 4  # after the first squeeze
    return max(size, settings.hidden * pixels)


def planned_layers(
    settings: ModelSettings, data_shape: tuple[int, ...], context: int | None = None
) -> tuple[LayerPlan, ...]:
    """Return the layers of a flow.

    Parameters
    ----------
    settings : ModelSettings
        Kind and size.
    data_shape : tuple of int
        Shape of one sample; images have their channels first.
    context : int, optional
        Entries of what a condition becomes, which then enters every block and ActNorm of the model "mlp".

    Raises
    ------
    ShapeError
        If the model is "conv" and the samples are no images with an even number of rows and columns, or more than two
        scales are asked for of which the last would have an odd number.
    """
    first: tuple[LayerPlan, ...] = () if settings.alpha is None else (LogitPlan(settings.alpha),)
    if settings.kind == "mlp":
        size = math.prod(data_shape)
        widths = (size, *(settings.hidden,) * settings.layers, size)
        block_of = dense_block(widths, settings.activation, settings.coeff, activation_first=settings.activation_first)
        residual = replace(block_of, context=context)
        block = (ActNormPlan(size, context, settings.spread), residual)
        # The last ActNorm brings the outputs to the density of the latents.
        return first + block * settings.blocks + (ActNormPlan(size, context),)
    if context is not None:
        raise InvalidArgumentError("--condition is for the model mlp; images under conditions train with the adapters.")
    if len(data_shape) != 3 or data_shape[1] % 2 or data_shape[2] % 2:
        raise ShapeError(
            "the model conv takes images (channels, height, width) with an even height and width, got samples of "
            f"shape {data_shape}. Use --model mlp."
        )
    if settings.scales > 2 and (data_shape[1] % 2**settings.scales or data_shape[2] % 2**settings.scales):
        raise ShapeError(
            f"images of {data_shape[1]} x {data_shape[2]} pixels cannot be halved {settings.scales} times; try fewer "
            "--scales, or pad the images."
        )
    return first + _scale(settings, data_shape, settings.scales)


def _scale(settings: ModelSettings, shape: tuple[int, ...], scales: int) -> tuple[LayerPlan, ...]:
    """Squeeze, blocks, and the same again on half the channels while pixels and scales last."""
    channels, height, width = 4 * shape[0], shape[1] // 2, shape[2] // 2
    between = (channels, *(settings.hidden,) * settings.layers, channels)
    kernels = (3, *(1,) * (settings.layers - 1), 3)
    block = (
        ActNormPlan(channels, spread=settings.spread),
        convolution_block(
            between, kernels, settings.activation, settings.coeff, activation_first=settings.activation_first
        ),
    )
    layers: tuple[LayerPlan, ...] = (SqueezePlan(settings.squeeze), *(block * settings.blocks), ActNormPlan(channels))
    if scales > 1 and height % 2 == 0 and width % 2 == 0:
        keep = channels // 2
        layers = (*layers, FactorOutPlan(keep, _scale(settings, (keep, height, width), scales - 1)))
    return layers


def planned_features(
    channels: int,
    axes: int,
    *,
    classes: int,
    padding: int,
    widths: Sequence[int],
    blocks: Sequence[int],
    coeff: float,
    activation: str,
) -> tuple[tuple[LayerPlan, ...], int]:
    """Return the layers of a classifier before its head (Behrmann et al. 2019, Sec. 5.1), and their last channels.

    Injective padding, then stages of residual blocks (ActNorm, convolutions 3 - 1 - 3, each after an activation) with a
    Squeeze between two stages.

    Parameters
    ----------
    channels, axes : int
        Channels of the images, and how many spatial axes they have: 1, 2 or 3.
    classes, padding, widths, blocks, coeff, activation
        The arguments of the classifier, which have the same names.

    Raises
    ------
    InvalidArgumentError
        If the images have another number of axes, a number is not positive, or `widths` and `blocks` do not go
        together.

    Examples
    --------
    >>> plan, channels = planned_features(
    ...     1, 2, classes=10, padding=3, widths=(16, 16), blocks=(1, 1), coeff=0.9, activation="elu"
    ... )
    >>> [type(layer).__name__.removesuffix("Plan") for layer in plan], channels
    (['InjectivePad', 'ActNorm', 'Residual', 'Squeeze', 'ActNorm', 'Residual'], 16)
    """
    if axes not in (1, 2, 3):
        raise InvalidArgumentError(f"images have 1, 2 or 3 spatial axes besides that of the channels, got {axes}.")
    if len(widths) != len(blocks) or not blocks:
        raise InvalidArgumentError(
            f"widths and blocks have one number per stage, got widths={tuple(widths)} and blocks={tuple(blocks)}."
        )
    if classes < 1 or channels < 1 or padding < 0 or min(widths) < 1 or min(blocks) < 0:
        raise InvalidArgumentError(
            f"channels, classes and widths must be at least 1, blocks and padding 0, got channels={channels}, "
            f"classes={classes}, widths={tuple(widths)}, blocks={tuple(blocks)}, padding={padding}."
        )
    plan: list[LayerPlan] = [InjectivePadPlan(padding)] if padding else []
    channels += padding
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        if stage:
            plan.append(SqueezePlan())
            channels *= 2**axes
        between = (channels, width, width, channels)
        block = convolution_block(between, (3, 1, 3), activation, coeff, axes, activation_first=True)
        plan += [ActNormPlan(channels), block] * count
    return tuple(plan), channels
