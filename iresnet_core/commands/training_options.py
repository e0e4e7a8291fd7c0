"""What the commands that train have in common: the groups of their options, and the run folder."""

from functools import partial
from pathlib import Path
from typing import Any

import typer

from iresnet_core.errors import InvalidArgumentError

__all__ = ["chosen_folder", "data_option", "model_option", "run_option", "training_option"]


def _option(*names: str, help: str, **more: Any) -> Any:  # typer's word
    return typer.Option(*names, help=help, show_default=False, **more)


# The groups of options in the help.
data_option = partial(_option, rich_help_panel="Data")
model_option = partial(_option, rich_help_panel="Model")
training_option = partial(_option, rich_help_panel="Training")
run_option = partial(_option, rich_help_panel="Run folder and evaluation")


def chosen_folder(data: str | None, out: Path | None, resume: Path | None, *, suffix: str, question: str) -> Path:
    """Return the run folder: that of `--resume` or `--out`, or runs/DATA with a suffix.

    Raises
    ------
    InvalidArgumentError
        If both are given, or there is neither of them nor data; then the message is the question.
    """
    if resume is not None:
        if out is not None and out != resume:
            raise InvalidArgumentError("give either --out or --resume.")
        return resume
    if data is None:
        raise InvalidArgumentError(question)
    return out if out is not None else Path("runs") / f"{Path(data).stem}{suffix}"
