"""The folder of a training, whatever is trained: its lock, checkpoint and log, and JSON files with a hash."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

from iresnet_core.errors import RunError
from iresnet_core.files import HASH_KEY, digest_of, write_text
from iresnet_core.training import run_log
from iresnet_core.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from iresnet_core.training.run_lock import LOCK_NAME, locked_folder

__all__ = ["RunFolder", "read_json", "require_hash", "require_same_source", "write_json"]

# What a killed process leaves of a file that it was writing.
_DRAFT = re.compile(
    r"\.(config\.json|checkpoint\.safetensors|model\.safetensors|log\.csv|result\.json)\.[0-9a-f]+\.tmp"
)


@dataclass(frozen=True)
class RunFolder:
    """What the folder of every training has: the lock, the checkpoint, the log and the names of the files.

    Attributes
    ----------
    folder : Path
        Where it is.
    """

    folder: Path
    command: ClassVar[str] = "iresnet train"  # that makes such a folder

    @classmethod
    def create(cls, folder: Path, config: Any) -> Self:
        """Make the folder with its config.json.

        Raises
        ------
        RunError
            If `folder` is a file, or a folder that holds more than what a killed process leaves, or another training
            is using it.
        """
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; a run is a folder.")
        run = cls(folder)
        if run.exists():
            raise RunError(f"{folder} holds a run already.")
        if folder.is_dir() and not all(_is_left_over(path) for path in folder.iterdir()):
            raise RunError(f"{folder} holds other files; give --out a new or empty folder.")
        folder.mkdir(parents=True, exist_ok=True)
        with run.locked():
            if run.exists():  # somebody was faster
                raise RunError(f"{folder} holds a run already.")
            run.write_config(config)
        return run

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Return the run in a folder that has one.

        Raises
        ------
        RunError
            If there is no run.
        """
        run = cls(folder)
        if not run.exists():
            what = "is not there" if not folder.exists() else "is a file" if folder.is_file() else "has no config.json"
            raise RunError(f"{folder} is no run folder: it {what}. `{cls.command} DATA --out RUN` makes one.")
        return run

    @property
    def config_path(self) -> Path:
        """Settings of the training."""
        return self.folder / "config.json"

    @property
    def checkpoint_path(self) -> Path:
        """Last saved state."""
        return self.folder / "checkpoint.safetensors"

    @property
    def model_path(self) -> Path:
        """Exported model."""
        return self.folder / "model.safetensors"

    @property
    def log_path(self) -> Path:
        """Table of the evaluations."""
        return self.folder / "log.csv"

    @property
    def result_path(self) -> Path:
        """Score of the test set."""
        return self.folder / "result.json"

    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self.config_path.is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainings out of the folder; unfinished drafts of a killed one are removed first.

        Raises
        ------
        RunError
            If another training is using it; the message names its process and host.
        OSError
            If the folder cannot be written.
        """
        with locked_folder(self.folder):
            for path in self.folder.iterdir():
                if _DRAFT.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            yield

    def write_config(self, config: Any) -> None:
        """Write config.json."""
        raise NotImplementedError

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the state of the training, whole or not at all."""
        write_checkpoint(self.checkpoint_path, checkpoint)

    def load_checkpoint(self) -> Checkpoint | None:
        """Return the last saved state, or None if there is none yet.

        Raises
        ------
        RunError
            If the file is damaged.
        """
        return read_checkpoint(self.checkpoint_path) if self.checkpoint_path.is_file() else None

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Add a row to the log; the first row sets the columns."""
        run_log.append_row(self.log_path, row)

    def read_log(self) -> list[dict[str, float | None]]:
        """Return the rows of the log.

        Raises
        ------
        RunError
            If it is not the log of a run.
        """
        return run_log.read_log(self.log_path)

    def log_digest(self) -> str:
        """Return the hash of the log as it is now."""
        return run_log.log_digest(self.log_path)

    def forget_after(self, step: int, digest: str | None = None) -> None:
        """Drop the rows of the log beyond a step, to which `digest` belongs; see `run_log.forget_after`."""
        run_log.forget_after(self.log_path, step, digest)


def _is_left_over(path: Path) -> bool:
    """Whether a file is nothing but what a killed process left."""
    return path.name == LOCK_NAME or _DRAFT.fullmatch(path.name) is not None


def write_json(path: Path, node: Mapping[str, Any]) -> None:
    """Write an object with the hash of its content; what JSON lacks, as infinity, is an error of the caller."""
    plain = json.loads(json.dumps(node, allow_nan=False))
    write_text(path, json.dumps({**plain, HASH_KEY: digest_of(plain)}, indent=1) + "\n")


def require_same_source(folder: Path, source: Any, data: str | None, of_data: Mapping[str, Any]) -> None:
    """Refuse to go on with a training on other data than those that it was begun with.

    Parameters
    ----------
    folder : Path
        The run folder, for messages.
    source : DatasetSource
        What the training was begun with.
    data : str or None
        The name or path that is asked for now, if any.
    of_data : mapping
        Other fields of the source that are asked for.

    Raises
    ------
    RunError
        If they differ; the message says in what.
    """
    if data is not None and data != source.name and not _one_file(data, source.name):
        raise RunError(f"{folder} holds a training on {source.name}, not on {data}. Give another --out.")
    for name, value in of_data.items():
        known = getattr(source, name)
        if known != value and not (name == "file" and known and value and _one_file(value, known)):
            raise RunError(f"{folder} holds a training with {name} {known} instead of {value}.")


def _one_file(data: str, name: str) -> bool:
    """Whether a path leads to the file that a run is said to be on, by whatever way it is written."""
    return os.path.isabs(name) and os.path.realpath(data) == os.path.realpath(name)


def read_json(path: Path) -> Any:
    """Read a file that `write_json` wrote; RunError if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is no valid JSON: {error}") from error


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def require_hash(node: dict[str, Any], where: str) -> None:
    """Take the hash out of an object and compare it; files that were written before there were hashes have none."""
    kept = node.pop(HASH_KEY, None)
    if kept is not None and kept != digest_of(node):
        raise RunError(f"{where} is damaged: its content is not what was written (SHA-256 differs).")
