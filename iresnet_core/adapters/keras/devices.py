"""The devices of this machine that share out every batch of one training.

On JAX a step is one program for all devices (`keras.distribution.DataParallel`): it has the numbers of one device, the
random ones among them. On TensorFlow every device runs the step with its part of the batch and random numbers of its
own (`tf.distribute.MirroredStrategy`), and the gradients are summed. Weights are the same on all devices.
"""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import keras

from iresnet_core.adapters.keras.muon import Muon
from iresnet_core.errors import InvalidArgumentError

__all__ = ["Devices", "required_devices", "shared_devices"]


class Devices:
    """The one device that Keras computes on by itself."""

    def scope(self) -> AbstractContextManager[Any]:
        """Return the context in which a model is made, so that its variables are on all devices."""
        return nullcontext()

    def optimizer(
        self, rate: float, *, global_clipnorm: float, matrices: Sequence[keras.Variable], **options: Any
    ) -> keras.optimizers.Optimizer:
        """Return Muon for `matrices`, and for all others Adam; options as those of `keras.optimizers.AdamW`."""
        if not matrices:
            return keras.optimizers.AdamW(rate, global_clipnorm=global_clipnorm, **options)
        return Muon(rate, matrices, global_clipnorm=global_clipnorm, **options)

    def train_on_batch(self, model: keras.Model, batch: Any) -> float:
        """Take a step with a batch, an array or a tuple of arrays, and return its loss."""
        return float(model.train_on_batch(batch))


class _OfOneProgram(Devices):
    """Devices of JAX."""

    def __init__(self, names: Sequence[str]) -> None:
        self._distribution = keras.distribution.DataParallel(devices=list(names), auto_shard_dataset=False)

    def scope(self) -> AbstractContextManager[Any]:
        """Return the scope of the distribution."""
        scope: AbstractContextManager[Any] = self._distribution.scope()
        return scope

    def train_on_batch(self, model: keras.Model, batch: Any) -> float:
        """Take a step in the scope, in which Keras shares the batch out."""
        with self.scope():
            return super().train_on_batch(model, batch)


class _WithReplicas(Devices):
    """Devices of TensorFlow, each of which has a replica of the model."""

    def __init__(self, names: Sequence[str]) -> None:
        self._count = len(names)
        self._strategy = _strategy(tuple(names))

    def scope(self) -> AbstractContextManager[Any]:
        """Return the scope of the strategy."""
        scope: AbstractContextManager[Any] = self._strategy.scope()
        return scope

    def optimizer(
        self, rate: float, *, global_clipnorm: float, matrices: Sequence[keras.Variable], **options: Any
    ) -> keras.optimizers.Optimizer:
        """Return an optimiser that clips the gradient of all replicas."""
        return _SummedBefore(self._count, rate, matrices, global_clipnorm=global_clipnorm / self._count, **options)

    def train_on_batch(self, model: keras.Model, batch: Any) -> float:
        """Take a step in which each replica has a part; `train_on_batch` of Keras gives all of them the whole batch."""

        def shared_out(a: Any) -> Any:
            return self._strategy.experimental_distribute_values_from_function(
                lambda context: _tensorflow().constant(a[context.replica_id_in_sync_group :: self._count])
            )

        model.make_train_function()
        logs = model.train_function(iter([(keras.tree.map_structure(shared_out, batch), None, None)]))
        return float(logs["loss"])


class _SummedBefore(Muon):
    """Muon, or Adam where there are no matrices, whose gradients are summed over the replicas before they are clipped.

    Keras clips the gradient of every replica by itself and then sums, so that the sum is another one than that of one
    device. Here each replica has the sum, and hands on its part of it: clipped to a part of the norm, the parts add up
    to the sum clipped to the norm.
    """

    def __init__(self, replicas: int, rate: float, matrices: Sequence[keras.Variable], **options: Any) -> None:
        super().__init__(rate, matrices, name="adamw", **options)
        self._replicas = replicas

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        """Update the variables by gradients of one replica, in the order in which the optimiser was built."""
        distribute = _tensorflow().distribute
        sums = distribute.get_replica_context().all_reduce(distribute.ReduceOp.SUM, list(grads))
        return super().apply([total / self._replicas for total in sums], trainable_variables)


@cache
def _strategy(names: tuple[str, ...]) -> Any:
    """Return the strategy of these devices, one for a process: two would mix up what their replicas exchange."""
    return _tensorflow().distribute.MirroredStrategy(names)


def _tensorflow() -> Any:
    return sys.modules["tensorflow"]


def _available() -> list[str]:
    """Return the names of the devices that can share out a batch: accelerators where there are some, else CPUs.

    TensorFlow is only asked what it would have, since threads cannot be set any more once it has made its devices.

    Raises
    ------
    InvalidArgumentError
        If Keras' backend trains on one device only.
    """
    name = keras.backend.backend()
    if name == "jax":
        names: list[str] = keras.distribution.list_devices()
        return names
    if name != "tensorflow":
        raise InvalidArgumentError(
            f"--devices is for Keras on JAX and TensorFlow; on {name} it trains on one device. Set KERAS_BACKEND to "
            "jax or tensorflow, or try --framework torch with torchrun, which starts a process for each device."
        )
    config = _tensorflow().config
    kind = "GPU" if config.list_physical_devices("GPU") else "CPU"
    made_of = map(config.get_logical_device_configuration, config.list_physical_devices(kind))
    return [f"{kind}:{k}" for k in range(sum(1 if parts is None else len(parts) for parts in made_of))]


def required_devices(count: int) -> list[str]:
    """Return the names of the first `count` devices of this machine.

    Raises
    ------
    InvalidArgumentError
        If there are not so many, or Keras' backend trains on one only.
    """
    names = _available()
    if len(names) < count:
        raise InvalidArgumentError(
            f"--devices {count} is more than Keras on {keras.backend.backend()} finds here: {', '.join(names)}. "
            "Ask for fewer; docs/many-workers.md says how a CPU counts as several for a trial."
        )
    return names[:count]


def shared_devices(count: int) -> Devices:
    """Return the first `count` devices of this machine, as `required_devices`; one is that of Keras itself."""
    if count == 1:
        return Devices()
    kind = _OfOneProgram if keras.backend.backend() == "jax" else _WithReplicas
    return kind(required_devices(count))
