"""Tabular densities: ours beside the residual flow, NSF, MAF and FFJORD for the same time, on tables of real numbers.

The tables of scikit-learn are small, so every row is in a test set once: five folds, each of which is once the test set
and once the validation set. The published tables are read where the archive of their authors is.
"""

import math
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from iresnet_core.errors import InvalidArgumentError, MissingDependencyError
from iresnet_core.reproduction.cells import CellResult, compute_cells
from iresnet_core.reproduction.comparison import (
    LABELS,
    available,
    cell_of,
    difference,
    trained_cell,
    with_error,
    with_ours,
)
from iresnet_core.reproduction.published import PUBLISHED
from iresnet_core.reproduction.record import Record
from iresnet_core.reproduction.request import Request
from iresnet_core.training import Dataset, load_maf_table, maf_table_names

__all__ = ["load_table", "reproduce"]

SMALL = {"breast_cancer": "load_breast_cancer", "wine": "load_wine", "diabetes": "load_diabetes"}
MODELS = ("ours", "residualflow", "nsf", "maf", "ffjord")
FOLDS, SECONDS, SECONDS_PUBLISHED = 5, 15.0, 600.0
_FEWEST_VALUES = 3  # columns of fewer are labels
_BATCH = 256
# On a few hundred rows every flow learns the training set by heart; the weight decay is the same for all models.
_DECAY = 2.0
_ARCHIVE = "IRESNET_SHARED_DATA"


def reproduce(request: Request) -> Record:
    """Train every model on every table for the same time, and score it on the rows that it has not seen."""
    request.require_unset("paper")
    tables = request.chosen("data", (*SMALL, *maf_table_names())) if request.data else tuple(SMALL)
    models, absent = available(request, MODELS)
    cells = []
    for table in tables:
        settings = _settings(request, table)
        for model in models:
            cells += [
                cell_of(f"{table}-{model}-{fold}", model, {**settings, "fold": fold}, _cell)
                for fold in range(FOLDS if table in SMALL else 1)
            ]
    request.say(f"{len(cells)} trainings of {cells[0].settings['seconds']:g} s, evaluations not counted")
    wall = request.device not in (None, "cpu")
    found = compute_cells(request, cells, processes=1 if wall else min(2, os.cpu_count() or 1))
    scores = {
        (table, model): np.concatenate(
            [one.arrays["scores"] for name, one in found.items() if name.startswith(f"{table}-{model}-")]
        )
        for table in tables
        for model in models
    }
    rows: list[tuple[Any, ...]] = [
        (LABELS[model], *(_mean(scores[table, model]) for table in tables)) for model in models
    ]
    for name in ("MAF", "FFJORD", "NSF"):
        published = [PUBLISHED.get(f"tables {table.upper()}") for table in tables]
        if any(published):
            rows.append((f"{name}, published", *(None if one is None else one.values.get(name) for one in published)))
    return Record(
        name="tables",
        title="Tabular densities",
        command=request.command("tables"),
        seed=request.seed,
        columns=("test log-density, nats", *tables),
        rows=tuple(rows),
        seconds=sum(result.seconds for result in found.values()),
        notes=tuple(_notes(tables, models, absent, scores, cells[0].settings)),
        settings={"seconds": cells[0].settings["seconds"], "folds": FOLDS, "batch": _BATCH, "weight decay": _DECAY},
        details=tuple({**result.values, "cell": name} for name, result in found.items()),
    )


def load_table(name: str, seed: int, fold: int) -> Dataset:
    """Return a table: one of scikit-learn's in one of its splits, or a published one.

    Columns of fewer than three values are labels and left out. The numbers of a table are rounded: without noise a
    density of them could be arbitrarily high, so uniform noise as wide as the smallest step of its column is added to
    each, as Papamakarios et al. did with POWER.

    Raises
    ------
    MissingDependencyError
        Without scikit-learn.
    InvalidArgumentError
        If the archive of the published tables is not there.
    """
    if name in maf_table_names():
        return load_maf_table(name, _archive())
    try:
        datasets = import_module("sklearn.datasets")
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} comes with scikit-learn, which cannot be imported ({error}). Try: pip install "
            "'iresnet-core[peers]'"
        ) from error
    values = np.asarray(getattr(datasets, SMALL[name])().data, dtype=np.float64)
    return folded(name, values, seed, fold)


