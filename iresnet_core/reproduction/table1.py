"""Table 1: classification errors of one architecture without caps and at five caps, and the inverse of its features.

A training of every cell is a run folder of `iresnet classify` inside of the run folder of the table, from which a cell
that was interrupted goes on.
"""

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from iresnet_core.classification import (
    ClassifierRun,
    as_result,
    begun,
    resumed,
    score_classifier,
    score_inverse,
    train_classifier,
)
from iresnet_core.files import digest_of
from iresnet_core.reproduction.cells import Cell, CellResult, compute_cells
from iresnet_core.reproduction.error_pictures import error_curves
from iresnet_core.reproduction.published import PUBLISHED
from iresnet_core.reproduction.record import Record, machine_name
from iresnet_core.reproduction.request import Request
from iresnet_core.training import DatasetSource, SilentWatcher, load_labelled

__all__ = ["reproduce"]

SETS = ("mnist", "digits", "cifar10", "cifar100")
_USUAL = ("digits", "mnist")
CAPS = (0.9, 0.8, 0.7, 0.6, 0.5)
MODELS = ("resnet", "vanilla", *map(str, CAPS))
_PUBLISHED = {"mnist": "table1 MNIST", "cifar10": "table1 CIFAR10", "cifar100": "table1 CIFAR100"}
_TITLE = "Table 1: classification errors over the Lipschitz constant of the blocks"
_WITHIN = 0.5  # percentage points from vanilla to c = 0.9
# One architecture for all models of a data set: blocks at half and at a quarter of the extent. The digits have few
# images to test on, so that trainings with other seeds, and with them other splits, are put together.
_SMALL: dict[str, Any] = {"padding": 7, "widths": (16, 16, 32), "blocks": (0, 2, 2), "lr": 0.1, "crop": 0, "clip": 5.0}
_SETTINGS: dict[str, dict[str, Any]] = {
    "mnist": {**_SMALL, "steps": 2000, "batch": 64},
    "digits": {**_SMALL, "widths": (16, 32, 32), "padding": 3, "steps": 600, "batch": 128},
    "cifar10": {**_SMALL, "steps": 2000, "batch": 64, "crop": 4},
    "cifar100": {**_SMALL, "steps": 2000, "batch": 64, "crop": 4},
}
_REPEATS = {"digits": 8}
_FORMAT = 2  # of what a cell keeps; one of another format is computed again
# A smaller residual network of ordinary bottlenecks.
_RESNET: dict[str, Any] = {"padding": 0, "widths": (8, 16), "blocks": (2, 2)}
# The sizes of the paper: three stages of seven blocks at full extent on padded images, widths 32, 64, 128, trained for
# 200 epochs; and ResNet-164.
_PAPER: dict[str, Any] = {
    **{"padding": 13, "widths": (32, 64, 128), "blocks": (7, 7, 7), "lr": 0.1, "batch": 128, "schedule": "step"},
    "crop": 4,
}
_EPOCHS = 200
_RESNET_164: dict[str, Any] = {"padding": 0, "widths": (16, 32, 64), "blocks": (18, 18, 18)}


def reproduce(request: Request) -> Record:
    """Train one architecture at every cap, without caps, and a residual network, and invert what has caps."""
    sets = request.chosen("data", SETS) if request.data else _USUAL
    models = request.chosen("models", MODELS)
    # Also for the sake of a file that is missing, which is said before anything is trained.
    sizes = {data: load_labelled(DatasetSource(data, seed=request.seed)).images.train_count for data in sets}
    settings = {
        (data, model, repeat): _settings(request, data, model, repeat, sizes[data])
        for data in sets
        for model in models
        for repeat in range(1 if request.paper else _REPEATS.get(data, 1))
    }
    folder = request.out / "trainings"
    folder.mkdir(parents=True, exist_ok=True)
    cells = {key: Cell("-".join(map(str, key)), one, partial(_cell, str(folder))) for key, one in settings.items()}
    request.say(f"{len(cells)} trainings, then the inverse on the test set for every network with a cap")
    alone = request.device not in (None, "cpu")
    found = compute_cells(request, list(cells.values()), processes=1 if alone else min(2, os.cpu_count() or 1))
    results = {
        (data, model): _joined([found[cell.name].values for key, cell in cells.items() if key[:2] == (data, model)])
        for data in sets
        for model in models
    }
    picture = "table1.png"
    error_curves(request.out / picture, _curves(sets, models, results))
    rows = tuple(_row(data, model, results[data, model]) for data in sets for model in models)
    return Record(
        name="table1",
        title=_TITLE,
        command=request.command("table1"),
        seed=request.seed,
        columns=(
            *("data", "blocks", "error, %", "published, %", "cross-entropy, nats", "parameters", "largest c"),
            *("images inverted", "largest error", "largest bound", "iterations", "within bound"),
        ),
        rows=rows,
        seconds=sum(result.seconds for result in found.values()),
        notes=tuple(_notes(sets, results, "time" if request.seconds is not None else "steps")),
        pictures=(picture,),
        machine=machine_name(request.device),
        settings={data: _architecture(request, data, "vanilla", sizes[data]) for data in sets},
        details=tuple(result.values for result in found.values()),
    )


