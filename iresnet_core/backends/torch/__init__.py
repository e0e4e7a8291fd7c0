"""The PyTorch backend: eager, under torch.compile and torch.func, on the device of its arrays."""

from iresnet_core.backends.torch.backend import TorchBackend

__all__ = ["TorchBackend"]
