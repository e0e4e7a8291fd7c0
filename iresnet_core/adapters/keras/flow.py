"""Flows as Keras models: densities that train by `fit`, sample and go to the core."""

import os
from collections.abc import Sequence
from typing import Any, Self

import keras

import iresnet_core as core
from iresnet_core.adapters.keras.fitting import PreparedModel
from iresnet_core.adapters.keras.layer import FlowLayer, require_layers
from iresnet_core.adapters.keras.replicas import own_seed
from iresnet_core.adapters.keras.residual import InvertibleResidual
from iresnet_core.backends import get_backend
from iresnet_core.branches import require_context, require_taken
from iresnet_core.common import require_shape
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.files import save

__all__ = ["FlowModel"]


class _NegativeMean(keras.losses.Loss):
    """Mean of the negative predictions, weighted by the samples' weights."""

    def __init__(self) -> None:
        super().__init__(name="negative_mean", reduction="sum_over_batch_size")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the negative predictions."""
        return -y_pred


def _pair(x: Any) -> tuple[Any, Any]:
    """Samples and conditioning, of a pair of them or of samples alone."""
    if isinstance(x, list | tuple) and len(x) == 2 and all(hasattr(part, "shape") for part in x):
        return x[0], x[1]
    return x, None


@keras.saving.register_keras_serializable(package="iresnet_core")
class FlowModel(PreparedModel):
    """A normalising flow: layers with a standard normal base density.

    Parameters
    ----------
    layers : sequence of FlowLayer
        In the order in which samples go through them.
    event_shape : sequence of int
        Shape of one sample, channels last.
    terms : int, optional
        Jacobian products a probe in training, where the blocks are too wide for the exact determinant; by default those
        of `logdet` without errors: 1 for blocks of dense layers, 4 for others.
    penalty : float
        Weight of `spectral_penalty` in the loss.
    seed : int, optional
        Seed of the probes; by default drawn from Keras' own, so that `keras.utils.set_random_seed` decides it.

    Raises
    ------
    ShapeError
        If the layers do not fit each other.
    InvalidArgumentError
        If an entry is no layer of a flow.

    Notes
    -----
    A flow with conditional blocks takes pairs: ``model((x, context))``, ``fit((x, context))``; its methods take
    ``context``. ``model(x)`` and `predict` return the log-density (batch,) in nats. The loss of `fit` and `evaluate` is
    its negative mean, weighted by `sample_weight`, plus what regularizers of the layers add; there are no targets. In
    training the value is a true estimate (not a surrogate), and the gradient that of its expectation.

    Examples
    --------
    >>> import numpy as np
    >>> block = InvertibleResidual([keras.layers.Dense(8, activation="elu"), keras.layers.Dense(2)], coeff=0.9)
    >>> flow = FlowModel([block], event_shape=(2,))
    >>> tuple(flow.log_prob(np.zeros((3, 2))).shape)
    (3,)
    """

    def __init__(
        self,
        layers: Sequence[FlowLayer],
        event_shape: Sequence[int],
        *,
        terms: int | None = None,
        penalty: float = 0.0,
        seed: int | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        super().__init__(dtype=policy.variable_dtype, **kwargs)
        self.flow_layers = require_layers(layers)
        self.event_shape = require_shape(event_shape, "event_shape")
        self.terms, self.penalty, self.seed = terms, penalty, seed
        self._negative = _NegativeMean()
        self.seed_generator = keras.random.SeedGenerator(seed)
        shape: Any = (None, *self.event_shape)
        for index, layer in enumerate(self.flow_layers):
            try:
                if not layer.built:
                    layer.build(shape)
                shape = layer.compute_output_shape(shape)
            except core.IResNetError as error:
                error.add_note(f"in layer {index} of the flow, {layer.name!r}")
                raise
        self.latent_shape = tuple(shape[1:])
        self.built = True

    # --- Keras ---

    def call(self, x: Any, training: bool = False) -> Any:
        """Return the log-density (batch,) of samples x (batch, *event_shape), in nats; or of a pair (x, context)."""
        return self.log_prob(*_pair(x), training=training)

    def compile(self, optimizer: Any = "rmsprop", **options: Any) -> None:
        """Choose the optimizer; options as those of `keras.Model.compile`, but for losses and metrics.

        Raises
        ------
        InvalidArgumentError
            If a loss or metrics are given, which compare predictions with targets.
        """
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if options.get(name) is not None:
                raise InvalidArgumentError(
                    f"compile: a flow takes no {name}, got {options[name]!r}. There are no targets; its loss is the "
                    "mean of the negative log-densities. For another one write a training loop with log_prob."
                )
        super().compile(optimizer=optimizer, **options)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the model was that was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return (batch,)."""
        paired = isinstance(input_shape[0], list | tuple)
        return (input_shape[0][0] if paired else input_shape[0],)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return the mean of the negative log-densities `y_pred`, with regularizers and the penalty."""
        loss = self._negative(y_pred, y_pred, sample_weight)
        added = [keras.ops.sum(extra) for extra in self.losses]
        if self.penalty and training:
            added.append(self.spectral_penalty(self.penalty))
        for extra in added:  # through the same mean, which knows of replicas
            loss = loss + self._single(extra)
        return loss

    def _single(self, value: Any) -> Any:
        negative = keras.ops.reshape(-keras.ops.cast(value, self.compute_dtype), (1,))
        return self._negative(negative, negative)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "trainable": self.trainable,
            "layers": [keras.saving.serialize_keras_object(layer) for layer in self.flow_layers],
            "event_shape": list(self.event_shape),
            "terms": self.terms,
            "penalty": self.penalty,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the model and its layers."""
        return cls(**{**config, "layers": [keras.saving.deserialize_keras_object(c) for c in config["layers"]]})

    # --- the flow ---

    @property
    def initialized(self) -> bool:
        """Whether every ActNorm has its parameters."""
        return all(layer.initialized for layer in self.flow_layers)

    def initialize(self, x: Any, context: Any = None) -> Self:
        """Initialise from samples x (batch, *event_shape) what depends on data and is not initialised yet.

        Returns the model; a hundred samples or more say what mean and variance are.
        """
        x, context = _pair(x) if context is None else (x, context)
        self._require_taken(context)
        x = self._tensor(x)
        with get_backend(x).no_grad():
            for layer in self.flow_layers:
                x = layer.initialize(x, context)
        return self

    def certify(self) -> Self:
        """Certify the weights that changed since they were certified last; returns the model.

        Only compiled functions of your own need the call; see `InvertibleResidual`.
        """
        for layer in self.flow_layers:
            layer.certify()
        return self

    def encode(
        self,
        x: Any,
        context: Any = None,
        *,
        training: bool = False,
        logdet: bool = False,
        errors: bool = False,
        **options: Any,
    ) -> Any:
        """Return the latents of samples, with `logdet` also log|det| of the Jacobian.

        Parameters
        ----------
        x : tensor or array (batch, *event_shape)
            Samples.
        context : tensor or array (batch, features), optional
            The conditioning, for flows with conditional blocks.
        training : bool
            With the weights and the fixed number of products of a training step.
        logdet : bool
            Return the pair of latents and log-determinant.
        errors : bool
            The log-determinant as the core's `LogDet` (value, std_error, bias_bound, products, method, reason).
        **options
            As in `iresnet_core.Flow.log_prob`. Otherwise as many products are taken as certify 1e-3 nats a block.

        Returns
        -------
        z : tensor (batch, *latent_shape)
            Latents.
        logdet : tensor (batch,) or LogDet
            In nats.
        """
        x = self._tensor(x)
        self._require_initialized(x, context, training)
        flow = self._core(context, training=training)
        if not logdet:
            return flow(x)
        out = flow.forward(x, **self._options(x, training and not errors, options))
        return out.value, out.logdet if errors else out.logdet.value

    def log_prob(
        self, x: Any, context: Any = None, *, training: bool = False, errors: bool = False, **options: Any
    ) -> Any:
        """Return the log-density (batch,) in nats, or with `errors` the core's `LogProb`; options as in `encode`."""
        x = self._tensor(x)
        self._require_initialized(x, context, training)
        flow = self._core(context, training=training)
        result = flow.log_prob(x, **self._options(x, training and not errors, options))
        return result if errors else result.value

    def inverse(self, z: Any, context: Any = None, *, errors: bool = False, **options: Any) -> Any:
        """Return the samples (batch, *event_shape) of latents z, differentiable; with `errors` the core's `Inverse`.

        Options as in `iresnet_core.invert`; raises NotConvergedError if a sample has not converged.
        """
        result = self._core(context).inverse(self._tensor(z), **options)
        return result if errors else result.value

    def sample(self, n: int, context: Any = None, *, errors: bool = False, **options: Any) -> Any:
        """Draw n samples, without gradient; with `errors` the core's `Inverse`.

        `context` has n rows, or one for all samples.
        """
        if context is not None:
            context = self._tensor(context)
            context = keras.ops.repeat(context, n, axis=0) if context.shape[0] == 1 else context
        like = keras.ops.zeros((), dtype=self.compute_dtype)
        backend = get_backend(like)
        with backend.no_grad():
            result = self._core(context).sample(
                n, rng=backend.generator(self.seed_generator.next()), like=like, **options
            )
        return result if errors else result.value

    @property
    def lipschitz(self) -> float:
        """Largest certified constant of a block, with the present weights; 0 without blocks."""
        return max((block.lipschitz for block in self._blocks()), default=0.0)

    def spectral_penalty(self, weight: float) -> Any:
        """Return `weight` times the sum of the squared spectral norms of all kernels (report, Eq. 11)."""
        blocks = [block for block in self._blocks() if block.declared is None]
        if not blocks:
            raise InvalidArgumentError(
                "the flow has no weights to penalise: it has no block, or only blocks with a declared constant."
            )
        return sum((block.spectral_penalty(weight) for block in blocks[1:]), blocks[0].spectral_penalty(weight))

    def to_core(self, context: Any = None) -> core.Flow:
        """Return the flow of the core with certified weights, as constants.

        A conditional flow needs `context` (1, features) and becomes the flow under that condition.
        """
        for block in self._blocks():
            if block.context_features is not None:
                require_context(context, block.context_features, single=True)
        with get_backend(keras.ops.zeros(())).no_grad():
            return self._core(context)

    def save_core(self, path: str | os.PathLike[str], context: Any = None) -> None:
        """Write the flow with certified weights to a file that `iresnet_core.load` reads on every backend."""
        save(self.to_core(context), path)

    def _blocks(self) -> list[InvertibleResidual]:
        return [layer for layer in self._flatten_layers() if isinstance(layer, InvertibleResidual)]

    def _core(self, context: Any = None, *, training: bool = False) -> core.Flow:
        """Return the core's flow with the present variables."""
        self._require_taken(context)
        layers = [layer.core_layer(training=training, context=context) for layer in self.flow_layers]
        return core.Flow(layers, self.event_shape)

    def _require_taken(self, context: Any) -> None:
        """Refuse a condition that would have no effect."""
        require_taken(context, (layer for layer in self._flatten_layers() if isinstance(layer, FlowLayer)))

    def _tensor(self, x: Any) -> Any:
        return keras.ops.convert_to_tensor(x, dtype=self.compute_dtype)

    def _options(self, x: Any, unseen: bool, options: dict[str, Any]) -> dict[str, Any]:
        """Fill in the options of `logdet`; errors that are `unseen`, in training, are not computed."""
        backend = get_backend(x)
        if unseen and options.get("tol") is None:
            options = {"errors": False, **options}
        if unseen and self.terms is not None and not {"terms", "tol", "method"} & set(options):
            options = {"terms": self.terms, **options}
        if "rng" not in options and "noise" not in options:
            options = {"rng": backend.generator(own_seed(self.seed_generator.next())), **options}
        return options

    def _require_initialized(self, x: Any, context: Any, training: bool) -> None:
        """Initialise in a training pass outside of `fit`; a compiled program cannot."""
        if not training or self.initialized:
            return
        if get_backend(x).is_tracing(x):
            raise InvalidArgumentError(
                "an ActNorm of this flow has not been initialised, and a compiled program cannot do that: call "
                "initialize(x) with a batch of data first."
            )
        self.initialize(x, context)
