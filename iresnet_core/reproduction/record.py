"""The record of a run: one JSON file with everything that the page prints of it."""

import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from iresnet_core.errors import RunError
from iresnet_core.files import HASH_KEY, digest_of, write_text
from iresnet_core.training import package_versions

__all__ = ["Record", "machine_name", "read_hashed", "read_record", "write_hashed", "write_record"]

_PACKAGES = ("iresnet-core", "numpy", "torch", "zuko", "normflows", "nflows", "torchdiffeq", "scikit-learn")
_DEVICES = "iresnet_core.adapters.torch.devices"


@dataclass(frozen=True)
class Record:
    """What a run found.

    Attributes
    ----------
    name, title : str
        The target, and the heading of its section.
    command : str
        The command that makes the run again.
    seed : int
        Its seed.
    columns, rows : tuple of str, tuple of tuples
        The table that the page shows; entries are text, numbers or None.
    date, machine : str
        When it ended, and on which processor and accelerator.
    seconds : float
        Time of the whole run: the sum over its cells, also where they were computed at once or at different times.
    versions, settings : dict
        Packages with their versions, and what the models and trainings were made with.
    notes : tuple of str
        Sentences that the page prints below the table.
    pictures : tuple of str
        File names of pictures beside the record.
    details : tuple of dict
        The results of all cells, unrounded.
    """

    name: str
    title: str
    command: str
    seed: int
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    details: tuple[dict[str, Any], ...] = ()
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    machine: str = field(default_factory=lambda: machine_name())
    versions: dict[str, str] = field(default_factory=lambda: package_versions(_PACKAGES))


def machine_name(device: str | None = "cpu") -> str:
    """Return the name of the processor and the number of cores that this process may use, and of an accelerator.

    Parameters
    ----------
    device : str or None
        The device of the trainings, whose name is put behind; None for the one that a training takes which is asked
        for none: a GPU where there is one.
    """
    name = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:  # only Linux has it
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine = f"{name}, {cores} core{'s' if cores > 1 else ''}"
    if device == "cpu":
        return machine
    # The trainings import a framework, this package none: the adapter is found by its name, like its trainers.
    accelerator = import_module(_DEVICES).accelerator_name(device)
    return machine if accelerator is None else f"{machine}, {accelerator}"


def write_record(folder: Path, record: Record, label: str = "") -> Path:
    """Write NAME.json, with a label behind the name, and return its path."""
    path = folder / f"{record.name}{label}.json"
    write_hashed(path, dataclasses.asdict(record))
    return path


def read_record(path: Path) -> Record:
    """Read what `write_record` wrote.

    Raises
    ------
    RunError
        If the file is missing or damaged, or has other fields.
    """
    node = read_hashed(path)
    known = {one.name for one in dataclasses.fields(Record)}
    if set(node) != known:
        raise RunError(
            f"{path} does not have the fields of a record of this version ({', '.join(sorted(set(node) ^ known))}). "
            "Run it again."
        )
    node["columns"], node["notes"], node["pictures"] = (tuple(node[key]) for key in ("columns", "notes", "pictures"))
    node["rows"], node["details"] = tuple(map(tuple, node["rows"])), tuple(node["details"])
    return Record(**node)


def write_hashed(path: Path, node: Mapping[str, Any]) -> None:
    """Write plain data with their hash, whole or not at all."""
    plain = json.loads(json.dumps(dict(node)))
    write_text(path, json.dumps({**plain, HASH_KEY: digest_of(plain)}, indent=1, ensure_ascii=False) + "\n")


def read_hashed(path: Path) -> dict[str, Any]:
    """Read what `write_hashed` wrote.

    Raises
    ------
    RunError
        If the file is missing, no JSON object, or changed since.
    """
    try:
        node = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"there is no file {path}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{path} is damaged: {error}. Delete it and run the command again.") from error
    if not isinstance(node, dict) or node.pop(HASH_KEY, None) != digest_of(node):
        raise RunError(f"{path} was changed after it was written. Delete it and run the command again.")
    return node
