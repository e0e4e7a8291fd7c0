"""The memory layout of tensors that go into PyTorch's convolutions."""

from iresnet_core.backends.base import Array

__all__ = ["in_plain_layout"]


def in_plain_layout(x: Array) -> Array:
    """Return `x` with the strides of a new tensor of its shape; on the CPU, and copied only where it is not in order.

    The convolutions of PyTorch 2.13 on the CPU return wrong numbers for some tensors whose layout can be read in two
    ways, such as channels last with one channel a group. ``contiguous()`` leaves the strides of axes of length 1 as
    they are; going through one axis sets them. The backward pass brings the cotangent through the same two steps, so
    that a result in plain layout has a cotangent in plain layout.
    """
    return x.reshape(-1).reshape(x.shape) if x.device.type == "cpu" else x
