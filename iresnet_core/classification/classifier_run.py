"""The folder of a classifier's training.

| file | what |
|---|---|
| config.json | settings, shape of the images, classes, a hash of the data, versions |
| checkpoint.safetensors | parameters, momentum and random state, and how far the training is |
| model.safetensors | the classifier with the best validation so far, which `Classifier.load` reads |
| log.csv | one row for each evaluation |
| result.json | the error on the test set, and the inverse of its features |
| training.lock | while a training runs: its process and host |
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from iresnet_core.classification.classifier_settings import CHANGEABLE, ClassifierSettings, default_classifier
from iresnet_core.errors import InvalidArgumentError, RunError
from iresnet_core.training import (
    IMAGES,
    DatasetSource,
    LabelledDataset,
    RunFolder,
    labelled_fingerprint,
    load_labelled,
    package_versions,
    read_json,
    require_hash,
    require_same_source,
    with_changes,
    write_json,
)

__all__ = ["ClassifierConfig", "ClassifierRun", "begun", "resumed"]

FORMAT = "iresnet-classifier-run"
VERSION = 1


@dataclass(frozen=True)
class ClassifierConfig:
    """Content of config.json.

    Attributes
    ----------
    settings : ClassifierSettings
        Settings that the training was begun with.
    input_shape : tuple of int
        Shape of an image, channels first.
    classes : tuple of str
        Names of the classes.
    levels : int or None
        Grey levels of the images; level k enters the model as k / (levels - 1).
    data_name, data_hash : str
        Title of the data, and the hash by which they are known again.
    versions : dict
        Versions of the package and the framework, for the record.
    """

    settings: ClassifierSettings
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    levels: int | None
    data_name: str
    data_hash: str
    versions: dict[str, str]


@dataclass(frozen=True)
class ClassifierRun(RunFolder):
    """The run folder of a classifier."""

    command: ClassVar[str] = "iresnet classify"

    def write_config(self, config: ClassifierConfig) -> None:
        """Write config.json."""
        write_json(self.config_path, {"format": FORMAT, "version": VERSION, **dataclasses.asdict(config)})

    def read_config(self) -> ClassifierConfig:
        """Read config.json.

        Raises
        ------
        RunError
            If it is damaged, of another version, or that of a flow.
        """
        where = f"{self.config_path}"
        node = read_json(self.config_path)
        if not isinstance(node, dict) or node.get("format") != FORMAT:
            flow = isinstance(node, dict) and node.get("format") == "iresnet-run"
            hint = " It describes the training of a flow: iresnet train --resume." if flow else ""
            raise RunError(f"{where} does not describe the training of a classifier.{hint}")
        if node.get("version") != VERSION:
            raise RunError(f"{where} has version {node.get('version')!r}; this iresnet-core reads {VERSION}.")
        settings = ClassifierSettings.from_json(node.get("settings"), where)
        try:
            config = ClassifierConfig(
                settings=settings,
                input_shape=tuple(map(int, node["input_shape"])),
                classes=tuple(map(str, node["classes"])),
                levels=None if node["levels"] is None else int(node["levels"]),
                data_name=str(node["data_name"]),
                data_hash=str(node["data_hash"]),
                versions={str(name): str(value) for name, value in dict(node["versions"]).items()},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{where} is damaged: {error!r}.") from error
        require_hash(node, where)
        return config

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json."""
        write_json(self.result_path, result)

    def read_result(self) -> dict[str, Any] | None:
        """Return the content of result.json, or None before the training has ended; RunError if it is damaged."""
        if not self.result_path.is_file():
            return None
        node = read_json(self.result_path)
        if not isinstance(node, dict) or not {"error", "error_std", "cross_entropy", "samples"} <= set(node):
            raise RunError(f"{self.result_path} is no result of a classifier.")
        require_hash(node, f"{self.result_path}")
        return node


def begun(data: str, asked: Mapping[str, Any], of_data: Mapping[str, Any]) -> tuple[ClassifierConfig, LabelledDataset]:
    """Return the settings of a new run, and its data.

    Parameters
    ----------
    data : str
        Name or path.
    asked : mapping
        Settings as in `default_classifier`.
    of_data : mapping
        Fields of `DatasetSource`.
    """
    name = data if data in IMAGES or not Path(data).is_file() else str(Path(data).absolute())
    source = DatasetSource(name, seed=asked.get("seed", 0), **of_data)
    dataset = load_labelled(source)
    settings = default_classifier(source, dataset, asked)
    images = dataset.images
    config = ClassifierConfig(
        settings=settings,
        input_shape=images.event_shape,
        classes=dataset.classes,
        levels=images.levels,
        data_name=images.name,
        data_hash=labelled_fingerprint(dataset),
        versions=package_versions(("iresnet-core", "numpy", settings.training.framework)),
    )
    return config, dataset


def resumed(
    run: ClassifierRun, data: str | None, asked: Mapping[str, Any], of_data: Mapping[str, Any]
) -> tuple[ClassifierConfig, LabelledDataset]:
    """Return the settings of a run that goes on, and its data.

    Raises
    ------
    RunError
        If other settings are asked for than it was begun with, or the data have changed.
    """
    config = run.read_config()
    source = config.settings.data
    require_same_source(run.folder, source, data, of_data)
    asked = dict(asked)
    dataset = load_labelled(source)
    epochs = asked.pop("epochs", None)
    if epochs is not None:
        if not 0 < epochs < float("inf"):
            raise InvalidArgumentError(f"epochs must be a positive number, got {epochs:g}.")
        asked["steps"] = max(1, round(epochs * (len(dataset.images.train) // config.settings.training.batch)))
    settings = with_changes(config.settings, asked, str(run.folder), CHANGEABLE)
    if labelled_fingerprint(dataset) != config.data_hash:
        raise RunError(f"the data in {source.name} are not those that {run.folder} was begun with.")
    if settings != config.settings:
        config = dataclasses.replace(config, settings=settings)
        run.write_config(config)
    return config, dataset