def _architecture(request: Request, data: str, model: str, size: int) -> dict[str, Any]:
    """Return the settings of `iresnet classify` for a network that is trained on so many images."""
    asked = dict(_PAPER if request.paper else _SETTINGS[data])
    if request.paper:
        asked["steps"] = math.ceil(_EPOCHS * size / asked["batch"])
    if model == "resnet":
        asked |= _RESNET_164 if request.paper else _RESNET
    if request.seconds is not None:
        del asked["steps"]
        asked["minutes"] = request.seconds / 60
    return asked


def _settings(request: Request, data: str, model: str, repeat: int, size: int) -> dict[str, Any]:
    network = model if model in ("resnet", "vanilla") else "invertible"
    asked = {
        **_architecture(request, data, model, size),
        "network": network,
        "coeff": float(model) if network == "invertible" else None,
        "seed": request.seed + repeat,
        "device": request.device,
    }
    return {"data": data, "model": model, "repeat": repeat, "asked": asked, "format": _FORMAT}


def _cell(folder: str, settings: Mapping[str, Any]) -> CellResult:
    """Train one classifier, or go on with its training, score it and invert its features."""
    asked = {name: tuple(value) if isinstance(value, list) else value for name, value in settings["asked"].items()}
    name = f"{settings['data']}-{settings['model']}-{settings['repeat']}-{digest_of(_plain(settings))[:8]}"
    run = ClassifierRun(Path(folder) / name)
    if run.exists():
        config, dataset = resumed(run, None, {}, {})
    else:
        config, dataset = begun(settings["data"], {**asked, "threads": 1}, {})
        run = ClassifierRun.create(run.folder, config)
    outcome, trainer = train_classifier(run, config, dataset, SilentWatcher())
    if not outcome.finished:  # its process was told to end
        raise KeyboardInterrupt
    trainer.load_exported(run.model_path)
    score = score_classifier(trainer, config, dataset)
    inverse = score_inverse(trainer, config, dataset) if config.settings.model.coeff is not None else None
    values = {
        "data": settings["data"],
        "model": settings["model"],
        "repeat": settings["repeat"],
        **as_result(score, inverse),
        "wrong": list(score.wrong),
        "lipschitz": trainer.lipschitz(),
        "parameters": trainer.parameter_count(),
        "steps": outcome.step,
        "training_seconds": round(outcome.seconds, 1),
    }
    return CellResult(values)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) for name, value in settings.items()}


