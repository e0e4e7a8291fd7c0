"""Residual branches of linear layers and activations, with their Jacobian products written out by hand."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.branches.activations import Activation
from iresnet_core.branches.branch_layer import BranchLayer
from iresnet_core.branches.chain_jacobian import ChainJacobian, Jacobian
from iresnet_core.branches.conditioning import Shift
from iresnet_core.branches.convolution_traces import exact_kernels, walk_plan
from iresnet_core.branches.curvature import Curvature, curvature_of
from iresnet_core.branches.dense_traces import SlopePlan, expanded_plan, slope_plan, trace_kernel, trace_plan
from iresnet_core.branches.linearization import Branch, ChainStructure, Linearization
from iresnet_core.branches.local_traces import local_plan
from iresnet_core.branches.own_layer import StatedLayer, is_own_layer
from iresnet_core.branches.rounding import RoundingScale, rounding_scales, value_with_rounding
from iresnet_core.common import Copyable, kept_property, require_finite, require_floating, require_same_device
from iresnet_core.errors import InvalidArgumentError, ShapeError, UnknownLipschitzError
from iresnet_core.operators import Dense, LinearLayer

__all__ = ["Activation", "Branch", "Chain", "Linearization"]

ChainLayer = LinearLayer | Activation | Shift | BranchLayer
# What a chain keeps for itself at most; there is something new for every constant that is declared for it.
MOST_KEPT = 8


class Chain(Copyable):
    """Composition of linear layers and activations: a residual branch that carries its own linearisation.

    Its products are the layers' own, J^T u = W1^T (D1 (W2^T ... u)): no automatic differentiation is needed, on any
    backend, and all products at one batch share the slopes.

    Parameters
    ----------
    layers : sequence of Dense, Convolution, Activation, Chain, another layer of this package, or `OwnLayer`
        In the order of application; nested chains are flattened, and a reference of theirs is left out.
    reference : array (n, *input_shape), optional
        Inputs like those that the chain will see, a few dozen. Answers for samples with seeds of their own
        (``rng="sample"``) take their mean Jacobian from them instead of standard normal points, which makes these
        answers less noisy, and no answer wrong. `Flow.with_reference` sets them in a whole flow.

    Attributes
    ----------
    layers : tuple
        The layers.
    lipschitz : float
        Certified constant: the product of the layers' bounds, rounding included.
    certificate : {"certified", "stated"}
        "stated" if that of one of the layers is what somebody gave: a layer of one's own, or a bound for `normalize`.
    operators : tuple
        The linear layers.
    arrays : tuple
        Their weights and biases.
    reference : array (n, *input_shape) or None
        The argument, in the dtype of the weights; it has no derivative.

    Raises
    ------
    ShapeError
        If neighbouring layers do not fit, or the reference does not fit them.
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

    def __init__(self, layers: Sequence[Any], *, reference: Array | None = None) -> None:
        flat: list[ChainLayer] = []
        for layer in layers:
            if isinstance(layer, Chain):
                flat.extend(layer.layers)
            else:
                flat.append(_as_layer(layer))
        self.layers: tuple[ChainLayer, ...] = tuple(flat)
        self.operators = tuple(layer for layer in flat if isinstance(layer, LinearLayer))
        if not self.operators:
            raise InvalidArgumentError("a Chain needs at least one linear layer.")
        backend = get_backend(*(operator.weight for operator in self.operators))
        shaped: list[Any] = _shaped(flat)
        for place in range(len(shaped) - 1):
            before, after = shaped[place : place + 2]
            if before.output_shape != after.input_shape:
                raise ShapeError(f"{before!r} is followed by {after!r}, which takes samples of another shape.")
        for before, after in zip(self.operators, self.operators[1:], strict=False):
            require_same_device(backend, before.weight, f"the weight of {before!r}", after.weight, f"that of {after!r}")
        self.arrays = tuple(array for layer in flat for array in _arrays_of(layer) if array is not None)
        self.input_shape: tuple[int, ...] = shaped[0].input_shape
        self.output_shape: tuple[int, ...] = shaped[-1].output_shape
        self.reference = None if reference is None else self._checked_reference(backend, reference)
        self._widths = _widths(self)
        square = self.input_shape == self.output_shape
        self._trace_plan = trace_plan(self.layers) if square else None
        self._walk_plan = walk_plan(self.layers) if square else None
        self._expanded_plan = expanded_plan(self.layers) if square else None  # of dense layers
        self._local_plan = local_plan(self.layers) if square else None
        self._slope_plan: SlopePlan | None = self._local_plan or (slope_plan(self.layers) if square else None)
        self._casts: dict[Any, Chain] = {}
        self._kept: dict[Any, Any] = {}
        self.keeper: Chain | None = None  # itself would be a cycle, which is not freed at once

    def __repr__(self) -> str:
        reference = "" if self.reference is None else f", reference={tuple(self.reference.shape)}"
        return f"Chain([{', '.join(map(repr, self.layers))}]{reference})"

    def _checked_reference(self, backend: Backend, reference: Array) -> Array:
        get_backend(reference, *self.arrays)
        require_floating(backend, reference, "the reference")
        shape = tuple(reference.shape)
        if len(shape) < 1 or shape[0] < 1 or shape[1:] != tuple(self.input_shape):
            raise ShapeError(f"the reference is inputs (n, *{self.input_shape}), n at least 1, got shape {shape}.")
        require_same_device(backend, reference, "the reference", self.operators[0].weight, "the weights")
        reference = backend.xp.astype(reference, self.operators[0].weight.dtype, copy=False)
        require_finite(backend, reference, "the reference, in the dtype of the weights,")
        return backend.frozen(backend.stop_gradient(reference))  # what is kept from it shall not change with an array

    def with_layers(self, layers: Sequence[Any]) -> "Chain":
        """Return the chain of other layers of the same shape, with the same reference."""
        chain = Chain(layers)
        if self.reference is not None:
            xp = chain.operators[0].backend.xp
            chain.reference = xp.astype(self.reference, chain.operators[0].weight.dtype, copy=False)
        return chain

    def with_reference(self, x: Array | None) -> "Chain":
        """Return the chain with these inputs (n, *input_shape) as its reference."""
        return Chain(self.layers, reference=x)

    @kept_property
    def lipschitz(self) -> float:
        """Certified Lipschitz constant: the product of the layers' constants."""
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

    @property
    def certificate(self) -> str:
        """Where the constant comes from."""
        linear = (layer._bound.certificate for layer in self.operators if layer._bound is not None)
        others = (layer.certificate for layer in self.layers if isinstance(layer, BranchLayer))
        return "stated" if "stated" in (*linear, *others) else "certified"

    @property
    def has_own_layers(self) -> bool:
        """Whether a layer of one's own is among the layers, whose arrays are not among `arrays`."""
        return any(isinstance(layer, StatedLayer) for layer in self.layers)

    @kept_property
    def curvature(self) -> Curvature | None:
        """How fast the Jacobian changes and how far rounding moves it; None where no norm has a value yet."""
        constants: Curvature | None = self._constant(lambda: curvature_of(self.layers, self._rounding_scales))
        return constants

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
        return self.with_layers([a if isinstance(a, Activation) else a.astype(dtype) for a in self.layers])

    @property
    def width(self) -> int | None:
        """The narrowest width, the order of the determinant by Sylvester; None where the chain changes the shape."""
        return min(self._widths) if self.input_shape == self.output_shape else None

    def with_arrays(self, arrays: Sequence[Array]) -> "Chain":
        """Return the same chain with other arrays of the same values in place of `arrays`, in their order."""
        left = iter(arrays)
        layers: list[ChainLayer] = []
        for layer in self.layers:
            if isinstance(layer, LinearLayer):
                layer = layer.with_arrays(next(left), None if layer.bias is None else next(left))
            elif isinstance(layer, Shift):
                layer = Shift(next(left))
            elif isinstance(layer, BranchLayer) and layer.arrays:
                layer = layer.with_arrays([next(left) for _ in layer.arrays])
            layers.append(layer)
        return self.with_layers(layers)

    def _constant(self, fn: Callable[[], Any]) -> Any:
        """``fn()``, a function of the weights alone, as concrete numbers wherever the weights are concrete."""
        backend = self.operators[0].backend
        return backend.concretely(fn) if backend.is_constant(*self.arrays) else fn()

    def keeps(self) -> bool:
        """Whether what `kept` makes serves more than one call: not in a program that takes the weights as arguments."""
        backend = self.operators[0].backend
        return backend.is_constant(*self.arrays) or backend.are_program_constants(*self.arrays)

    def kept(self, name: Any, make: Callable[[], Any]) -> Any:
        """``make()``, a function of the weights alone; the same again for a `name` wherever they are constants.

        It is kept by the `keeper`, by default the chain itself: another chain of the same weights where this one is
        made anew for every call. Threads that meet here first all make the same.
        """
        backend = self.operators[0].backend
        known = (self if self.keeper is None else self.keeper)._kept
        if not backend.is_constant(*self.arrays):
            return known[name] if name in known and backend.are_program_constants(*self.arrays) else make()
        # In doubt that is said of every program; one whose weights are constants keeps what is made of them.
        if not backend.is_tracing() and backend.may_differentiate(*self.arrays):
            return make()
        if name not in known:
            if len(known) >= MOST_KEPT:
                known.clear()
            known[name] = made = self._constant(make)
            return made
        return known[name]

    def linearize(self, x: Array) -> Linearization:
        """Return value and Jacobian products at x (batch, *input_shape); costs one evaluation.

        The result has `trace` where at most two groups of slopes separate the dense layers, or the convolutions of one
        extent, and `matrix` and `sylvester_matrix` where the chain keeps the shape.
        """
        return self.linearization_of(*self._layer_jacobians(x))

    def _layer_jacobians(self, x: Array) -> tuple[tuple[Jacobian, ...], Array]:
        jacobians: list[Jacobian] = []
        for layer in self.layers:
            if isinstance(layer, LinearLayer):
                x = layer(x)
                jacobians.append(layer)
            else:
                x, jacobian = layer.linearize(x)
                jacobians.append(jacobian)
        return tuple(jacobians), x

    def jacobian_matrices(self, x: Array, numbers: int) -> Iterator[Array]:
        """Yield J (some samples, d, d) for one part of the batch after the other, in about so many `numbers` each.

        The batch is one part where its size is unknown, as in compiled programs.
        """
        jacobians, value = self._layer_jacobians(x)
        if get_backend(x).is_tracing(x):
            yield ChainJacobian(self, jacobians, value).matrix()
            return
        part = max(1, numbers // (math.prod(self.input_shape) * max(self._widths)))
        for begin in range(0, x.shape[0], part):
            end = min(begin + part, x.shape[0])
            own = tuple(j if isinstance(j, LinearLayer) else j.of_samples(begin, end) for j in jacobians)
            yield ChainJacobian(self, own, value[begin:end, ...]).matrix()

    def linearization_of(self, jacobians: tuple[Jacobian, ...], value: Array) -> Linearization:
        """Return the linearisation from the value and the Jacobians of the layers."""
        product = ChainJacobian(self, jacobians, value)
        forward = all(layer.has_products for layer in self.layers if isinstance(layer, BranchLayer))
        square, planned = forward and self.input_shape == self.output_shape, self._slope_plan is not None
        varying = 0 if self._walk_plan is None else len(self._walk_plan.groups)
        expands = varying > 2 or self._expanded_plan is not None
        structure = ChainStructure(
            depth=len(self.operators),
            preconditioned_trace=product.preconditioned_trace if planned else None,
            mean_slopes=product.mean_slopes if planned else None,
            trace_kernels=product.trace_kernels if self._local_plan is not None else None,
            expanded_trace=product.expanded_trace if expands else None,
            channel_means=product.channel_means if expands else None,
            cheap_expansion=self._walk_plan is not None,
            keeps_mean=self._local_plan is not None
            and (bool(self._local_plan.segments[0]) or self.reference is not None),
            cheap_mean=all(isinstance(operator, Dense) for operator in self.operators),
        )
        return Linearization(
            value=value,
            vjp=product.vjp,
            jvp=product.jvp if forward else None,
            trace=product.trace if self._trace_plan is not None or varying in (1, 2) else None,
            mean_matrix=product.mean_matrix if planned else None,
            matrix=product.matrix if square else None,
            sylvester_matrix=product.sylvester_matrix if square else None,
            width=self.width if forward else None,
            leading_axes=True,
            structure=structure,
        )

    def with_rounding(self, x: Array) -> tuple[Array, Array]:
        """Return g(x) and a bound (batch,), without derivative, on the rounding error ||fl(g(x)) - g(x)||."""
        return value_with_rounding(self.layers, self._rounding_scales, x)

    @kept_property
    def _rounding_scales(self) -> tuple[RoundingScale | None, ...]:
        scales: tuple[RoundingScale | None, ...] = self._constant(lambda: rounding_scales(self.layers))
        return scales

    @property
    def _trace_kernel(self) -> Any:
        # With a derivative the kernel belongs to one backward pass, or to one traced program.
        if self.operators[0].backend.may_differentiate(*self.arrays):
            return self._new_trace_kernel()
        return self._constant_trace_kernel

    def _new_trace_kernel(self) -> Any:
        backend = self.operators[0].backend
        if self._trace_plan is not None:
            return trace_kernel(backend, self.layers, self._trace_plan)
        assert self._walk_plan is not None
        return exact_kernels(backend, self.layers, self._walk_plan)

    @kept_property
    def _constant_trace_kernel(self) -> Any:
        return self._constant(self._new_trace_kernel)


def _arrays_of(layer: ChainLayer) -> tuple[Array | None, ...]:
    if isinstance(layer, LinearLayer):
        return layer.weight, layer.bias
    if isinstance(layer, BranchLayer):
        return layer.arrays
    return (layer.value,) if isinstance(layer, Shift) else ()


def _as_layer(layer: Any) -> ChainLayer:
    """Return a layer of the package as it is, and one of one's own as a `StatedLayer`; refuse everything else."""
    for kind, computing in _COMPUTING.items():
        if isinstance(layer, kind):
            own = [name for name in computing if _is_overridden(type(layer), name)]
            if own:
                raise UnknownLipschitzError(
                    f"{type(layer).__name__} computes {', '.join(own)} in its own way, so that the constant of the "
                    f"class that it is made from does not hold for it. Write it as a class of its own, with apply(x), "
                    "linearize(x) and lipschitz."
                )
            known: ChainLayer = layer
            return known
    if is_own_layer(layer):
        return StatedLayer(layer)
    raise InvalidArgumentError(
        f"a Chain is made of Dense, Convolution, Activation and Chain, of other layers of this package, and of objects "
        f"with apply(x), linearize(x) and lipschitz, got {type(layer).__name__}."
    )


_LINEAR_METHODS = ("apply", "adjoint", "biased", "_affine", "matvec", "rmatvec", "__call__", "lipschitz", "bound")
_COMPUTING: dict[Any, tuple[str, ...]] = {
    LinearLayer: _LINEAR_METHODS,
    Activation: ("__call__", "slope", "linearize", "function_for"),
    Shift: ("__call__", "linearize"),
    BranchLayer: ("__call__", "linearize", "apply", "adjoint", "passed_on", "lipschitz", "slope_lipschitz"),
}


def _is_overridden(kind: type, name: str) -> bool:
    """Whether the first class that defines a method is none of this package."""
    owner = next((base for base in kind.__mro__ if name in vars(base)), None)
    return owner is not None and not owner.__module__.startswith("iresnet_core.")


def _shaped(layers: Sequence[Any]) -> list[Any]:
    """Return the layers that say which shape they take; the others keep every shape."""
    return [layer for layer in layers if getattr(layer, "input_shape", None) is not None]


def _widths(chain: Chain) -> tuple[int, ...]:
    """Size of one sample before each layer; activations do not change it."""
    widths, width = [], math.prod(chain.input_shape)
    for layer in chain.layers:
        widths.append(width)
        if (after := getattr(layer, "output_shape", None)) is not None:
            width = math.prod(after)
    return tuple(widths)
