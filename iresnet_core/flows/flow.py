"""Flows: layers in a row, their log-densities and samples, and how the layers' errors add up."""

import math
from collections.abc import Sequence
from typing import Any, Self, Unpack, cast

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.common import (
    require_floating,
    require_nonnegative_int,
    require_options,
    require_positive_int,
    unit_roundoff,
)
from iresnet_core.determinant import LOGDET_OPTIONS, LogDetOptions, SampleSeed, own_seed, uses_own_seeds
from iresnet_core.errors import DtypeError, InvalidArgumentError, ShapeError, UnknownArrayError
from iresnet_core.flows.bases import LogProb, checked_base, latents, scored
from iresnet_core.flows.composition import distributed, summed
from iresnet_core.flows.condition import Condition, Labels, agreed, as_condition, require_condition
from iresnet_core.flows.latent_density import Base
from iresnet_core.flows.layer import ForwardOptions, InverseOptions, Layer, Shape, Transformed, located
from iresnet_core.flows.preimage import Preimage, begun, finished, uncertified
from iresnet_core.flows.recovered_inputs import RecoveredInputs, passed
from iresnet_core.flows.sampling import drawn
from iresnet_core.flows.sequence import LayerSequence, event_shape_of, in_shape, number_and_shape
from iresnet_core.flows.taking_data import TakingData
from iresnet_core.flows.wrap import require_periodic
from iresnet_core.results import Inverse, LogDet

__all__ = ["Flow", "LogProb", "require_no_base"]


