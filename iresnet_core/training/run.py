"""The folder of a training: settings, checkpoint, exported model, log and result.

| file | what |
|---|---|
| config.json | settings, shapes, a hash of the data, versions |
| checkpoint.safetensors | parameters, optimiser and random state, and how far the training is |
| model.safetensors | the flow with the best validation so far, in the format of `iresnet_core.save` |
| log.csv | one row for each evaluation |
| result.json | the log-density of the test set, written at the end |
| training.lock | while a training runs: its process and host |

Nothing is pickled, and every file but the log is replaced as a whole. Each carries a hash, and the checkpoint that of
the log too, so that a training does not go on from what was damaged.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from iresnet_core.errors import RunError
from iresnet_core.files import HASH_KEY, digest_of, write_text
from iresnet_core.training import run_log
from iresnet_core.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from iresnet_core.training.run_lock import LOCK_NAME, locked_folder
from iresnet_core.training.sample_layout import SampleLayout
from iresnet_core.training.settings import RunSettings, settings_from_json
from iresnet_core.training.table_columns import TableColumns

__all__ = ["Checkpoint", "RunConfig", "TrainingRun", "model_file"]

FORMAT = "iresnet-run"
VERSION = 1
# What a killed process leaves of a file that it was writing.
_DRAFT = re.compile(
    r"\.(config\.json|checkpoint\.safetensors|model\.safetensors|log\.csv|result\.json)\.[0-9a-f]+\.tmp"
)
_RESULTS = {"log_prob", "sampling_error", "probe_error", "bias_bound", "samples", "step", "steps", "seconds"}


@dataclass(frozen=True)
class RunConfig:
    """Content of config.json.

    Attributes
    ----------
    settings : RunSettings
        Settings that the training was begun with.
    layout : SampleLayout
        Shapes of a sample in the data and in the model.
    levels : int or None
        Grey levels of the data.
    data_name, data_hash : str
        Title of the data, and the fingerprint by which they are known again.
    versions : dict
        Versions of the package and the framework, for the record.
    columns : TableColumns or None
        The columns of a table that the model was made for, with the conditions.
    """

    settings: RunSettings
    layout: SampleLayout
    levels: int | None
    data_name: str
    data_hash: str
    versions: dict[str, str]
    columns: TableColumns | None = None


@dataclass(frozen=True)
class TrainingRun:
    """A run folder.

    Attributes
    ----------
    folder : Path
        Where it is.
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path, config: RunConfig) -> Self:
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
            raise RunError(f"{folder} is no run folder: it {what}. `iresnet train DATA --out RUN` makes one.")
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
        """Exported flow."""
        return self.folder / "model.safetensors"

    @property
    def log_path(self) -> Path:
        """Table of the evaluations."""
        return self.folder / "log.csv"

    @property
    def result_path(self) -> Path:
        """Log-density of the test set."""
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

    def write_config(self, config: RunConfig) -> None:
        """Write config.json."""
        _write_json(self.config_path, {"format": FORMAT, "version": VERSION, **dataclasses.asdict(config)})

    def read_config(self) -> RunConfig:
        """Read config.json.

        Raises
        ------
        RunError
            If it is damaged or of another version.
        """
        where = f"{self.config_path}"
        node = _read_json(self.config_path)
        if not isinstance(node, dict) or node.get("format") != FORMAT:
            raise RunError(f"{where} does not describe a run.")
        if node.get("version") != VERSION:
            raise RunError(f"{where} has version {node.get('version')!r}; this iresnet-core reads {VERSION}.")
        settings = settings_from_json(node.get("settings"), where)
        try:
            layout = {name: _shape(node["layout"][name]) for name in ("data_shape", "model_shape")}
            config = RunConfig(
                settings=settings,
                layout=SampleLayout(**layout),
                levels=_levels(node["levels"]),
                data_name=_text(node["data_name"]),
                data_hash=_text(node["data_hash"]),
                versions={_text(name): _text(value) for name, value in dict(node["versions"]).items()},
                columns=_columns(node.get("columns")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{where} is damaged: {error!r}.") from error
        _require_hash(node, where)
        return config

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

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json; the infinite error of a test set of one sample is null there."""
        error = result["sampling_error"]
        _write_json(self.result_path, {**result, "sampling_error": error if math.isfinite(error) else None})

    def read_result(self) -> dict[str, Any] | None:
        """Return the content of result.json, or None before the training has ended.

        Raises
        ------
        RunError
            If it is damaged.
        """
        if not self.result_path.is_file():
            return None
        node = _read_json(self.result_path)
        if not isinstance(node, dict) or not set(node) >= _RESULTS:
            raise RunError(f"{self.result_path} is no result of a training.")
        _require_hash(node, f"{self.result_path}")
        for name, value in node.items():
            if name == "sampling_error" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
                raise RunError(f"{self.result_path} is damaged: {name} is {value!r}.")
        return node


def model_file(path: Path) -> Path:
    """Return the file of the model: `path` itself, or model.safetensors in a run folder.

    Raises
    ------
    RunError
        If there is neither, or the run has not exported a model yet.
    """
    if path.is_file():
        return path
    run = TrainingRun.open(path)
    if not run.model_path.is_file():
        raise RunError(f"{path} has no model yet: the training has not reached its first evaluation.")
    return run.model_path


def _is_left_over(path: Path) -> bool:
    """Whether a file is nothing but what a killed process left."""
    return path.name == LOCK_NAME or _DRAFT.fullmatch(path.name) is not None


def _write_json(path: Path, node: Mapping[str, Any]) -> None:
    """Write an object with the hash of its content; what JSON lacks, as infinity, is an error of the caller."""
    plain = json.loads(json.dumps(node, allow_nan=False))
    write_text(path, json.dumps({**plain, HASH_KEY: digest_of(plain)}, indent=1) + "\n")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is no valid JSON: {error}") from error


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _require_hash(node: dict[str, Any], where: str) -> None:
    """Take the hash out of an object and compare it; files that were written before there were hashes have none."""
    kept = node.pop(HASH_KEY, None)
    if kept is not None and kept != digest_of(node):
        raise RunError(f"{where} is damaged: its content is not what was written (SHA-256 differs).")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(n) is int and n > 0 for n in value):
        raise TypeError(f"{value!r} is no shape of a sample")
    return tuple(value)


def _columns(value: Any) -> TableColumns | None:
    if value is None:
        return None
    names, fill = value["names"], value["fill"]
    return TableColumns(
        width=int(value["width"]),
        used=tuple(map(int, value["used"])),
        names=None if names is None else tuple(map(_text, names)),
        missing=None if value["missing"] is None else _text(value["missing"]),
        fill=None if fill is None else tuple(map(float, fill)),
    )


def _levels(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 2):
        raise TypeError(f"{value!r} is no number of levels")
    return value
