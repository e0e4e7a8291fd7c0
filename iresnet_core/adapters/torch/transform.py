"""A flow as a transform of torch.distributions."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from iresnet_core.adapters.shared.condition import rows_of
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
    context : Tensor (B, features) or (features,), optional
        Conditions. B of them belong to the last axis of a batch of shape (..., B), or (..., 1).
    """

    bijective = True

    def __init__(self, flow: "Flow", context: Tensor | None = None) -> None:
        # The cache of one pair keeps a sample and its latent together: log_prob of a sample costs no inverse.
        super().__init__(cache_size=1)
        self.flow, self.context = flow, context
        self._rows = rows_of(context, flow.condition)
        rows, given = (0, 0) if context is None or self._rows is None else (self._rows.shape[0], context.ndim)
        # One condition without an axis that counts them belongs to batches of every shape.
        self.batch_shape: tuple[int, ...] = () if rows == 0 or (given < 2 and rows == 1) else (rows,)

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
        batch, flat, context = self._flat(z, latent, "latents")
        out: Tensor = self.flow.inverse(flat, context)
        return out.reshape(*batch, *self.flow.event_shape)

    def _inverse(self, x: Tensor) -> Tensor:
        return self._forward(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log|det dy/dx| (batch,) at the sample y = transform(x)."""
        return -self._forward(y)[1]

    def forward_shape(self, shape: Any) -> Any:
        """Return the shape of samples."""
        batch = torch.broadcast_shapes(shape[: len(shape) - len(self.flow.latent_shape)], self.batch_shape)
        return (*batch, *self.flow.event_shape)

    def inverse_shape(self, shape: Any) -> Any:
        """Return the shape of latents."""
        batch = torch.broadcast_shapes(shape[: len(shape) - len(self.flow.event_shape)], self.batch_shape)
        return (*batch, *self.flow.latent_shape)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, flat, context = self._flat(x, self.flow.event_shape, "samples")
        z, logdet = self.flow(flat, context)
        return z.reshape(*batch, *self.flow.latent_shape), logdet.reshape(batch)

    def _flat(self, x: Tensor, event: tuple[int, ...], what: str) -> tuple[tuple[int, ...], Tensor, Tensor | None]:
        """Return the shape of a batch, its samples in one axis, and the condition of each or that of all."""
        batch = _batch_shape(x, event, what)
        if not self.batch_shape:
            return batch, x.reshape(-1, *event), self._rows
        assert self._rows is not None
        try:
            batch = tuple(torch.broadcast_shapes(batch, self.batch_shape))
        except RuntimeError:
            raise ShapeError(
                f"{what} of batch shape {batch} do not fit {self.batch_shape[0]} conditions: the last axis of the "
                f"batch is {self.batch_shape[0]} or 1."
            ) from None
        if self.batch_shape == (1,):
            return batch, x.reshape(-1, *event), self._rows
        rows = self._rows.expand(*batch, self._rows.shape[1]).reshape(-1, self._rows.shape[1])
        return batch, x.expand(*batch, *event).reshape(-1, *event), rows


def _batch_shape(x: Tensor, event: tuple[int, ...], what: str) -> tuple[int, ...]:
    """Return the axes before those of one sample; a reshape alone would cut other shapes into wrong samples."""
    batch = tuple(x.shape[: max(0, x.ndim - len(event))])
    if tuple(x.shape) != (*batch, *event):
        raise ShapeError(f"{what} must have shape (..., {', '.join(map(str, event))}), got {tuple(x.shape)}.")
    return batch
