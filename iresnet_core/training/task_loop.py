"""The steps of any training: interruptions, checkpoints, the log, and the best model so far.

What is trained is a `Task`. All that it draws is a function of the seed and the number of the step, and its state is in
the checkpoint. A training that was interrupted and resumed therefore takes the same steps as one that was not.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from iresnet_core.errors import NonFiniteDataError, NonFiniteError, RunError, StorageError
from iresnet_core.training.checkpoint import Checkpoint, Progress
from iresnet_core.training.processes import ONE_PROCESS, Processes
from iresnet_core.training.run_folder import RunFolder
from iresnet_core.training.tensorboard_log import scalar_writer

__all__ = ["Evaluation", "Outcome", "SilentWatcher", "StepResult", "Task", "Watcher", "cosine", "run_task", "warmed"]

_SLOWEST = 0.01  # the cosine ends at this part of the learning rate


class StepResult(NamedTuple):
    """Loss and gradient of one step of the optimiser.

    Attributes
    ----------
    loss : float
        Mean loss of the batch, in nats: the negative log-density, or the cross-entropy.
    gradient_norm : float or None
        Norm of the gradient before it was clipped; None where the framework does not tell.
    """

    loss: float
    gradient_norm: float | None


class Evaluation(NamedTuple):
    """What an evaluation on the validation set found.

    Attributes
    ----------
    criterion : float
        The lower the better; the model with the lowest one is exported.
    row : dict
        Columns of the log, in their order, among them "validation_nats", "validation_error" and "lipschitz".
    """

    criterion: float
    row: dict[str, Any]


class Length(Protocol):
    """What the loop asks the settings of a training."""

    @property
    def steps(self) -> int | None:
        """Length in steps."""

    @property
    def minutes(self) -> float | None:
        """Length in minutes, where steps are None."""

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations."""

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""


class Task(Protocol):
    """What is trained, with its data."""

    advice: str  # for a training whose loss became infinite

    def rate(self, step: int, share: float) -> float:
        """Return the learning rate of a step, before which this share of the training is done."""

    def step(self, step: int, lr: float) -> StepResult:
        """Take one step of the optimiser."""

    def evaluate(self, train_nats: float) -> Evaluation:
        """Evaluate the model on the validation set; `train_nats` is the mean loss of the steps before."""

    def export(self, path: Path) -> None:
        """Write the model as it is to a file."""

    def require_exported(self, path: Path) -> None:
        """Read what `export` wrote; StorageError or FileNotFoundError where that cannot be."""

    def state(self) -> dict[str, np.ndarray]:
        """Return all state as arrays."""

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up what `state` returned; RunError if it belongs to another model."""


class Watcher(Protocol):
    """Who wants to know how the training goes."""

    def stepped(self, step: int, seconds: float, loss: float) -> None:
        """A step was taken."""

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """A row was added to the log."""


class SilentWatcher:
    """Somebody who does not."""

    def stepped(self, step: int, seconds: float, loss: float) -> None:
        """Do nothing."""

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""


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
        Its criterion: the mean negative log-density of the validation set in nats, or the share of errors there.
    seconds : float
        Over all sittings.
    """

    finished: bool
    step: int
    best_step: int
    best: float
    seconds: float


def warmed(step: int, warm_up: int) -> float:
    """Return the part of the learning rate at a step, where it rises in a line over the first steps."""
    return 1.0 if step >= warm_up else (step + 1) / (warm_up + 1)


def cosine(share: float) -> float:
    """Return the part of the learning rate that half a cosine has left."""
    return _SLOWEST + (1 - _SLOWEST) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def run_task(
    run: RunFolder,
    settings: Length,
    task: Task,
    watcher: Watcher,
    *,
    tensorboard: bool = False,
    processes: Processes = ONE_PROCESS,
) -> Outcome:
    """Take the steps of a task, from the run's last checkpoint if it has one; the folder is locked by the caller.

    Several processes take them together: the first one alone writes, and its clock and its signals are those of all.

    The model with the lowest criterion is exported at every evaluation that improves it. SIGINT and SIGTERM end the
    training after the step at hand with a checkpoint; a second one ends it at once, which leaves the last checkpoint as
    it is.

    Raises
    ------
    NonFiniteError
        If the loss becomes NaN or infinite; the last checkpoint stays.
    RunError
        If the checkpoint belongs to another model, or a file is damaged.
    """
    progress = _taken_up(run, task)
    scalars = None
    if processes.rank == 0:
        run.forget_after(progress.step, progress.log)
        scalars = scalar_writer(run.folder / "tensorboard", progress.step + 1) if tensorboard else None
    loop = _Loop(run, settings, task, progress, watcher, scalars, processes)
    with _interruption() as stopped:
        loop.until_done(stopped)
    return Outcome(
        finished=loop.done(),
        step=progress.step,
        best_step=progress.best_step,
        best=progress.best,
        seconds=progress.seconds,
    )


