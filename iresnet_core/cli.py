"""The command line `iresnet`.

typer, rich and matplotlib come with the extra ``cli`` and are imported only when the command runs, so that a missing
one is answered with a sentence and not with a traceback. Each command is a module of `iresnet_core.commands`.
"""

import codecs
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from iresnet_core.commands import INTERRUPTED, USAGE_ERROR

if TYPE_CHECKING:
    import typer

__all__ = ["build_app", "main"]

_EXTRA = ("typer", "rich", "matplotlib")
_IN_ASCII = {"±": "+-", "·": "-", "…": "...", "ö": "oe"}
# With their lines in the list of all, for which no command has to be imported.
_COMMANDS = {
    "train": "Train a flow by maximum likelihood.",
    "classify": "Train an invertible classifier, and score it with the inverse of its features.",
    "score": "Print the mean log-density of samples with its errors, and write that of each sample.",
    "sample": "Draw samples from a trained flow and write them to a file.",
    "plot": "Draw density, samples, the transport of a grid, images, and the course of the training.",
    "info": "Print layers, shapes, parameters and certified Lipschitz constants of a model.",
    "reproduce": "Make a figure or a table of the report again, beside its comparators.",
    "validate": "Compare every method with exact answers, on trained branches that ship with the package.",
}
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}  # frameworks that would log between the tables, unless the user wants it


def main() -> None:
    """Run the command line; the entry point of the script `iresnet`."""
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        print(
            f"iresnet needs {', '.join(missing)}, which this Python does not have. Install the command line with\n"
            '    pip install "iresnet-core[cli]"',
            file=sys.stderr,
        )
        raise SystemExit(USAGE_ERROR)
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    _encode_all(sys.stdout, sys.stderr)
    try:
        try:
            build_app(_asked(sys.argv[1:]))(prog_name="iresnet")
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except OSError as error:  # of the output itself, as on a disk that is full
        # What could not be written shall not be tried again at the end of Python, in words of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # of a reader that has seen enough, such as head
            raise SystemExit(1) from None
        print(f"iresnet: {error}", file=sys.stderr)
        raise SystemExit(USAGE_ERROR) from None


def _encode_all(*streams: Any) -> None:
    """Let streams replace what their encoding lacks, such as ± in ASCII, and parts of file names that are no text."""
    codecs.register_error("iresnet", _replacement)
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="iresnet")


def _replacement(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_IN_ASCII.get(c, "?") for c in error.object[error.start : error.end]), error.end


def _asked(arguments: list[str]) -> tuple[str, ...]:
    """Return the command that a line asks for; none where it asks for help or for what is not there."""
    first = next((argument for argument in arguments if not argument.startswith("-")), None)
    return (first,) if first in _COMMANDS else ()


def build_app(commands: Sequence[str] = tuple(_COMMANDS)) -> "typer.Typer":
    """Return the typer application, with these commands and the names of all others, which are not imported."""
    import typer

    app = typer.Typer(
        help="Invertible residual networks: spectral norms, inverses and log-determinants, each with its error.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_show_locals=False,
    )

    def print_version(asked: bool) -> None:
        if asked:
            typer.echo(f"iresnet-core {_version()}")
            raise typer.Exit

    @app.callback()
    def root(
        show_version: Annotated[
            bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
        ] = False,
    ) -> None:
        """Nothing to do before the commands."""

    for name, line in _COMMANDS.items():
        if name in commands:
            module = import_module(f"iresnet_core.commands.{name}")
            app.command(name, short_help=line)(getattr(module, f"{name}_command"))
        else:
            app.command(name, help=line)(_not_imported)
    return app


def _not_imported() -> None:
    """Stand for a command in the list of all."""


def _version() -> str:
    try:
        return version("iresnet-core")
    except PackageNotFoundError:  # a source tree on the path
        return "(not installed)"
