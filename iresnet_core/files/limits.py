"""What a file may ask for: a few hundred bytes can describe a model that no machine has the memory for.

A description names sizes that no tensor of the file backs: the extent of images, paddings, dilations, zero channels.
Each is compared with `LARGEST` when the model is built, before anything of that size is made.
"""

import math
from collections.abc import Sequence

from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows import Flow
from iresnet_core.operators import Convolution

__all__ = ["LARGEST", "require_modest_convolution", "require_modest_flow", "require_modest_shape"]

LARGEST = 2**26  # numbers in one sample anywhere in a model: 64 channels of 1024 x 1024 pixels


def require_modest_shape(shape: Sequence[int], what: str) -> None:
    """Refuse samples of more than `LARGEST` numbers."""
    if (asked := math.prod(shape)) > LARGEST:
        raise InvalidArgumentError(f"{what} has {asked:,} numbers; a file may ask for {LARGEST:,} at most.")


def require_modest_convolution(layer: Convolution) -> Convolution:
    """Refuse a convolution whose input or output, or the torus of its bound, is too large; else return it."""
    torus = (n + sum(p) + r for n, p, r in zip(layer.spatial, layer.padding, layer.reach, strict=True))
    require_modest_shape((max(layer.channels, layer.out_channels), *torus), f"a padded sample of {layer!r}")
    return layer


def require_modest_flow(flow: Flow) -> Flow:
    """Refuse a flow whose samples are too large before or after one of its layers; else return it."""
    shape = flow.event_shape
    require_modest_shape(shape, "a sample")
    for layer in flow.layers:
        shape = layer.output_shape(shape)
        require_modest_shape(shape, f"a sample after {layer!r}")
    return flow
