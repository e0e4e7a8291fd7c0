"""The state of a training in a file: arrays, how far it is, and a hash of both."""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from iresnet_core.errors import RunError
from iresnet_core.files import HASH_KEY, digest_of, write_bytes

__all__ = ["Checkpoint", "Progress", "read_checkpoint", "write_checkpoint"]

_KEY = "iresnet-run"


@dataclass
class Progress:
    """How far a training is.

    Attributes
    ----------
    step : int
        Steps taken.
    seconds : float
        Over all sittings.
    best, best_step : float, int
        Lowest mean negative log-density of the validation set so far, in nats, and its step.
    losses, norm, since : float, float or None, int
        Sum of the losses, largest gradient norm and number of steps since the last row of the log.
    log : str or None
        Hash of the log at this step; None in files that were written before there was one.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    losses: float = 0.0
    norm: float | None = None
    since: int = 0
    log: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain data; an infinite `best`, which JSON lacks, is None."""
        return {**vars(self), "best": self.best if math.isfinite(self.best) else None}

    @classmethod
    def from_json(cls, node: Any, where: str) -> Self:
        """Read what `as_json` wrote.

        Raises
        ------
        RunError
            If a field is missing, unknown or has no such value.
        """
        if not isinstance(node, dict) or not isinstance(node.get("step"), int):
            raise RunError(f"{where} does not say at which step it was written.")
        node = {"log": None, **node}
        if set(node) != {field.name for field in fields(cls)}:
            seen = ", ".join(sorted(set(node) ^ {field.name for field in fields(cls)}))
            raise RunError(f"{where} was written by another version: {seen}.")
        if node["best"] is None:
            node["best"] = math.inf
        sound = {
            "step": _is_count(node["step"]),
            "seconds": _is_number(node["seconds"]) and node["seconds"] >= 0,
            "best": _is_number(node["best"]) or node["best"] == math.inf,
            "best_step": _is_count(node["best_step"]) and node["best_step"] <= node["step"],
            "losses": _is_number(node["losses"]),
            "norm": node["norm"] is None or (_is_number(node["norm"]) and node["norm"] >= 0),
            "since": _is_count(node["since"]) and node["since"] <= node["step"],
            "log": node["log"] is None or (isinstance(node["log"], str) and len(node["log"]) == 64),
        }
        wrong = [f"{name} is {node[name]!r}" for name, right in sound.items() if not right]
        if wrong:
            raise RunError(f"{where} is damaged: {', '.join(wrong)}.")
        return cls(**node)


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


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all."""
    arrays = {name: np.array(array, order="C") for name, array in checkpoint.arrays.items()}
    node = {**checkpoint.progress, HASH_KEY: digest_of(checkpoint.progress, sorted(arrays.items()))}
    write_bytes(path, to_bytes(arrays, metadata={_KEY: json.dumps(node)}))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    RunError
        If the file is damaged: no safetensors file, or one whose content is not that of its hash, or NaN or infinity
        in an array. A file that was written before there were hashes has none.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            progress = json.loads((file.metadata() or {})[_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is no intact checkpoint: {error}") from error
    if not isinstance(progress, dict) or not _is_count(progress.get("step")):
        raise RunError(f"{path} does not say at which step it was written.")
    kept = progress.pop(HASH_KEY, None)
    if kept is not None and kept != digest_of(progress, sorted(arrays.items())):
        raise RunError(f"{path} is damaged: its content is not what was written (SHA-256 differs).")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise RunError(f"{path} is damaged: NaN or infinity in {name}.")
    return Checkpoint(arrays, progress)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
