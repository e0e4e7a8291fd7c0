"""Figure 2: densities of toy sets in the plane, ours and the comparators', with their log-densities on test samples."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iresnet_core.reproduction.cells import CellResult, compute_cells
from iresnet_core.reproduction.comparison import (
    COUPLING,
    LABELS,
    available,
    cell_of,
    difference,
    trained_cell,
    with_error,
    with_ours,
)
from iresnet_core.reproduction.density_pictures import density_rows
from iresnet_core.reproduction.record import Record
from iresnet_core.reproduction.request import Request
from iresnet_core.training import DatasetSource, load_dataset

__all__ = ["reproduce"]

SETS = ("checkerboard", "rings", "2spirals", "moons", "8gaussians", "pinwheel")
SECONDS, BATCH = 45.0, 256
_SAMPLES: int | None = None  # of a set: the usual number
_HALF = 4.5  # of the side of the square that is drawn; all sets lie in it
_TITLE = "Figure 2: densities in the plane"
_ASKED: dict[str, Any] = {}  # what differs from the settings of `iresnet train`: nothing, but in tests


def reproduce(request: Request) -> Record:
    """Train every model on every set for the same time, score them, and draw their densities."""
    request.require_unset("paper")
    sets = request.chosen("data", SETS)
    models, absent = available(request, tuple(LABELS))
    settings = [_settings(request, data) for data in sets]
    cells = [cell_of(f"{one['data']}-{model}", model, one, _cell) for model in models for one in settings]
    request.say(f"{len(cells)} trainings of {settings[0]['seconds']:g} s, evaluations not counted")
    wall = request.device not in (None, "cpu")
    found = compute_cells(request, cells, processes=1 if wall else min(2, os.cpu_count() or 1))
    results = {(data, model): found[f"{data}-{model}"] for data in sets for model in models}
    picture = "figure2.png"
    shown = {(data, LABELS[model]): result.arrays["grid"] for (data, model), result in results.items()}
    density_rows(request.out / picture, {data: _samples(request, data) for data in sets}, shown, _HALF)
    rows = tuple(_row(model, sets, results) for model in models)
    return Record(
        name="figure2",
        title=_TITLE,
        command=request.command("figure2"),
        seed=request.seed,
        columns=("test log-density, nats", *sets, "parameters", "steps"),
        rows=rows,
        seconds=sum(result.seconds for result in found.values()),
        notes=tuple(_notes(sets, models, absent, results, settings[0])),
        pictures=(picture,),
        settings={name: settings[0][name] for name in ("seconds", "batch")} | settings[0]["asked"],
        details=tuple(result.values for result in found.values()),
    )


def _settings(request: Request, data: str) -> dict[str, Any]:
    """Return the settings of the cells of a set, but for the model."""
    settings: dict[str, Any] = {
        "data": data,
        "samples": _SAMPLES,
        "seed": request.seed,
        "seconds": request.seconds or SECONDS,
        "batch": BATCH,
        "asked": _ASKED,
        "device": request.device,
        "grid": _HALF,
        "parameters": None,
    }
    dataset = load_dataset(DatasetSource(data, seed=request.seed, samples=_SAMPLES))
    return with_ours(settings, dataset)


def _cell(settings: Mapping[str, Any]) -> CellResult:
    source = DatasetSource(settings["data"], seed=settings["seed"], samples=settings["samples"])
    return trained_cell(settings, load_dataset(source))


def _samples(request: Request, data: str) -> np.ndarray:
    return load_dataset(DatasetSource(data, seed=request.seed, samples=_SAMPLES)).test


Results = Mapping[tuple[str, str], CellResult]


def _row(model: str, sets: Sequence[str], results: Results) -> tuple[Any, ...]:
    """Return one model's row: its means with their errors, and what it was trained with."""
    own = [results[data, model].values for data in sets]
    steps = sorted(one["steps"] for one in own)
    return (
        LABELS[model],
        *(with_error(one["mean"], one["std_error"]) for one in own),
        own[0]["parameters"],
        f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else str(steps[0]),
    )


def _notes(
    sets: Sequence[str],
    models: Sequence[str],
    absent: Sequence[str],
    results: Results,
    settings: Mapping[str, Any],
) -> list[str]:
    """Return what the page says below the table."""
    seconds, spread = settings["seconds"], settings["ours"]["spread"]
    samples = results[sets[0], models[0]].values["samples"]
    notes = [
        f"Mean log-densities of {samples} test samples after {seconds:g} seconds of training each; more is better. The "
        "log-determinants of our flow are exact, in float64. So are those of the comparators, but for FFJORD, whose "
        "solver has a tolerance of 1e-6. The residual flow is scored by its explicit Jacobian, not by its estimator."
    ]
    if "ours" in models:
        constants = [results[data, "ours"].values["constant"] for data in sets]
        notes.append(
            "Ours is the default of `iresnet train`: in front of each block an ActNorm brings the samples to a wide "
            f"standard deviation at first, {spread:g}, so that a block of the same Lipschitz constant bends "
            f"the plane at a finer scale. The largest certified constant of a block is {max(constants):.4f}. The "
            "spread was chosen on the checkerboard, the rings and the 2spirals with seed 0; a run with another seed "
            "has other samples, noise and first weights."
        )
        notes += _against(sets, [name for name in COUPLING if name in models], results, "coupling flow")
        notes += _against(sets, [name for name in models if name != "ours"], results, "comparator")
    if "residualflow" in models:
        largest = max(results[data, "residualflow"].values["constant"] for data in sets)
        said = "is no certificate that its blocks can be inverted" if largest >= 1 else "is below 1"
        notes.append(
            f"The largest product of the layers' exact norms in a block of the residual flow after training is "
            f"{largest:.3f}, where its cap was 0.9; that {said}."
        )
    if len(models) > 1:
        notes.append(
            "The comparators have the layers that their packages have, and one learning rate each, the best of at most "
            "three on the checkerboard. The wide spread is ours alone; the residual flow may well gain by it too. "
            "FFJORD and the residual flow take few steps in this time, see the last column, and are not at their best."
        )
    if absent:
        notes.append(f"Left out, since their packages were missing: {', '.join(LABELS[name] for name in absent)}.")
    return notes


def _against(sets: Sequence[str], others: Sequence[str], results: Results, what: str) -> list[str]:
    """Say on how many sets ours at least matches the best of others, by the differences on the same samples."""
    if not others:
        return []
    parts, ahead = [], 0
    for data in sets:
        best = max(others, key=lambda name: float(results[data, name].values["mean"]))
        apart = difference(results[data, "ours"].arrays["scores"], results[data, best].arrays["scores"])
        ahead += apart.mean >= -2 * apart.std_error
        parts.append(f"{data} {apart.mean:+.3f} ± {apart.std_error:.3f} ({LABELS[best]})")
    return [
        f"Ours at least matches the best {what} on {ahead} of {len(sets)} sets, that is, it is not behind by more than "
        f"two standard errors. Ours less the best {what} (its name in brackets), over the same test samples: "
        f"{', '.join(parts)}."
    ]
