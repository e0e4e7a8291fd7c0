"""A flow as a transform of torch.distributions."""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.distributions import Transform, constraints

from iresnet_core.errors import ShapeError

if TYPE_CHECKING:
    from iresnet_core.adapters.torch.flow import Flow

__all__ = ["FlowTransform"]


class FlowTransform(Transform):
    """The map from latents to samples: ``transform(z)`` is ``flow.inverse(z)``, ``transform.inv(x)`` is ``flow(x)``.

    Both directions are differentiable. The log-determinant belongs to the map from latents to samples.

    Parameters
    ----------
    flow : Flow
        The flow, in whichever mode it is.
    context : Tensor (batch, features), optional
        Conditioning of all samples.
    """

    bijective = True

    def __init__(self, flow: "Flow", context: Tensor | None = None) -> None:
        # The cache of one pair keeps a sample and its latent together: log_prob of a sample costs no inverse.
        super().__init__(cache_size=1)
        self.flow, self.context = flow, context

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """Latents."""
        return constraints.independent(constraints.real, len(self.flow.latent_shape))

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """Samples."""
        return constraints.independent(constraints.real, len(self.flow.event_shape))

    def with_cache(self, cache_size: int = 1) -> "FlowTransform":
        """Return the transform, whose cache holds one pair."""
        return self

    def _call(self, z: Tensor) -> Tensor:
        latent = self.flow.latent_shape
        batch = _batch_shape(z, latent, "latents")
        out: Tensor = self.flow.inverse(z.reshape(-1, *latent), self.context)
        return out.reshape(*batch, *self.flow.event_shape)

    def _inverse(self, x: Tensor) -> Tensor:
        return self._forward(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log|det dy/dx| (batch,) at the sample y = transform(x)."""
        return -self._forward(y)[1]

    def forward_shape(self, shape: Any) -> Any:
        """Return the shape of samples."""
        return (*shape[: len(shape) - len(self.flow.latent_shape)], *self.flow.event_shape)

    def inverse_shape(self, shape: Any) -> Any:
        """Return the shape of latents."""
        return (*shape[: len(shape) - len(self.flow.event_shape)], *self.flow.latent_shape)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        event = self.flow.event_shape
        batch = _batch_shape(x, event, "samples")
        z, logdet = self.flow(x.reshape(-1, *event), self.context)
        return z.reshape(*batch, *self.flow.latent_shape), logdet.reshape(batch)


def _batch_shape(x: Tensor, event: tuple[int, ...], what: str) -> tuple[int, ...]:
    """Return the axes before those of one sample; a reshape alone would cut other shapes into wrong samples."""
    batch = tuple(x.shape[: max(0, x.ndim - len(event))])
    if tuple(x.shape) != (*batch, *event):
        raise ShapeError(f"{what} must have shape (..., {', '.join(map(str, event))}), got {tuple(x.shape)}.")
    return batch
