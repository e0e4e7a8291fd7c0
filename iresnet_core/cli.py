"""The command line `iresnet`.

typer, rich and matplotlib come with the extra ``cli`` and are imported only when the command runs, so that a missing
one is answered with a sentence and not with a traceback. Each command is a module of `iresnet_core.commands`.
"""

import codecs
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from iresnet_core.commands import INTERRUPTED, USAGE_ERROR

if TYPE_CHECKING:
    import typer

__all__ = ["build_app", "main"]

_EXTRA = ("typer", "rich", "matplotlib")
_IN_ASCII = {"±": "+-", "·": "-", "…": "...", "ö": "oe"}
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
            build_app()()
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


def build_app() -> "typer.Typer":
    """Return the typer application."""
    import typer

    from iresnet_core.commands.info import info_command
    from iresnet_core.commands.plot import plot_command
    from iresnet_core.commands.sample import sample_command
    from iresnet_core.commands.score import score_command
    from iresnet_core.commands.train import train_command
    from iresnet_core.commands.validate import validate_command

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

    app.command("validate")(validate_command)
    app.command("train")(train_command)
    app.command("sample")(sample_command)
    app.command("score")(score_command)
    app.command("plot")(plot_command)
    app.command("info")(info_command)
    return app


def _version() -> str:
    try:
        return version("iresnet-core")
    except PackageNotFoundError:  # a source tree on the path
        return "(not installed)"