def folded(name: str, values: np.ndarray, seed: int, fold: int) -> Dataset:
    """Return a split of rows (n, d) in five: fold `fold` is the test set, the next one is for validation."""
    values = values[:, [k for k in range(values.shape[1]) if len(np.unique(values[:, k])) >= _FEWEST_VALUES]]
    steps = np.array([np.min(np.diff(np.unique(column))) for column in values.T])
    rng = np.random.default_rng([seed, 7])
    values = (values + steps * rng.random(values.shape))[rng.permutation(len(values))]
    parts = np.array_split(values, FOLDS)
    others = [part for k, part in enumerate(parts) if k not in (fold, (fold + 1) % FOLDS)]
    return Dataset(name, np.concatenate(others), parts[(fold + 1) % FOLDS], parts[fold])


def _archive() -> Path:
    folders = [Path(os.environ[_ARCHIVE])] if _ARCHIVE in os.environ else []
    folders += [Path.cwd().parent / "shared" / "data", Path.cwd() / "data"]
    for folder in folders:
        if any((folder / name).is_dir() for name in ("power", "gas", "hepmass", "miniboone", "BSDS300")):
            return folder
    raise InvalidArgumentError(
        f"the archive of the published tables is in none of {', '.join(map(str, folders))}. Say where it is with the "
        f"variable {_ARCHIVE}."
    )


def _settings(request: Request, table: str) -> dict[str, Any]:
    """Return the settings of the cells of a table, but for model and fold."""
    small = table in SMALL
    settings: dict[str, Any] = {
        "data": table,
        "seed": request.seed,
        "seconds": request.seconds or (SECONDS if small else SECONDS_PUBLISHED),
        "batch": _BATCH,
        "asked": {"weight_decay": _DECAY} if small else {},
        "weight_decay": _DECAY if small else 0.0,
        "device": request.device,
        "parameters": None,
    }
    dataset = load_table(table, request.seed, 0)
    return with_ours(settings, dataset)


def _cell(settings: Mapping[str, Any]) -> CellResult:
    return trained_cell(settings, load_table(settings["data"], settings["seed"], settings["fold"]))


def _mean(scores: np.ndarray) -> str:
    values = scores.astype(np.float64)
    return with_error(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values)))


def _notes(
    tables: Sequence[str],
    models: Sequence[str],
    absent: Sequence[str],
    scores: Mapping[tuple[str, str], np.ndarray],
    settings: Mapping[str, Any],
) -> list[str]:
    """Return what the page says below the table."""
    rows = ", ".join(f"{table} {len(scores[table, models[0]])}" for table in tables)
    notes = [
        f"Mean log-densities after {settings['seconds']:g} seconds of training each, over all test rows ({rows}); more "
        f"is better. Every row of a table of scikit-learn is in the test set of one of {FOLDS} splits. Columns of two "
        "values are left out, and noise as wide as its smallest step is added to every other one. Our log-determinants "
        "are exact, and so are those of the comparators (FFJORD: exact trace, with a solver of tolerance 1e-6). All "
        "models have the same weight decay, and are scored in their best state on the validation set."
    ]
    others = [model for model in models if model != "ours"]
    if "ours" in models and others:
        ahead, parts = 0, []
        for table in tables:
            best = max(others, key=lambda name: float(np.mean(scores[table, name])))
            apart = difference(scores[table, "ours"], scores[table, best])
            ahead += apart.mean > 0
            parts.append(f"{table} {apart.mean:+.3f} ± {apart.std_error:.3f} ({LABELS[best]})")
        notes.append(
            f"Ours is ahead of every comparator on {ahead} of {len(tables)} tables. Ours less the best comparator (its "
            f"name in brackets), over the same rows: {', '.join(parts)}."
        )
    if others:
        notes.append(
            "Ours is the default of `iresnet train`. For few rows that has Student's t as the density of the latents, "
            "a smaller learning rate and this weight decay, chosen on the validation sets of the first two splits; the "
            "comparators have the normal density of their packages, and neither weight decay nor learning rate was "
            "tuned for them on these tables. Without bounds on its slopes a model may give single rows a density of "
            "next to nothing, which then make its mean. One seed; the errors are over rows, not over trainings."
        )
    if absent:
        notes.append(f"Left out, since their packages were missing: {', '.join(LABELS[name] for name in absent)}.")
    return notes
