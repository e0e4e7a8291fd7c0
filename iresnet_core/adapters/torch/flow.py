"""Flows as PyTorch modules: densities that train, sample and go to the core."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import iresnet_core as core
from iresnet_core.adapters.torch.layer import FlowLayer, as_parameters, no_autocast, require_layers
from iresnet_core.adapters.torch.processes import probe_generator
from iresnet_core.adapters.torch.residual import InvertibleResidual
from iresnet_core.adapters.torch.transform import FlowTransform
from iresnet_core.adapters.torch.weight import steered_layers
from iresnet_core.branches import require_taken
from iresnet_core.common import require_shape
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.files import save

__all__ = ["Flow"]


class Flow(nn.Module):
    """A normalising flow: layers with a standard normal base density.

    Parameters
    ----------
    layers : sequence of FlowLayer
        In the order of `forward`.
    event_shape : sequence of int
        Shape of one sample.
    terms : int, optional
        Jacobian products a probe in training mode, where the blocks are too wide for the exact determinant; by default
        those of `logdet` without errors: 1 for blocks of dense layers, 4 for others.

    Raises
    ------
    ShapeError
        If the layers do not fit each other.
    InvalidArgumentError
        If an entry is no layer of a flow.

    Notes
    -----
    ``flow(x)`` returns z and log|det|, `log_prob` the log-density; both are differentiable with respect to parameters
    and x, in either mode. In training mode the value is a true estimate (not a surrogate), and the gradient that of its
    expectation. Probes come from PyTorch's global generator, so that `torch.manual_seed` reproduces everything.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 2))
    >>> flow = Flow([InvertibleResidual(net, coeff=0.9)], event_shape=(2,)).eval()
    >>> flow.log_prob(torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    def __init__(self, layers: Sequence[nn.Module], event_shape: Sequence[int], *, terms: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(require_layers(layers))
        self.event_shape = require_shape(event_shape, "event_shape")
        self.terms = terms
        self.latent_shape = self._bind()

    def extra_repr(self) -> str:
        """Show the shapes."""
        return f"event_shape={self.event_shape}"

    def _bind(self) -> tuple[int, ...]:
        shape = self.event_shape
        for index, layer in enumerate(self._layers()):
            try:
                shape = layer.bind(shape)
            except core.IResNetError as error:
                error.add_note(f"in layer {index} of the flow, {layer!r}")
                raise
        return shape

    def _layers(self) -> list[FlowLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _core(self, context: Tensor | None, *, exported: bool = False) -> core.Flow:
        """Return the core's flow with the present parameters."""
        training = self.training and not exported
        scaled_by_estimate = (
            steered_layers([pair for layer in self._layers() for pair in layer.capped()]) if training else None
        )
        self._require_taken(context)
        layers = [
            layer.core_layer(context, exported=exported, scaled_by_estimate=scaled_by_estimate)
            for layer in self._layers()
        ]
        return core.Flow(layers, self.event_shape)

    def _require_taken(self, context: Tensor | None) -> None:
        """Refuse a condition that would have no effect."""
        require_taken(context, (m for m in self.modules() if isinstance(m, FlowLayer)))

    def _options(self, x: Tensor, errors: bool, options: dict[str, Any]) -> dict[str, Any]:
        """Fill in the options of `logdet`; errors that nobody asks for are not computed where nothing needs them."""
        if self.training and not errors and options.get("tol") is None:
            options = {"errors": False, **options}
        if self.training and self.terms is not None and not {"terms", "tol", "method"} & set(options):
            options = {"terms": self.terms, **options}
        if "rng" not in options and "noise" not in options:
            options = {"rng": probe_generator(x), **options}
        return options

    def initialize(self, x: Tensor, context: Tensor | None = None) -> "Flow":
        """Initialise what depends on data and is not initialised yet; returns the flow.

        The first batch in training mode does so as well.
        """
        self._require_taken(context)
        with torch.no_grad():
            for layer in self._layers():
                x = layer.initialize(x, context)
        return self

    def forward(
        self, x: Tensor, context: Tensor | None = None, *, errors: bool = False, **options: Any
    ) -> tuple[Tensor, Any]:
        """Return latents and log|det| of the Jacobian.

        Parameters
        ----------
        x : Tensor (batch, *event_shape)
            Samples.
        context : Tensor (batch, features), optional
            For flows with conditional blocks.
        errors : bool
            Return the core's `LogDet` (value, std_error, bias_bound, products, method, reason) instead of its value.
        **options
            As in `iresnet_core.Flow.log_prob`. In training mode a fixed number of products (`terms`) is the default, in
            evaluation mode as many as certify 1e-3 nats a block.

        Returns
        -------
        z : Tensor (batch, *latent_shape)
            Latents.
        logdet : Tensor (batch,) or LogDet
            In nats.
        """
        flow = self._prepared(x, context)
        x = as_parameters(x, flow)
        with no_autocast(x):
            out = flow.forward(x, **self._options(x, errors, options))
        return out.value, out.logdet if errors else out.logdet.value

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the latents (batch, *latent_shape) of samples x, without the cost of the log-determinant."""
        flow = self._prepared(x, context)
        x = as_parameters(x, flow)
        with no_autocast(x):
            return flow(x)  # type: ignore[no-any-return]

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, errors: bool = False, **options: Any) -> Any:
        """Return the log-density (batch,) in nats, or with `errors` the core's `LogProb`; otherwise as `forward`."""
        flow = self._prepared(x, context)
        x = as_parameters(x, flow)
        with no_autocast(x):
            result = flow.log_prob(x, **self._options(x, errors, options))
        return result if errors else result.value

    def inverse(self, z: Tensor, context: Tensor | None = None, *, errors: bool = False, **options: Any) -> Any:
        """Return the samples (batch, *event_shape) of latents z, differentiable; with `errors` the core's `Inverse`.

        Parameters
        ----------
        z : Tensor (batch, *latent_shape)
            Latents.
        context : Tensor (batch, features), optional
            The conditioning.
        errors : bool
            Return the certified `error_bound` too.
        **options
            As in `iresnet_core.invert`.

        Raises
        ------
        NotConvergedError
            If a sample has not converged (eager mode).
        """
        flow = self._core(context)
        z = as_parameters(z, flow)
        with no_autocast(z):
            result = flow.inverse(z, **options)
        return result if errors else result.value

    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        errors: bool = False,
        **options: Any,
    ) -> Any:
        """Draw n samples, without gradient; with `errors` the core's `Inverse`.

        `context` has n rows, or one for all samples.
        """
        if context is not None and context.shape[0] == 1:
            context = context.expand(n, -1)
        with torch.no_grad():
            flow = self._core(context)
            like = next(self.parameters(), torch.zeros(()))
            result = flow.sample(n, rng=generator, like=like, **options)
        return result if errors else result.value

    @property
    def lipschitz(self) -> float:
        """Largest certified constant of a block, with the present weights, in every mode; 0 without blocks."""
        blocks = [module for module in self.modules() if isinstance(module, InvertibleResidual)]
        return max((block.lipschitz for block in blocks), default=0.0)

    def fill_caps(self) -> "Flow":
        """Scale the free weights so that every layer of every block starts at its cap; returns the flow."""
        for module in self.modules():
            if isinstance(module, InvertibleResidual) and module.declared is None:
                module.fill_caps()
        return self

    def spectral_penalty(self, weight: float) -> Tensor:
        """Return `weight` times the sum of the squared spectral norms of all free weights (report, Eq. 11)."""
        blocks = [m for m in self.modules() if isinstance(m, InvertibleResidual) and m.declared is None]
        if not blocks:
            raise InvalidArgumentError(
                "the flow has no weights to penalise: it has no block, or only blocks with a declared constant."
            )
        return sum((block.spectral_penalty(weight) for block in blocks[1:]), blocks[0].spectral_penalty(weight))

    def to_core(self, context: Tensor | None = None) -> core.Flow:
        """Return the flow of the core with certified weights, as constants.

        A conditional flow needs `context` (1, features) and becomes the flow under that condition.
        """
        with torch.no_grad():
            return self._core(context, exported=True)

    def save(self, path: str | os.PathLike[str], context: Tensor | None = None) -> None:
        """Write the certified flow to a safetensors file that `iresnet_core.load` reads on every backend."""
        save(self.to_core(context), path)

    def transform(self, context: Tensor | None = None) -> FlowTransform:
        """Return the map from latents to samples as a `torch.distributions.Transform`."""
        return FlowTransform(self, context)

    def distribution(self, context: Tensor | None = None) -> torch.distributions.TransformedDistribution:
        """Return the density as a `torch.distributions.TransformedDistribution`, with `log_prob` and `rsample`."""
        like = next(self.parameters(), torch.zeros(()))
        zeros = torch.zeros(self.latent_shape, dtype=like.dtype, device=like.device)
        normal = torch.distributions.Normal(zeros, torch.ones_like(zeros), validate_args=False)
        base = torch.distributions.Independent(normal, len(self.latent_shape))
        return torch.distributions.TransformedDistribution(base, [self.transform(context)], validate_args=False)

    def _prepared(self, x: Tensor, context: Tensor | None) -> core.Flow:
        if self.training and not all(layer.initialized for layer in self._layers()):
            self.initialize(x, context)
        return self._core(context)
