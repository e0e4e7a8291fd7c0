"""The Jacobian of a chain at one batch: its products, traces and explicit matrices, from those of the layers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iresnet_core.backends import Array, device_of, get_backend
from iresnet_core.branches.branch_layer import LayerJacobian
from iresnet_core.branches.convolution_traces import PairKernels, exact_kernels, pair_trace
from iresnet_core.branches.dense_traces import (
    SlopePlan,
    SlopeTrace,
    mean_matrix,
    mean_slopes,
    preconditioned_trace,
    slope_remainder,
    trace_form,
)
from iresnet_core.branches.expanded_traces import (
    channel_means,
    expanded_remainder,
    expanded_terms,
    expanded_trace,
)
from iresnet_core.branches.local_traces import (
    LocalKernels,
    local_kernels,
    local_mean_matrix,
    local_remainder,
    local_trace,
    position_means,
)
from iresnet_core.branches.slopes import Diagonal, PairSwap
from iresnet_core.common import flatten
from iresnet_core.operators import Convolution, Dense, LinearLayer

if TYPE_CHECKING:
    from iresnet_core.branches.chain import Chain

__all__ = ["ChainJacobian", "Jacobian"]

Jacobian = LinearLayer | Diagonal | PairSwap | LayerJacobian


def _applied(jacobians: Sequence[Jacobian], v: Array) -> Array:
    """Apply one Jacobian after the other to v (..., batch, *event); slopes together with the dense layer behind."""
    place = 0
    while place < len(jacobians):
        jacobian, behind = jacobians[place], jacobians[place + 1] if place + 1 < len(jacobians) else None
        if isinstance(jacobian, Diagonal) and isinstance(behind, Dense):
            v = behind.backend.scaled_product(v, jacobian.slope, behind.weight)
            place += 1
        else:
            v = jacobian.apply(v)
        place += 1
    return v


@dataclass(frozen=True)
class ChainJacobian:
    """The Jacobian of a chain at one batch, as the list of its layers' Jacobians."""

    chain: "Chain"
    jacobians: tuple[Jacobian, ...]
    value: Array

    def jvp(self, v: Array) -> Array:
        """Return J v for v (..., batch, *event)."""
        return _applied(self.jacobians, v)

    def vjp(self, u: Array) -> Array:
        """Return J^T u for u (..., batch, *event)."""
        place = len(self.jacobians) - 1
        while place >= 0:
            jacobian, before = self.jacobians[place], self.jacobians[place - 1] if place else None
            if isinstance(jacobian, Dense) and isinstance(before, Diagonal):
                u = jacobian.backend.product_scaled(u, jacobian.weight, before.slope)
                place -= 1
            else:
                u = jacobian.adjoint(u)
            place -= 1
        return u

    def trace(self, kernel: Any = None) -> Array:
        """Return tr J (batch,), by the chain's own kernel or the one given."""
        plan = self.chain._trace_plan
        kernel = self.chain._trace_kernel if kernel is None else kernel
        if plan is None:
            return self._convolution_trace(kernel)
        slopes = [self._slopes(group) for group in plan.groups]
        return trace_form(get_backend(self.value), kernel, slopes, self.value)

    def _convolution_trace(self, kernels: PairKernels) -> Array:
        slopes = self._cycle_slopes()
        inner, outer = (None if group is None else slopes[group] for group in (kernels.base, kernels.other))
        assert inner is not None
        return pair_trace(get_backend(self.value), kernels, inner, outer)

    def convolution_kernels(self) -> PairKernels:
        """Return what the trace of convolutions depends on beside the slopes, a function of the weights."""
        plan = self.chain._walk_plan
        assert plan is not None
        return exact_kernels(get_backend(self.value), self.jacobians, plan)

    def channel_means(self) -> list[Array]:
        """Return the means over batch and positions of each group of slopes, as constants (channels,)."""
        return channel_means(get_backend(self.value), self._cycle_slopes())

    def expanded_trace(self, means: Sequence[Array] | None = None) -> SlopeTrace:
        """Return tr J (batch,) but for a remainder of third order, see `expanded_traces`."""
        backend, slopes, plan = get_backend(self.value), self._cycle_slopes(), self.chain._walk_plan
        means = self.channel_means() if means is None else means
        if plan is not None:
            terms = expanded_terms(backend, self.jacobians, plan, means)
            return expanded_trace(backend, self.jacobians, plan, terms, slopes, means)
        plan = self.chain._expanded_plan
        assert plan is not None
        return preconditioned_trace(backend, self.jacobians, plan, slopes, None, self.value, means)

    def expanded_remainder(self, means: Sequence[Array]) -> Callable[[Array], Array]:
        """Return u -> T^T u for the remainder T of that trace alone."""
        backend, slopes, plan = get_backend(self.value), self._cycle_slopes(), self.chain._walk_plan
        if plan is not None:
            return expanded_remainder(backend, self.jacobians, plan, slopes, means)
        plan = self.chain._expanded_plan
        assert plan is not None
        return slope_remainder(backend, self.jacobians, plan, slopes, means)

    def _cycle_slopes(self) -> list[Array]:
        """The groups of slopes of a cycle of layers, (batch, channels, *spatial)."""
        plan = self.chain._walk_plan or self.chain._expanded_plan
        assert plan is not None
        return self._images(plan)

    def _slopes(self, group: tuple[int, ...]) -> Array:
        total = None
        for place in group:
            jacobian = self.jacobians[place]
            assert isinstance(jacobian, Diagonal)
            total = jacobian.slope if total is None else total * jacobian.slope
        return total

    def mean_matrix(self) -> Array:
        """Return the Jacobian (d, d) at the mean slopes of the batch."""
        backend, layers, plan = get_backend(self.value), self.chain.layers, self.chain._local_plan
        if plan is not None:
            return local_mean_matrix(backend, layers, plan, position_means(backend, self._images(plan), constant=False))
        plan, slopes = self._planned_slopes()
        return mean_matrix(backend, layers, plan, slopes)

    def mean_slopes(self) -> list[Array]:
        """Return the means over the batch of every group of slopes, as constants."""
        backend, plan = get_backend(self.value), self.chain._local_plan
        if plan is not None:
            return position_means(backend, self._images(plan))
        return mean_slopes(backend, self._planned_slopes()[1])

    def trace_kernels(self, B: Array, about: Sequence[Array]) -> LocalKernels:
        """Return what `preconditioned_trace` takes from B, the slopes `about` and the weights, without derivative."""
        backend, plan = get_backend(self.value), self.chain._local_plan
        assert plan is not None
        with backend.no_grad():
            kernels = local_kernels(backend, self.chain.layers, plan, about, backend.stop_gradient(B))
        stop = backend.stop_gradient
        return LocalKernels(
            stop(kernels.value),
            [stop(k) for k in kernels.linear],
            [(*pair[:3], stop(pair[3])) for pair in kernels.pairs],
        )

    def preconditioned_trace(
        self, B: Array, about: Sequence[Array] | None = None, kernels: LocalKernels | None = None
    ) -> SlopeTrace:
        """Return tr(B J) (batch,), but for a remainder of third order, see `dense_traces` and `local_traces`."""
        backend, layers, plan = get_backend(self.value), self.chain.layers, self.chain._local_plan
        if plan is None:
            plan, slopes = self._planned_slopes()
            return preconditioned_trace(backend, layers, plan, slopes, B, self.value, about)
        about = self.mean_slopes() if about is None else about
        kernels = self.trace_kernels(B, about) if kernels is None else kernels
        slopes = self._images(plan)
        value = local_trace(backend, layers, kernels, slopes, about)
        if len(slopes) <= 2:
            return SlopeTrace(value, None)
        return SlopeTrace(value, lambda u: local_remainder(backend, layers, plan, slopes, about, u))

    def _images(self, plan: SlopePlan) -> list[Array]:
        """The groups of slopes, (batch, channels, *spatial); of dense layers they are images without axes."""
        first, slopes = self.chain.operators[0], [self._slopes(group) for group in plan.groups]
        return [first.channels_first(s) for s in slopes] if isinstance(first, Convolution) else slopes

    def _planned_slopes(self) -> tuple[SlopePlan, list[Array]]:
        plan = self.chain._slope_plan
        assert plan is not None
        xp = get_backend(self.value).xp
        return plan, [flatten(xp, self._slopes(group)) for group in plan.groups]

    def matrix(self) -> Array:
        """Return J (batch, d, d)."""
        return self._cyclic_matrix(0)

    def sylvester_matrix(self) -> Array:
        """Return M (batch, r, r), the chain cut open where it is narrowest (Sylvester's determinant identity)."""
        widths = self.chain._widths
        return self._cyclic_matrix(widths.index(min(widths)))

    def _cyclic_matrix(self, cut: int) -> Array:
        """Send the unit vectors at the input of layer `cut` once around the chain."""
        chain, xp = self.chain, get_backend(self.value).xp
        shape = chain.input_shape
        for layer in chain.layers[:cut]:
            shape = shape if (after := getattr(layer, "output_shape", None)) is None else after
        r, batch = math.prod(shape), self.value.shape[0]
        v = xp.eye(r, dtype=self.value.dtype, device=device_of(self.value))
        v = xp.reshape(v, (r, 1, *shape))
        v = _applied((*self.jacobians[cut:], *self.jacobians[:cut]), v)
        v = xp.broadcast_to(xp.reshape(v, (r, v.shape[1], r)), (r, batch, r))
        return xp.permute_dims(v, (1, 2, 0))