def _taken_up(run: RunFolder, task: Task) -> Progress:
    """Put the task into the state of the last checkpoint, if there is one, and return how far that is."""
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        return Progress()
    progress = Progress.from_json(checkpoint.progress, f"{run.checkpoint_path}")
    try:
        task.load_state(checkpoint.arrays)
    except RunError as error:
        raise RunError(f"{run.checkpoint_path}: {error}") from error
    if progress.best_step:
        try:
            task.require_exported(run.model_path)  # the best model so far, which the end of the training scores
        except (StorageError, FileNotFoundError) as error:
            raise RunError(
                f"the model of step {progress.best_step} cannot be read: {error}. Put the file back, or begin anew."
            ) from error
    return progress


class _Loop:
    """The steps, with what is written between them."""

    def __init__(
        self,
        run: RunFolder,
        settings: Length,
        task: Task,
        progress: Progress,
        watcher: Watcher,
        scalars: Callable[[int, Mapping[str, float]], None] | None,
        processes: Processes,
    ) -> None:
        self.run, self.settings, self.task, self.processes = run, settings, task, processes
        self.progress, self.watcher, self.scalars = progress, watcher, scalars
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
        while not self.done() and not any(self.processes.all(stopped.is_set())):
            try:
                loss, norm = self.task.step(progress.step, self._rate())
            except NonFiniteDataError:
                raise
            except NonFiniteError as error:  # of a sample that is too far out
                raise NonFiniteError(f"at step {progress.step}: {error} {self._advice()}") from None
            if not (math.isfinite(loss) and math.isfinite(norm or 0.0)):
                raise NonFiniteError(
                    f"at step {progress.step} the loss is {loss:g} and the norm of its gradient {norm}. "
                    f"{self._advice()}"
                )
            progress.step += 1
            progress.losses += loss
            progress.norm = norm if progress.norm is None else max(progress.norm, norm or 0.0)
            progress.since += 1
            progress.seconds = self.processes.first(before + time.monotonic() - begin)
            self.watcher.stepped(progress.step, progress.seconds, loss)
            if progress.step % settings.evaluate_every == 0 or self.done():
                self._evaluate()
                progress.seconds = self.processes.first(before + time.monotonic() - begin)
            if progress.step % settings.checkpoint_every == 0:
                self._save()
        if self.saved != progress.step:
            self._save()

    def _advice(self) -> str:
        kept = f"step {self.saved}, which stays" if self.saved >= 0 else "none"
        return f"The last checkpoint is that of {kept}. {self.task.advice}"

    def _rate(self) -> float:
        return self.task.rate(self.progress.step, self.share())

    def _evaluate(self) -> None:
        """Add a row to the log, and export the model if it is the best so far."""
        progress = self.progress
        train_nats = progress.losses / progress.since
        found = self.task.evaluate(train_nats)
        if not math.isfinite(found.criterion):
            nats = found.row["validation_nats"]
            raise NonFiniteError(f"at step {progress.step} the loss of the validation set is {nats:g}.")
        row: dict[str, Any] = {
            "step": progress.step,
            "seconds": round(progress.seconds, 2),
            "train_nats": train_nats,
            **found.row,
            "gradient_norm": progress.norm,
            "learning_rate": self._rate(),
        }
        writes = self.processes.rank == 0
        if found.criterion < progress.best:
            if writes:
                self.task.export(self.run.model_path)
            progress.best, progress.best_step = found.criterion, progress.step
        progress.losses, progress.norm, progress.since = 0.0, None, 0
        if writes:
            self.run.append_row(row)
        if self.scalars is not None:
            known = {name: value for name, value in row.items() if name != "step" and value is not None}
            self.scalars(progress.step, known)
        self.watcher.evaluated(row)

    def _save(self) -> None:
        if self.processes.rank == 0:
            self.progress.log = self.run.log_digest()
            self.run.save_checkpoint(Checkpoint(self.task.state(), self.progress.as_json()))
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
