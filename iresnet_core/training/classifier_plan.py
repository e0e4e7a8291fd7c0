"""The invertible part of the classifier of Behrmann et al. (2019, Sec. 5.1) as plain data."""

from collections.abc import Sequence

from iresnet_core.errors import InvalidArgumentError
from iresnet_core.training.plans import ActNormPlan, ConvolutionBlockPlan, InjectivePadPlan, LayerPlan, SqueezePlan

__all__ = ["planned_features"]


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
    """Return the layers before the head, and how many channels they end with.

    Injective padding, then stages of residual blocks (ActNorm, convolutions 3 - 1 - 3, each after an activation) with a
    Squeeze between two stages.

    Parameters
    ----------
    channels, axes : int
        Channels of the images, and how many spatial axes they have: 1, 2 or 3.
    classes, padding, widths, blocks, coeff, activation
        As those of the classifiers.

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
    (['InjectivePad', 'ActNorm', 'ConvolutionBlock', 'Squeeze', 'ActNorm', 'ConvolutionBlock'], 16)
    """
    if axes not in (1, 2, 3):
        raise InvalidArgumentError(f"images have 1, 2 or 3 spatial axes besides that of the channels, got {axes}.")
    if len(widths) != len(blocks) or not blocks:
        raise InvalidArgumentError(
            f"widths and blocks have one number a stage, got widths={tuple(widths)} and blocks={tuple(blocks)}."
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
        block = ConvolutionBlockPlan(between, (3, 1, 3), activation, coeff, axes, activation_first=True)
        plan += [ActNormPlan(channels), block] * count
    return tuple(plan), channels
