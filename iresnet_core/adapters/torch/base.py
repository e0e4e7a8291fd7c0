"""Densities of the latents as PyTorch modules, and distributions of PyTorch as densities of the core."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from iresnet_core.adapters.shared.base import BaseMethods
from iresnet_core.adapters.torch.distributions import as_density
from iresnet_core.backends import Array
from iresnet_core.flows import Base as CoreBase

__all__ = ["Base"]


class Base(BaseMethods, nn.Module):
    """``log p(z)`` of latents, with a density of the core whose parameters are parameters of the module.

    Notes
    -----
    What is learned stands in the state dict in the form that is trained: ``log_scale``, ``log_cholesky`` (with the
    logarithm of the diagonal), ``free_concentration``. Fixed parameters are buffers under their own names. An object of
    one's own that is a module is a module within; that of another kind is in no state dict, and in no file.

    Examples
    --------
    >>> from iresnet_core import DiagonalNormal
    >>> base = Base(DiagonalNormal(torch.zeros(2), torch.ones(2)))
    >>> [name for name, _ in base.named_parameters()], base(torch.zeros(3, 2)).shape
    (['mean', 'log_scale'], torch.Size([3]))
    """

    def _taken_density(self, density: Any) -> tuple[Any, bool]:
        if isinstance(density, Distribution):
            return as_density(density)
        return density, True

    def _keep_arrays(self, arrays: Mapping[str, Array]) -> None:
        for name, array in arrays.items():
            tensor = torch.as_tensor(array, dtype=torch.get_default_dtype())
            if self.learned:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def _kept(self, name: str) -> Tensor:
        return getattr(self, name).clone()  # type: ignore[no-any-return]  # what the core keeps must not change

    def forward(self, z: Tensor) -> Tensor:
        """Return log p(z) (batch,) of latents (batch, ...)."""
        return self.core_base().log_prob(z)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Show the density."""
        learned = f", learned={self.learned}" if isinstance(self.density, CoreBase) else ""
        return f"{self.density!r}{learned}"
