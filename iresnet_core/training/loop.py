"""The training loop, the same for every framework; the framework's `Trainer` takes the steps.

Every batch is a function of the seed and the number of the step, and a checkpoint holds all other state. A training
that was interrupted and resumed therefore takes the same steps as one that was not.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np

from iresnet_core.errors import InvalidArgumentError, MissingDependencyError, NonFiniteError, RunError, StorageError
from iresnet_core.files import load, save
from iresnet_core.flows import Flow
from iresnet_core.training.batches import Batches
from iresnet_core.training.checkpoint import Checkpoint, Progress
from iresnet_core.training.data_spread import standardization
from iresnet_core.training.datasets import Dataset
from iresnet_core.training.plans import LayerPlan, widest_array
from iresnet_core.training.run import RunConfig, TrainingRun
from iresnet_core.training.tensorboard_log import scalar_writer

__all__ = ["Outcome", "StepResult", "Trainer", "Watcher", "bits_per_dim", "find_trainer", "train", "trainer_names"]

# framework -> (module of its class Trainer, package to import, how to install it). The modules are adapters: they are
# found by name at run time, since the core does not import what is built upon it.
_TRAINERS: dict[str, tuple[str, str, str]] = {
    "torch": ("iresnet_core.adapters.torch.training", "torch", "pip install 'iresnet-core[torch]'"),
    "keras": ("iresnet_core.adapters.keras.training", "keras", "pip install 'iresnet-core[keras,tensorflow]'"),
}
_SLOWEST = 0.01  # the cosine ends at this part of the learning rate
# An evaluation takes so many samples at once, and no more than have so many numbers between two layers: 16 MB in
# float32, of which it holds some tens.
_CHUNK, _CHUNK_ENTRIES = 500, 2**22


class StepResult(NamedTuple):
    """Loss and gradient of one step of the optimiser.

    Attributes
    ----------
    loss : float
        Mean negative log-density of the batch, in nats.
    gradient_norm : float or None
        Norm of the gradient before it was clipped; None where the framework does not tell.
    """

    loss: float
    gradient_norm: float | None


class Trainer(Protocol):
    """A flow in training on one framework; each framework has one class of this shape.

    It is made by ``Trainer(plan, model_shape, settings, first)``: the planned layers with parameters drawn from
    ``settings.seed``, data-dependent ones set from the samples `first`; under conditions with ``condition=``, the plan
    of their map, and ``first_context=``. Then `step` and `log_prob` take a context (n, features).
    """

    channels_last: bool
    recovers_inputs: bool  # whether it can do with the setting `recover`

    def step(self, x: np.ndarray, lr: float, context: np.ndarray | None = None) -> StepResult:
        """Take one step of Adam on samples (n, *model_shape)."""

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


class Watcher(Protocol):
    """Who wants to know how the training goes."""

    def stepped(self, step: int, seconds: float, loss: float) -> None:
        """A step was taken."""

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """A row was added to the log."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes
    ----------
    finished : bool
        Whether it reached its length; otherwise it was interrupted and can be resumed.
    step, best_step : int
        Steps taken, and the step of the exported model.
    best : float
        Mean negative log-density of the validation set under the exported model, in nats.
    seconds : float
        Over all sittings.
    """

    finished: bool
    step: int
    best_step: int
    best: float
    seconds: float


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
    module, framework, hint = _TRAINERS[framework]
    try:
        import_module(framework)
    except ImportError as error:
        raise MissingDependencyError(
            f"training with {framework} needs {framework}, which cannot be imported ({error}). Try: {hint}"
        ) from error
    return import_module(module).Trainer


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
) -> Outcome:
    """Train a flow by maximum likelihood, from the run's last checkpoint if it has one.

    Adam on the mean negative log-density, with the gradient clipped; the model with the best validation is exported
    at every evaluation that improves it. SIGINT and SIGTERM end the training after the step at hand with a checkpoint;
    a second one ends it at once, which leaves the last checkpoint as it is.

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
    with run.locked():
        settings = config.settings.training
        layer = standardization(dataset.train, config.layout) if config.settings.model.standardize else None
        batches = Batches(dataset, config.layout, settings, layer)
        chunk = _chunk(config)
        n = max(settings.batch, chunk)
        of_condition = {"condition": dataset.condition, "first_context": batches.contexts(0, slice(n))}
        trainer: Trainer = find_trainer(settings.framework)(
            plan,
            config.layout.model_shape,
            settings,
            batches.first(n),
            **(of_condition if dataset.condition is not None else {}),
        )
        progress = _taken_up(run, trainer)
        run.forget_after(progress.step, progress.log)
        scalars = scalar_writer(run.folder / "tensorboard", progress.step + 1) if tensorboard else None
        loop = _Loop(run, config, trainer, batches, progress, watcher, scalars)
        with _interruption() as stopped:
            loop.until_done(stopped)
    return Outcome(
        finished=loop.done(),
        step=progress.step,
        best_step=progress.best_step,
        best=progress.best,
        seconds=progress.seconds,
    )


