"""A layer turned round: what was its inverse is its forward direction."""

import math
from collections.abc import Sequence
from typing import Any, Self, cast

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.common import require_nonnegative, require_positive_int, sample_norms, widest
from iresnet_core.determinant import SampleSeed, own_seed, uses_own_seeds
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.condition import Labels
from iresnet_core.flows.factor_out import FactorOut
from iresnet_core.flows.flow import Flow, require_no_base
from iresnet_core.flows.layer import (
    ForwardOptions,
    InverseOptions,
    Layer,
    Shape,
    Transformed,
    closed_form_inverse,
    with_moved_point,
)
from iresnet_core.flows.pointwise import Pointwise
from iresnet_core.flows.preimage import Preimage, begun, finished, nearest, uncertified
from iresnet_core.inverse import SOLVERS
from iresnet_core.results import Inverse, LogDet

__all__ = ["Inverted"]


class Inverted(Layer):
    """``z = f^-1(x)`` for a layer f, with the log-determinant ``-log|det J_f(f^-1(x))|``.

    Sampling and the gradient of a sample then take one evaluation of a residual block, and scoring a given point takes
    a solution: what a flow needs that is trained by its samples (reverse KL, variational inference), where an ordinary
    block has it the other way round.

    Parameters
    ----------
    layer : Layer
        One layer, or a whole Flow. It has to be a bijection.
    solver : str
        How `forward` finds the preimage; this and the others as in `invert`.
    rtol, atol : float, optional
        Tolerances of `forward`.
    max_iter : int, optional
        Evaluations that `forward` takes at most.

    Attributes
    ----------
    layer : Layer
        The argument `layer`.
    solver, rtol, atol, max_iter
        The other arguments.

    Raises
    ------
    InvalidArgumentError
        If `layer` is no layer or a flow with a base, or an option is none of `invert`.
    ShapeError
        When the shape is known, if the layer changes the number of entries of a sample.
    NotConvergedError
        From `forward`, as `invert`.

    Notes
    -----
    `forward` costs an inverse of f, and its log-determinant there; its derivative is that of the implicit function
    theorem, with one more solution on the way back. `inverse` is an evaluation of f.

    The errors: the `std_error` is that of f. The log-determinant is that at the computed preimage y, which lies within
    e of the exact one; `bias_bound` includes what that can change, ``r K e / (1 - c)`` for a branch of width r whose
    Jacobian has the Lipschitz constant K, and at most ``d log((1 + c) / (1 - c))``. That worst case is all there is for
    branches whose slopes jump (relu) and for plain callables, whose K nobody knows; for layers of one's own that do not
    say how their log-determinants change, the bound is infinite. `inverse` certifies its error from an evaluation in
    float64, for which a plain callable is taken to be right to 16 units in the last place.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import Chain, Dense, ResidualBlock
    >>> block = ResidualBlock(Chain([Dense(np.array([[0.0, 0.5], [0.5, 0.0]]))]))
    >>> x, logdet = Inverted(block).forward(np.array([[2.0, 2.5]]))
    >>> x.round(6)
    array([[1., 2.]])
    >>> logdet.value.round(6)  # -log 0.75
    array([0.287682])
    """

    layer: Layer
    solver: str
    rtol: float | None
    atol: float | None
    max_iter: int | None

    def __init__(
        self,
        layer: Layer,
        *,
        solver: str = "anderson",
        rtol: float | None = None,
        atol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        if not isinstance(layer, Layer):
            raise InvalidArgumentError(f"Inverted turns a layer of a flow round, got {type(layer).__name__}.")
        require_no_base(layer)
        if not isinstance(solver, str) or solver not in SOLVERS:
            raise InvalidArgumentError(f"invert has the solvers {', '.join(SOLVERS)}; got {solver!r}.")
        self._keep(
            layer=layer,
            solver=solver,
            rtol=None if rtol is None else require_nonnegative(rtol, "rtol"),
            atol=None if atol is None else require_nonnegative(atol, "atol"),
            max_iter=None if max_iter is None else require_positive_int(max_iter, "max_iter"),
            residual_blocks=layer.residual_blocks,
            is_block=layer.is_block,
        )

    def __repr__(self) -> str:
        return f"Inverted({', '.join([repr(self.layer), *self._said()])})"

    def _said(self) -> list[str]:
        """Return the options that are not the default, as in a call."""
        solver = [] if self.solver == "anderson" else [f"solver={self.solver!r}"]
        numbers = {"rtol": self.rtol, "atol": self.atol, "max_iter": self.max_iter}
        return solver + [f"{name}={value:g}" for name, value in numbers.items() if value is not None]

    def _around(self, layer: Layer) -> Self:
        """Return another layer turned round, with the same options."""
        return type(self)(layer, solver=self.solver, rtol=self.rtol, atol=self.atol, max_iter=self.max_iter)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The parameters of the layer."""
        return self.layer.arrays

    @property
    def inverse_lipschitz(self) -> Any:
        """The constant of the layer."""
        return self.layer.forward_lipschitz

    @property
    def forward_lipschitz(self) -> Any:
        """The constant of its inverse."""
        return self.layer.inverse_lipschitz

    @property
    def context_features(self) -> int | None:
        """Entries of a condition, of the layer."""
        return self.layer.context_features

    @property
    def context_labels(self) -> Labels | None:
        """Labels that it may hold."""
        return self.layer.context_labels

    def _given(self, backend: Backend, rows: Array, single: bool) -> Self:
        return self._around(self.layer._under(backend, rows))

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape that the layer takes."""
        shape = self.layer.input_shape(input_shape)
        if math.prod(shape) != math.prod(input_shape):
            raise ShapeError(
                f"{self!r} takes samples of shape {tuple(input_shape)} to {shape}: only a bijection can be turned "
                "round, which keeps the number of entries."
            )
        return shape

    def input_shape(self, output_shape: Sequence[int]) -> Shape:
        """Return the shape that the layer makes."""
        shape = self.layer.output_shape(output_shape)
        self.output_shape(shape)
        return shape

    def at_shape(self, event_shape: Shape) -> "Inverted":
        """Return the layer for samples of this shape."""
        placed = self.layer.at_shape(self.output_shape(event_shape))
        return self if placed is self.layer else self._around(placed)

    def astype(self, dtype: Any) -> Self:
        """Return the layer with parameters of another dtype."""
        return self._around(self.layer.astype(dtype))

    def initialized(self, x: Array, context: Array | None = None) -> "Inverted":
        """Return the layer with every ActNorm inside set: what it makes of the data has mean zero and its spread."""
        return self._around(_initialized(self.layer, x, context))

    def with_reference(self, x: Array, context: Array | None = None) -> "Inverted":
        """Return the layer with what it makes of `x` as the reference inside, see `Flow.with_reference`."""
        made = self._for(x, context)._map(get_backend(x), x)
        return self._around(self.layer.with_reference(made, context))

    # --- forward: a solution ---

    def _solving(self, options: ForwardOptions) -> InverseOptions:
        own = {"solver": self.solver, "rtol": self.rtol, "atol": self.atol, "max_iter": self.max_iter}
        known = {name: value for name, value in own.items() if value is not None}
        return cast(InverseOptions, {**known, "errors": options.get("errors", True)})

    def _map(self, backend: Backend, x: Array) -> Array:
        with backend.full_precision():
            return self.layer._inverse(backend, x, self._solving({"errors": False})).value

    def _forward(self, backend: Backend, x: Array, options: ForwardOptions) -> Transformed:
        if isinstance(options.get("rng"), str):
            options = {**options, "rng": own_seed(options, x[: options.get("part"), ...])}
        elif "rng" not in options and not self.is_block and uses_own_seeds(options):
            # Seeds of what was given: the last bits of a solution depend on the batch.
            options = {**options, "rng": SampleSeed(x)}
        state = self.layer._back(backend, begun(backend, x), self._solving(options))
        logdet = self.layer._forward(backend, state.value, options).logdet
        if options.get("errors", True):
            logdet = with_moved_point(backend, self.layer, state, logdet)
        return Transformed(state.value, _negative(logdet))

    # --- inverse: an evaluation ---

    def _inverse(self, backend: Backend, z: Array, options: InverseOptions) -> Inverse:
        state = self._back(backend, begun(backend, z), options)
        return finished(backend, state) if options.get("errors", True) else uncertified(backend, state)

    def _back(self, backend: Backend, state: Preimage, options: InverseOptions) -> Preimage:
        return self._with_image(backend, state, self.layer._map(backend, state.value), options)

    def _back_with_logdet(
        self, backend: Backend, state: Preimage, options: InverseOptions, of_logdet: ForwardOptions
    ) -> tuple[Preimage, LogDet]:
        out = self.layer._forward(backend, state.value, of_logdet)
        logdet = out.logdet
        if of_logdet.get("errors", True):
            logdet = with_moved_point(backend, self.layer, state, logdet)
        return self._with_image(backend, state, out.value, options), _negative(logdet)

    def _with_image(self, backend: Backend, state: Preimage, value: Array, options: InverseOptions) -> Preimage:
        """Return the state before this layer, whose inverse of the samples is `value`, by one evaluation in float64."""
        xp, wide = backend.xp, widest(backend)
        step = closed_form_inverse(backend, value, xp.zeros_like(state.error))
        known = backend.stop_gradient(xp.astype(value, wide, copy=False))
        if not options.get("errors", True):
            return state.after(step, value=value, refined=known)
        layer = self.layer if value.dtype == wide else _in_float64(self.layer, wide)
        with backend.no_grad():
            if layer is None:
                point = backend.stop_gradient(state.value)
                off = sample_norms(xp, xp.astype(point, wide) - state.refined) * (1 + 1e-12)
                _, rounding = self.layer._with_rounding(backend, point)
                grown, _ = self.layer._spread(backend, point, off + state.error)
                error = (grown + rounding) * (1 + 1e-15)
                return state.after(step, value=value, refined=known, error=error, estimate=error)
            refined, rounding = layer._with_rounding(backend, state.refined)
            grown, _ = layer._spread(backend, state.refined, state.error)
            likely, _ = layer._spread(backend, state.refined, state.estimate)
        refined = backend.stop_gradient(refined)
        error = backend.stop_gradient(grown + rounding) * (1 + 1e-15)
        estimate = xp.minimum(backend.stop_gradient(likely), error)
        return state.after(
            step, value=nearest(backend, value, refined), refined=refined, error=error, estimate=estimate
        )

    # --- as a part of what is turned round once more ---

    def _with_rounding(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        found = self.layer._inverse(backend, x, self._solving({"errors": True}))
        return found.value, found.error_bound

    def _spread(self, backend: Backend, x: Array, error: Array) -> tuple[Array, Array]:
        found = self.layer._inverse(backend, x, self._solving({"errors": True}))
        grown = error * self.forward_lipschitz
        # Both ends of the way lie in one ball around the computed preimage.
        _, change = self.layer._spread(backend, found.value, grown + found.error_bound)
        return grown, 2 * change


def _negative(logdet: LogDet) -> LogDet:
    return logdet._replace(value=-logdet.value)


def _in_float64(layer: Layer, wide: Any) -> Layer | None:
    """Return the layer in float64; None where a part of it knows its own dtype only."""
    try:
        cast_layer = layer.astype(wide)
    except InvalidArgumentError:
        return None
    return None if any(array.dtype != wide for array in cast_layer.arrays) else cast_layer


def _initialized(layer: Layer, x: Array, context: Array | None) -> Layer:
    """Return a layer whose inverse brings the data x to mean zero and its spread, where ActNorms lack parameters."""
    if isinstance(layer, Inverted):
        return layer._around(layer.layer.initialized(x, context))
    if isinstance(layer, ActNorm) and layer.log_scale is None:
        if layer.condition is not None:
            raise InvalidArgumentError(
                "a conditional ActNorm inside of Inverted is not initialised: give it parameters."
            )
        found = ActNorm.initialize(x, axis=layer.axis, spread=layer.spread)
        backend, log_scale, bias = found._parameters()
        return ActNorm(-log_scale, -bias * backend.xp.exp(log_scale), axis=layer.axis)
    if isinstance(layer, Pointwise):
        return layer.initialized_by(_initialized, x, context)
    if isinstance(layer, Flow):
        rows = layer._entering(get_backend(x), x, context) if layer.context_features is not None else None
        made: list[Layer] = []
        for inner in reversed(layer.layers):
            own = None if inner.context_features is None else rows
            made.insert(0, _initialized(inner, x, own))
            x = Inverted(made[0])(x, own)
        return layer._with(made, layer.condition)
    if isinstance(layer, FactorOut) and layer.flow is not None:
        latents = layer._parts(get_backend(x), x)[0]
        return FactorOut(layer.keep, cast(Flow, _initialized(layer.flow, latents, context)), axis=layer.axis)
    return layer
