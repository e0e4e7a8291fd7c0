"""Flows as PyTorch modules: densities that train, sample and go to the core."""

import os
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from iresnet_core.adapters.shared import warn_deprecated
from iresnet_core.adapters.shared.flow import FlowMethods
from iresnet_core.adapters.shared.layer import require_layers
from iresnet_core.adapters.torch.base import Base
from iresnet_core.adapters.torch.distributions import LatentDistribution
from iresnet_core.adapters.torch.layer import FlowLayer, TorchHooks, Wrap
from iresnet_core.adapters.torch.processes import probe_generator
from iresnet_core.adapters.torch.program import require_exportable, write_flow
from iresnet_core.adapters.torch.transform import FlowTransform
from iresnet_core.flows import require_periodic

__all__ = ["Flow"]


class Flow(TorchHooks, FlowMethods, nn.Module):
    """A normalising flow z = f(x) with the density ``log p(x) = log p_base(f(x)) + log|det J_f(x)|``.

    Notes
    -----
    ``flow(x)`` is `forward`: it returns z and log|det|. `log_prob` returns the log-density. Both are differentiable
    with respect to parameters and x, in either mode. In training, probes come from PyTorch's global generator, so that
    `torch.manual_seed` reproduces everything; in evaluation every sample has its own, whatever the seed and the batch.

    Examples
    --------
    >>> from iresnet_core.adapters.torch import InvertibleResidual
    >>> net = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 2))
    >>> flow = Flow([InvertibleResidual(net, coeff=0.9)], event_shape=(2,)).eval()
    >>> flow.log_prob(torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    compiled = False  # the blocks in training, see `compile`

    def _take_layers(self, layers: Sequence[nn.Module]) -> None:
        self.layers = nn.ModuleList(require_layers(layers, FlowLayer))
        self._refers = self._may_refer()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out under which parameters the reference was taken, for copies and pickles."""
        return {**self.__dict__, "_referred": None}

    @property
    def reference(self) -> Tensor:
        """The samples of `set_reference` (n, *event_shape) on the CPU; NaN for sixteen before there are any."""
        return torch.from_numpy(super().reference)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Add the reference; before there is one, in the shape that it usually has, for loaders that compare shapes."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._refers:
            destination[f"{prefix}reference"] = self.reference

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        saved = state_dict.pop(f"{prefix}reference", None)  # older state dicts have none
        if saved is not None:
            saved = torch.as_tensor(saved)
            if not self._fits(saved):
                args[-1].append(
                    f"size mismatch for {prefix}reference: samples (n, *{tuple(self.event_shape)}) are expected, and "
                    f"the state dict has the shape {tuple(saved.shape)}."
                )
            elif not saved.is_meta:
                known = saved.dtype in (torch.float32, torch.float64)  # NumPy has no bfloat16
                self._take_saved_reference((saved if known else saved.float()).detach().cpu().numpy())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _flow_layers(self) -> list[Any]:
        return list(self.layers)

    def _all_layers(self) -> list[Any]:
        return [module for module in self.modules() if isinstance(module, FlowLayer)]

    def _like(self) -> Tensor:
        return next(self.parameters(), torch.zeros(()))

    def _taken_base(self, base: Any) -> Base:
        """Return a density as a Base, in the dtype and on the device of the flow."""
        return base if isinstance(base, Base) else Base(base).to(self._like())

    def _options(self, x: Tensor, training: bool | None, errors: bool, options: dict[str, Any]) -> dict[str, Any]:
        options = super()._options(x, training, errors, options)
        return {"compiled": True, **options} if self.compiled else options

    def _probe_generator(self, x: Tensor) -> torch.Generator | None:
        return probe_generator(x)

    def _sample_generator(self) -> None:
        return None

    def _parameters_of(self, layer: nn.Module) -> int:
        return sum(parameter.numel() for parameter in layer.parameters())

    def extra_repr(self) -> str:
        """Show the shapes."""
        return f"event_shape={self.event_shape}"

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, errors: bool = False, **options: Any
    ) -> tuple[Tensor, Any]:
        """Return latents and log|det| of the Jacobian, or with `errors` the core's `LogDet`; as `encode`."""
        z, logdet = self.encode(x, context, logdet=True, errors=errors, **options)
        return z, logdet

    def compile(self) -> Self:  # type: ignore[override]
        """Compile the blocks for training, once for all that are alike but for their weights; returns the flow.

        `training_loss`, and `log_prob` in training mode, then call one program for each kind of block of known layers,
        and take the norms and the rest eagerly. Weights, state dicts and files stay the same, and so do values and
        gradients, to rounding; under autocast nothing is compiled. ``flow.compiled = False`` undoes it.
        """
        self.compiled = True
        return self

    def sample(
        self, n: int | Sequence[int] = (), context: Tensor | None = None, *, rng: Any = None, **options: Any
    ) -> Any:
        """Draw n samples (n, *event_shape), without gradient; with ``errors=True`` the core's `Inverse`.

        Parameters
        ----------
        n : int or tuple of int
            How many; a tuple is the shape of the batch, and () one sample without a batch axis.
        context : Tensor (n, features), or (features,) or (1, features), optional
            One condition for each sample, or one for all.
        rng : int or torch.Generator, optional
            Default: PyTorch's global generator.
        **options
            As in `inverse`.
        """
        if "generator" in options:
            warn_deprecated("sample(generator=)", "sample(rng=)")
            rng = options.pop("generator")
        return super().sample(n, context, rng=rng, **options)

    def export(
        self,
        path: str | os.PathLike[str],
        method: str = "log_prob",
        *,
        n: int | None = None,
        **options: Any,
    ) -> None:
        """Write one method as a program for batches of any size, with certified weights as constants.

        Parameters
        ----------
        path : str or path
            It ends in .onnx, or in .pt2 for a program of `torch.export`.
        method : {"log_prob", "encode", "inverse", "sample"}
            What the program computes; its inputs are x or z, and context behind it where the flow takes one.
        n : int, optional
            How many samples a program of "sample" draws in each run, by the generator of the runtime.
        **options
            As in the method, but for what a program cannot have (`tol`, `rng`, `noise`, `errors`); `logdet_method` is
            the method of the log-determinant.

        Raises
        ------
        InvalidArgumentError
            At once, for what cannot be a program, and if an ActNorm is not initialised.
        MissingDependencyError
            If `onnx` or `onnxscript` is not installed, for an ONNX file.
        """
        require_exportable(path, method, n, options)
        write_flow(self.to_core(), path, method, n, **options)

    def transform(self, context: Tensor | None = None) -> FlowTransform:
        """Return the map from latents to samples as a `torch.distributions.Transform`."""
        return FlowTransform(self, context)

    def distribution(self, context: Tensor | None = None) -> torch.distributions.TransformedDistribution:
        """Return the density as a `torch.distributions.TransformedDistribution`, with `log_prob` and `rsample`.

        Under a context of shape (B, features) its `batch_shape` is (B,): B densities beside each other. Under one of
        shape (features,) it is ().
        """
        like, transform = self._like(), self.transform(context)
        wraps = [layer.core_layer() for layer in self._all_layers() if isinstance(layer, Wrap)]
        require_periodic(wraps, self._core_base())
        if not isinstance(self.base, str):
            latent = LatentDistribution(self, transform.batch_shape)
            return torch.distributions.TransformedDistribution(latent, [transform], validate_args=False)
        zeros = torch.zeros((*transform.batch_shape, *self.latent_shape), dtype=like.dtype, device=like.device)
        normal = torch.distributions.Normal(zeros, torch.ones_like(zeros), validate_args=False)
        base = torch.distributions.Independent(normal, len(self.latent_shape))
        return torch.distributions.TransformedDistribution(base, [transform], validate_args=False)
