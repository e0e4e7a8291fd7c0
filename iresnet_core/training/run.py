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
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iresnet_core.errors import RunError
from iresnet_core.training.checkpoint import Checkpoint
from iresnet_core.training.run_folder import RunFolder, read_json, require_hash, write_json
from iresnet_core.training.sample_layout import SampleLayout
from iresnet_core.training.settings import RunSettings, settings_from_json
from iresnet_core.training.table_columns import TableColumns

__all__ = ["Checkpoint", "RunConfig", "TrainingRun", "model_file"]

FORMAT = "iresnet-run"
VERSION = 1
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
class TrainingRun(RunFolder):
    """The run folder of a flow."""

    def write_config(self, config: RunConfig) -> None:
        """Write config.json."""
        write_json(self.config_path, {"format": FORMAT, "version": VERSION, **dataclasses.asdict(config)})

    def read_config(self) -> RunConfig:
        """Read config.json.

        Raises
        ------
        RunError
            If it is damaged or of another version.
        """
        where = f"{self.config_path}"
        node = read_json(self.config_path)
        if not isinstance(node, dict) or node.get("format") != FORMAT:
            classifier = " It describes the training of a classifier, for iresnet classify."
            hint = classifier if self.holds_classifier() else ""
            raise RunError(f"{where} does not describe the training of a flow.{hint}")
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
        require_hash(node, where)
        return config

    def holds_classifier(self) -> bool:
        """Whether config.json is that of a classifier, which this class does not read."""
        try:
            node = read_json(self.config_path)
        except RunError:
            return False
        return isinstance(node, dict) and node.get("format") == "iresnet-classifier-run"

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json; the infinite error of a test set of one sample is null there."""
        error = result["sampling_error"]
        write_json(self.result_path, {**result, "sampling_error": error if math.isfinite(error) else None})

    def read_result(self) -> dict[str, Any] | None:
        """Return the content of result.json, or None before the training has ended.

        Raises
        ------
        RunError
            If it is damaged.
        """
        if not self.result_path.is_file():
            return None
        node = read_json(self.result_path)
        if not isinstance(node, dict) or not set(node) >= _RESULTS:
            raise RunError(f"{self.result_path} is no result of a training.")
        require_hash(node, f"{self.result_path}")
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
    if run.holds_classifier():
        raise RunError(
            f"{path} holds a classifier of iresnet classify, and no density. Its model is read by "
            "iresnet_core.adapters.torch.Classifier.load, whose features are a flow."
        )
    if not run.model_path.is_file():
        raise RunError(f"{path} has no model yet: the training has not reached its first evaluation.")
    return run.model_path


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
