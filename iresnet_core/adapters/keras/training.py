"""Training of a planned flow with Keras: what the loop of `iresnet_core.training.loop` needs of a backend."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

import iresnet_core as core
from iresnet_core.adapters.keras.building import build_condition, build_layers
from iresnet_core.adapters.keras.devices import required_devices, shared_devices
from iresnet_core.adapters.keras.flow import Flow
from iresnet_core.adapters.keras.kept_in_programs import is_certificate
from iresnet_core.adapters.keras.tensors import constant
from iresnet_core.backends import get_backend
from iresnet_core.errors import InvalidArgumentError, RunError
from iresnet_core.training import ConditionPlan, LayerPlan, StepResult, TrainingSettings

__all__ = ["Trainer"]

_SEEDS = 2**32  # Keras takes no larger ones


class Trainer:
    """A flow with its optimiser, on whichever backend Keras runs; see `iresnet_core.training.loop.Trainer`.

    Parameters
    ----------
    plan : tuple of LayerPlan
        The layers.
    model_shape : tuple of int
        Shape of one sample, channels last.
    settings : TrainingSettings
        Seed, dtype, start, optimiser, weight decay, clipping.
    first : array (n, *model_shape)
        Samples for the data-dependent initialisation.
    condition, first_context : ConditionPlan, array (n, features), optional
        The map of conditions, and those of these samples.
    base : str
        Name of the density of the latents.
    """

    channels_last = True
    recovers_inputs = False  # its steps are compiled
    shares_batches = False
    lacks = frozenset({"accumulate", "device", "precision"})
    require_devices = staticmethod(required_devices)

    def __init__(
        self,
        plan: tuple[LayerPlan, ...],
        model_shape: tuple[int, ...],
        settings: TrainingSettings,
        first: np.ndarray,
        *,
        condition: ConditionPlan | None = None,
        first_context: np.ndarray | None = None,
        base: str = "normal",
    ) -> None:
        self.settings = settings
        _take_threads(settings.threads)
        keras.utils.set_random_seed(settings.seed % _SEEDS)
        self.devices = shared_devices(settings.devices)
        with self.devices.scope():
            self._make(build_layers(plan, settings.dtype, start=settings.start), model_shape, condition, base)
        self.model.initialize(first, first_context)
        with self.devices.scope():
            self._make_state()

    def _make(
        self, layers: list[Any], model_shape: tuple[int, ...], condition: ConditionPlan | None, base: str
    ) -> None:
        """Make the model."""
        settings = self.settings
        self.model = Flow(
            layers,
            event_shape=model_shape,
            seed=settings.seed % _SEEDS,
            dtype=settings.dtype,
            share=settings.share,
            checkpoint=settings.recompute,
            penalty=settings.penalty,
            condition=build_condition(condition, settings.dtype),
            base=base,
        )

    def _make_state(self) -> None:
        """Make the optimiser and the average."""
        settings = self.settings
        variables = self.model.trainable_variables
        of_base = [] if isinstance(self.model.base, str) else self.model.base.trainable_variables
        bases = {id(variable) for variable in of_base}
        weights = [v for v in variables if len(v.shape) > 1 and id(v) not in bases]
        states: list[Any] = [layer.state for layer in self.model.capped_layers()]
        self.optimizer = self.devices.optimizer(
            settings.lr,
            weight_decay=settings.weight_decay,
            epsilon=1e-8,
            global_clipnorm=settings.clip,
            matrices=[state.kernel for state in states] if settings.optimizer == "muon" else [],
        )
        ids = {id(variable) for variable in weights}
        self.optimizer.exclude_from_weight_decay([v for v in variables if id(v) not in ids])
        self.model.compile(optimizer=self.optimizer)
        self.optimizer.build(variables)
        # Not Keras' own average: to swap it in and out changes the weights by rounding on TensorFlow.
        averaged = variables if settings.ema is not None else []
        self.average = [keras.Variable(constant(v), trainable=False) for v in averaged]
        self.averaged_steps = keras.Variable(0, dtype="int64", trainable=False) if self.average else None

    def step(self, x: np.ndarray, lr: float, context: np.ndarray | None = None) -> StepResult:
        """Take one step of the optimiser, in a compiled program; the norm of its gradient stays inside that."""
        self.optimizer.learning_rate = lr
        self.model.reset_metrics()
        loss = self.devices.train_on_batch(self.model, x if context is None else (x, context))
        self._take_into_average()
        return StepResult(loss, None)

    def _take_into_average(self) -> None:
        """Move the average towards the parameters; the first ones are the average at the start."""
        if self.averaged_steps is None:
            return
        assert self.settings.ema is not None
        part = 1.0 if int(_host(constant(self.averaged_steps))) == 0 else 1 - self.settings.ema
        for average, variable in zip(self.average, self.model.trainable_variables, strict=True):
            average.assign_add(part * (constant(variable) - constant(average)))
        self.averaged_steps.assign_add(1)

    def log_prob(self, x: np.ndarray, seed: int, context: np.ndarray | None = None) -> np.ndarray:
        """Return log-densities under the certified weights."""
        with self._averaged(), get_backend(keras.ops.zeros(())).no_grad():
            # With errors no warning comes in the middle of a training; its means have standard errors of their own.
            return _host(self.model.log_prob(x, context, errors=True, rng=seed).value)

    def lipschitz(self) -> float:
        """Return the largest certified constant of a block."""
        with self._averaged():
            return self.model.lipschitz

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Exchange the parameters for their average, where there is one."""
        variables = self.model.trainable_variables if self.average else []
        own = [_host(constant(variable)).copy() for variable in variables]
        for variable, average in zip(variables, self.average, strict=True):
            variable.assign(constant(average))
        try:
            yield
        finally:
            for variable, value in zip(variables, own, strict=True):
                variable.assign(value)

    def parameter_count(self) -> int:
        """Return the number of trained parameters."""
        return sum(int(np.prod(variable.shape)) for variable in self.model.trainable_variables)

    def state(self) -> dict[str, np.ndarray]:
        """Return all variables of model and optimiser, those of the random generators among them."""
        return {name: _host(constant(variable)) for name, variable in self._variables().items()}

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up a state.

        Raises
        ------
        RunError
            If it is that of another model.
        """
        variables = self._variables()
        if not any(name.startswith("unit.") for name in arrays):  # from before there were units
            ones = {name: np.ones(v.shape, self.settings.dtype) for name, v in variables.items() if name[:5] == "unit."}
            arrays = {**arrays, **ones}
        if set(variables) != set(arrays):
            raise RunError(
                f"the checkpoint is that of another model: it has {len(arrays)} arrays, the model {len(variables)}."
            )
        for name, variable in variables.items():
            dtype = keras.backend.standardize_dtype(variable.dtype)
            if (tuple(variable.shape), dtype) != (arrays[name].shape, arrays[name].dtype.name):
                raise RunError(
                    f"the checkpoint is that of another model: {name} is {arrays[name].dtype} of shape "
                    f"{arrays[name].shape} there, {dtype} of shape {tuple(variable.shape)} here."
                )
            if "velocity" in variable.path.rpartition("/")[2] and np.any(arrays[name] < 0):
                raise RunError(f"{name}, a mean of squares, is negative.")
        for name, variable in variables.items():
            variable.assign(arrays[name])

    def _variables(self) -> dict[str, Any]:
        """Return the variables by their place, since Keras counts up the names of layers in a process."""
        own = [variable for variable in self.model.variables if not is_certificate(variable)]
        units = {f"unit.{k}": variable for k, variable in enumerate(v for v in own if v.name == "unit")}
        named = {f"flow.{k}": variable for k, variable in enumerate(v for v in own if v.name != "unit")}
        averages = {f"average.{k}": variable for k, variable in enumerate(self.average)}
        if self.averaged_steps is not None:
            averages["average.count"] = self.averaged_steps
        adam = {f"adam.{k}": variable for k, variable in enumerate(self.optimizer.variables)}
        return named | units | averages | adam

    def to_core(self) -> core.Flow:
        """Return the certified flow."""
        with self._averaged():
            return self.model.to_core()


def _take_threads(threads: int | None) -> None:
    """Set the number of threads of Keras' backend, which has to be asked before it computes.

    Raises
    ------
    InvalidArgumentError
        If the backend cannot be told.
    """
    if threads is None:
        return
    name = keras.backend.backend()
    try:
        if name == "torch":
            sys.modules["torch"].set_num_threads(threads)
        elif name == "tensorflow":
            sys.modules["tensorflow"].config.threading.set_intra_op_parallelism_threads(threads)
        else:
            raise InvalidArgumentError(
                f"--threads cannot be set with Keras on {name}, which takes the cores that its process may use: start "
                "it with taskset, or in a container."
            )
    except RuntimeError as error:  # of TensorFlow, once it has computed
        raise InvalidArgumentError(f"--threads comes too late: {error}") from error


def _host(tensor: Any) -> np.ndarray:
    host: np.ndarray = get_backend(tensor).to_numpy(tensor)
    return host
