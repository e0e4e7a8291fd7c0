"""A door to the package BayesFlow: flows as its inference networks, for approximators and workflows."""

import math
from typing import Any

import keras
from bayesflow.networks import InferenceNetwork
from bayesflow.utils import layer_kwargs, weighted_mean
from bayesflow.utils.serialization import serializable, serialize

from iresnet_core.adapters.keras import Activation, ActNorm, Base, Condition, Flow, InvertibleResidual
from iresnet_core.backends import get_backend
from iresnet_core.errors import InvalidArgumentError

__all__ = ["FlowNetwork"]

Dense = keras.layers.Dense


@serializable("iresnet_core")
class FlowNetwork(InferenceNetwork):
    """A `Flow` that is built for the parameters and conditions of the first batch, as its attribute `flow`.

    Of so many residual blocks, with the width of their hidden layer and the cap of each; conditions become `features`
    numbers before they enter every block. `base` is the density of the latents, in place of BayesFlow's
    `base_distribution`. BayesFlow standardises parameters and conditions before they come here.
    """

    def __init__(
        self,
        blocks: int = 8,
        width: int = 64,
        features: int = 32,
        coeff: float = 0.98,
        base: Any = "normal",
        **options: Any,
    ) -> None:
        if "base_distribution" in options:
            raise InvalidArgumentError("a FlowNetwork has its density of latents as base=, not as base_distribution=.")
        super().__init__(**options)
        self.blocks, self.width, self.features, self.coeff = blocks, width, features, coeff
        self.base = base if isinstance(base, str | Base) else Base(base)
        self.flow: Any = None

    def build(self, xz_shape: Any, conditions_shape: Any = None) -> None:
        """Make the flow for parameters and conditions of these shapes."""
        if self.flow is not None:
            return
        d, features, condition = xz_shape[-1], None, None
        if conditions_shape is not None:
            sines = [Dense(self.width), Activation("sin"), Dense(self.width), Activation("sin")]
            condition = Condition([*sines, Dense(self.features)], features=conditions_shape[-1])
            features = self.features
        nets = [[Dense(self.width), Activation("sin"), Dense(d)] for _ in range(self.blocks)]
        blocks = [InvertibleResidual(net, self.coeff, context_features=features) for net in nets]
        layers = [layer for block in blocks for layer in (ActNorm(d), block)]
        self.flow = Flow([*layers, ActNorm(d)], (d,), base=self.base, condition=condition)
        for layer in self.flow.flow_layers[::2]:
            layer.mark_initialized()
        self.base_distribution.build(xz_shape)  # not asked, but every layer has to be built
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        names = ("blocks", "width", "features", "coeff", "base")
        return layer_kwargs(super().get_config()) | serialize({name: getattr(self, name) for name in names})

    def _forward(self, x: Any, conditions: Any = None, density: bool = False, training: bool = False, **_: Any) -> Any:
        z = keras.ops.reshape(self.flow.encode(*_rows(x, conditions), training=training), keras.ops.shape(x))
        return (z, self.log_prob(x, conditions, training)) if density else z

    def _inverse(self, z: Any, conditions: Any = None, density: bool = False, training: bool = False, **_: Any) -> Any:
        x = keras.ops.reshape(self.flow.inverse(*_rows(z, conditions), training=training), keras.ops.shape(z))
        return (x, self.log_prob(x, conditions, training)) if density else x

    def log_prob(self, samples: Any, conditions: Any = None, training: bool = False, **_: Any) -> Any:
        """Return the log-densities (...) of samples (..., d) under conditions (..., features)."""
        nats = self.flow.log_prob(*_rows(samples, conditions), training=training)
        return keras.ops.reshape(nats, keras.ops.shape(samples)[:-1])

    def sample(self, batch_shape: Any, conditions: Any = None, seed: Any = None, **_: Any) -> Any:
        """Draw (*batch_shape, d) under conditions (*batch_shape, features), without gradient."""
        shape = tuple(batch_shape) if isinstance(batch_shape, list | tuple) else (batch_shape,)
        context = None if conditions is None else keras.ops.reshape(conditions, (-1, conditions.shape[-1]))
        own = isinstance(seed, keras.random.SeedGenerator)
        rng = get_backend(self.flow._like()).generator(seed.next()) if own else seed
        return keras.ops.reshape(self.flow.sample(math.prod(shape), context, rng=rng), (*shape, -1))

    def compute_metrics(
        self, x: Any, conditions: Any = None, sample_weight: Any = None, stage: str = "training", **_: Any
    ) -> dict[str, Any]:
        """Return the loss, in training with log-determinants of a part of the batch that stand for all."""
        rows = _rows(x, conditions)
        nats = self.flow._part_log_prob(*rows, None, {}) if stage == "training" else self.flow.log_prob(*rows)
        return {"loss": weighted_mean(-nats, sample_weight)}


def _rows(x: Any, conditions: Any) -> tuple[Any, ...]:
    """Return samples (..., d) and their conditions as rows."""
    return tuple(None if a is None else keras.ops.reshape(a, (-1, a.shape[-1])) for a in (x, conditions))