def _joined(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put trainings with other seeds together: errors are pooled, bounds and constants are the largest."""
    n = sum(one["samples"] for one in results)
    share = sum(one["error"] * one["samples"] for one in results) / n
    joined: dict[str, Any] = {
        "error": share,
        "error_std": math.sqrt(share * (1 - share) / (n - 1)) if 0 < share < 1 else 1 / n,
        "wrong": {(training, image) for training, one in enumerate(results) for image in one["wrong"]},
        "cross_entropy": sum(one["cross_entropy"] * one["samples"] for one in results) / n,
        "cross_entropy_std": math.hypot(*(one["cross_entropy_std"] * one["samples"] for one in results)) / n,
        "parameters": results[0]["parameters"],
        "trainings": len(results),
        "steps": results[0]["steps"],
        "samples": n,
    }
    if all("inverted" in one for one in results):
        joined |= {name: max(one[name] for one in results) for name in ("lipschitz", "inverse_error", "inverse_bound")}
        joined["iterations"] = max(one["iterations"] for one in results)
        joined["mean_iterations"] = sum(one["mean_iterations"] * one["inverted"] for one in results) / n
        joined["inverted"] = sum(one["inverted"] for one in results)
        joined["within_bound"] = all(one["within_bound"] for one in results)
    return joined


def _published(data: str, model: str) -> float | None:
    if data not in _PUBLISHED:
        return None
    return PUBLISHED[_PUBLISHED[data]].values.get("ResNet-164" if model == "resnet" else model)


def _row(data: str, model: str, result: Mapping[str, Any]) -> tuple[Any, ...]:
    label = {"resnet": "plain ResNet", "vanilla": "vanilla, no cap"}.get(model, f"c = {model}")
    error = f"{100 * result['error']:.2f} ± {100 * result['error_std']:.2f}"
    nats = f"{result['cross_entropy']:.4f} ± {result['cross_entropy_std']:.4f}"
    first = (data, label, error, _published(data, model), nats, result["parameters"])
    if "inverted" not in result:
        return (*first, None, None, None, None, None, None)
    return (
        *first,
        f"{result['lipschitz']:.4f}",
        result["inverted"],
        f"{result['inverse_error']:.1e}",
        f"{result['inverse_bound']:.1e}",
        f"{result['mean_iterations']:.0f}, at most {result['iterations']}",
        "all" if result["within_bound"] else "NOT ALL",
    )


Results = Mapping[tuple[str, str], Mapping[str, Any]]


def _curves(
    sets: Sequence[str], models: Sequence[str], results: Results
) -> dict[str, tuple[list[float], list[float], list[float], dict[str, float]]]:
    """Return for every data set the caps, errors and standard errors in per cent, and the errors without a cap."""
    caps = [cap for cap in CAPS if str(cap) in models]
    return {
        data: (
            caps,
            [100 * results[data, str(cap)]["error"] for cap in caps],
            [100 * results[data, str(cap)]["error_std"] for cap in caps],
            {name: 100 * results[data, name]["error"] for name in ("vanilla", "resnet") if name in models},
        )
        for data in sets
    }


def _notes(sets: Sequence[str], results: Results, length: str) -> list[str]:
    """Return sentences on what the table shows; all numbers are those of the results."""
    notes = [
        "The error is the share of test images that get a wrong class, and the cross-entropy the mean of -log of the "
        "probability of the right one, with their standard errors over the images, not over trainings. Differences of "
        "two errors are taken image by image, so that their standard errors are smaller. All models of a data set have "
        f"the same {length}, batches and learning rate, and all but the plain ResNet, a smaller network of ordinary "
        "layers, have the same blocks and kinds of first weights. Vanilla has no cap. The distance of a reconstruction "
        "to its image and its certified bound are in units of the pixels, which lie between 0 and 1. The whole test "
        "set is inverted, in float64, and the iterations are those of all blocks together.",
        f"Published: {PUBLISHED['table1 MNIST'].source}, with networks of {sum(_PAPER['blocks'])} blocks trained for "
        f"{_EPOCHS} epochs (--paper).",
    ]
    for data in sets:
        own = {model: result for (name, model), result in results.items() if name == data}
        trainings = next(iter(own.values()))["trainings"]
        if trainings > 1:
            notes.append(
                f"{data}: {trainings} trainings with other seeds and other splits for every row, whose "
                f"{next(iter(own.values()))['samples']} test images are counted together; an image may be in several "
                "test sets."
            )
        if {"vanilla", "0.9"} <= set(own):
            notes.append(_comparison(data, own["vanilla"], own["0.9"]))
        caps = [cap for cap in map(str, CAPS) if cap in own]
        if len(caps) > 1:
            errors = [own[cap]["error"] for cap in caps]
            order = "rises" if all(a <= b for a, b in pairwise(errors)) else "does not rise at every step"
            difference, spread = _difference(own[caps[-1]], own[caps[0]])
            first, last = own[caps[0]], own[caps[-1]]
            nats = last["cross_entropy"] - first["cross_entropy"]
            nats_std = math.hypot(last["cross_entropy_std"], first["cross_entropy_std"])
            notes.append(
                f"{data}: the error {order} as c falls; from c = {caps[0]} to c = {caps[-1]} it changes by "
                f"{difference:+.2f} ± {spread:.2f} percentage points, and the cross-entropy by {nats:+.4f} ± "
                f"{nats_std:.4f} nats."
            )
        if caps:
            within = all(own[cap]["within_bound"] for cap in caps)
            notes.append(
                f"{data}: "
                + ("every image of the test set came back" if within else "NOT every image of the test set came back")
                + " within its certified bound, at every c."
            )
    return notes


def _comparison(data: str, vanilla: Mapping[str, Any], capped: Mapping[str, Any]) -> str:
    difference, spread = _difference(capped, vanilla)
    met = "within" if difference <= _WITHIN else "NOT within"
    return (
        f"{data}: c = 0.9 is {difference:+.2f} ± {spread:.2f} percentage points from vanilla, {met} the {_WITHIN:g} "
        "that were aimed at."
    )


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float]:
    """Return by how many percentage points the error of one is higher, and the standard error of that.

    Both have seen the same images, so that those which both get wrong add nothing to the noise.
    """
    n, ours, theirs = one["samples"], one["wrong"] - other["wrong"], other["wrong"] - one["wrong"]
    difference = (len(ours) - len(theirs)) / n
    variance = (len(ours) + len(theirs)) / n - difference**2
    return 100 * difference, 100 * math.sqrt(max(variance, 1 / n) / n)
