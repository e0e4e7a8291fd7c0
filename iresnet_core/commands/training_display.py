"""What a training shows while it runs."""

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from iresnet_core.training import RunConfig, bits_per_dim

__all__ = ["TrainingDisplay"]


class TrainingDisplay:
    """A line for every evaluation, and a bar below them on a terminal; a `Watcher` of the training.

    Parameters
    ----------
    config : RunConfig
        Says the length, and the unit.
    console : Console
        Where to print.
    """

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.config, self.console = config, console
        training = config.settings.training
        self.steps, self.seconds = training.steps, None if training.minutes is None else 60 * training.minutes
        self.size = math.prod(config.layout.data_shape)
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
        self.task = self.bar.add_task("", total=self.steps if self.steps is not None else self.seconds)

    def __enter__(self) -> "TrainingDisplay":
        self.bar.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self.bar.__exit__(*details)

    def stepped(self, step: int, seconds: float, loss: float) -> None:
        """Move the bar on."""
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        words = f"step {step} · {self._unit()} {self._shown(self.loss):.3f}"
        self.bar.update(self.task, completed=step if self.steps is not None else seconds, description=words)

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """Print a line."""
        self.console.print(
            f"step {row['step']:>6}  {row['seconds']:>6.0f} s  {self._unit()}: "
            f"train {self._shown(row['train_nats']):.4f}  validation "
            f"{self._shown(row['validation_nats']):.4f} ± {self._scale() * row['validation_error']:.4f}  "
            f"c {row['lipschitz']:.4f}",
            soft_wrap=True,
        )

    def _unit(self) -> str:
        return "log-density" if self.config.levels is None else "bits/dim"

    def _scale(self) -> float:
        return 1.0 if self.config.levels is None else 1 / (self.size * math.log(2))

    def _shown(self, nats: float) -> float:
        """Return a mean of -log p as it is printed everywhere: as a log-density, or in bits per dimension."""
        return -nats if self.config.levels is None else bits_per_dim(nats, self.config.levels, self.size)
