"""Flows: one set of methods with one meaning in both frameworks."""

import os
import warnings
from collections.abc import Sequence
from typing import Any, Self, cast

import iresnet_core as core
from iresnet_core.adapters.shared.base import BaseTaking
from iresnet_core.adapters.shared.condition import require_taken, rows_of, taken
from iresnet_core.adapters.shared.placing import bound_shapes, placed
from iresnet_core.adapters.shared.residual import ResidualMethods
from iresnet_core.adapters.shared.sequence import SequenceMethods, flow_shape
from iresnet_core.adapters.shared.taking_data import TakingDataMethods
from iresnet_core.adapters.shared.training_loss import TrainingMethods
from iresnet_core.adapters.shared.weight import training_layers
from iresnet_core.backends import Array, get_backend
from iresnet_core.common import require_nonnegative
from iresnet_core.determinant import LogDetOptions, uses_own_seeds
from iresnet_core.errors import EstimateWarning, InvalidArgumentError, ShapeError
from iresnet_core.files import save
from iresnet_core.flows import RecoveredInputs, Shape, require_share, training_log_prob

__all__ = ["FlowMethods"]

# Standard error of a log-determinant, in nats, above which the form without errors says something.
LARGEST_SILENT_ERROR = 0.05


class FlowMethods(SequenceMethods, TakingDataMethods, BaseTaking, TrainingMethods):
    """A normalising flow: layers with a base density, by default the standard normal one.

    Attributes
    ----------
    event_shape, latent_shape : tuple of int
        Shape of one sample and of its latent.
    terms : int or None
        Jacobian products per probe in training.
    penalty : float
        Weight of the spectral penalty in the loss.
    share : float or None
        Part of a batch whose log-determinants `training_loss` takes.
    precision : {"float32", "tf32", "bfloat16"}
        Of the products in `training_loss` but for those of norms, on PyTorch: TF32 on a GPU, bfloat16 on a processor.
        The arrays stay in float32, and evaluations in full precision.
    checkpoint : bool or "inverse"
        Whether blocks keep only their inputs for the way back, or find them again; `recovered` says how well.
    """

    event_shape: Shape
    latent_shape: Shape
    checkpoint: bool | str = False
    recovered: RecoveredInputs | None = None
    _has_warned = False

    def __init__(
        self,
        layers: Sequence[Any],
        event_shape: int | Sequence[int] | None = None,
        *,
        terms: int | None = None,
        penalty: float = 0.0,
        share: float | None = None,
        checkpoint: bool | str = False,
        condition: Any = None,
        base: Any = "normal",
        **options: Any,
    ) -> None:
        """Make the flow.

        Parameters
        ----------
        layers : sequence of FlowLayer
            The layers, in the order in which samples go through them.
        event_shape : sequence of int or int, optional
            Shape of one sample, with the channels first in PyTorch and last in Keras. An int n stands for (n,). By
            default the layers tell it, if they know it.
        terms : int, optional
            Jacobian products per probe in training, where the blocks are too wide for the exact determinant. By default
            as many as `logdet` takes without errors: 1 for blocks of dense layers, and 4 for others.
        penalty : float
            Weight of `spectral_penalty` in `training_loss`, and in the loss of Keras' `fit`.
        share : float, optional
            The part of a batch, drawn at random, whose log-determinants `training_loss` and Keras' `fit` compute. By
            default it is a quarter, but at least 256 entries of samples, and the whole batch where that is half of it
            or more. It hardly adds to the noise of a gradient.
        checkpoint : bool or "inverse"
            With True the gradient of a log-density keeps only the inputs of the blocks, and computes each block again
            on the way back. Memory then hardly grows with the number of blocks, and a step takes half as long again.
            Values and gradients are the same up to rounding. With "inverse" only one input of eight blocks in a row is
            kept, and the others are found again by inversion; in eager PyTorch, see
            `iresnet_core.flows.RecoveredInputs`.
        condition : Condition or net, optional
            An embedding of the condition that all layers share. Its output has as many entries as the
            `context_features` of the layers.
        base : "normal", "diagonal-normal", "student-t", Base, or a density
            Density of the latents. It is a density of the core such as `DiagonalNormal`, or an object with
            ``log_prob(z)`` and ``sample(n, rng, like)``. ``Base(density, learned=False)`` is not trained. By name there
            are `DiagonalNormal` and `StudentT` with 5 degrees of freedom, which begin with mean 0 and scale 1 in every
            entry and are trained.
        **options
            Options of a Keras model, and `seed`, the seed of the probes and samples. By default it is drawn from Keras'
            own generator, so that `keras.utils.set_random_seed` determines it. A PyTorch module has no options.

        Raises
        ------
        ShapeError
            If the layers do not fit each other, or the base does not fit the latents.
        InvalidArgumentError
            If an entry is not a layer of a flow, or the base is not a density.
        """
        super().__init__(**options)
        self.condition = None if condition is None else self._taken_condition(condition)
        self._take_layers(layers)
        self.event_shape = flow_shape(self._flow_layers(), event_shape)
        self.terms, self.penalty = terms, require_nonnegative(penalty, "penalty")
        self.share = require_share(share)
        if not isinstance(checkpoint, bool) and checkpoint != "inverse":
            raise InvalidArgumentError(f"checkpoint is True, False or 'inverse', got {checkpoint!r}.")
        self.checkpoint = checkpoint
        self._shapes = bound_shapes(self._flow_layers(), self.event_shape)
        self.latent_shape = self._shapes[-1]
        self._keep_base(base, self.latent_shape)

    # --- what an adapter says ---

    def _take_layers(self, layers: Sequence[Any]) -> None:
        """Check the layers and keep them where the framework finds them."""
        raise NotImplementedError

    def _flow_layers(self) -> list[Any]:
        """Return the layers."""
        raise NotImplementedError

    def _all_layers(self) -> list[Any]:
        """Return the layers and those inside of them."""
        raise NotImplementedError

    def _is_training(self, training: bool | None) -> bool:
        """Return the mode of a pass: as asked, and by default the mode that the flow is in."""
        raise NotImplementedError

    def _received(self, x: Any) -> Array:
        """Return an argument as an array of the framework, in the dtype of the parameters."""
        raise NotImplementedError

    def _received_context(self, context: Any) -> Any:
        """Return conditions in the same way; whole numbers, which may be labels, as they are. None for None."""
        raise NotImplementedError

    def _taken_condition(self, condition: Any) -> Any:
        """Return a map of a condition as a Condition of the framework."""
        raise NotImplementedError

    def _samples(self, x: Any, context: Any) -> tuple[Any, Any]:
        """Return samples and conditioning; a framework may take both as a pair."""
        return x, context

    def _like(self) -> Array:
        """Return an array that gives dtype and device."""
        raise NotImplementedError

    def _probe_generator(self, x: Array) -> Any:
        """Return the generator of the random probes of one pass."""
        raise NotImplementedError

    def _sample_generator(self) -> Any:
        """Return the generator of the latents of one draw."""
        raise NotImplementedError

    # --- densities and samples ---

    def encode(
        self,
        x: Array,
        context: Array | None = None,
        *,
        logdet: bool = False,
        training: bool | None = None,
        errors: bool = False,
        **options: Any,
    ) -> Any:
        """Return latents z = f(x), and with `logdet` log|det J_f(x)| too; differentiable by parameters and x.

        Parameters
        ----------
        x : array (batch, *event_shape)
            Samples.
        context : array (batch, features), optional
            The conditioning of conditional blocks; in evaluation one row may stand for all samples.
        logdet : bool
            Return the pair of latents and log-determinant; alone, the latents cost no product for it.
        training : bool, optional
            Compute with the weights of training, whose norms are estimated in part, and the fixed number of products of
            a training step. Default: the mode of a PyTorch module; False in Keras.
        errors : bool
            Return the core's `LogDet` (value, std_error, bias_bound, products, method, reason) instead of its value.
        **options
            As in `iresnet_core.Flow.log_prob`. In training the default is a fixed number of products (`terms`), and
            probes come from the framework's generator. In evaluation each block takes as many products as certify 1e-3
            nats, and every sample has probes of its own, which do not depend on the batch.

        Returns
        -------
        z : array (batch, *latent_shape)
            Latents.
        logdet : array (batch,) or LogDet
            In nats; an `EstimateWarning` says once where the noise that the array leaves out is above 0.05 nats. In
            training it is a true estimate, not a surrogate. Its gradient has no bias but that of the truncation, which
            docs/log-determinant.md states; with ``unbiased=True`` it has none.
        """
        context = self._received_context(context)
        flow, x = self._prepared(x, context, training)
        with get_backend(x).own_dtype(x):
            if not logdet:
                return flow(x, taken(flow, context))
            out = flow.forward(x, taken(flow, context), **self._options(x, training, errors, options))
        return out.value, out.logdet if errors else self._without_errors(out.logdet, training)

    def log_prob(
        self,
        x: Array,
        context: Array | None = None,
        *,
        training: bool | None = None,
        errors: bool = False,
        **options: Any,
    ) -> Any:
        """Return log p_base(f(x)) + log|det J_f(x)| (batch,) in nats, or with `errors` the core's `LogProb`.

        Arguments as in `encode`. In training, NonFiniteError refuses samples so far out that their gradients would
        overflow in an optimiser; a compiled program gives them NaN instead, and no gradient.
        """
        context = self._received_context(context)
        flow, x = self._prepared(x, context, training)
        score = training_log_prob if self._is_training(training) else core.Flow.log_prob
        with get_backend(x).own_dtype(x):
            result = score(flow, x, context=taken(flow, context), **self._options(x, training, errors, options))
        return result if errors else self._without_errors(result, training)

    def inverse(
        self,
        z: Array,
        context: Array | None = None,
        *,
        training: bool | None = None,
        errors: bool = False,
        **options: Any,
    ) -> Any:
        """Return the samples (batch, *event_shape) of latents z, differentiable; with `errors` the core's `Inverse`.

        Parameters
        ----------
        z : array (batch, *latent_shape)
            Latents.
        context : array (batch, features), optional
            The conditioning.
        training : bool, optional
            As in `encode`.
        errors : bool
            Return the certified `error_bound` too.
        **options
            As in `iresnet_core.invert`.

        Raises
        ------
        NotConvergedError
            If a sample has not converged, outside of compiled programs.
        """
        context = self._received_context(context)
        flow = self._core(context, training)
        z = self._received(z)
        with get_backend(z).own_dtype(z):
            result = flow.inverse(z, taken(flow, context), errors=errors, **options)
        return result if errors else result.value

    def sample(
        self,
        n: int | Sequence[int] = (),
        context: Array | None = None,
        *,
        rng: Any = None,
        training: bool | None = None,
        errors: bool = False,
        log_prob: bool = False,
        **options: Any,
    ) -> Any:
        """Draw n samples (n, *event_shape), without gradient; with `errors` the core's `Inverse`.

        Parameters
        ----------
        n : int or tuple of int
            The number of samples. A tuple is the shape of the batch, and () is one sample without a batch axis.
        context : array (n, features), or (features,) or (1, features), optional
            One condition for each sample, or one for all.
        rng : int or the framework's own generator, optional
            Default: PyTorch's global generator; in Keras the seed of the model.
        log_prob : bool
            Return the pair of samples and log-densities (n,), from one pass; with `errors` the core's `Drawn`.
        training, errors, **options
            As in `inverse`, and if `log_prob` is true, also as in `log_prob`.
        """
        like = self._like()
        backend = get_backend(like)
        rng = self._sample_generator() if rng is None else rng
        with backend.no_grad(), backend.own_dtype(like):
            context = self._received_context(context)
            flow = self._core(context, training)
            options = {"errors": errors, "log_prob": log_prob, **options}
            result = flow.sample(n, taken(flow, context), rng=rng, like=like, **options)
        if errors:
            return result
        return (result.samples.value, result.log_prob.value) if log_prob else result.value

    # --- data and weights ---

    def certify(self) -> Self:
        """Certify the weights that changed since they were certified last; returns the flow.

        You do not have to call it. It only computes the certificates now, before the next evaluation needs them.
        """
        for layer in self._flow_layers():
            layer.certify()
        return self

    @property
    def lipschitz(self) -> float:
        """Largest certified constant of a block, with the present weights, in every mode; 0 without blocks."""
        return max((block.lipschitz for block in self._blocks()), default=0.0)

    # --- the core's flow ---

    def to_core(self, context: Array | None = None) -> core.Flow:
        """Return the flow of the core with certified weights, as constants.

        A conditional flow stays conditional, or, with a `context` of shape (features,) or (1, features), becomes the
        flow under that condition.

        Raises
        ------
        InvalidArgumentError
            If an ActNorm is not initialised, whose parameters say nothing yet.
        ShapeError
            If `context` has several rows.
        """
        if not self.initialized:
            raise InvalidArgumentError(
                "an ActNorm of this flow has not been initialised, so that the flow is not ready for use elsewhere: "
                "call initialize(x) with a batch of data, or train on one batch."
            )
        context = rows_of(self._received_context(context), self.condition)
        if context is not None and context.shape[0] != 1:
            raise ShapeError(
                f"a flow of the core under one condition: context must have one row, got {tuple(context.shape)}. Leave "
                "the context out, and the flow of the core takes it as log_prob(x, context)."
            )
        with get_backend(self._like()).no_grad():
            flow = self._core(context, training=False)
            context = taken(flow, context)
            return flow if context is None else flow.given(context)

    def save(self, path: str | os.PathLike[str], context: Array | None = None) -> None:
        """Write the certified flow to a safetensors file that `iresnet_core.load` reads on every backend.

        `context` as in `to_core`. Where the path ends in one of Keras' own suffixes (.keras, .h5), a Keras model is
        saved by Keras, with its optimizer.
        """
        save(self.to_core(context), path)

    def _blocks(self) -> list[ResidualMethods]:
        return [layer for layer in self._all_layers() if isinstance(layer, ResidualMethods)]

    def _core(self, context: Array | None = None, training: bool | None = None) -> core.Flow:
        """Return the core's flow with the present parameters."""
        self._require_taken(context)
        training = self._is_training(training)
        layers = placed(self._flow_layers(), self._shapes)
        if not all(layer._is_conditioned_by_core or not layer.takes_context for layer in self._all_layers()):
            context = self._entering(context)  # for layers of the caller's own
        weights = training_layers([c for layer, shape in layers for c in layer._capped_at(shape)]) if training else None
        condition = None if self.condition is None else self.condition.core_condition(checked=training)

        def made() -> core.Flow:
            inner = [layer._layer_at(shape, context, training=training, weights=weights) for layer, shape in layers]
            return core.Flow(inner, self.event_shape, base=self._core_base(), condition=condition)

        flow = made()
        if not training and self._take_reference(flow):
            flow = made()
            self._note_reference(flow)
        return flow

    def _entering(self, context: Any) -> Any:
        """Return what of a context enters the layers."""
        if context is None or self.condition is None:
            return context
        return self.condition.core_condition()(context, self._like())

    def _require_taken(self, context: Any) -> None:
        """Refuse a condition that would have no effect."""
        if context is not None:
            require_taken(context, self._all_layers())

    def _prepared(self, x: Any, context: Any, training: bool | None) -> tuple[core.Flow, Array]:
        """Return the core's flow and the samples as an array; in training, what depends on data is initialised."""
        x = self._received(x)
        if self._is_training(training) and not self.initialized:
            if get_backend(x).is_tracing(x):
                raise InvalidArgumentError(
                    "an ActNorm of this flow has not been initialised, and a compiled program cannot do that: call "
                    "initialize(x) with a batch of data before training."
                )
            self.initialize(x, context)
        return self._core(context, training), x

    def _options(self, x: Array, training: bool | None, errors: bool, options: dict[str, Any]) -> dict[str, Any]:
        """Fill in the options of `logdet`; in training, errors that nobody asks for are not computed."""
        training = self._is_training(training)
        options = {"checkpoint": self.checkpoint, **options}
        if options["checkpoint"] == "inverse":
            options["checkpoint"] = self.recovered = RecoveredInputs()
        if training and not errors and options.get("tol") is None:
            options = {"errors": False, **options}
        if training and self.terms is not None and not {"terms", "tol", "method"} & set(options):
            options = {"terms": self.terms, **options}
        # Otherwise the samples of an evaluation have seeds of their own.
        if (training or not uses_own_seeds(cast(LogDetOptions, options))) and not {"rng", "noise"} & set(options):
            options = {"rng": self._probe_generator(x), **options}
        return options

    def _without_errors(self, result: Any, training: bool | None) -> Array:
        """Return the value of a result; in evaluation, say once where its noise is not small."""
        deviation = result.std_error
        if self._has_warned or self._is_training(training) or deviation.shape[0] == 0:
            return result.value
        backend = get_backend(deviation)
        if not backend.is_tracing(deviation) and (largest := float(backend.xp.max(deviation))) > LARGEST_SILENT_ERROR:
            self._has_warned = True
            warnings.warn(
                f"log-determinants by method {result.method!r} have a standard error of up to {largest:.2g} nats a "
                "sample, which this form of the answer leaves out. Pass errors=True to see it, probes= or tol= to "
                "lower it, or method='exact'. This is said once for each flow.",
                EstimateWarning,
                stacklevel=3,
            )
        return result.value
