"""Residual branches of linear layers and activations, with their Jacobian products written out by hand."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.branches.activation_functions import Diagonal, PairSwap
from iresnet_core.branches.activations import Activation
from iresnet_core.branches.conditioning import Shift
from iresnet_core.branches.convolution_traces import convolution_kernels, convolution_plan, convolution_trace
from iresnet_core.branches.dense_traces import (
    SlopePlan,
    SlopeTrace,
    cyclic_groups,
    cyclic_kernel,
    mean_matrix,
    preconditioned_trace,
    slope_plan,
)
from iresnet_core.branches.joint_derivative import JointPass, can_join
from iresnet_core.branches.linearization import Branch, Linearization
from iresnet_core.common import (
    Copyable,
    flatten,
    gamma,
    kept_property,
    require_same_device,
    safe_sample_norms,
    unit_roundoff,
)
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.operators import Convolution, Dense, LinearLayer

__all__ = ["Activation", "Branch", "Chain", "Linearization"]

ChainLayer = LinearLayer | Activation | Shift
Jacobian = LinearLayer | Diagonal | PairSwap


class Chain(Copyable):
    """Composition of linear layers and activations: a residual branch that carries its own linearisation.

    Its products are the layers' own, J^T u = W1^T (D1 (W2^T ... u)): no automatic differentiation is needed, on any
    backend, and all products at one batch share the slopes.

    Parameters
    ----------
    layers : sequence of Dense, Convolution, Activation or Chain
        In the order of application; nested chains are flattened.

    Attributes
    ----------
    layers : tuple
        The layers.
    lipschitz : float
        Certified constant: the product of the layers' bounds, rounding included.
    operators : tuple
        The linear layers.
    arrays : tuple
        Their weights and biases.

    Raises
    ------
    ShapeError
        If neighbouring layers do not fit.
    InvalidArgumentError
        If there is no linear layer or a layer is of another kind.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import Dense
    >>> g = Chain([Dense(np.array([[0.0, 0.5], [0.5, 0.0]])), Activation("tanh")])
    >>> g(np.zeros((1, 2)))
    array([[0., 0.]])
    >>> round(g.lipschitz, 6)
    0.5
    >>> g.linearize(np.zeros((1, 2))).vjp(np.array([[1.0, 0.0]]))
    array([[0. , 0.5]])
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        flat: list[ChainLayer] = []
        for layer in layers:
            if isinstance(layer, Chain):
                flat.extend(layer.layers)
            elif isinstance(layer, LinearLayer | Activation | Shift):
                flat.append(layer)
            else:
                raise InvalidArgumentError(
                    f"a Chain is made of Dense, Convolution, Activation and Chain, got {type(layer).__name__}."
                )
        self.layers: tuple[ChainLayer, ...] = tuple(flat)
        self.operators = tuple(layer for layer in flat if isinstance(layer, LinearLayer))
        if not self.operators:
            raise InvalidArgumentError("a Chain needs at least one linear layer.")
        backend = get_backend(*(operator.weight for operator in self.operators))
        for before, after in zip(self.operators, self.operators[1:], strict=False):
            if before.output_shape != after.input_shape:
                raise ShapeError(f"{before!r} is followed by {after!r}, which takes samples of another shape.")
            require_same_device(backend, before.weight, f"the weight of {before!r}", after.weight, f"that of {after!r}")
        self.arrays = tuple(array for layer in flat for array in _arrays_of(layer) if array is not None)
        self.input_shape = self.operators[0].input_shape
        self.output_shape = self.operators[-1].output_shape
        self._widths = _widths(self)
        square = self.input_shape == self.output_shape
        self._slope_groups = cyclic_groups(self.layers) if square else None
        self._convolution_plan = convolution_plan(self.layers) if square else None
        self._slope_plan: SlopePlan | None = slope_plan(self.layers) if square else None
        self._casts: dict[Any, Chain] = {}

    def __repr__(self) -> str:
        return f"Chain([{', '.join(map(repr, self.layers))}])"

    @kept_property
    def lipschitz(self) -> float:
        """Certified Lipschitz constant: the product of the layers' constants (report, Eq. 10)."""
        mantissa, exponent = 1.0, 0
        for layer in self.layers:  # apart, since constants far from 1 would underflow on the way
            m, e = math.frexp(layer.lipschitz)
            if not math.isfinite(m):
                return math.inf
            mantissa, shift = math.frexp(mantissa * m)
            exponent += e + shift
        mantissa *= 1 + 4 * len(self.layers) * 2.0**-53
        if mantissa == 0 or exponent > 1023:
            return mantissa and math.inf
        return math.ldexp(mantissa, exponent) + (5e-324 if exponent < -1020 else 0.0)

    def __call__(self, x: Array) -> Array:
        """Return g(x) for x (batch, *input_shape)."""
        for layer in self.layers:
            x = layer(x)
        return x

    def astype(self, dtype: Any) -> "Chain":
        """Return the chain in another dtype."""
        if all(operator.weight.dtype == dtype for operator in self.operators):
            return self
        backend = self.operators[0].backend
        # A cast made where nothing is recorded has no derivative, and one made in a traced program belongs to that.
        key = dtype
        if backend.is_tracing() or backend.differentiates:
            return self._cast(dtype)
        if key not in self._casts:
            self._casts[key] = self._cast(dtype)
        return self._casts[key]

    def _cast(self, dtype: Any) -> "Chain":
        return Chain(
            [layer.astype(dtype) if isinstance(layer, LinearLayer | Shift) else layer for layer in self.layers]
        )

    def _constant(self, fn: Callable[[], Any]) -> Any:
        """``fn()``, a function of the weights alone, as concrete numbers wherever the weights are concrete."""
        backend = self.operators[0].backend
        return backend.concretely(fn) if backend.is_constant(*self.arrays) else fn()

    def linearize(self, x: Array) -> Linearization:
        """Return value and Jacobian products at x (batch, *input_shape); costs one evaluation.

        The result has `trace` where at most two groups of slopes separate the dense layers, or the convolutions, and
        `matrix` and `sylvester_matrix` where the chain keeps the shape.
        """
        jacobians: list[Jacobian] = []
        for layer in self.layers:
            if isinstance(layer, LinearLayer):
                x = layer(x)
                jacobians.append(layer)
            else:
                x, jacobian = layer.linearize(x)
                jacobians.append(jacobian)
        return self._linearization(tuple(jacobians), x)

    def linearize_jointly(self, x: Array) -> Linearization:
        """Return what `linearize` does, with the derivative written by hand where layers and backend allow it."""
        backend = get_backend(x, self.operators[0].weight)
        square = self.input_shape == self.output_shape
        if not (square and can_join(self.layers) and backend.takes_derivatives_by_hand(x, *self.arrays)):
            return self.linearize(x)
        joint = JointPass(backend, self.layers, x)
        found = self._linearization(tuple(joint.jacobians), joint.value)
        return replace(found, vjp=joint.transposed_products, joint=joint)

    def _linearization(self, jacobians: tuple[Jacobian, ...], x: Array) -> Linearization:
        product = _Product(self, jacobians, x)
        square = self.input_shape == self.output_shape
        return Linearization(
            value=x,
            vjp=product.vjp,
            jvp=product.jvp,
            trace=product.trace if self._slope_groups is not None or self._convolution_plan is not None else None,
            mean_matrix=product.mean_matrix if self._slope_plan is not None else None,
            preconditioned_trace=product.preconditioned_trace if self._slope_plan is not None else None,
            cheap_mean=all(isinstance(operator, Dense) for operator in self.operators),
            matrix=product.matrix if square else None,
            sylvester_matrix=product.sylvester_matrix if square else None,
            width=min(self._widths) if square else None,
            depth=len(self.operators),
            leading_axes=True,
        )

    def rounding_error(self, x: Array) -> Array:
        """Bound the rounding error ||fl(g(x)) - g(x)|| (batch,) of one evaluation at x; see `with_rounding`."""
        return self.with_rounding(x)[1]

    def with_rounding(self, x: Array) -> tuple[Array, Array]:
        """Return g(x) and a bound (batch,), without derivative, on the rounding error ||fl(g(x)) - g(x)||.

        Running error analysis with Higham's gamma (2002, Lemma 3.1), so that it holds for every order of summation;
        the activations are taken to be accurate to four units in the last place.
        """
        backend = get_backend(x)
        xp = backend.xp
        u = unit_roundoff(backend, x.dtype)
        error = xp.zeros((x.shape[0],), dtype=x.dtype, device=device_of(x))
        for layer, scale in zip(self.layers, self._rounding_scales, strict=True):
            if isinstance(layer, LinearLayer):
                absolute_norm, bias_norm = (
                    value if isinstance(value, float) else xp.astype(value, x.dtype) for value in scale[1:]
                )
                # Where a compiler is at work the norm may be unknown; that of the absolute values is a bound on it.
                norm = layer.lipschitz if layer.has_constant else absolute_norm
                error = error * norm + gamma(scale[0] + 2, u) * (
                    absolute_norm * (safe_sample_norms(xp, backend.stop_gradient(x)) + error) + bias_norm
                )
                x = layer(x)
            else:
                # sigmoid and lipswish cancel where they are small, so that the input counts as well as the output.
                size = layer.lipschitz * safe_sample_norms(xp, backend.stop_gradient(x))
                x = layer(x)
                error = error * layer.lipschitz + 8 * u * (size + safe_sample_norms(xp, backend.stop_gradient(x)))
        return x, error

    @kept_property
    def _rounding_scales(self) -> tuple[tuple[int, Any, Any], ...]:
        def scales() -> tuple[tuple[int, Any, Any], ...]:
            return tuple(
                _rounding_scale(layer) if isinstance(layer, LinearLayer) else (0, 0.0, 0.0) for layer in self.layers
            )

        known: tuple[tuple[int, Any, Any], ...] = self._constant(scales)
        return known

    @property
    def _trace_kernel(self) -> Any:
        # With a derivative the kernel belongs to one backward pass, or to one traced program.
        if self.operators[0].backend.may_differentiate(*self.arrays):
            return self._new_trace_kernel()
        return self._constant_trace_kernel

    def _new_trace_kernel(self) -> Any:
        backend = self.operators[0].backend
        if self._convolution_plan is not None:
            return convolution_kernels(backend, self.layers, self._convolution_plan)
        assert self._slope_groups is not None
        return cyclic_kernel(backend, self.layers, self._slope_groups)

    @kept_property
    def _constant_trace_kernel(self) -> Any:
        return self._constant(self._new_trace_kernel)


