"""The contract that all layers of a flow keep, the checks of their arguments, and the form of their results.

A layer is an injective map on samples with a log-determinant and an inverse. It never changes: its parameters are
constants, its methods are pure, and what would change it (`initialized`, `astype`, `at_shape`) returns another layer.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self, TypedDict, Unpack, cast

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.common import (
    Copyable,
    require_batch,
    require_finite,
    require_floating,
    require_options,
    require_same_device,
    require_same_dtype,
    sample_norms,
    unit_roundoff,
    widest,
)
from iresnet_core.determinant import LOGDET_OPTIONS, LogDetOptions
from iresnet_core.errors import IResNetError
from iresnet_core.flows.condition import Condition, Labels, checked_rows, require_condition, require_rows
from iresnet_core.flows.preimage import Preimage, nearest
from iresnet_core.flows.transformed import (
    Transformed,
    channel_axis,
    closed_form_inverse,
    closed_form_logdet,
    scaled_error,
    wide_norms,
    with_moved_point,
)
from iresnet_core.inverse import UNSTATED_ROUNDING
from iresnet_core.results import Inverse, LogDet

__all__ = [
    "ForwardOptions",
    "InverseOptions",
    "Layer",
    "Shape",
    "Transformed",
    "channel_axis",
    "closed_form_inverse",
    "closed_form_logdet",
    "located",
    "scaled_error",
    "wide_norms",
    "with_moved_point",
]

Shape = tuple[int, ...]


class ForwardOptions(LogDetOptions, total=False):
    """Options of `logdet`, and what a training loss asks for beside them.

    With `part` the log-determinants of residual blocks are taken at so many samples, the first ones, and stand for
    all: they are multiplied by batch / part, and those of the other samples are zero. Where the samples were put in
    random order before, every entry is unbiased (Horvitz and Thompson 1952).
    """

    part: int


class InverseOptions(TypedDict, total=False):
    """Options of `iresnet_core.invert` that a layer or a flow passes on, see there, and `errors` of the layers."""

    solver: str
    rtol: float | None
    atol: float | None
    max_iter: int | None
    on_failure: Literal["raise", "warn", "return"]
    errors: bool


INVERSE_OPTIONS = frozenset(InverseOptions.__annotations__)


class Layer(Copyable, ABC):
    """An injective map on samples; the base class of everything a flow is made of.

    Attributes
    ----------
    arrays : tuple of array
        The parameters. They share one backend and one dtype, which the input must have too.
    residual_blocks : int
        How many residual blocks the layer holds; the others cost no products and have no error but rounding.
    is_block : bool
        Whether the layer is one residual block itself, which takes its noise as an array and not as a list.
    inverse_lipschitz : float or array ()
        Lipschitz constant of the inverse: an error in its argument grows at most by this factor.
    condition : Condition or None
        The map of a condition to what enters the layer.
    context_features : int or None
        Entries of a condition; None for a layer that takes none.
    forward_lipschitz : float or array ()
        The same of the layer itself; infinite where it has none, or where a layer of one's own does not say.
    """

    residual_blocks: int = 0
    is_block: bool = False
    condition: Condition | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} never changes; build another one to have another {name}.")

    def _keep(self, **fields: Any) -> None:
        """Set the fields, once, from the constructor."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The parameters."""
        return ()

    @property
    @abstractmethod
    def inverse_lipschitz(self) -> Any:
        """Lipschitz constant of the inverse."""

    @property
    def forward_lipschitz(self) -> Any:
        """Lipschitz constant of the layer."""
        return math.inf

    @property
    def context_features(self) -> int | None:
        """Entries of a condition; None for a layer that takes none."""
        return None if self.condition is None else self.condition.features

    @property
    def context_labels(self) -> Labels | None:
        """The labels that a condition may hold, column by column, see `Condition`; None where all are numbers."""
        return None if self.condition is None else self.condition.labels

    def given(self, context: Array | None, like: Array | None = None) -> Self:
        """Return the layer under one condition, or under one for each sample of a batch, as a layer without any.

        With many calls under the same condition it saves the time of its map in each. Under one condition of shape
        (features,) the result takes batches of every size and can be saved.

        Parameters
        ----------
        context : array (batch, features), or (features,) for all samples
            Of the backend, dtype and device of the parameters; or whole numbers, where the `Condition` has labels.
        like : array, optional
            Gives the dtype of a layer without parameters.

        Raises
        ------
        InvalidArgumentError
            If the layer needs a condition and gets none, or the other way round, or a label is not known.
        ShapeError, DtypeError, MixedBackendsError, NonFiniteError
            If the context does not fit or holds NaN or infinity.
        """
        require_condition(context, self.context_features, f"this {type(self).__name__}")
        if context is None:
            return self
        return cast(Self, self._under(*self._rows(context, like)))

    def _rows(self, context: Array, like: Array | None = None) -> tuple[Backend, Array]:
        """Return a context as checked rows, one for each sample or one for all."""
        assert self.context_features is not None
        like = self.arrays[0] if self.arrays else like
        return checked_rows(context, self.context_features, self.context_labels, like)

    def _under(self, backend: Backend, rows: Array) -> "Layer":
        """Return the layer under checked conditions (batch, features)."""
        single = backend.knows_size(rows.shape[0]) and rows.shape[0] == 1
        if self.condition is not None:
            with backend.full_precision():
                rows = self.condition.mapped(backend, rows, self.arrays[0] if self.arrays else None)
        return self._given(backend, rows, single)

    def _given(self, backend: Backend, rows: Array, single: bool) -> "Layer":
        """Return the layer with what the map of its condition made of one, or, if `single`, of that of all samples."""
        return self

    def context_rows(self, x: Array, context: Array | None) -> Array | None:
        """Return the context of samples x (batch, ...) as checked rows, one per sample or (1, features) for all.

        None for a layer without a condition. Errors as `given`.
        """
        require_condition(context, self.context_features, f"this {type(self).__name__}")
        if context is None:
            return None
        get_backend(x, context)
        require_batch(x, "the input")
        backend, rows = self._rows(context, x)
        require_rows(backend, rows, x)
        return rows

    def _for(self, x: Array, context: Array | None) -> Self:
        """Return the layer as it is for samples x (batch, ...)."""
        rows = self.context_rows(x, context)
        return self if rows is None else cast(Self, self._under(get_backend(rows), rows))

    @abstractmethod
    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the shape of one sample after the layer from that before it; raise ShapeError if it does not fit."""

    @abstractmethod
    def input_shape(self, output_shape: Sequence[int]) -> Shape:
        """Return the shape of one sample before the layer from that after it; raise ShapeError if it does not fit."""

    @abstractmethod
    def _map(self, backend: Backend, x: Array) -> Array:
        """Transform checked samples, without the log-determinant."""

    @abstractmethod
    def _forward(self, backend: Backend, x: Array, options: ForwardOptions) -> Transformed:
        """Transform checked samples."""

    @abstractmethod
    def _inverse(self, backend: Backend, z: Array, options: InverseOptions) -> Inverse:
        """Invert checked samples; the error bound is that of this step alone, for z taken as exact."""

    def _back(self, backend: Backend, state: Preimage, options: InverseOptions) -> Preimage:
        """Invert the samples of a flow that have come back to behind this layer."""
        step = self._inverse(backend, state.value, options)
        if not options.get("errors", True):
            refined = backend.stop_gradient(backend.xp.astype(step.value, widest(backend), copy=False))
            return state.after(step, value=step.value, refined=refined)
        return self._refined(backend, state, step)

    def _refined(self, backend: Backend, state: Preimage, step: Inverse) -> Preimage:
        """Return the state before this layer, whose inverse of the samples was `step`.

        The refined point goes through the layer in float64, where the rounding of this step is the only new error. A
        layer of the caller's own that knows one dtype only keeps to `step`.
        """
        wide = widest(backend)
        layer = self.astype(wide)
        if any(array.dtype != wide for array in layer.arrays):
            return self._unrefined(backend, state, step)
        with backend.no_grad():
            exact = layer._inverse(backend, state.refined, {})
        refined = backend.stop_gradient(exact.value)
        growth = self.inverse_lipschitz
        return state.after(
            step,
            value=nearest(backend, step.value, refined),
            refined=refined,
            # The factor rounds upwards: it covers the roundings of this line.
            error=(state.error * growth + backend.stop_gradient(exact.error_bound)) * (1 + 1e-15),
            estimate=state.estimate * growth,
        )

    def _unrefined(self, backend: Backend, state: Preimage, step: Inverse) -> Preimage:
        """Return the state where nothing is known in float64: the worst case, growth by the constant of the inverse."""
        xp, wide, growth = backend.xp, widest(backend), self.inverse_lipschitz
        value = backend.stop_gradient(xp.astype(step.value, wide))
        off = sample_norms(xp, xp.astype(backend.stop_gradient(state.value), wide) - state.refined) * (1 + 1e-12)
        own = xp.astype(step.error_bound, wide)
        return state.after(
            step,
            value=step.value,
            refined=value,
            error=((state.error + off) * growth + own) * (1 + 1e-15),
            estimate=(state.estimate + off) * growth + own,
        )

    def _back_with_logdet(
        self, backend: Backend, state: Preimage, options: InverseOptions, of_logdet: ForwardOptions
    ) -> tuple[Preimage, LogDet]:
        """As `_back`, with log|det| of the layer at the preimages, whose own errors count in it."""
        before = self._back(backend, state, options)
        logdet = self._forward(backend, before.value, of_logdet).logdet
        if of_logdet.get("errors", True):
            logdet = with_moved_point(backend, self, before, logdet)
        return before, logdet

    # --- what a layer says that is to be turned round: see `Inverted` ---

    def _with_rounding(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        """Return f(x) and a bound (batch,) on its rounding error, in float64.

        A layer of the caller's own is taken to be right to some units in the last place, as a plain branch is.
        """
        value = self._map(backend, x)
        terms = wide_norms(backend, x) + wide_norms(backend, value)
        return value, UNSTATED_ROUNDING * unit_roundoff(backend, x.dtype) * terms

    def _spread(self, backend: Backend, x: Array, error: Array) -> tuple[Array, Array]:
        """Bound how far f(y) and log|det J_f(y)| are from those at x, for every y within `error` of x.

        All are float64 arrays (batch,).
        """
        return scaled_error(backend, error, self.forward_lipschitz), scaled_error(backend, error, math.inf)

    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """Transform samples `x` (batch, ...) without the log-determinant; as `forward` otherwise."""
        backend = self._admit(x, "the input")
        if context is not None or self.context_features is not None:
            return self._for(x, context)(x)
        self._require_input(x)
        with backend.batch_of_unknown_size(x):
            return self._admissible(backend, self._map(backend, x), "output")

    def forward(self, x: Array, context: Array | None = None, **options: Unpack[LogDetOptions]) -> Transformed:
        """Transform samples and return log|det| of the Jacobian at each.

        Parameters
        ----------
        x : array (batch, ...)
            Real floating point, of the backend and dtype of the parameters. The batch may be empty.
        context : array (batch, features), or (features,) for all samples
            The condition, where the layer takes one, see `given`.
        **options
            Passed on to `logdet` by residual blocks; other layers need none.

        Raises
        ------
        ShapeError, DtypeError, MixedBackendsError, NonFiniteError
            If `x` or `context` has the wrong shape, dtype or backend, or holds NaN or infinity.
        InvalidArgumentError
            If there is no such option, or a condition is missing or given to a layer without one.
        """
        require_options(options, LOGDET_OPTIONS)
        return self._for(x, context)._checked_forward(x, cast(ForwardOptions, options))

    def _checked_forward(self, x: Array, options: ForwardOptions) -> Transformed:
        """As `forward`, with options that are known."""
        backend = self._admit(x, "the input")
        self._require_input(x)
        with backend.full_precision(), backend.batch_of_unknown_size(x):
            out = self._forward(backend, x, options)
        self._admissible(backend, out.value, "output")
        return out

    def inverse(self, z: Array, context: Array | None = None, **options: Unpack[InverseOptions]) -> Inverse:
        """Return the samples that the layer maps to `z`.

        Parameters
        ----------
        z : array (batch, ...)
            As `forward` returns them.
        context : array (batch, features), or (features,) for all samples
            The condition that belongs to `z`, where the layer takes one. What its map gives in the dtype of the layer
            is taken as exact by the bounds.
        errors : bool
            Whether to certify the answer (default). Without, a flow neither refines its points in float64 nor bounds
            their errors, which takes most of the time where blocks are wide: `error_bound` and `error_estimate` are
            NaN, and each block is solved to the tolerance of `invert`.
        **options
            Passed on to `invert` by residual blocks; other layers need none.

        Returns
        -------
        Inverse
            `error_bound` certifies the Euclidean distance to the exact preimage of `z`, rounding included. It is about
            `z` as it is given: where that was computed by `forward` in float32, its own rounding is not part of it.

        Raises
        ------
        ShapeError, DtypeError, MixedBackendsError, NonFiniteError, InvalidArgumentError
            As `forward`.
        NotConvergedError
            As `invert`.
        """
        require_options(options, INVERSE_OPTIONS)
        backend = self._admit(z, "the latents")
        self.input_shape(tuple(z.shape[1:]))
        if context is not None or self.context_features is not None:
            return self._for(z, context).inverse(z, **options)
        with backend.full_precision(), backend.batch_of_unknown_size(z):
            out = self._inverse(backend, z, options)
        self._admissible(backend, out.value, "preimage")
        return out

    def initialized(self, x: Array, context: Array | None = None) -> "Layer":
        """Return the layer with its data-dependent parameters set from samples `x`; most layers have none."""
        return self

    def with_reference(self, x: Array, context: Array | None = None) -> "Layer":
        """Return the layer with inputs `x` as the reference of its branches (`Chain`); most layers have none."""
        return self

    def at_shape(self, event_shape: Shape) -> "Layer":
        """Return the layer for samples of this shape; most layers take any shape that fits."""
        return self

    def astype(self, dtype: Any) -> Self:
        """Return the layer with parameters of another dtype."""
        return self

    def _admit(self, x: Array, name: str) -> Backend:
        """Check what does not depend on the event shape."""
        backend = get_backend(x, *self.arrays)
        require_floating(backend, x, name)
        require_batch(x, name)
        if self.arrays:
            parameters = f"the parameters of {type(self).__name__}"
            require_same_dtype(x, name, self.arrays[0], parameters)
            require_same_device(backend, x, name, self.arrays[0], parameters)
        require_finite(backend, x, name, samples=True)
        return backend

    def _require_input(self, x: Array) -> None:
        self.output_shape(tuple(x.shape[1:]))

    def _admissible(self, backend: Backend, value: Array, kind: str) -> Array:
        """Refuse to hand out NaN or infinity."""
        require_finite(backend, value, f"the {kind} of {type(self).__name__}", samples=True)
        return value


@contextmanager
def located(index: int, layer: Layer) -> Iterator[None]:
    """Add a note to every error that is raised inside, saying in which layer of a flow it happened."""
    try:
        yield
    except IResNetError as error:
        error.add_note(f"in layer {index} of the flow, {layer!r}")
        raise
