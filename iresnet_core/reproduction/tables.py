"""Tabular densities: ours beside the residual flow, NSF, MAF and FFJORD for the same time, on tables of real numbers.

The tables of scikit-learn are small, so every row is in a test set once: five folds, each of which is once the test set
and once the validation set. The published tables are read where the archive of their authors is.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
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
from iresnet_core.reproduction.score_pictures import score_points
from iresnet_core.training import Dataset, load_maf_table, maf_table_names

__all__ = ["load_table", "reproduce"]

SMALL = {"breast_cancer": "load_breast_cancer", "wine": "load_wine", "diabetes": "load_diabetes"}
MODELS = ("ours", "residualflow", "nsf", "maf", "ffjord")
FOLDS, SECONDS, SECONDS_PUBLISHED = 5, 15.0, 600.0
_FEWEST_VALUES = 3  # columns of fewer are labels
_BATCH = 256
# On a few hundred rows every flow learns the training set by heart; the weight decay is the same for all models.
_DECAY = 2.0
_VALIDATION_ROWS = 1000  # of a published table, at every evaluation
_ARCHIVE = "IRESNET_SHARED_DATA"
# Our defaults for few rows were chosen on the validation sets of splits 0 and 1 (benchmarks/short_tables.py), which are
# the test sets of splits 1 and 2.
_OF_THE_CHOICE, _SEED_OF_THE_CHOICE = (1, 2), 0
Scores = Mapping[tuple[str, str], Sequence[np.ndarray]]  # (table, model) -> log-densities of the test rows by fold


def reproduce(request: Request) -> Record:
    """Train every model on every table for the same time, and score it on the rows that it has not seen."""
    request.require_unset("paper")
    tables = request.chosen("data", (*SMALL, *maf_table_names())) if request.data else tuple(SMALL)
    models, absent = available(request, MODELS)
    settings = {table: _settings(request, table) for table in tables}
    cells = [
        cell_of(f"{table}-{model}-{fold}", model, {**settings[table], "fold": fold}, _cell)
        for table in tables
        for model in models
        for fold in range(_folds(table))
    ]
    request.say(f"{len(cells)} trainings of {_by_table(_seconds(settings))}, evaluations not counted")
    wall = request.device not in (None, "cpu")
    found = compute_cells(request, cells, processes=1 if wall else min(2, os.cpu_count() or 1))
    scores: Scores = {
        (table, model): [found[f"{table}-{model}-{fold}"].arrays["scores"] for fold in range(_folds(table))]
        for table in tables
        for model in models
    }
    means = {key: _mean(np.concatenate(parts)) for key, parts in scores.items()}
    rows: list[tuple[Any, ...]] = [
        (LABELS[model], *(with_error(*means[table, model]) for table in tables)) for model in models
    ]
    for name in ("MAF", "FFJORD", "NSF"):
        published = [PUBLISHED.get(f"tables {table.upper()}") for table in tables]
        if any(published):
            rows.append((f"{name}, published", *(None if one is None else one.values.get(name) for one in published)))
    picture = "tables.png"
    shown = {table: {LABELS[model]: means[table, model] for model in models} for table in tables}
    score_points(request.out / picture, shown, LABELS["ours"])
    return Record(
        name="tables",
        title="Tabular densities",
        command=request.command("tables"),
        seed=request.seed,
        columns=("test log-density, nats", *tables),
        rows=tuple(rows),
        seconds=sum(result.seconds for result in found.values()),
        notes=tuple(_notes(request.seed, models, absent, scores, settings)),
        pictures=(picture,),
        settings={
            "seconds": _one_or_each({table: one["seconds"] for table, one in settings.items()}),
            "folds": _one_or_each({table: _folds(table) for table in tables}),
            "batch": _BATCH,
            "weight decay": _one_or_each({table: one["weight_decay"] for table, one in settings.items()}),
        },
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


def _folds(table: str) -> int:
    """Return how many splits of a table are trained on."""
    return FOLDS if table in SMALL else 1


def _settings(request: Request, table: str) -> dict[str, Any]:
    """Return the settings of the cells of a table, but for model and fold."""
    small = table in SMALL
    decay = _DECAY if small else 0.0
    settings: dict[str, Any] = {
        "data": table,
        "seed": request.seed,
        "seconds": request.seconds or (SECONDS if small else SECONDS_PUBLISHED),
        "batch": _BATCH,
        "asked": {"weight_decay": decay},
        "weight_decay": decay,
        "device": request.device,
        "parameters": None,
    }
    dataset = load_table(table, request.seed, 0)
    if not small:
        # Published figures are means over all rows of the test set.
        settings |= {"test_samples": len(dataset.test), "validation_samples": _VALIDATION_ROWS}
    return with_ours(settings, dataset)


def _cell(settings: Mapping[str, Any]) -> CellResult:
    return trained_cell(settings, load_table(settings["data"], settings["seed"], settings["fold"]))


def _mean(scores: np.ndarray) -> tuple[float, float]:
    """Return the mean and its standard error over the rows."""
    values = scores.astype(np.float64)
    return float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _one_or_each(values: Mapping[str, Any]) -> Any:
    """Return what all tables have in common, or what each has."""
    return next(iter(values.values())) if len(set(values.values())) == 1 else dict(values)


def _seconds(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {table: f"{one['seconds']:g} seconds" for table, one in settings.items()}


def _by_table(values: Mapping[str, str]) -> str:
    """Return in words what all tables have in common, or what each has."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{value} ({table})" for table, value in values.items())


