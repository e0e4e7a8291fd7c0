"""Scalars for TensorBoard, written with the package tensorboard alone, whichever framework trains."""

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iresnet_core.errors import MissingDependencyError

__all__ = ["has_tensorboard", "scalar_writer"]


def has_tensorboard() -> bool:
    """Whether the package is installed."""
    return find_spec("tensorboard") is not None


def scalar_writer(folder: Path, first_step: int) -> Callable[[int, Mapping[str, float]], None]:
    """Return a function that writes the scalars of a step to an event file in `folder`.

    Events of an earlier sitting from `first_step` on are declared void, since those steps are taken again.

    Raises
    ------
    MissingDependencyError
        If tensorboard is not installed.
    """
    if not has_tensorboard():
        raise MissingDependencyError("the log for TensorBoard needs tensorboard. Try: pip install tensorboard")
    events: Any = import_module("tensorboard.compat.proto.event_pb2")
    summaries: Any = import_module("tensorboard.compat.proto.summary_pb2")
    file = import_module("tensorboard.summary.writer.event_file_writer").EventFileWriter(str(folder))
    start = events.SessionLog(status=events.SessionLog.START)
    file.add_event(events.Event(wall_time=time.time(), step=first_step, session_log=start))

    def write(step: int, scalars: Mapping[str, float]) -> None:
        values = [summaries.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        summary = summaries.Summary(value=values)
        file.add_event(events.Event(wall_time=time.time(), step=step, summary=summary))
        file.flush()

    return write
