"""The training of a flow, the same for every framework; the framework's `Trainer` takes the steps."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from iresnet_core.errors import InvalidArgumentError, MissingDependencyError
from iresnet_core.files import load, save
from iresnet_core.flows import Flow
from iresnet_core.training.batches import Batches
from iresnet_core.training.data_spread import standardization
from iresnet_core.training.datasets import Dataset
from iresnet_core.training.plans import LayerPlan, widest_array
from iresnet_core.training.processes import ONE_PROCESS, Processes, require_share, shared_out
from iresnet_core.training.run import RunConfig, TrainingRun
from iresnet_core.training.settings import TrainingSettings
from iresnet_core.training.task_loop import Evaluation, Outcome, StepResult, Watcher, cosine, run_task, warmed

__all__ = ["Trainer", "bits_per_dim", "find_trainer", "import_trainer", "require_able", "train", "trainer_names"]

# framework -> (module of its class Trainer, package to import, how to install it). The modules are adapters: they are
# found by name at run time, since the core does not import what is built upon it.
_TRAINERS: dict[str, tuple[str, str, str]] = {
    "torch": ("iresnet_core.adapters.torch.training", "torch", "pip install 'iresnet-core[torch]'"),
    "keras": ("iresnet_core.adapters.keras.training", "keras", "pip install 'iresnet-core[keras,tensorflow]'"),
}
# An evaluation takes so many samples at once, and no more than have so many numbers between two layers: 16 MB in
# float32, of which it holds some tens.
_CHUNK, _CHUNK_ENTRIES = 500, 2**22


class Trainer(Protocol):
    """A flow in training on one framework; each framework has one class of this shape.

    It is made by ``Trainer(plan, model_shape, settings, first)``: the planned layers with parameters drawn from
    ``settings.seed``, data-dependent ones set from the samples `first`; with ``base=``, the name of the density of the
    latents; under conditions with ``condition=``, the plan of their map, and ``first_context=``. Then `step` and
    `log_prob` take a context (n, features). With several processes it is given ``processes=``, and `step` takes the
    batch of all of them.
    """

    channels_last: bool
    recovers_inputs: bool  # whether it can do with the setting `recover`
    shares_batches: bool  # whether several processes can train together
    lacks: frozenset[str]  # settings that it cannot do with; a class that has devices says `require_devices(count)`

    def step(self, x: np.ndarray, lr: float, context: np.ndarray | None = None) -> StepResult:
        """Take one step of the optimiser on samples (n, *model_shape)."""

    def log_prob(self, x: np.ndarray, seed: int, context: np.ndarray | None = None) -> np.ndarray:
        """Return the log-densities of samples under the certified weights, without touching any state."""

    def lipschitz(self) -> float:
        """Return the largest certified constant of a residual block."""

    def parameter_count(self) -> int:
        """Return how many numbers are trained."""

    def state(self) -> dict[str, np.ndarray]:
        """Return parameters, optimiser and random state as arrays."""

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up what `state` returned; RunError if it belongs to another model."""

    def to_core(self) -> Flow:
        """Return the flow of the core with certified weights."""


def trainer_names() -> tuple[str, ...]:
    """Return the frameworks that have a trainer, installed or not."""
    return tuple(_TRAINERS)


def find_trainer(framework: str) -> Any:
    """Return the class `Trainer` of a framework.

    Raises
    ------
    InvalidArgumentError
        If there is none of that name.
    MissingDependencyError
        If the framework is not installed; the message says how to install it.
    """
    if framework not in _TRAINERS:
        raise InvalidArgumentError(
            f"there is no framework {framework!r} to train with; there are {', '.join(_TRAINERS)}."
        )
    return import_trainer(*_TRAINERS[framework]).Trainer


def import_trainer(module: str, framework: str, hint: str) -> Any:
    """Return a module of an adapter, which is found by its name, or say how to install the framework.

    Raises
    ------
    MissingDependencyError
        If the framework is not installed.
    """
    try:
        import_module(framework)
    except ImportError as error:
        raise MissingDependencyError(
            f"training with {framework} needs {framework}, which cannot be imported ({error}). Try: {hint}"
        ) from error
    return import_module(module)


def bits_per_dim(nats: float, levels: int, size: int) -> float:
    """Turn a negative log-density of dequantised samples in [0, 1) into bits per dimension."""
    return math.log2(levels) + nats / (size * math.log(2))


