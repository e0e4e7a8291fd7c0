"""Figure 3: images, their reconstructions by the certified inverse, and samples of a multi-scale flow."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iresnet_core.errors import RunError
from iresnet_core.files import load
from iresnet_core.reproduction.cells import Cell, CellResult, compute_cells
from iresnet_core.reproduction.image_pictures import image_rows
from iresnet_core.reproduction.record import Record, machine_name
from iresnet_core.reproduction.request import Request
from iresnet_core.training import (
    DatasetSource,
    RunConfig,
    RunSettings,
    SampleLayout,
    SilentWatcher,
    TrainingRun,
    bits_per_dim,
    default_settings,
    dequantized,
    fingerprint,
    load_dataset,
    planned_layers,
    planned_shape,
    preimages,
    train,
    transformed,
)

__all__ = ["reproduce"]

SECONDS = {"digits": 120.0, "mnist": 600.0, "cifar10": 3600.0}
_USUAL = ("digits", "mnist")
_INVERTED = {"digits": 180, "mnist": 100, "cifar10": 100}  # test images that are taken through the flow and back
_SHOWN = 10
_TEMPERATURES = (1.0, 0.7)  # standard deviations of the latents of samples
_PAPER = {"blocks": 16, "hidden": 512, "ema": 0.999, "warm_up": 1000}
_SMALL: dict[str, Any] = {}  # settings of the tests


def reproduce(request: Request) -> Record:
    """Train a flow of two scales on every set, take test images through it and back, and draw samples."""
    request.require_unset("models")
    sets = request.chosen("data", tuple(SECONDS)) if request.data else _USUAL
    cells = []
    for data in sets:
        settings = {
            "data": data,
            "seed": request.seed,
            "seconds": request.seconds or SECONDS[data],
            "asked": {
                **(_PAPER if request.paper else {}),
                **request.of_gpu,
                "device": request.device,
                **_SMALL,
            },
            "inverted": _INVERTED[data],
        }
        settings["ours"] = _planned(settings).of_model_and_training()
        cells.append(Cell(f"figure3-{data}", settings, partial(_cell, request)))
    found = compute_cells(request, cells)
    results = {data: found[f"figure3-{data}"] for data in sets}
    pictures = []
    for data, result in results.items():
        pictures.append(f"figure3-{data}.png")
        image_rows(request.out / pictures[-1], _rows_of_picture(result))
    times = ", ".join(f"{cell.settings['seconds']:g} s ({cell.settings['data']})" for cell in cells)
    columns = (
        *("data", "validation bits per dimension", "test images", "largest error", "largest certified bound"),
        *("within the bound", "largest constant", "steps"),
    )
    return Record(
        name="figure3",
        title="Figure 3: reconstructions and samples",
        command=request.command("figure3"),
        seed=request.seed,
        columns=columns,
        rows=tuple(_row(data, result.values) for data, result in results.items()),
        seconds=sum(result.seconds for result in found.values()),
        notes=(
            "Every test image is taken to its latents and back by the certified inverse, in float64. The error is the "
            "Euclidean distance of an image, with pixels from 0 to 1, to its reconstruction; the bound is on the "
            "distance of the reconstruction to the exact preimage of the latents.",
            "The rows of the picture are test images, their reconstructions, the differences with the factor by which "
            "they are enlarged, and samples from latents of standard deviation "
            f"{' and '.join(map(str, _TEMPERATURES))}.",
            f"These flows were trained for {times} alone; the samples show that.",
        ),
        pictures=tuple(pictures),
        machine=machine_name(request.device),
        settings={"seconds": {data: result.values["seconds"] for data, result in results.items()}},
        details=tuple(result.values for result in found.values()),
    )


def _planned(settings: Mapping[str, Any]) -> RunSettings:
    source = DatasetSource(settings["data"], seed=settings["seed"])
    asked = {"kind": "conv", "seed": settings["seed"], "minutes": settings["seconds"] / 60, **settings["asked"]}
    return default_settings(source, load_dataset(source), "torch", asked)


def _cell(request: Request, settings: Mapping[str, Any]) -> CellResult:
    """Train a flow in a run folder of its own, from where it was left, and look at what came out of it."""
    planned = _planned(settings)
    dataset = load_dataset(planned.data)
    layout = SampleLayout(dataset.event_shape, planned_shape(planned.model, dataset.event_shape))
    config = RunConfig(planned, layout, dataset.levels, dataset.name, fingerprint(dataset), {})
    run = TrainingRun(request.out / f"run-{settings['data']}")
    if run.exists():
        if run.read_config().settings != planned:
            raise RunError(f"{run.folder} holds a training with other settings. Delete it, or give another --out.")
    else:
        run = TrainingRun.create(run.folder, config)
    plan = planned_layers(planned.model, layout.data_shape)
    outcome = train(run, config, dataset, plan, _Said(request))
    if not outcome.finished:
        raise KeyboardInterrupt
    found = _looked_at(run.model_path, dataset.test, config, settings)
    assert dataset.levels is not None
    values = {
        **found.values,
        "bits": bits_per_dim(outcome.best, dataset.levels, math.prod(dataset.event_shape)),
        "constant": max(row["lipschitz"] or 0.0 for row in run.read_log()),
        "steps": outcome.step,
        "seconds": settings["seconds"],
    }
    return CellResult(values, found.arrays)


class _Said(SilentWatcher):
    """Says how the training goes."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def evaluated(self, row: Mapping[str, Any]) -> None:
        bits = row.get("validation_bits_per_dim", math.nan)
        self.request.say(f"step {row['step']}, {row['seconds']:.0f} s: validation {bits:.3f} bits per dimension")