def _notes(
    seed: int,
    models: Sequence[str],
    absent: Sequence[str],
    scores: Scores,
    settings: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Return what the page says below the table: only what is true of these tables and models."""
    small, published = ([table for table in settings if (table in SMALL) == of_few] for of_few in (True, False))
    others = [model for model in models if model != "ours"]
    notes = [_of_all(models, scores, settings)]
    if small:
        notes.append(
            f"Every row of {_listed(small)} is in the test set of one of {FOLDS} splits. Columns of two values are "
            "left out, and noise as wide as its smallest step is added to every other one."
        )
    if published:
        notes.append(
            f"{_listed(published)}: one training for each model on the published split, whose preparation is that of "
            "Papamakarios et al. 2017. An evaluation during the training takes the first "
            f"{_VALIDATION_ROWS} rows of the validation set. The published figures are of full trainings and stand "
            "here for orientation."
        )
    if "ours" in models and others:
        every = {table: range(_folds(table)) for table in settings}
        ahead, listed = _leads(others, scores, every)
        notes.append(
            f"Ours is ahead of every comparator on {ahead} of {len(settings)} tables. Ours less the best comparator "
            f"(its name in brackets), over the same rows: {listed}."
        )
        if small:
            notes.append(_of_the_choice(seed, small, others, scores))
        if published:
            notes.append(
                f"Nothing of ours was chosen on {_listed(published)}: it is the default of `iresnet train`, with the "
                "normal density for the latents."
            )
    if others:
        notes.append(
            "The comparators have the normal density for their latents, as in their packages. Their learning rates "
            "were not tuned on tables, and neither was their weight decay, which is that of ours. Without bounds on "
            "its slopes a model may give single rows a density of next to nothing, which then make its mean."
        )
    notes.append("One seed; the errors are over rows, not over trainings.")
    if absent:
        notes.append(f"Left out, since their packages were missing: {', '.join(LABELS[name] for name in absent)}.")
    return notes


def _of_all(models: Sequence[str], scores: Scores, settings: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ", ".join(f"{table} {sum(map(len, scores[table, models[0]]))}" for table in settings)
    decay = _by_table({table: f"{one['weight_decay']:g}" for table, one in settings.items()})
    ours = "our log-determinants" if "ours" in models else ""
    theirs = "those of the comparators" if set(models) != {"ours"} else ""
    exact = " and ".join(filter(None, (ours, theirs)))
    solver = " (FFJORD: exact trace, with a solver of tolerance 1e-6)" if "ffjord" in models else ""
    return (
        f"Mean log-densities after {_by_table(_seconds(settings))} of training each, over all test rows ({rows}); more "
        f"is better. {exact[0].upper()}{exact[1:]} are exact{solver}. All models of a table have the same weight "
        f"decay, {decay}, and are scored in their best state on the validation set."
    )


def _of_the_choice(seed: int, small: Sequence[str], others: Sequence[str], scores: Scores) -> str:
    """Return which of the scored rows took part in the choice of our defaults, and the comparison without them."""
    told = (
        "Ours is the default of `iresnet train`. For few rows that has Student's t as the density of the latents, a "
        f"weight decay of {_DECAY:g}, and below 16 columns elu and a smaller learning rate, which were chosen on the "
        "validation sets of the first two splits of these very tables. The validation set of a split is the test set "
        f"of the next one, so that {len(_OF_THE_CHOICE)} of {FOLDS} parts of the rows that are scored here took part "
        "in the choice, which favours ours."
    )
    if seed != _SEED_OF_THE_CHOICE:
        return f"{told} With seed {seed} the rows are split in another way: rows of the choice are in every test set."
    left = [fold for fold in range(FOLDS) if fold not in _OF_THE_CHOICE]
    ahead, listed = _leads(others, scores, dict.fromkeys(small, left))
    return (
        f"{told} Over the test rows of the other {len(left)} splits alone, none of which did, ours is ahead of every "
        f"comparator on {ahead} of {len(small)} tables; ours less the best comparator there: {listed}."
    )


def _leads(others: Sequence[str], scores: Scores, folds: Mapping[str, Iterable[int]]) -> tuple[int, str]:
    """Return on how many tables ours is ahead of every comparator, and by how much of the best of them on each."""
    ahead, parts = 0, []
    for table, chosen in folds.items():
        of_folds = {
            model: np.concatenate([scores[table, model][fold] for fold in chosen]) for model in ("ours", *others)
        }
        best = max(others, key=lambda name: float(np.mean(of_folds[name], dtype=np.float64)))
        apart = difference(of_folds["ours"], of_folds[best])
        ahead += apart.mean > 0
        parts.append(f"{table} {apart.mean:+.3f} ± {apart.std_error:.3f} ({LABELS[best]})")
    return ahead, ", ".join(parts)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