def _chunk(config: RunConfig) -> int:
    """Return how many samples are evaluated at once."""
    return max(1, min(_CHUNK, _CHUNK_ENTRIES // widest_array(config.settings.model, config.layout.data_shape)))


def _taken_up(run: TrainingRun, trainer: Trainer) -> Progress:
    """Put the trainer into the state of the last checkpoint, if there is one, and return how far that is."""
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        return Progress()
    progress = Progress.from_json(checkpoint.progress, f"{run.checkpoint_path}")
    try:
        trainer.load_state(checkpoint.arrays)
    except RunError as error:
        raise RunError(f"{run.checkpoint_path}: {error}") from error
    if progress.best_step:
        try:
            load(run.model_path)  # the best model so far, which the end of the training scores
        except (StorageError, FileNotFoundError) as error:
            raise RunError(
                f"the model of step {progress.best_step} cannot be read: {error}. Put the file back, or begin anew."
            ) from error
    return progress


class _Loop:
    """The steps, with what is written between them."""

    def __init__(
        self,
        run: TrainingRun,
        config: RunConfig,
        trainer: Trainer,
        batches: Batches,
        progress: Progress,
        watcher: Watcher,
        scalars: Callable[[int, Mapping[str, float]], None] | None,
    ) -> None:
        self.run, self.config, self.trainer, self.batches = run, config, trainer, batches
        self.progress, self.watcher, self.scalars = progress, watcher, scalars
        self.settings = config.settings.training
        self.saved = progress.step if run.checkpoint_path.exists() else -1

    def share(self) -> float:
        """How much of the training is done, from 0 to 1."""
        if self.settings.steps is not None:
            return self.progress.step / self.settings.steps
        assert self.settings.minutes is not None
        return self.progress.seconds / (60 * self.settings.minutes)

    def done(self) -> bool:
        return self.share() >= 1

    def until_done(self, stopped: threading.Event) -> None:
        progress, settings = self.progress, self.settings
        before, begin = progress.seconds, time.monotonic()
        while not self.done() and not stopped.is_set():
            try:
                context = self.batches.contexts(0, self.batches.chosen(progress.step))
                own = {} if context is None else {"context": context}
                loss, norm = self.trainer.step(self.batches.at(progress.step), self._rate(), **own)
            except NonFiniteError as error:  # of a sample that is too far out
                raise NonFiniteError(f"at step {progress.step}: {error} {self._advice()}") from None
            loss += self.batches.offset
            if not (math.isfinite(loss) and math.isfinite(norm or 0.0)):
                raise NonFiniteError(
                    f"at step {progress.step} the loss is {loss:g} and the norm of its gradient {norm}. "
                    f"{self._advice()}"
                )
            progress.step += 1
            progress.losses += loss
            progress.norm = norm if progress.norm is None else max(progress.norm, norm or 0.0)
            progress.since += 1
            progress.seconds = before + time.monotonic() - begin
            self.watcher.stepped(progress.step, progress.seconds, loss)
            if progress.step % settings.evaluate_every == 0 or self.done():
                self._evaluate()
                progress.seconds = before + time.monotonic() - begin
            if progress.step % settings.checkpoint_every == 0:
                self._save()
        if self.saved != progress.step:
            self._save()

    def _advice(self) -> str:
        kept = f"step {self.saved}, which stays" if self.saved >= 0 else "none"
        return f"The last checkpoint is that of {kept}. Look at the data, and try a smaller --lr or --dtype float64."

    def _rate(self) -> float:
        if self.settings.schedule == "constant":
            return self.settings.lr
        half = 0.5 * (1 + math.cos(math.pi * min(1.0, self.share())))
        return self.settings.lr * (_SLOWEST + (1 - _SLOWEST) * half)

    def _evaluate(self) -> None:
        """Add a row to the log, and export the model if it is the best so far."""
        progress, x, n = self.progress, self.batches.validation, _chunk(self.config)
        chunks = []
        for i in range(0, len(x), n):
            context = self.batches.contexts(1, slice(i, min(i + n, len(x))))
            own = {} if context is None else {"context": context}
            chunks.append(self.trainer.log_prob(x[i : i + n], self.settings.seed + i, **own))
        nats = self.batches.offset - np.concatenate(chunks).astype(np.float64)
        mean, deviation = float(np.mean(nats)), float(np.std(nats, ddof=1)) if len(nats) > 1 else 0.0
        if not math.isfinite(mean):
            raise NonFiniteError(f"at step {progress.step} the log-density of the validation set is {-mean:g}.")
        row: dict[str, Any] = {
            "step": progress.step,
            "seconds": round(progress.seconds, 2),
            "train_nats": progress.losses / progress.since,
            "validation_nats": mean,
            "validation_error": deviation / math.sqrt(len(nats)),
        }
        if self.config.levels is not None:
            size = math.prod(self.config.layout.data_shape)
            row["train_bits_per_dim"] = bits_per_dim(row["train_nats"], self.config.levels, size)
            row["validation_bits_per_dim"] = bits_per_dim(mean, self.config.levels, size)
        row |= {
            "lipschitz": self.trainer.lipschitz(),
            "gradient_norm": progress.norm,
            "learning_rate": self._rate(),
        }
        if mean < progress.best:
            save(self.batches.exported(self.trainer.to_core()), self.run.model_path)
            progress.best, progress.best_step = mean, progress.step
        progress.losses, progress.norm, progress.since = 0.0, None, 0
        self.run.append_row(row)
        if self.scalars is not None:
            known = {name: value for name, value in row.items() if name != "step" and value is not None}
            self.scalars(progress.step, known)
        self.watcher.evaluated(row)

    def _save(self) -> None:
        self.progress.log = self.run.log_digest()
        self.run.save_checkpoint(Checkpoint(self.trainer.state(), self.progress.as_json()))
        self.saved = self.progress.step


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """Set an event on the first SIGINT or SIGTERM; the second does what it always does."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: Any) -> None:
        stopped.set()
        restore()

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        restore()