def train(
    run: TrainingRun,
    config: RunConfig,
    dataset: Dataset,
    plan: tuple[LayerPlan, ...],
    watcher: Watcher,
    *,
    tensorboard: bool = False,
    processes: Processes = ONE_PROCESS,
) -> Outcome:
    """Train a flow by maximum likelihood, from the run's last checkpoint if it has one.

    The optimiser takes steps on the mean negative log-density, with the gradient clipped; the model with the best
    validation is exported at every evaluation that improves it. SIGINT and SIGTERM end the training after the step at
    hand with a checkpoint; a second one ends it at once, which leaves the last checkpoint as it is.

    Parameters
    ----------
    run, config : TrainingRun, RunConfig
        Where, and with which settings.
    dataset : Dataset
        The data.
    plan : tuple
        Layers, from `planned_layers`.
    watcher : Watcher
        Is told of every step and evaluation.
    tensorboard : bool
        Whether to write the log for TensorBoard too, which needs that package.
    processes : Processes
        Those of this training, all of which call this function; the first one writes.

    Raises
    ------
    NonFiniteError
        If the loss becomes NaN or infinite; the last checkpoint stays.
    RunError
        If another training is using the folder, the checkpoint belongs to another model, or a file is damaged.
    OSError
        If a file cannot be written; what was written before stays, and the training can be resumed from it.
    MissingDependencyError
        If the framework or tensorboard is not installed.
    """
    with run.locked() if processes.rank == 0 else nullcontext():
        settings = config.settings.training
        model = config.settings.model
        layer = standardization(dataset.train, config.layout) if model.standardize else None
        batches = Batches(dataset, config.layout, settings, layer)
        chunk = _chunk(config)
        n = max(settings.batch, chunk)
        more: dict[str, Any] = {"base": model.base}
        if dataset.condition is not None:
            more |= {"condition": dataset.condition, "first_context": batches.contexts(0, slice(n))}
        make = find_trainer(settings.framework)
        require_able(make, settings, processes)
        if processes.count > 1:
            more["processes"] = processes
        trainer: Trainer = make(plan, config.layout.model_shape, settings, batches.first(n), **more)
        task = _FlowTask(config, trainer, batches, processes)
        return run_task(run, settings, task, watcher, tensorboard=tensorboard, processes=processes)


def require_able(make: Any, settings: TrainingSettings, processes: Processes) -> None:
    """Refuse what the class of a trainer cannot do: settings, several devices or processes, also of too small a batch.

    Raises
    ------
    InvalidArgumentError
        If so; the message says what to do.
    """
    for name, usual in (("accumulate", 1), ("device", None), ("precision", "float32")):
        if getattr(settings, name) != usual and name in make.lacks:
            raise InvalidArgumentError(
                f"--{name} {getattr(settings, name)} is for PyTorch; {settings.framework} trains without it. Leave it "
                "out, or try --framework torch."
            )
    if settings.devices > 1:
        if "devices" in make.lacks:
            raise InvalidArgumentError(
                f"--devices {settings.devices} is for Keras; {settings.framework} trains on several devices in as many "
                f"processes. Leave it out: torchrun --nproc-per-node {settings.devices} -m iresnet_core train ..."
            )
        make.require_devices(settings.devices)
    if processes.count == 1:
        return
    if not make.shares_batches:
        raise InvalidArgumentError(
            f"{processes.count} processes were launched, and {settings.framework} trains in one. Train without a "
            "launcher, where --devices takes several devices of this machine, or with --framework torch."
        )
    require_share(processes, settings.batch)


def _chunk(config: RunConfig) -> int:
    """Return how many samples are evaluated at once."""
    return max(1, min(_CHUNK, _CHUNK_ENTRIES // widest_array(config.settings.model, config.layout.data_shape)))


class _FlowTask:
    """A flow with its data, as the loop takes it."""

    advice = "Look at the data, and try a smaller --lr or --dtype float64."

    def __init__(self, config: RunConfig, trainer: Trainer, batches: Batches, processes: Processes) -> None:
        self.config, self.trainer, self.batches, self.processes = config, trainer, batches, processes
        self.settings = config.settings.training

    def rate(self, step: int, share: float) -> float:
        rate = self.settings.lr * warmed(step, self.settings.warm_up)
        return rate * (1.0 if self.settings.schedule == "constant" else cosine(share))

    def step(self, step: int, lr: float) -> StepResult:
        x, context = self.batches.at(step)
        own = {} if context is None else {"context": context}
        loss, norm = self.trainer.step(x, lr, **own)
        return StepResult(loss + self.batches.offset, norm)

    def evaluate(self, train_nats: float) -> Evaluation:
        x, n = self.batches.validation, _chunk(self.config)

        def log_prob(i: int) -> np.ndarray:
            context = self.batches.contexts(1, slice(i, min(i + n, len(x))))
            own = {} if context is None else {"context": context}
            return self.trainer.log_prob(x[i : i + n], self.settings.seed + i, **own)

        found = shared_out(self.processes, range(0, len(x), n), log_prob)
        nats = self.batches.offset - np.concatenate(found).astype(np.float64)
        mean, deviation = float(np.mean(nats)), float(np.std(nats, ddof=1)) if len(nats) > 1 else 0.0
        row: dict[str, Any] = {"validation_nats": mean, "validation_error": deviation / math.sqrt(len(nats))}
        if not math.isfinite(mean):
            return Evaluation(mean, row)
        if self.config.levels is not None:
            size = math.prod(self.config.layout.data_shape)
            row["train_bits_per_dim"] = bits_per_dim(train_nats, self.config.levels, size)
            row["validation_bits_per_dim"] = bits_per_dim(mean, self.config.levels, size)
        return Evaluation(mean, {**row, "lipschitz": self.trainer.lipschitz()})

    def export(self, path: Path) -> None:
        save(self.batches.exported(self.trainer.to_core()), path)

    def require_exported(self, path: Path) -> None:
        load(path)

    def state(self) -> dict[str, np.ndarray]:
        return self.trainer.state()

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.trainer.load_state(arrays)