def _arrays_of(layer: ChainLayer) -> tuple[Array | None, ...]:
    if isinstance(layer, LinearLayer):
        return layer.weight, layer.bias
    return (layer.value,) if isinstance(layer, Shift) else ()


def _widths(chain: Chain) -> tuple[int, ...]:
    """Size of one sample before each layer; activations do not change it."""
    widths, width = [], math.prod(chain.input_shape)
    for layer in chain.layers:
        widths.append(width)
        if isinstance(layer, LinearLayer):
            width = math.prod(layer.output_shape)
    return tuple(widths)


def _rounding_scale(layer: LinearLayer) -> tuple[int, Any, Any]:
    """Terms in one inner product, a bound on the norm of the operator of absolute values, and the bias's norm."""
    xp = layer.backend.xp
    if isinstance(layer, Convolution):
        kernel = xp.reshape(layer.standard_kernel, (*layer.standard_kernel.shape[:2], math.prod(layer.window)))
        # Young's inequality: the sum over the taps of their Frobenius norms.
        absolute = sum(_frobenius(layer.backend, kernel[:, :, tap]) for tap in range(kernel.shape[2]))
        absolute = absolute * (1 + kernel.shape[2] * 2.0**-52)
        terms = kernel.shape[1] * kernel.shape[2]
        repeats = math.prod(layer.out_spatial)
    else:
        absolute = _frobenius(layer.backend, layer.weight)
        terms, repeats = layer.shape[1], 1
    bias = 0.0 if layer.bias is None else math.sqrt(repeats) * _frobenius(layer.backend, layer.bias)
    return terms, absolute, bias


