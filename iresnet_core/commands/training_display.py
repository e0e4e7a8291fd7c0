"""What a training shows while it runs."""

import math
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from iresnet_core.classification import ClassifierConfig
from iresnet_core.training import RunConfig, bits_per_dim

__all__ = ["ClassifierDisplay", "TrainingDisplay"]


class _Display:
    """A line for every evaluation, and a bar below them on a terminal; a `Watcher` of the training."""

    def __init__(self, steps: int | None, minutes: float | None, console: Console) -> None:
        self.console, self.steps = console, steps
        seconds = None if minutes is None else 60 * minutes
        self.loss: float | None = None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        watched = console.is_terminal
        self.bar = Progress(*columns, console=console, transient=True, disable=not watched, expand=True)
        self.task = self.bar.add_task("", total=steps if steps is not None else seconds)

    def __enter__(self) -> Self:
        self.bar.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self.bar.__exit__(*details)

    def stepped(self, step: int, seconds: float, loss: float) -> None:
        """Move the bar on."""
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        words = f"step {step} · {self._words(self.loss)}"
        self.bar.update(self.task, completed=step if self.steps is not None else seconds, description=words)

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """Print a line."""
        constant = "" if row["lipschitz"] is None else f"  c {row['lipschitz']:.4f}"
        self.console.print(
            f"step {row['step']:>6}  {row['seconds']:>6.0f} s  {self._line(row)}{constant}", soft_wrap=True
        )

    def _words(self, loss: float) -> str:
        """Return what the bar says of a loss."""
        raise NotImplementedError

    def _line(self, row: Mapping[str, Any]) -> str:
        """Return what a line says of an evaluation."""
        raise NotImplementedError


class TrainingDisplay(_Display):
    """The display of the training of a flow.

    Parameters
    ----------
    config : RunConfig
        Says the length, and the unit.
    console : Console
        Where to print.
    """

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.config = config
        self.size = math.prod(config.layout.data_shape)
        training = config.settings.training
        super().__init__(training.steps, training.minutes, console)

    def _words(self, loss: float) -> str:
        return f"{self._unit()} {self._shown(loss):.3f}"

    def _line(self, row: Mapping[str, Any]) -> str:
        return (
            f"{self._unit()}: train {self._shown(row['train_nats']):.4f}  validation "
            f"{self._shown(row['validation_nats']):.4f} ± {self._scale() * row['validation_error']:.4f}"
        )

    def _unit(self) -> str:
        return "log-density" if self.config.levels is None else "bits/dim"

    def _scale(self) -> float:
        return 1.0 if self.config.levels is None else 1 / (self.size * math.log(2))

    def _shown(self, nats: float) -> float:
        """Return a mean of -log p as it is printed everywhere: as a log-density, or in bits per dimension."""
        return -nats if self.config.levels is None else bits_per_dim(nats, self.config.levels, self.size)


class ClassifierDisplay(_Display):
    """The display of the training of a classifier.

    Parameters
    ----------
    config : ClassifierConfig
        Says the length.
    console : Console
        Where to print.
    """

    def __init__(self, config: ClassifierConfig, console: Console) -> None:
        training = config.settings.training
        super().__init__(training.steps, training.minutes, console)

    def _words(self, loss: float) -> str:
        return f"cross-entropy {loss:.4f}"

    def _line(self, row: Mapping[str, Any]) -> str:
        return (
            f"cross-entropy: train {row['train_nats']:.4f}  validation {row['validation_nats']:.4f} ± "
            f"{row['validation_error']:.4f}  errors {row['validation_wrong']:.2%}"
        )
