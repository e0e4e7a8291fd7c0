"""Which operations TensorFlow's gradient tapes record.

TensorFlow's public interface pauses one tape at a time; what pauses all tapes of a thread, and what says whether there
are any, is not part of it. Where a release moves these functions, everything is recorded: slower, and as correct.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

__all__ = ["not_recording", "recording", "some_tape_records"]

try:
    from tensorflow.python.eager.record import could_possibly_record, stop_recording
    from tensorflow.python.pywrap_tfe import (
        TFE_Py_TapeSetIsStopped,
        TFE_Py_TapeSetRestartOnThread,
        TFE_Py_TapeSetStopOnThread,
    )
except ImportError:
    _KNOWN = False
else:
    _KNOWN = True


def some_tape_records() -> bool:
    """Say whether a tape of this thread may record what comes next; True in doubt."""
    return bool(could_possibly_record()) if _KNOWN else True


def not_recording() -> AbstractContextManager[None]:
    """Context in which no tape of this thread records."""
    context: AbstractContextManager[None] = stop_recording() if _KNOWN else nullcontext()
    return context


@contextmanager
def recording() -> Iterator[None]:
    """Context in which tapes record, also inside `not_recording` and ``tf.init_scope``, which stop new tapes too."""
    stopped = _KNOWN and TFE_Py_TapeSetIsStopped()
    if stopped:
        TFE_Py_TapeSetRestartOnThread()
    try:
        yield
    finally:
        if stopped:
            TFE_Py_TapeSetStopOnThread()