def _looked_at(path: Path, test: np.ndarray, config: RunConfig, settings: Mapping[str, Any]) -> CellResult:
    """Take test images through an exported flow and back, and draw samples."""
    flow: Any = load(path)
    flow = flow.astype(np.float64)
    rng = np.random.default_rng([settings["seed"], 5])
    x = config.layout.to_model(dequantized(test[: settings["inverted"]], config.levels, rng))
    back = preimages(flow, transformed(flow, x))
    errors = np.linalg.norm((back.value - x).reshape(len(x), -1), axis=1)
    z = np.random.default_rng([settings["seed"], 6]).standard_normal((_SHOWN, *flow.latent_shape))
    arrays = {"data": x[:_SHOWN], "reconstruction": back.value[:_SHOWN]}
    for temperature in _TEMPERATURES:
        arrays[f"samples {temperature}"] = preimages(flow, temperature * z, rtol=1e-6).value
    values = {
        "images": len(x),
        "error": float(errors.max()),
        "bound": float(back.error_bound.max()),
        "within": int(np.sum(errors <= back.error_bound)),
    }
    return CellResult(values, {name: config.layout.to_data(array) for name, array in arrays.items()})


def _row(data: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    within = "all" if values["within"] == values["images"] else f"{values['within']} of {values['images']}"
    return (
        data,
        f"{values['bits']:.3f}",
        values["images"],
        f"{values['error']:.1e}",
        f"{values['bound']:.1e}",
        within,
        f"{values['constant']:.4f}",
        values["steps"],
    )


def _rows_of_picture(result: CellResult) -> dict[str, np.ndarray]:
    """Return the rows of the picture with their labels, pixels from 0 to 1."""
    arrays = result.arrays
    apart = arrays["reconstruction"] - arrays["data"]
    factor = 10.0 ** math.floor(math.log10(0.5 / max(float(np.abs(apart).max()), 1e-300)))
    rows = {"data": arrays["data"], "reconstruction": arrays["reconstruction"]}
    rows[f"difference x {factor:.0e}"] = 0.5 + factor * apart
    return rows | {f"samples, T = {t}": arrays[f"samples {t}"] for t in _TEMPERATURES}