def _frobenius(backend: Backend, a: Array) -> Any:
    """Root of the sum of squares, in float64 and in units of the largest entry, without derivative.

    A number; for weights that are computed in a program that is being compiled, an array ().
    """
    xp = backend.xp
    flat = xp.reshape(xp.astype(backend.stop_gradient(a), xp.float64), (1, math.prod(a.shape)))
    norm = safe_sample_norms(xp, flat)[0]
    return norm if backend.is_tracing(norm) else float(norm)


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
class _Product:
    """The Jacobian of a chain at one batch, as the list of its layers' Jacobians."""

    chain: Chain
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

    def trace(self) -> Array:
        """Return tr J (batch,)."""
        groups, kernel = self.chain._slope_groups, self.chain._trace_kernel
        if groups is None:
            return self._convolution_trace(kernel)
        xp = get_backend(self.value).xp
        if not groups:
            return kernel + xp.zeros((self.value.shape[0],), dtype=self.value.dtype, device=device_of(self.value))
        slopes = [self._slopes(group) for group in groups]
        if len(slopes) == 1:
            return xp.matmul(slopes[0], kernel)
        return xp.sum(xp.matmul(slopes[1], kernel) * slopes[0], axis=-1)

    def _convolution_trace(self, kernels: Any) -> Array:
        chain, plan = self.chain, self.chain._convolution_plan
        first = chain.operators[0]
        assert plan is not None
        assert isinstance(first, Convolution)
        inner, outer = (
            None if group is None else first.channels_first(self._slopes(group)) for group in (plan.inner, plan.outer)
        )
        assert inner is not None
        return convolution_trace(get_backend(self.value), chain.layers, plan, kernels, inner, outer)

    def _slopes(self, group: tuple[int, ...]) -> Array:
        total = None
        for place in group:
            jacobian = self.jacobians[place]
            assert isinstance(jacobian, Diagonal)
            total = jacobian.slope if total is None else total * jacobian.slope
        return total

    def mean_matrix(self) -> Array:
        """Return the Jacobian (d, d) at the mean slopes of the batch."""
        plan, slopes = self._planned_slopes()
        return mean_matrix(get_backend(self.value), self.chain.layers, plan, slopes)

    def preconditioned_trace(self, B: Array) -> SlopeTrace:
        """Return tr(B J) (batch,), but for a remainder of third order, see `slope_traces`."""
        plan, slopes = self._planned_slopes()
        return preconditioned_trace(get_backend(self.value), self.chain.layers, plan, slopes, B, self.value.shape[0])

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
            if isinstance(layer, LinearLayer):
                shape = layer.output_shape
        r, batch = math.prod(shape), self.value.shape[0]
        v = xp.eye(r, dtype=self.value.dtype, device=device_of(self.value))
        v = xp.reshape(v, (r, 1, *shape))
        v = _applied((*self.jacobians[cut:], *self.jacobians[:cut]), v)
        v = xp.broadcast_to(xp.reshape(v, (r, v.shape[1], r)), (r, batch, r))
        return xp.permute_dims(v, (1, 2, 0))
