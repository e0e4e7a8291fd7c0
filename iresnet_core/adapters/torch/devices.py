"""The device of a training, by its name."""

import torch

from iresnet_core.errors import DeviceError

__all__ = ["accelerator_name", "training_device"]


def training_device(name: str | None) -> torch.device:
    """Return the device that a training asks for; a GPU where there is one, if it asks for none.

    Raises
    ------
    DeviceError
        If it is not there, or holds no numbers ("meta").
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        float(torch.zeros(1, device=device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch without CUDA asserts
        there = ", ".join(["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))])
        raise DeviceError(
            f"--device {name} cannot be used ({str(error).splitlines()[0][:120]}); there are {there}."
        ) from error
    return device


def accelerator_name(name: str | None) -> str | None:
    """Return what the device of `training_device` is called by its maker; None for the CPU.

    Examples
    --------
    >>> accelerator_name("cpu") is None
    True
    """
    device = training_device(name)
    if device.type == "cpu":
        return None
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
