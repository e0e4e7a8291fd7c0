"""Value and log-determinant of a chain with one pass back through both, written by hand.

For a chain of layers a = W h + b and h = phi(a), a tangent t goes through as W t and phi'(a) t. A log-determinant whose
derivative is sum_p w_p^T dJ v_p, for tangents v and known vectors w, is differentiated together with the value g(x):
with h_ and t_ the cotangents of value and tangent, at the end those of g(x) and w,

    linear:      W_ = h_ h^T + t_ t^T,  b_ = h_,  h_ <- W^T h_,  t_ <- W^T t_,
    activation:  s = t_ t,  h_ <- phi'(a) h_ + phi''(a) s,  t_ <- phi'(a) t_,

summed over samples and tangents; W is a matrix or a convolution. The tangents may be those of the first samples alone,
a part of the batch, while the value is that of all. A term tr(C dJ0) with the Jacobian J0 at the mean slopes of that
part is a second stream of tangents, the d unit vectors, for dense chains; and the slopes themselves can be had with
their derivative, for traces. Only the arguments and tangents of the activations are kept on the way, and the
exponentials of dense chains; the backward pass makes the rest again.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.branches.activation_functions import Entrywise
from iresnet_core.branches.activations import Activation
from iresnet_core.branches.chain import Chain
from iresnet_core.branches.chain_jacobian import ChainJacobian
from iresnet_core.branches.conditioning import of_samples
from iresnet_core.branches.dense_traces import SlopeTrace
from iresnet_core.branches.linearization import Linearization, checked, linearize
from iresnet_core.branches.slopes import Diagonal
from iresnet_core.branches.trace_derivative import recorded_trace
from iresnet_core.operators import Dense, LinearLayer

__all__ = ["Control", "JointPass", "can_join", "linearize_jointly"]

# Up to this number of tangents the sum over them is made term by term, without an array of all products.
FEW = 8

# The log-determinant as a function of J v, J0 and the arrays of the pass: the backend takes second derivatives of it.
PlainLogDet = Callable[[Array, Array | None, Sequence[Array]], Array]


class Control(NamedTuple):
    """The mean-Jacobian's part: the derivative has the terms ``tr(inverse dJ0) - sum_p first_p^T dJ0 v_p``.

    Attributes
    ----------
    inverse : array (d, d)
        Constant.
    first : array (tangents, batch, d)
        Constant.
    """

    inverse: Array
    first: Array


class _Kept(NamedTuple):
    """What is kept for the way back; one entry for every activation in each of the lists."""

    v: Array
    w: Array
    logdet: Array
    arguments: Sequence[Array]
    transcendentals: Sequence[Any]  # None for an activation that has none
    tangents: Sequence[Array]
    control: Sequence[Array]  # inverse and first, or nothing
    mean_slopes: Sequence[Array]
    mean_tangents: Sequence[Any]

    def flat(self) -> tuple[Array, ...]:
        """All arrays; `of_flat` is the way back."""
        return (
            *(self.v, self.w, self.logdet, *self.arguments, *self.transcendentals, *self.tangents, *self.control),
            *(*self.mean_slopes, *self.mean_tangents),
        )

    @staticmethod
    def of_flat(arrays: Sequence[Array], count: int) -> "_Kept":
        v, w, logdet, *rest = arrays
        arguments, transcendentals, tangents = (rest[k * count : (k + 1) * count] for k in range(3))
        control, means = rest[3 * count : 3 * count + 2], rest[3 * count + 2 :]
        return _Kept(v, w, logdet, arguments, transcendentals, tangents, control, means[:count], means[count:])


def linearize_jointly(backend: Backend, g: Any, x: Array, part: int | None = None) -> Linearization:
    """Linearise a branch as `linearize` does, but leave the recording of its derivative to the joint pass.

    That is possible for some chains, see `can_join`, where the backend takes derivatives written by hand. The result
    has `joint` then, and no derivative of its own; elsewhere it is the usual one. With `part` it is the linearisation
    at the first samples, while the value of the joint pass is that of all; without a joint pass there is no value of
    the others.
    """
    possible = isinstance(g, Chain) and g.input_shape == g.output_shape and can_join(g.layers)
    own = x if part is None else x[:part, ...]
    if (
        not possible
        or get_backend(x, g.arrays[0]) is not backend
        or not backend.takes_derivatives_by_hand(x, *g.arrays)
    ):
        return linearize(backend, g if part is None else of_samples(g, 0, part), own)
    joint = JointPass(backend, g, x, part)
    found = g.linearization_of(tuple(joint.jacobians), joint.value if part is None else joint.value[:part, ...])
    expanded = None if found.structure.expanded_trace is None else joint.known_expanded_trace
    structure = replace(found.structure, joint=joint, expanded_trace=expanded)
    trace = None if found.trace is None else joint.known_trace
    return checked(backend, g, own, replace(found, vjp=joint.transposed_products, trace=trace, structure=structure))


def can_join(layers: Sequence[Any]) -> bool:
    """Whether linear layers and activations that act entry by entry follow on each other in turn.

    Dense chains begin with a dense layer.
    """
    linear = [isinstance(layer, LinearLayer) for layer in layers]
    first = linear[0] or not any(isinstance(layer, Dense) for layer in layers)
    alternating = all(is_linear == (linear[0] == (place % 2 == 0)) for place, is_linear in enumerate(linear))
    functions = [layer for layer, is_linear in zip(layers, linear, strict=True) if not is_linear]
    known = all(type(layer) is Activation and layer.entrywise and not layer.has_unit_slope for layer in functions)
    return first and alternating and known


class JointPass:
    """A chain at a batch, evaluated without a derivative, which is recorded at the end.

    Parameters
    ----------
    backend : Backend
        A backend that takes derivatives written by hand, see `Backend.with_derivative_by_hand`.
    g : Chain
        Its layers as `can_join` wants them.
    x : array (batch, ...)
        Samples.
    part : int, optional
        How many of them, the first ones, have slopes and tangents; default all.

    Attributes
    ----------
    value : array (batch, ...)
        g(x), without derivative.
    jacobians : list
        Those of the layers: the linear ones themselves, and a `Diagonal` for every activation.
    """

    def __init__(self, backend: Backend, g: Chain, x: Array, part: int | None = None) -> None:
        self.backend, self.g, self.layers, self.x = backend, g, g.layers, x
        self.part = x.shape[0] if part is None else part
        self.is_dense = all(isinstance(operator, Dense) for operator in g.operators)
        self.jacobians: list[Any] = []
        self._arguments: list[Array] = []
        self._transcendentals: list[Any] = []
        self._v: Any = None
        self._tangents: list[Array] = []
        self._means: tuple[list[Array], list[Any]] = ([], [])
        self._trace: Any = None
        self._trace_kernel: Any = None
        self._trace_means: Sequence[Array] | None = None
        with backend.no_grad():
            h = x
            for layer in self.layers:
                if isinstance(layer, LinearLayer):
                    h = layer(h)
                    self.jacobians.append(layer)
                    continue
                value, slope, t = self._activated(_function(layer, h), h)
                self._arguments.append(h)
                self._transcendentals.append(t)
                self.jacobians.append(Diagonal(slope))
                h = value
        self.value = h

    def _activated(self, function: Entrywise, h: Array) -> tuple[Array, Array, Any]:
        """Return the values of all samples, the slopes of the part, and what is kept of the transcendental part.

        Those of convolutions are as large as the arguments, and quickly made again.
        """
        keeps = self.is_dense and (function.keeps_transcendental or self.part == h.shape[0])
        t = function.transcendental(h) if keeps else None
        value, known = _values_and_slopes(function, h, t, self.part)
        return value, known[1], t

    def products(self, v: Array) -> Array:
        """Return J v (tangents, part, *event) for the tangents v, (tangents, part, *event) or (tangents, 1, *event)."""
        with self.backend.no_grad():
            t, tangents = v, []
            for layer, jacobian in zip(self.layers, self.jacobians, strict=True):
                if isinstance(layer, LinearLayer):
                    t = layer.apply(t)
                else:
                    tangents.append(t)
                    t = jacobian.slope * t
        self._v, self._tangents = v, tangents
        return _for_all_samples(self.backend, t, self.part)

    def transposed_products(self, u: Array) -> Array:
        """Return J^T u for u (..., part, *event), without derivative."""
        with self.backend.no_grad():
            return self._jacobian(self.jacobians).vjp(u)

    def mean_matrix(self) -> Array:
        """Return the Jacobian J0 (m, d) at the mean slopes of the part, of a dense chain."""
        xp = self.backend.xp
        with self.backend.no_grad():
            means, tangents, t = [], [], None
            for layer, jacobian in zip(self.layers, self.jacobians, strict=True):
                if isinstance(layer, LinearLayer):
                    t = xp.matrix_transpose(layer.weight) if t is None else layer.apply(t)
                else:
                    means.append(xp.mean(jacobian.slope, axis=0))
                    tangents.append(t)
                    t = means[-1] * t
            self._means = (means, tangents)
            return xp.matrix_transpose(t)

    def known_trace(self) -> Array:
        """Return tr J (part,), without derivative."""
        again = self.g._trace_plan is None and self.backend.may_differentiate(*self.g.arrays)  # see `recorded_trace`
        kernel = self._trace_kernel = None if again else self.g._trace_kernel
        jacobian = self._jacobian(self.jacobians)
        with self.backend.no_grad():
            self._trace = jacobian.trace(jacobian.convolution_kernels() if again else kernel)
        return self._trace

    def known_expanded_trace(self, means: Sequence[Array] | None = None) -> SlopeTrace:
        """Return tr J but for a remainder, without derivative, see `ChainStructure`."""
        jacobian = self._jacobian(self.jacobians)
        self._trace_means = jacobian.channel_means() if means is None else means
        with self.backend.no_grad():
            found = jacobian.expanded_trace(self._trace_means)
        self._trace = found.value
        return found

    def trace(self, slopes: Sequence[Array]) -> SlopeTrace:
        """Return the trace known before with its derivative by the slopes that `recorded` gave and by the weights."""
        own = iter(slopes)
        jacobian = self._jacobian([j if isinstance(j, LinearLayer) else Diagonal(next(own)) for j in self.jacobians])
        if self._trace_kernel is not None:
            return SlopeTrace(jacobian.trace(self._trace_kernel), None)
        return recorded_trace(self.backend, jacobian, self._trace, self._trace_means)

    def _jacobian(self, jacobians: Sequence[Any]) -> ChainJacobian:
        return ChainJacobian(self.g, tuple(jacobians), self.value[: self.part, ...])

    def recorded(
        self,
        logdet: Array,
        w: Array,
        plain: PlainLogDet,
        control: Control | None = None,
        *,
        with_slopes: bool = False,
    ) -> tuple[Array, ...]:
        """Return g(x) and `logdet` with their derivatives by x and by the parameters of the layers.

        Parameters
        ----------
        logdet : array (part,)
            Without derivative.
        w : array (tangents, part, *event)
            The derivative of `logdet` is ``sum_p w_p^T dJ v_p``, v the tangents of the last call of `products`.
        plain : callable
            J v, J0 (None without `control`) and the arrays (v, w, logdet, inverse, first) -> the log-determinant, for
            second derivatives.
        control : Control, optional
            Further terms of that derivative, with the J0 of `mean_matrix`, which was called before.
        with_slopes : bool
            Whether the slopes follow, one array for each activation, with their derivatives too.
        """
        backend, layers, count = self.backend, self.layers, len(self._arguments)
        means = ([], []) if control is None else self._means
        known = backend.xp.asarray(logdet, copy=True)  # the caller may add to the other one in place
        kept = _Kept(self._v, w, known, self._arguments, self._transcendentals, self._tangents, control or (), *means)
        value, part = self.value, self.part
        slopes = [j.slope for j in self.jacobians if isinstance(j, Diagonal)] if with_slopes else []

        def forward(*_: Any) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
            return (value, logdet, *slopes), kept.flat()

        def backward(arrays: Any, saved: Any, cotangents: Any, needed: Any) -> list[Any]:
            return _Backward(backend, layers, arrays, _Kept.of_flat(saved, count)).run(cotangents, needed)

        def plainly(arrays: Any, saved: Any) -> tuple[Array, ...]:
            outputs = _plainly(backend, layers, arrays, _Kept.of_flat(saved, count), plain, part)
            return outputs if with_slopes else outputs[:2]

        parameters = [a for layer in layers if isinstance(layer, LinearLayer) for a in (layer.weight, layer.bias)]
        return backend.with_derivative_by_hand(forward, backward, plainly, (self.x, *parameters))


def _function(layer: Any, x: Array) -> Entrywise:
    """The function of one variable that an activation applies to the entries of x."""
    function = layer.function_for(x)
    assert isinstance(function, Entrywise)
    return function


def _values_and_slopes(function: Entrywise, x: Array, t: Array | None, part: int) -> tuple[Array, tuple[Array, ...]]:
    """Return the values of all samples, and what `value_and_slope` gives for the part; from t where that is kept."""
    if part == x.shape[0]:
        return (known := function.value_and_slope(x, t))[0], known
    value = function.quick_value(x) if t is None else function.value(x, t)
    t = function.transcendental_of(value) if t is None else t
    return value, function.value_and_slope(x[:part, ...], None if t is None else t[:part, ...])


def _for_all_samples(backend: Backend, t: Array, part: int) -> Array:
    return t if t.shape[1] == part else backend.xp.broadcast_to(t, (t.shape[0], part, *t.shape[2:]))


def _plainly(
    backend: Backend, layers: Sequence[Any], arrays: Sequence[Any], kept: _Kept, plain: PlainLogDet, part: int
) -> tuple[Array, ...]:
    """The same as a program that the backend can differentiate."""
    xp = backend.xp
    (x, *parameters), mean_matrix = arrays, None
    h, t, m, slopes = x, kept.v, None, []
    given = iter(parameters)
    for layer in layers:
        if isinstance(layer, LinearLayer):
            here = layer.with_parameters(next(given), next(given))
            h, t = here(h), here.apply(t)
            if kept.control:
                m = xp.matrix_transpose(here.weight) if m is None else here.apply(m)
        else:
            h, slope, *_ = _function(layer, h).value_and_slope(h)
            slopes.append(slope[:part, ...])
            t = slopes[-1] * t
            m = xp.mean(slopes[-1], axis=0) * m if kept.control else None
    if kept.control:
        mean_matrix = xp.matrix_transpose(m)
    images = _for_all_samples(backend, t, part)
    return h, plain(images, mean_matrix, (kept.v, kept.w, kept.logdet, *kept.control)), *slopes


class _Backward:
    """One pass back through the layers."""

    def __init__(self, backend: Backend, layers: Sequence[Any], arrays: Sequence[Any], kept: _Kept) -> None:
        self.backend, self.layers, self.kept, self.part = backend, layers, kept, kept.w.shape[1]
        self.x, *parameters = arrays
        given = iter(parameters)
        # Layer by layer: the place of its weight among the arrays, and the layer with it; the number of an activation.
        self.linear: dict[int, tuple[int, Any]] = {}
        self.number: dict[int, int] = {}
        for place, layer in enumerate(layers):
            if isinstance(layer, LinearLayer):
                at = 1 + 2 * len(self.linear)
                self.linear[place] = at, layer.with_parameters(next(given), next(given))
            else:
                self.number[place] = len(self.number)

    def run(self, cotangents: Sequence[Array], needed: Sequence[bool]) -> list[Any]:
        """Return the cotangents of x and of the parameters; None for those that are not `needed`."""
        kept = self.kept
        of_value, of_logdet, *of_slopes = cotangents
        grads: list[Any] = [None] * len(needed)
        of_images = of_logdet[(..., *(None,) * (kept.w.ndim - 2))] * kept.w
        of_mean = self._of_mean(of_logdet) if kept.control else None
        before = self._before(len(self.layers))
        for place in reversed(range(len(self.layers))):
            if place in self.linear:
                at, layer = self.linear[place]
                before = self._before(place)
                if needed[at]:
                    grads[at] = self._of_weight(place, layer, of_value, of_images, of_mean, before)
                if needed[at + 1]:
                    grads[at + 1] = layer.bias_gradient(of_value)
                if not any(needed[:at]):
                    return grads
                of_value = layer.adjoint(of_value)
                if place:  # the tangents that enter the first layer are constants
                    of_images = layer.adjoint(of_images)
                    of_mean = None if of_mean is None else layer.adjoint(of_mean)
            else:
                of_slope = of_slopes[self.number[place]] if of_slopes else None
                of_value, of_images, of_mean = self._activation(place, before, of_value, of_images, of_mean, of_slope)
        grads[0] = of_value
        return grads

    def _of_mean(self, of_logdet: Array) -> Array:
        """Cotangent of the images of the unit vectors under J0, (d, m)."""
        xp, d = self.backend.xp, self.kept.v.shape[2]
        inverse, first = self.kept.control
        weighted = xp.reshape(of_logdet[:, None] * first, (-1, first.shape[2]))
        return xp.sum(of_logdet) * inverse - xp.matmul(xp.matrix_transpose(xp.reshape(self.kept.v, (-1, d))), weighted)

    def _before(self, place: int) -> tuple[Array, Array, tuple[Array, ...]]:
        """Value and tangents that come to layer `place`, and what the activation before it gave."""
        if place == 0 or place - 1 in self.linear:  # the latter at the end only, where nobody asks
            return self.x, self.kept.v, ()
        number = self.number[place - 1]
        x, t = self.kept.arguments[number], self.kept.transcendentals[number]
        function = _function(self.layers[place - 1], x)
        value, known = _values_and_slopes(function, x, t, self.part)
        return value, known[1] * self.kept.tangents[number], known

    def _of_weight(
        self, place: int, layer: Any, of_value: Array, of_images: Array, of_mean: Array | None, before: Any
    ) -> Array:
        xp = self.backend.xp
        value, tangents, *_ = before
        if of_images.shape[1] != tangents.shape[1]:  # tangents that are the same for all samples
            of_images = xp.sum(of_images, axis=1, keepdims=True)
        grad = layer.weight_gradient(value, of_value)
        grad = layer.weight_gradient(tangents, of_images, grad)
        if of_mean is None:
            return grad
        if not place:
            return grad + xp.matrix_transpose(of_mean)  # the unit vectors themselves come in
        number = self.number[place - 1]
        mean = self.kept.mean_slopes[number] * self.kept.mean_tangents[number]
        return layer.weight_gradient(mean, of_mean, grad)

    def _activation(
        self,
        place: int,
        known: Any,
        of_value: Array,
        of_images: Array,
        of_mean: Array | None,
        of_slope: Array | None,
    ) -> tuple[Array, Array, Array | None]:
        backend, xp, kept, number = self.backend, self.backend.xp, self.kept, self.number[place]
        x, part = kept.arguments[number], self.part
        value, slope, *more = known[-1]
        tangents = kept.tangents[number]
        if of_mean is not None:
            forms = xp.sum(of_mean * kept.mean_tangents[number], axis=0) / part
            of_slope = forms if of_slope is None else of_slope + forms
            of_mean = kept.mean_slopes[number] * of_mean
        if tangents.shape[0] > FEW:
            forms = xp.sum(of_images * tangents, axis=0)
            of_slope = forms if of_slope is None else of_slope + forms
        else:  # without the product as a whole
            for p in range(tangents.shape[0]):
                image, tangent = of_images[p, ...], tangents[p, ...]
                of_slope = image * tangent if of_slope is None else backend.multiply_add(of_slope, image, tangent)
        function = _function(self.layers[place], x)
        if part == x.shape[0]:
            of_value = of_value * slope
        else:
            of_value = function.pulled_back(x, of_value, known[0], kept.transcendentals[number])
        second = function.second_derivative(x[:part, ...], value, slope, *more)
        of_value = backend.add_to_first(of_value, of_slope, second)
        of_images = slope * of_images
        if tangents.shape[1] != part:
            of_images = xp.sum(of_images, axis=1, keepdims=True)
        return of_value, of_images, of_mean
