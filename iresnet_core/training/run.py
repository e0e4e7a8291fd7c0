"""The folder of a training: settings, checkpoint, exported model, log and result.

| file | what |
|---|---|
| config.json | settings, shapes, a hash of the data, versions |
| checkpoint.safetensors | parameters, optimiser and random state, and how far the training is |
| model.safetensors | the flow with the best validation so far, in the format of `iresnet_core.save` |
| log.csv | one row for each evaluation |
| result.json | the log-density of the test set, written at the end |

Nothing is pickled, and every file but the log is replaced as a whole.
"""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from iresnet_core.errors import RunError
from iresnet_core.files import write_bytes, write_text
from iresnet_core.training.sample_layout import SampleLayout
from iresnet_core.training.settings import RunSettings, settings_from_json

__all__ = ["Checkpoint", "RunConfig", "TrainingRun", "model_file"]

FORMAT = "iresnet-run"
VERSION = 1
_KEY = "iresnet-run"


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
    """

    settings: RunSettings
    layout: SampleLayout
    levels: int | None
    data_name: str
    data_hash: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A state of the training from which it goes on as if it had not been interrupted.

    Attributes
    ----------
    arrays : dict of arrays
        Parameters, optimiser, random state: whatever the framework needs.
    progress : dict
        Plain data: step, seconds, best validation so far.
    """

    arrays: dict[str, np.ndarray]
    progress: dict[str, Any]


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
            If `folder` is a file, or a folder that holds something else.
        """
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; a run is a folder.")
        run = cls(folder)
        if run.exists():
            raise RunError(f"{folder} holds a run already.")
        if folder.is_dir() and any(folder.iterdir()):
            raise RunError(f"{folder} holds other files; give --out a new or empty folder.")
        folder.mkdir(parents=True, exist_ok=True)
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

    def write_config(self, config: RunConfig) -> None:
        """Write config.json."""
        node = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(config)}
        write_text(self.config_path, json.dumps(node, indent=1) + "\n")

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
            layout = SampleLayout(tuple(node["layout"]["data_shape"]), tuple(node["layout"]["model_shape"]))
            return RunConfig(
                settings=settings,
                layout=layout,
                levels=None if node["levels"] is None else int(node["levels"]),
                data_name=str(node["data_name"]),
                data_hash=str(node["data_hash"]),
                versions=dict(node["versions"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{where} is damaged: {error!r}.") from error

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the state of the training, whole or not at all."""
        arrays = {name: np.array(array, order="C") for name, array in checkpoint.arrays.items()}
        content = to_bytes(arrays, metadata={_KEY: json.dumps(checkpoint.progress)})
        write_bytes(self.checkpoint_path, content)

    def load_checkpoint(self) -> Checkpoint | None:
        """Return the last saved state, or None if there is none yet.

        Raises
        ------
        RunError
            If the file is damaged.
        """
        if not self.checkpoint_path.is_file():
            return None
        try:
            with safe_open(self.checkpoint_path, framework="numpy") as file:
                progress = json.loads((file.metadata() or {})[_KEY])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (SafetensorError, KeyError, ValueError) as error:
            raise RunError(f"{self.checkpoint_path} is no intact checkpoint: {error}") from error
        if not isinstance(progress, dict) or not isinstance(progress.get("step"), int):
            raise RunError(f"{self.checkpoint_path} does not say at which step it was written.")
        return Checkpoint(arrays, progress)

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Add a row to the log; the first row sets the columns."""
        new = not self.log_path.exists()
        with open(self.log_path, "a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(row)
            writer.writerow(["" if value is None else value for value in row.values()])
            file.flush()
            os.fsync(file.fileno())

    def read_log(self) -> list[dict[str, float | None]]:
        """Return the rows of the log.

        Raises
        ------
        RunError
            If it is not the log of a run.
        """
        if not self.log_path.is_file():
            return []
        with open(self.log_path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        try:
            return [{name: float(cell) if cell else None for name, cell in row.items()} for row in rows]
        except (TypeError, ValueError) as error:
            raise RunError(f"{self.log_path} is no log of a training: {error}") from error

    def forget_after(self, step: int) -> None:
        """Drop the rows of the log beyond a step: the training goes on from there and writes them again."""
        if not self.log_path.is_file():
            return
        with open(self.log_path, encoding="utf-8", newline="") as file:
            head, *rows = list(csv.reader(file)) or [[]]
        # A row that was cut off in the middle of writing has fewer cells.
        kept = [row for row in rows if len(row) == len(head) and int(row[0]) <= step]
        if not kept:
            self.log_path.unlink()
            return
        text = io.StringIO()
        csv.writer(text).writerows([head, *kept])
        write_text(self.log_path, text.getvalue())

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json."""
        write_text(self.result_path, json.dumps(result, indent=1) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """Return the content of result.json, or None before the training has ended."""
        if not self.result_path.is_file():
            return None
        node = _read_json(self.result_path)
        if not isinstance(node, dict):
            raise RunError(f"{self.result_path} is no result of a training.")
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


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is no valid JSON: {error}") from error
