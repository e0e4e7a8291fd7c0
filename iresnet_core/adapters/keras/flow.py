"""Flows as Keras models: densities that train by `fit`, sample and go to the core."""

import math
import os
from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np

from iresnet_core.adapters.keras.base import Base
from iresnet_core.adapters.keras.fitting import PreparedModel
from iresnet_core.adapters.keras.layer import FlowLayer, KerasHooks, require_different_layers
from iresnet_core.adapters.keras.onnx_files import write_flow
from iresnet_core.adapters.keras.replicas import own_seed
from iresnet_core.adapters.keras.tensors import checkpointed
from iresnet_core.adapters.shared import warn_deprecated
from iresnet_core.adapters.shared.flow import FlowMethods
from iresnet_core.backends import get_backend
from iresnet_core.common import require_positive_int
from iresnet_core.errors import InvalidArgumentError

__all__ = ["BitsPerDim", "Flow"]

# Files with one of these endings are Keras' own.
_KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


class _NegativeMean(keras.losses.Loss):
    """Mean of the negative predictions, weighted by the samples' weights."""

    def __init__(self) -> None:
        super().__init__(name="negative_mean", reduction="sum_over_batch_size")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the negative predictions."""
        return -y_pred


@keras.saving.register_keras_serializable(package="iresnet_core")
class BitsPerDim(keras.metrics.MeanMetricWrapper):
    """Mean of log2(levels) - log p(x) / (d log 2), as `iresnet_core.Flow.bits_per_dim`, for a flow's `compile`.

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one sample, of d entries.
    levels : int
        Grey levels of images scaled to [0, 1]; 1 for data that were never quantised.
    """

    def __init__(self, event_shape: Any, levels: int = 256, name: str = "bits_per_dim", dtype: Any = None) -> None:
        self.event_shape, self.levels = tuple(event_shape), require_positive_int(levels, "levels")
        scale, shift = 1 / (math.prod(self.event_shape) * math.log(2)), math.log2(levels)
        super().__init__(lambda target, nats: shift - scale * nats, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        config = {"event_shape": list(self.event_shape), "levels": self.levels}
        return {**config, "name": self.name, "dtype": self.dtype}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BitsPerDim":
        """Make the metric."""
        return cls(**config)


def _pair(x: Any) -> tuple[Any, Any]:
    """Samples and conditioning, of a pair of them or of samples alone."""
    if isinstance(x, list | tuple) and len(x) == 2 and all(hasattr(part, "shape") for part in x):
        return x[0], x[1]
    return x, None


class _SeededModel(PreparedModel):
    """A model with a generator of seeds for its probes and samples."""

    _is_fitted = False

    def __init__(self, *, seed: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._negative = _NegativeMean()


# The last registration names the class in files; under the first name it stands in older ones.
@keras.saving.register_keras_serializable(package="iresnet_core", name="Flow")
@keras.saving.register_keras_serializable(package="iresnet_core", name="FlowModel")
class Flow(KerasHooks, FlowMethods, _SeededModel):
    """A normalising flow z = f(x) with the density ``log p(x) = log p_base(f(x)) + log|det J_f(x)|``.

    Notes
    -----
    A flow with conditional blocks takes pairs: ``model((x, context))``, ``fit((x, context))``; its methods take
    ``context``. ``model(x)`` and `predict` return the log-density (batch,) in nats. The loss of `fit` and `evaluate` is
    its negative mean, weighted by `sample_weight`, plus what regularizers of the layers add; there are no targets. In
    training the value is a true estimate, not a surrogate, and its gradient has no bias but that of the truncation,
    which docs/log-determinant.md states; with ``unbiased=True`` it has none. Latents and log|det| are what
    ``encode(x, logdet=True)`` returns.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core.adapters.keras import InvertibleResidual
    >>> block = InvertibleResidual([keras.layers.Dense(8, activation="elu"), keras.layers.Dense(2)], coeff=0.9)
    >>> flow = Flow([block], event_shape=(2,))
    >>> tuple(flow.log_prob(np.zeros((3, 2))).shape)
    (3,)
    """

    # --- what the shared methods ask ---

    def _take_layers(self, layers: Sequence[FlowLayer]) -> None:
        self.flow_layers = checkpointed(self, "flow_layers", require_different_layers(layers))
        self.built = True

    def _flow_layers(self) -> list[Any]:
        return list(self.flow_layers)

    def _parameters_of(self, layer: Any) -> int:
        return sum(math.prod(variable.shape) for variable in layer.trainable_variables)

    def _all_layers(self) -> list[Any]:
        return [layer for layer in self._flatten_layers() if isinstance(layer, FlowLayer)]

    def _samples(self, x: Any, context: Any) -> tuple[Any, Any]:
        return _pair(x) if context is None else (x, context)

    def _like(self) -> Any:
        return keras.ops.zeros((), dtype=self.compute_dtype)

    def _probe_generator(self, x: Any) -> Any:
        backend = get_backend(x)
        if backend.name == "torch" and backend.is_tracing(x):
            return None  # a program of PyTorch cannot make a generator of a seed, and draws from the global one
        return backend.generator(own_seed(self.seed_generator.next()))

    def _sample_generator(self) -> Any:
        return get_backend(self._like()).generator(self.seed_generator.next())

    def _shared_out(self, x: Any) -> Any:
        distribution = keras.distribution.distribution()
        if distribution is None:
            return x
        return keras.distribution.distribute_tensor(x, distribution.get_data_layout(x.shape))

    def _taken_base(self, base: Any) -> Base:
        return base if isinstance(base, Base) else Base(base, dtype=self.dtype)

    # --- Keras ---

    def call(self, x: Any, training: bool = False) -> Any:
        """Return the log-density (batch,) of samples x (batch, *event_shape), in nats; or of a pair (x, context)."""
        if training and self._is_fitted:
            return self._part_log_prob(*_pair(x), None, {})
        return self.log_prob(*_pair(x), training=training)

    def _require_usable(self, data: Any, name: str) -> None:
        super()._require_usable(data, name)
        context = _pair(data)[1]
        if context is not None and self.condition is not None and self.condition.encoding is not None:
            host = keras.ops.convert_to_numpy(context)
            self.condition.encoding(host, host if host.dtype.kind == "f" else None)  # refuses labels that are not known

    def train_step(self, *args: Any, **options: Any) -> Any:
        """Take a step of `fit`, in which log-determinants of a part of the batch stand for all."""
        self._is_fitted = True
        try:
            return super().train_step(*args, **options)
        finally:
            self._is_fitted = False

    def compile(self, optimizer: Any = "rmsprop", **options: Any) -> None:
        """Choose the optimizer and metrics; options as those of `keras.Model.compile`, but for losses.

        A metric gets the log-densities (batch,), in nats, as targets and as predictions. "bits_per_dim" is
        ``BitsPerDim(event_shape)``: log2(256) - log p(x) / (d log 2), for images of 256 levels scaled to [0, 1].

        Raises
        ------
        InvalidArgumentError
            If a loss is given, which compares predictions with targets.
        """
        for name in ("metrics", "weighted_metrics"):
            if isinstance(options.get(name), list | tuple):
                options[name] = [
                    BitsPerDim(self.event_shape) if metric == "bits_per_dim" else metric for metric in options[name]
                ]
        for name in ("loss", "loss_weights"):
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

    def _write_onnx(self, path: Any, **options: Any) -> None:
        write_flow(self, path, **options)

    def _batch_spec(self) -> Any:
        samples = keras.InputSpec(shape=(None, *self.event_shape), dtype=self.compute_dtype)
        features = self._core(training=False).context_features
        if features is None:
            return samples
        return [samples, keras.InputSpec(shape=(None, features), dtype=self.compute_dtype)]

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return (batch,)."""
        paired = isinstance(input_shape[0], list | tuple)
        return (input_shape[0][0] if paired else input_shape[0],)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Update the metrics with the log-densities, and return their results."""
        return super().compute_metrics(x, y_pred, y_pred, sample_weight)

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

    def save_own_variables(self, store: Any) -> None:
        """Save the reference beside the variables of the model itself."""
        super().save_own_variables(store)
        if self._refers and self._reference is not None:
            store["reference"] = self._reference

    def load_own_variables(self, store: Any) -> None:
        """Take both; older files have no reference."""
        kept = {key: store[key] for key in store.keys()}  # noqa: SIM118  # no mapping, in .h5 files
        if "reference" in kept:
            self._take_saved_reference(np.asarray(kept.pop("reference")))
        super().load_own_variables(kept)

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
            "share": self.share,
            "checkpoint": self.checkpoint,
            "condition": None if self.condition is None else keras.saving.serialize_keras_object(self.condition),
            "base": self.base if isinstance(self.base, str) else keras.saving.serialize_keras_object(self.base),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the model and its layers."""
        deserialize, condition = keras.saving.deserialize_keras_object, config.get("condition")
        layers = [deserialize(layer) for layer in config["layers"]]
        base = config.get("base", "normal")  # older files have none
        base = base if isinstance(base, str) else deserialize(base)
        return cls(**{**config, "layers": layers, "base": base, "condition": condition and deserialize(condition)})

    # --- files, and names of the release before ---

    def save(self, path: str | os.PathLike[str], context: Any = None, **options: Any) -> None:
        """Write the certified flow to a safetensors file that `iresnet_core.load` reads on every backend.

        Where the path ends in .keras, .h5 or .hdf5, Keras saves the model, with its optimizer; options as those of
        `keras.Model.save`. Else `context` is as in `to_core`.

        Raises
        ------
        InvalidArgumentError
            If a `context` is given for one of Keras' files, which hold the model for all conditions, or an option for
            another.
        """
        if str(path).endswith(_KERAS_SUFFIXES):
            if context is not None:
                raise InvalidArgumentError(f"{path} holds the model for all conditions: leave out the context.")
            super(FlowMethods, self).save(path, **options)
            return
        if options:
            raise InvalidArgumentError(f"{path} is no file of Keras' (.keras), and takes no {', '.join(options)}.")
        super().save(path, context)

    def save_core(self, path: str | os.PathLike[str], context: Any = None) -> None:
        """Write the certified flow; deprecated, use `save`."""
        warn_deprecated("save_core", "save")
        FlowMethods.save(self, path, context)
