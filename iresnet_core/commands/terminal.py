"""Parts that all commands use: exit status, errors as one line, the console, the progress bar."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from iresnet_core.commands import USAGE_ERROR
from iresnet_core.errors import IResNetError

__all__ = ["FAILED", "one_thread", "progress_bar", "usage_errors", "wide_console"]

FAILED = 1
NARROWEST = 80  # columns that the tables need


def wide_console() -> Console:
    """Return a console on stdout of at least the width that the tables need."""
    console = Console(highlight=False)
    return Console(highlight=False, width=max(console.width, NARROWEST))


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what the user can mend into one line on stderr and exit status 2."""
    try:
        yield
    except BrokenPipeError:  # of a reader that has seen enough, such as head
        raise
    except (IResNetError, OSError) as error:
        print("\n".join((f"iresnet: {error}", *getattr(error, "__notes__", ()))), file=sys.stderr)
        raise SystemExit(USAGE_ERROR) from None
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        print("iresnet: this takes more memory than there is. Try fewer samples, or a smaller model.", file=sys.stderr)
        raise SystemExit(USAGE_ERROR) from None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory could not be had, for which frameworks have errors of their own or no class at all."""
    words = str(error).lower()
    named = "out of memory" in words or "allocate memory" in words
    of_tensorflow = type(error).__name__ == "ResourceExhaustedError"  # which is not imported for its class
    return isinstance(error, MemoryError) or of_tensorflow or (isinstance(error, RuntimeError) and named)


def one_thread() -> AbstractContextManager[Any]:
    """Keep BLAS to one thread, where threadpoolctl can.

    The matrices are small, and the threads of a BLAS that waits actively slow each other down, tenfold and more where
    the cores are busy.
    """
    if find_spec("threadpoolctl") is None:
        return nullcontext()
    limits: AbstractContextManager[Any] = import_module("threadpoolctl").threadpool_limits(limits=1)
    return limits


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """Draw a bar on stderr, and only where somebody watches."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")

        def update(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total, description=label)

        yield update