class Flow(LayerSequence, TakingData, Layer):
    """``z = f(x) = f_k(... f_1(x))`` with ``log p(x) = log N(z; 0, I) + log|det J_f(x)|``.

    Put an `ActNorm` before every `ResidualBlock` and one at the end, and a `Logit` in front of images; `initialize`
    sets the parameters of the ActNorms from data. `log_prob` scores samples, `sample` draws them. A flow is itself a
    layer, so that flows can be nested.

    Parameters
    ----------
    layers : sequence of Layer
        The layers in the order of `forward`; at least one.
    event_shape : tuple of int or int, optional
        Shape of one sample, without the batch axis. An int n stands for (n,). By default the layers tell it, such as a
        `ResidualBlock`.
    base : "normal", Base, or an object of your own
        Density of the latents. The parameters of a `DiagonalNormal`, `FullNormal`, `NormalMixture`, `StudentT` or
        `Uniform` are then parameters of the flow. An object of your own has ``log_prob(z)`` (batch,) and ``sample(n,
        rng, like)``.
    condition : Condition, Dense or Chain, optional
        An embedding of the condition that all layers share. Without it the condition itself enters the layers.

    Attributes
    ----------
    layers : tuple of Layer
        The layers.
    event_shape, latent_shape : tuple of int
        Shape of one sample and of its latent.

    Raises
    ------
    ShapeError
        If the layers do not fit each other, `event_shape` or the map of the condition; a note says which.
    InvalidArgumentError
        If an entry is not a layer, or is a flow with a base of its own, or if there is no such base.
    MixedBackendsError, DtypeError
        If the parameters come from two backends or have two dtypes.

    Notes
    -----
    Errors compose. Standard errors of independent log-determinants add in quadrature; their bias bounds and products
    add; an error in the argument of a layer's inverse grows by the Lipschitz constant of that inverse.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core.flows.actnorm import ActNorm
    >>> flow = Flow([ActNorm()], event_shape=(2,)).initialize(np.array([[0.0, 0.0], [2.0, 4.0]]))
    >>> flow.log_prob(np.array([[1.0, 2.0]])).value.round(6)  # -log(2 pi) - log 1 - log 2
    array([-2.531024])
    """

    layers: tuple[Layer, ...]
    event_shape: Shape
    latent_shape: Shape
    base: Any
    arrays: tuple[Array, ...] = ()
    _takes: tuple[int | None, Labels | None]

    def __init__(
        self,
        layers: Sequence[Layer],
        event_shape: int | Sequence[int] | None = None,
        *,
        base: Any = "normal",
        condition: Any = None,
    ) -> None:
        start = event_shape_of(layers, event_shape)
        if not start:
            raise ShapeError("event_shape is the shape of one sample, with at least one axis; got ().")
        shape, placed = start, []
        for index, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise InvalidArgumentError(f"entry {index} of the layers is no layer but {type(layer).__name__}.")
            with located(index, layer):
                require_no_base(layer)
                placed.append(layer.at_shape(shape))
                shape = placed[-1].output_shape(shape)
        if not placed:
            raise InvalidArgumentError("a flow needs at least one layer.")
        condition, takes = as_condition(condition), agreed(placed)
        if condition is not None:
            if takes[0] != condition.width:
                takers = "no layer takes a condition" if takes[0] is None else f"the layers take {takes[0]}"
                raise ShapeError(f"the map of the condition returns {condition.width} entries, but {takers}.")
            takes = condition.features, condition.labels
        base = checked_base(base, shape)
        parts = [*placed, *([] if condition is None else [condition]), *([base] if isinstance(base, Base) else [])]
        self._keep(
            layers=tuple(placed),
            event_shape=start,
            latent_shape=shape,
            base=base,
            residual_blocks=sum(layer.residual_blocks for layer in placed),
            # Asked for many times in every call.
            arrays=tuple(array for part in parts for array in part.arrays),
            condition=condition,
            _takes=takes,
        )
        if self.arrays:
            get_backend(*self.arrays)
            dtypes = {str(array.dtype) for array in self.arrays}
            if len(dtypes) > 1:
                raise DtypeError(f"the parameters have the dtypes {', '.join(sorted(dtypes))}; use flow.astype(dtype).")

    def __repr__(self) -> str:
        condition = "" if self.condition is None else f", condition={self.condition!r}"
        return f"Flow([{', '.join(map(repr, self.layers))}], event_shape={self.event_shape}{condition})"

    @property
    def context_features(self) -> int | None:
        """Entries of a condition; None for a flow that takes none."""
        return self._takes[0]

    @property
    def context_labels(self) -> Labels | None:
        """Labels that a condition may hold, see `Condition`."""
        return self._takes[1]

    def _with(self, layers: Sequence[Layer], condition: Condition | None) -> Self:
        """Return the flow of other layers, with the same shapes and base."""
        return type(self)(layers, self.event_shape, base=self.base, condition=condition)

    def _given(self, backend: Backend, rows: Array, single: bool) -> Self:
        return self._with([layer._under(backend, rows) for layer in self.layers], None)

    @property
    def inverse_lipschitz(self) -> Any:
        """Product of the layers' constants."""
        return math.prod(layer.inverse_lipschitz for layer in self.layers)

    @property
    def forward_lipschitz(self) -> Any:
        """Product of the layers' constants."""
        return math.prod(layer.forward_lipschitz for layer in self.layers)

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return `latent_shape`, if the samples have `event_shape`."""
        if tuple(input_shape) != self.event_shape:
            raise ShapeError(f"the flow takes samples of shape {self.event_shape}, got {tuple(input_shape)}.")
        return self.latent_shape

    def input_shape(self, output_shape: Sequence[int]) -> Shape:
        """Return `event_shape`, if the latents have `latent_shape`."""
        if tuple(output_shape) != self.latent_shape:
            raise ShapeError(f"the flow takes latents of shape {self.latent_shape}, got {tuple(output_shape)}.")
        return self.event_shape

    def at_shape(self, event_shape: Shape) -> "Flow":
        """Return the flow itself, which knows its shape."""
        self.output_shape(event_shape)
        return self

    def astype(self, dtype: Any) -> Self:
        """Return the flow with parameters of another dtype."""
        condition = None if self.condition is None else self.condition.astype(dtype)
        base = self.base.astype(dtype) if isinstance(self.base, Base) else self.base
        layers = [layer.astype(dtype) for layer in self.layers]
        return type(self)(layers, self.event_shape, base=base, condition=condition)

    def log_prob(self, x: Array, context: Array | None = None, **options: Unpack[LogDetOptions]) -> LogProb:
        """Return the log-density of samples, under their conditions where the flow takes any.

        Parameters
        ----------
        x : array (batch, *event_shape)
            Samples.
        context : array (batch, features), or (features,) for all samples
            Conditions, see `given`.
        method, tol, probes, noise, rng, unbiased, terms, probe_kind, control_variate, errors, exact_up_to
            As in `logdet`, for every residual block, with these differences. `tol` is for the sum over all blocks, and
            each block gets an equal part of it. By default `rng` is "sample", and for training (``errors=False``) and
            unbiased answers the framework's generator. An int is a seed from which every block gets a stream of its
            own; a generator is used by one block after the other. `noise` is a list with one entry for each residual
            block, in the order of `forward`; the entries have to be independent for the standard errors to add in
            quadrature.

        Returns
        -------
        LogProb
            In nats. The cost is that of `forward`.

        Raises
        ------
        ShapeError, DtypeError, MixedBackendsError, NonFiniteError, InvalidArgumentError
            As `forward`; NonFiniteError also where a log-density is below the range of the dtype. A compiled program
            looks at no value, and returns -inf.
        """
        require_options(options, LOGDET_OPTIONS)
        return self._for(x, context)._scored(x, cast(ForwardOptions, options))

    def _scored(self, x: Array, options: ForwardOptions) -> LogProb:
        """As `log_prob`, with options that are known."""
        require_periodic(self.layers, self.base)
        z, logdet = self._checked_forward(x, options)
        backend = get_backend(z)
        with backend.full_precision(), backend.batch_of_unknown_size(z):
            return scored(backend, z, logdet, self.base)

    def bits_per_dim(
        self, x: Array, context: Array | None = None, *, levels: int = 256, **options: Unpack[LogDetOptions]
    ) -> LogProb:
        """Return the negative log-density in bits per dimension: log2(levels) - log p(x) / (d log 2).

        Parameters
        ----------
        x : array (batch, *event_shape)
            Samples scaled to [0, 1] from `levels` grey levels, dequantised.
        context : array (batch, features), or (features,) for all samples
            As in `log_prob`.
        levels : int
            Number of levels; 1 for data that were never quantised.
        **options
            As in `log_prob`.

        Returns
        -------
        LogProb
            All but products and method in bits per dimension.
        """
        shift = math.log2(require_positive_int(levels, "levels"))
        scale = 1 / (math.prod(self.event_shape) * math.log(2))
        nats = self.log_prob(x, context, **options)
        backend = get_backend(nats.value)
        value = shift - scale * nats.value
        rounding = 4 * unit_roundoff(backend, value.dtype) * (backend.xp.abs(value) + shift)
        bias = backend.stop_gradient(scale * nats.bias_bound + rounding)
        return nats._replace(value=value, std_error=scale * nats.std_error, bias_bound=bias)

    def sample(
        self,
        n: int | Sequence[int] = (),
        context: Array | None = None,
        *,
        rng: Any = None,
        like: Array | None = None,
        log_prob: bool = False,
        **options: Any,
    ) -> Any:
        """Draw samples: the preimages of latents of the base density.

        Parameters
        ----------
        n : int or tuple of int
            The number of samples; 0 gives an empty batch. A tuple is the shape of the batch, and () gives one sample
            without a batch axis.
        context : array (n, features), or (features,) for all samples
            As in `log_prob`.
        rng : None, int or the backend's own generator
            An int is a seed; None draws from the framework's own global generator.
        like : array, optional
            Gives backend, dtype and device; default the first parameter.
        log_prob : bool
            Return the log-densities too, from the same pass: no layer is solved twice.
        **options
            As in `inverse`; with `log_prob` those of `log_prob` as well.

        Returns
        -------
        Inverse or Drawn
            The samples with a certified bound on their distances to the exact preimages; with `log_prob` the pair of
            these and their `LogProb`.

        Raises
        ------
        InvalidArgumentError
            If `n` is negative or no whole number.
        UnknownArrayError
            If the flow has no parameters and `like` is not given.
        NotConvergedError
            As `inverse`.
        """
        n, shape = number_and_shape(n)
        like, backend, count = self._drawing(n, like)
        require_condition(context, self.context_features, "this Flow")  # before random numbers are used up
        if not log_prob:
            found: Any = self.inverse(self._latents(backend, count, like, rng), context, **options)
        else:
            rng = backend.generator(rng)
            found = drawn(self, self._latents(backend, count, like, rng), context, options, rng=rng)
        return in_shape(backend, found, shape)

    def _drawing(self, n: Any, like: Array | None) -> tuple[Array, Backend, Any]:
        """Return an array like the samples that are to be drawn, its backend, and their checked number."""
        if like is None:
            if not self.arrays:
                raise UnknownArrayError("the flow has no parameters to tell the backend from; pass like=, an array.")
            like = self.arrays[0]
        backend = get_backend(like, *self.arrays)
        require_floating(backend, like, "`like`")
        return like, backend, require_nonnegative_int(n, "n") if n is None or backend.knows_size(n) else n

    def _latents(self, backend: Backend, count: Any, like: Array, rng: Any) -> Array:
        return latents(self.base, backend, (count, *self.latent_shape), like, rng)

    def _map(self, backend: Backend, x: Array) -> Array:
        for index, layer in enumerate(self.layers):
            with located(index, layer):
                x = layer._map(backend, x)
        return x

    def _forward(self, backend: Backend, x: Array, options: ForwardOptions) -> Transformed:
        logdets: list[LogDet] = []
        if "rng" not in options:
            options = {**options, "rng": SampleSeed(x) if uses_own_seeds(options) else None}
        elif isinstance(options["rng"], str):
            options = {**options, "rng": own_seed(options, x[: options.get("part"), ...])}
        record, shared = options.get("checkpoint"), distributed(backend, self.layers, options)
        if isinstance(record, RecoveredInputs):
            x, logdets = passed(backend, self.layers, x, shared, record)
            return Transformed(x, summed(backend, self.layers, logdets, x.dtype))
        for index, (layer, own) in enumerate(zip(self.layers, shared, strict=True)):
            with located(index, layer):
                x, logdet = layer._forward(backend, x, own)
                logdets.append(logdet)
        return Transformed(x, summed(backend, self.layers, logdets, x.dtype))

    def _inverse(self, backend: Backend, z: Array, options: InverseOptions) -> Inverse:
        state = self._back(backend, begun(backend, z), options)
        return finished(backend, state) if options.get("errors", True) else uncertified(backend, state)

    def _back(self, backend: Backend, state: Preimage, options: InverseOptions) -> Preimage:
        for index in reversed(range(len(self.layers))):
            with located(index, self.layers[index]):
                state = self.layers[index]._back(backend, state, options)
        return state

    def _back_with_logdet(
        self, backend: Backend, state: Preimage, options: InverseOptions, of_logdet: ForwardOptions
    ) -> tuple[Preimage, LogDet]:
        logdets: list[LogDet] = []
        own = distributed(backend, self.layers, of_logdet)
        for index in reversed(range(len(self.layers))):
            with located(index, self.layers[index]):
                state, logdet = self.layers[index]._back_with_logdet(backend, state, options, own[index])
                logdets.insert(0, logdet)
        return state, summed(backend, self.layers, logdets, state.value.dtype)

    def _with_rounding(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        error: Any = None
        for layer in self.layers:
            value, rounding = layer._with_rounding(backend, x)
            error = rounding if error is None else layer._spread(backend, x, error)[0] + rounding
            x = value
        return x, error * (1 + 1e-15)

    def _spread(self, backend: Backend, x: Array, error: Array) -> tuple[Array, Array]:
        total = backend.xp.zeros_like(error)
        for layer in self.layers:
            moved, change = layer._spread(backend, x, error)
            x, error, total = layer._map(backend, x), moved, total + change
        return error * (1 + 1e-14), total * (1 + 1e-14)


def require_no_base(layer: Any) -> None:
    """Refuse a flow with a base as a part of another layer, of which only the map counts."""
    if isinstance(layer, Flow) and not isinstance(layer.base, str):
        raise InvalidArgumentError(
            f"a flow inside of another layer is a map, whose base {layer.base!r} has no effect: give the base to "
            "the outer flow, Flow(..., base=), and none to the inner one."
        )
