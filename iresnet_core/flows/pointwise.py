"""Point sets: one layer for every point, with the sum of their log-determinants."""

from collections.abc import Callable, Sequence
from typing import Any, Self, cast

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.common import round_up, unit_roundoff, widest
from iresnet_core.determinant import SampleSeed
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows.condition import Labels
from iresnet_core.flows.flow import Flow, require_no_base
from iresnet_core.flows.layer import ForwardOptions, InverseOptions, Layer, Shape, Transformed
from iresnet_core.flows.preimage import Preimage, begun, finished, uncertified
from iresnet_core.results import Inverse, LogDet

__all__ = ["Pointwise"]


class Pointwise(Layer):
    """``z_p = layer(x_p)`` for every point x_p of a set, with ``log|det| = sum over p of log|det J(x_p)|``.

    Samples are sets (batch, points, d) of any number of points. For points of the plane or of space the determinants
    are exact by default. A condition belongs to the whole set: its code, which all points of it share.

    Parameters
    ----------
    layer : Layer
        For points (batch, d): a residual block, an ActNorm, or a whole Flow. One Pointwise around a Flow has tighter
        bounds on its inverse than a Pointwise around each of its layers.

    Attributes
    ----------
    layer : Layer
        The argument `layer`.

    Raises
    ------
    InvalidArgumentError
        If `layer` is none, or a flow with a base.
    ShapeError
        If it changes the shape of points, or from `forward` if the samples are no sets of such points.

    Notes
    -----
    The layer itself takes sets of every size. A Flow has one shape of samples: build it again from the same layers for
    another number of points, ``Flow(flow.layers, (points, d))``, which copies nothing.

    Options of `logdet` are those of each point; a `tol` is divided by the number of points. Products count for the set.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core.flows.actnorm import ActNorm
    >>> norm = ActNorm(np.log([2.0, 1.0, 1.0]), np.zeros(3))
    >>> sets = Pointwise(norm).forward(np.ones((1, 5, 3)))
    >>> sets.value.shape, sets.logdet.value.round(6)  # 5 log 2
    ((1, 5, 3), array([3.465736]))
    """

    layer: Layer
    _code: Array | None

    def __init__(self, layer: Layer, *, _code: Array | None = None) -> None:
        if not isinstance(layer, Layer):
            raise InvalidArgumentError(f"Pointwise takes a layer of a flow, got {type(layer).__name__}.")
        require_no_base(layer)
        if isinstance(layer, Flow) and (len(layer.event_shape) != 1 or layer.latent_shape != layer.event_shape):
            raise ShapeError(
                f"Pointwise takes points, vectors (d,), to vectors of the same size; its flow takes samples of shape "
                f"{layer.event_shape} to {layer.latent_shape}."
            )
        self._keep(layer=layer, _code=_code, residual_blocks=layer.residual_blocks, is_block=layer.is_block)

    def __repr__(self) -> str:
        return f"Pointwise({self.layer!r})"

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The parameters of the layer."""
        return self.layer.arrays

    @property
    def context_features(self) -> int | None:
        """Entries of a condition, of the layer."""
        return None if self._code is not None else self.layer.context_features

    @property
    def context_labels(self) -> Labels | None:
        """Labels that it may hold."""
        return self.layer.context_labels

    @property
    def inverse_lipschitz(self) -> Any:
        """The constant of the layer: no point depends on another."""
        return self._of(None).inverse_lipschitz

    @property
    def forward_lipschitz(self) -> Any:
        """The constant of the layer."""
        return self._of(None).forward_lipschitz

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the same shape, if it is that of a set of points that the layer takes."""
        shape = tuple(input_shape)
        if len(shape) != 2 or shape[0] < 1:
            raise ShapeError(
                f"Pointwise takes sets of points, samples of shape (points, d) with at least one point, got {shape}."
            )
        if tuple(self.layer.output_shape(shape[1:])) != shape[1:]:
            raise ShapeError(f"a Pointwise layer keeps the size of points, which {self.layer!r} does not.")
        return shape

    def input_shape(self, output_shape: Sequence[int]) -> Shape:
        """Return the same shape."""
        return self.output_shape(output_shape)

    def at_shape(self, event_shape: Shape) -> "Pointwise":
        """Return the layer for points of this size."""
        self.output_shape(event_shape)
        return Pointwise(self.layer.at_shape(tuple(event_shape[1:])), _code=self._code)

    def initialized(self, x: Array, context: Array | None = None) -> "Pointwise":
        """Return the layer with every ActNorm inside initialised from all points of all sets."""
        return self.initialized_by(lambda layer, points, code: layer.initialized(points, code), x, context)

    def with_reference(self, x: Array, context: Array | None = None) -> "Pointwise":
        """Return the layer with all points of all sets as the reference inside, see `Flow.with_reference`."""
        return self.initialized_by(lambda layer, points, code: layer.with_reference(points, code), x, context)

    def initialized_by(
        self, way: Callable[[Layer, Array, Array | None], Layer], x: Array, context: Array | None
    ) -> "Pointwise":
        """Return the layer whose own is ``way(layer, points, code of each point)``."""
        backend = self._admit(x, "the data of the layer")
        code = None if context is None else _for_points(backend, context, int(x.shape[1]))
        return Pointwise(way(self.layer, _flat(x), code))

    def astype(self, dtype: Any) -> Self:
        """Return the layer with parameters of another dtype."""
        code = None if self._code is None else get_backend(self._code).xp.astype(self._code, dtype)
        return type(self)(self.layer.astype(dtype), _code=code)

    def _given(self, backend: Backend, rows: Array, single: bool) -> "Pointwise":
        return Pointwise(self.layer, _code=rows)

    def _of(self, points: int | None) -> Layer:
        """Return the layer for the points of all sets, each under the code of its set; None: a point of each set."""
        if self._code is None:
            return self.layer
        backend = get_backend(self._code)
        return self.layer._under(backend, self._code if points is None else _for_points(backend, self._code, points))

    def _map(self, backend: Backend, x: Array) -> Array:
        return _together(self._of(int(x.shape[1]))._map(backend, _flat(x)), x)

    def _forward(self, backend: Backend, x: Array, options: ForwardOptions) -> Transformed:
        points, flat = int(x.shape[1]), _flat(x)
        own = dict(options)
        if (part := options.get("part")) is not None:
            own["part"] = part * points  # the points of the first sets come first
        if (tol := options.get("tol")) is not None:
            own["tol"] = tol / points
        if isinstance(rng := options.get("rng"), SampleSeed):
            seeds = _numbered(backend, x if part is None else x[:part, ...])
            own["rng"] = SampleSeed(_flat(seeds), rng.path)
        if (noise := options.get("noise")) is not None:
            several = isinstance(noise, list)
            flattened = [_points_of_noise(backend, entry) for entry in (noise if several else [noise])]
            own["noise"] = flattened if several else flattened[0]
        value, logdet = self._of(points)._forward(backend, flat, cast(ForwardOptions, own))
        return Transformed(_together(value, x), _of_sets(backend, logdet, points))

    def _with_rounding(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        points, xp = int(x.shape[1]), backend.xp
        value, rounding = self._of(points)._with_rounding(backend, _flat(x))
        return _together(value, x), xp.sqrt(xp.sum(xp.reshape(rounding, (-1, points)) ** 2, axis=1)) * (1 + 1e-14)

    def _spread(self, backend: Backend, x: Array, error: Array) -> tuple[Array, Array]:
        """Every point may have all of the error: the largest factor is that of the set, and the changes add up."""
        points, xp = int(x.shape[1]), backend.xp
        grown, change = self._of(points)._spread(backend, _flat(x), xp.repeat(error, points, axis=0))
        grown, change = (xp.reshape(part, (-1, points)) for part in (grown, change))
        return xp.max(grown, axis=1), xp.sum(change, axis=1) * (1 + 1e-14)

    def _inverse(self, backend: Backend, z: Array, options: InverseOptions) -> Inverse:
        state = self._back(backend, begun(backend, z), options)
        return finished(backend, state) if options.get("errors", True) else uncertified(backend, state)

    def _back(self, backend: Backend, state: Preimage, options: InverseOptions) -> Preimage:
        xp, points = backend.xp, int(state.value.shape[1])
        start = begun(backend, _flat(state.value))._replace(refined=_flat(state.refined))
        found = self._of(points)._back(backend, start, options)

        def of_sets(values: Array) -> Array:
            return xp.reshape(values, (-1, points))

        # The points are as near as their own steps made them, and the whole set grows by the constant of the inverse.
        growth = self.inverse_lipschitz
        own, first_order = (
            xp.sqrt(xp.sum(of_sets(xp.astype(part, widest(backend))) ** 2, axis=1))
            for part in (found.error, found.estimate)
        )
        return state._replace(
            value=_together(found.value, state.value),
            refined=_together(found.refined, state.refined),
            error=(state.error * growth + own) * (1 + 1e-14),
            estimate=state.estimate * growth + first_order,
            residual=state.residual + xp.sqrt(xp.sum(of_sets(found.residual) ** 2, axis=1)),
            iterations=state.iterations + xp.max(of_sets(found.iterations), axis=1),
            converged=state.converged & xp.all(of_sets(found.converged), axis=1),
        )


def _flat(x: Array) -> Array:
    """The points of all sets (batch, points, d), as one batch."""
    return get_backend(x).xp.reshape(x, (-1, x.shape[-1]))


def _together(points: Array, like: Array) -> Array:
    """The points of a batch as sets again."""
    return get_backend(points).xp.reshape(points, (-1, like.shape[1], like.shape[2]))


def _numbered(backend: Backend, x: Array) -> Array:
    """Sets whose points have their number as one more entry: equal points of a set then have different probes."""
    xp = backend.xp
    numbers = xp.astype(xp.arange(int(x.shape[1]), device=device_of(x)), x.dtype)[None, :, None]
    return xp.concat([x, xp.zeros_like(x[..., :1]) + numbers], axis=2)


def _points_of_noise(backend: Backend, noise: Array) -> Array:
    """Probes (probes, batch, points, d) as probes for points."""
    return backend.xp.reshape(noise, (noise.shape[0], -1, noise.shape[-1]))


def _for_points(backend: Backend, rows: Array, points: int) -> Array:
    """Repeat the condition of every set for its points; one for all sets stays one."""
    if backend.knows_size(rows.shape[0]) and rows.shape[0] == 1:
        return rows
    return backend.xp.repeat(rows, points, axis=0)


def _of_sets(backend: Backend, points_logdet: LogDet, points: int) -> LogDet:
    """Log-determinants of sets from those of their points, which are independent of each other."""
    xp, wide = backend.xp, widest(backend)
    target = points_logdet.value.dtype
    value, deviation, bias = (xp.reshape(xp.astype(part, wide), (-1, points)) for part in points_logdet[:3])
    total = xp.sum(value, axis=1)
    rounding = points * unit_roundoff(backend, wide) * xp.sum(xp.abs(value), axis=1)
    rounding = rounding + unit_roundoff(backend, target) * xp.abs(total)
    return points_logdet._replace(
        value=xp.astype(total, target),
        std_error=xp.astype(xp.sqrt(xp.sum(deviation**2, axis=1)), target),
        bias_bound=backend.stop_gradient(round_up(backend, xp.sum(bias, axis=1) + rounding, target)),
        products=xp.sum(xp.reshape(points_logdet.products, (-1, points)), axis=1, dtype=xp.int32),
    )
