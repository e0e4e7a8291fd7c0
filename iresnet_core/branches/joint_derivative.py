"""Value and log-determinant of a dense chain with one pass back through both, written by hand.

For a chain of layers a = W h + b and h = phi(a), a tangent t goes through as W t and phi'(a) t. A log-determinant whose
derivative is sum_p w_p^T dJ v_p, for tangents v and known vectors w, is differentiated together with the value g(x):
with h_ and t_ the cotangents of value and tangent, at the end those of g(x) and w,

    dense:       W_ = h_ h^T + t_ t^T,  b_ = h_,  h_ <- W^T h_,  t_ <- W^T t_,
    activation:  s = t_ t,  h_ <- phi'(a) h_ + phi''(a) s,  t_ <- phi'(a) t_,

summed over samples and tangents. A term tr(C dJ0) with the Jacobian J0 at the mean slopes of the batch is a second
stream of tangents, the d unit vectors. Only the arguments and tangents of the activations and their exponentials are
kept on the way; the backward pass makes the rest again.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, NamedTuple

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.branches.activation_functions import Entrywise
from iresnet_core.branches.activations import Activation
from iresnet_core.branches.chain import Chain
from iresnet_core.branches.linearization import Linearization, checked, linearize
from iresnet_core.branches.slopes import Diagonal
from iresnet_core.operators import Dense

__all__ = ["Control", "JointPass", "can_join", "linearize_jointly"]

# Up to this number of tangents the sum over them is made term by term, without an array of all products.
FEW = 8

# The same log-determinant as a function of J v, of J0 and of the arrays of the pass. The backend differentiates this
# program where second derivatives are asked for.
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


def linearize_jointly(backend: Backend, g: Any, x: Array) -> Linearization:
    """Linearise a branch as `linearize` does, but leave the recording of its derivative to the joint pass.

    That is possible for some chains, see `can_join`, where the backend takes derivatives written by hand. The result
    has `joint` then, and no derivative of its own; elsewhere it is the usual one.
    """
    possible = isinstance(g, Chain) and g.input_shape == g.output_shape and can_join(g.layers)
    if (
        not possible
        or get_backend(x, g.arrays[0]) is not backend
        or not backend.takes_derivatives_by_hand(x, *g.arrays)
    ):
        return linearize(backend, g, x)
    joint = JointPass(backend, g.layers, x)
    found = g.linearization_of(tuple(joint.jacobians), joint.value)
    structure = replace(found.structure, joint=joint)
    return checked(backend, g, x, replace(found, vjp=joint.transposed_products, structure=structure))


def can_join(layers: Sequence[Any]) -> bool:
    """Whether a chain is made of dense layers, the first one of them, and activations that act entry by entry.

    No activation may follow on another, nor a dense layer on another.
    """
    kinds = [type(layer) for layer in layers]
    alternating = all(kind is (Activation if place % 2 else Dense) for place, kind in enumerate(kinds))
    return alternating and all(layer.entrywise and not layer.has_unit_slope for layer in layers[1::2])


class JointPass:
    """A chain at a batch, evaluated without a derivative, which is recorded at the end.

    Parameters
    ----------
    backend : Backend
        A backend that takes derivatives written by hand, see `Backend.with_derivative_by_hand`.
    layers : sequence
        As `can_join` wants them.
    x : array (batch, d)
        Samples.

    Attributes
    ----------
    value : array (batch, m)
        g(x), without derivative.
    jacobians : list
        Those of the layers: the dense ones themselves, and a `Diagonal` for every activation.
    """

    def __init__(self, backend: Backend, layers: Sequence[Any], x: Array) -> None:
        self.backend, self.layers, self.x = backend, tuple(layers), x
        self.jacobians: list[Any] = []
        self._arguments: list[Array] = []
        self._transcendentals: list[Any] = []
        self._slopes: list[Array] = []
        self._v: Any = None
        self._tangents: list[Array] = []
        self._means: tuple[list[Array], list[Any]] = ([], [])
        self._dense = [layer for layer in self.layers if isinstance(layer, Dense)]
        with backend.no_grad():
            h = x
            for layer in self.layers:
                if isinstance(layer, Dense):
                    h = layer(h)
                    self.jacobians.append(layer)
                    continue
                function = _function(layer, h)
                t = function.transcendental(h)
                value, slope, *_ = function.value_and_slope(h, t)
                self._arguments.append(h)
                self._transcendentals.append(t)
                self._slopes.append(slope)
                self.jacobians.append(Diagonal(slope))
                h = value
        self.value = h

    def products(self, v: Array) -> Array:
        """Return J v (tangents, batch, m) for the tangents v, (tangents, batch, d) or (tangents, 1, d)."""
        with self.backend.no_grad():
            t, tangents = self._dense[0].apply(v), []
            for slope, layer in zip_longest(self._slopes, self._dense[1:]):
                tangents.append(t)
                t = slope * t
                t = t if layer is None else layer.apply(t)
        self._v, self._tangents = v, tangents
        return _for_all_samples(self.backend, t, self.x)

    def transposed_products(self, u: Array) -> Array:
        """Return J^T u for u (..., batch, m), without derivative."""
        backend = self.backend
        with backend.no_grad():
            if len(self._slopes) == len(self._dense):
                u = self._slopes[-1] * u
            for layer, slope in zip(self._dense[:0:-1], self._slopes[len(self._dense) - 2 :: -1], strict=True):
                u = backend.product_scaled(u, layer.weight, slope)
            return self._dense[0].adjoint(u)

    def mean_matrix(self) -> Array:
        """Return the Jacobian J0 (m, d) at the mean slopes of the batch."""
        xp = self.backend.xp
        with self.backend.no_grad():
            means = [xp.mean(slope, axis=0) for slope in self._slopes]
            t, tangents = xp.matrix_transpose(self._dense[0].weight), []
            for mean, layer in zip_longest(means, self._dense[1:]):
                tangents.append(t)
                t = mean * t
                t = t if layer is None else layer.apply(t)
            self._means = (means, tangents)
            return xp.matrix_transpose(t)

    def recorded(
        self, logdet: Array, w: Array, plain: PlainLogDet, control: Control | None = None
    ) -> tuple[Array, Array]:
        """Return g(x) and `logdet` with their derivatives by x and by the parameters of the layers.

        Parameters
        ----------
        logdet : array (batch,)
            Without derivative.
        w : array (tangents, batch, m)
            The derivative of `logdet` is ``sum_p w_p^T dJ v_p``, v the tangents of the last call of `products`.
        plain : callable
            J v, J0 (None without `control`) and the arrays (v, w, logdet, inverse, first) -> the log-determinant, for
            second derivatives.
        control : Control, optional
            Further terms of that derivative, with the J0 of `mean_matrix`, which was called before.
        """
        backend, layers, count = self.backend, self.layers, len(self._slopes)
        means = ([], []) if control is None else self._means
        known = backend.xp.asarray(logdet, copy=True)  # the caller may add to the other one in place
        kept = _Kept(self._v, w, known, self._arguments, self._transcendentals, self._tangents, control or (), *means)
        value = self.value

        def forward(*_: Any) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
            return (value, logdet), kept.flat()

        def backward(arrays: Any, saved: Any, cotangents: Any, needed: Any) -> list[Any]:
            return _Backward(backend, layers, arrays, _Kept.of_flat(saved, count)).run(cotangents, needed)

        def plainly(arrays: Any, saved: Any) -> tuple[Array, ...]:
            return _plainly(backend, layers, arrays, _Kept.of_flat(saved, count), plain)

        parameters = [array for layer in layers if isinstance(layer, Dense) for array in (layer.weight, layer.bias)]
        out = backend.with_derivative_by_hand(forward, backward, plainly, (self.x, *parameters))
        return out[0], out[1]


def _function(layer: Activation, x: Array) -> Entrywise:
    """The function of one variable that an activation applies to the entries of x."""
    function = layer.function_for(x)
    assert isinstance(function, Entrywise)
    return function


def _for_all_samples(backend: Backend, t: Array, x: Array) -> Array:
    return t if t.shape[1] == x.shape[0] else backend.xp.broadcast_to(t, (t.shape[0], x.shape[0], t.shape[2]))


def _plainly(
    backend: Backend, layers: Sequence[Any], arrays: Sequence[Any], kept: _Kept, plain: PlainLogDet
) -> tuple[Array, Array]:
    """The same as a program that the backend can differentiate."""
    xp = backend.xp
    (x, *parameters), mean_matrix = arrays, None
    h, t, m = x, kept.v, None
    for place, layer in enumerate(layers):
        if isinstance(layer, Dense):
            here = layer.with_parameters(parameters[place], parameters[place + 1])  # two for every other layer
            h, t = here(h), here.apply(t)
            m = xp.matrix_transpose(here.weight) if m is None else here.apply(m)
        else:
            h, slope, *_ = _function(layer, h).value_and_slope(h)
            t, m = slope * t, xp.mean(slope, axis=0) * m
    if kept.control:
        mean_matrix = xp.matrix_transpose(m)
    images = _for_all_samples(backend, t, x)
    return h, plain(images, mean_matrix, (kept.v, kept.w, kept.logdet, *kept.control))


class _Backward:
    """One pass back through the layers."""

    def __init__(self, backend: Backend, layers: Sequence[Any], arrays: Sequence[Any], kept: _Kept) -> None:
        self.backend, self.layers, self.kept = backend, layers, kept
        self.x, *self.parameters = arrays

    def run(self, cotangents: Sequence[Array], needed: Sequence[bool]) -> list[Any]:
        """Return the cotangents of x and of the parameters; None for those that are not `needed`."""
        xp, kept, layers = self.backend.xp, self.kept, self.layers
        of_value, of_logdet = cotangents
        grads: list[Any] = [None] * len(needed)
        of_images = of_logdet[:, None] * kept.w
        of_mean = self._of_mean(of_logdet) if kept.control else None
        for place in reversed(range(len(layers))):
            layer = layers[place]
            if isinstance(layer, Dense):
                before = self._before(place)
                if needed[1 + place]:
                    grads[1 + place] = self._of_weight(place, of_value, of_images, of_mean, before)
                if needed[2 + place]:
                    grads[2 + place] = xp.sum(of_value, axis=0)
                if not any(needed[: 1 + place]):
                    return grads
                weight = self.parameters[place]
                of_value = self._through(of_value, weight)
                if place:  # the tangents that enter the first layer are constants
                    of_images = self._through(of_images, weight)
                    of_mean = None if of_mean is None else self._through(of_mean, weight)
            else:
                if place + 1 == len(layers):  # no dense layer after it has asked for its values
                    before = self._before(place + 1)
                of_value, of_images, of_mean = self._activation(place, before, of_value, of_images, of_mean)
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
        if place == 0:
            return self.x, self.kept.v, ()
        number = place // 2 - 1
        x, t = self.kept.arguments[number], self.kept.transcendentals[number]
        known = _function(self.layers[place - 1], x).value_and_slope(x, t)
        return known[0], known[1] * self.kept.tangents[number], known

    def _of_weight(self, place: int, of_value: Array, of_images: Array, of_mean: Array | None, before: Any) -> Array:
        xp = self.backend.xp
        value, tangents, *_ = before
        if of_images.shape[1] != tangents.shape[1]:  # tangents that are the same for all samples
            of_images = xp.sum(of_images, axis=1, keepdims=True)
        grad = self._add_outer(None, of_value, value)
        grad = self._add_outer(grad, of_images, tangents)
        if of_mean is None:
            return grad
        if not place:
            return grad + xp.matrix_transpose(of_mean)  # the unit vectors themselves come in
        number = place // 2 - 1
        mean = self.kept.mean_slopes[number] * self.kept.mean_tangents[number]
        return self._add_outer(grad, of_mean, mean)

    def _add_outer(self, total: Array | None, cotangents: Array, rows: Array) -> Array:
        """Add the sum over all rows of cotangent row^T to `total`."""
        xp = self.backend.xp
        left, right = (a if a.ndim == 2 else xp.reshape(a, (-1, a.shape[-1])) for a in (cotangents, rows))
        return self.backend.gemm(xp.matrix_transpose(left), right, total)

    def _through(self, cotangents: Array, weight: Array) -> Array:
        xp = self.backend.xp
        if cotangents.ndim == 2:
            return xp.matmul(cotangents, weight)
        rows = xp.matmul(xp.reshape(cotangents, (-1, weight.shape[0])), weight)
        return xp.reshape(rows, (*cotangents.shape[:-1], weight.shape[1]))

    def _activation(
        self, place: int, known: Any, of_value: Array, of_images: Array, of_mean: Array | None
    ) -> tuple[Array, Array, Array | None]:
        backend, xp, kept, number = self.backend, self.backend.xp, self.kept, place // 2
        x = kept.arguments[number]
        value, slope, *more = known[-1]
        tangents = kept.tangents[number]
        of_slope = None
        if of_mean is not None:
            of_slope = xp.sum(of_mean * kept.mean_tangents[number], axis=0) / slope.shape[0]
            of_mean = kept.mean_slopes[number] * of_mean
        if tangents.shape[0] > FEW:
            forms = xp.sum(of_images * tangents, axis=0)
            of_slope = forms if of_slope is None else of_slope + forms
        else:  # without the product as a whole
            for p in range(tangents.shape[0]):
                image, tangent = of_images[p, ...], tangents[p, ...]
                of_slope = image * tangent if of_slope is None else backend.multiply_add(of_slope, image, tangent)
        second = _function(self.layers[place], x).second_derivative(x, value, slope, *more)
        of_value = backend.multiply_add(of_value * slope, of_slope, second)
        of_images = slope * of_images
        if tangents.shape[1] != slope.shape[0]:
            of_images = xp.sum(of_images, axis=1, keepdims=True)
        return of_value, of_images, of_mean
