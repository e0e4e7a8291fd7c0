"""Ours and peers on the same data for the same time: the cells of such a comparison, and what their scores say."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from iresnet_core.errors import InvalidArgumentError, MissingDependencyError
from iresnet_core.reproduction.cells import Cell, CellResult, InProgress, environment, in_progress
from iresnet_core.reproduction.contender import Contender, Task, find_peer
from iresnet_core.reproduction.ours import Ours
from iresnet_core.reproduction.request import Request
from iresnet_core.reproduction.timed_training import Prepared, TimedTraining, train_for
from iresnet_core.training import Dataset, DatasetSource, default_settings

__all__ = [
    "COUPLING",
    "LABELS",
    "Difference",
    "available",
    "cell_of",
    "difference",
    "made_model",
    "own_compiler",
    "trained_cell",
    "with_error",
    "with_ours",
]

# The names of models in tables.
LABELS = {
    "ours": "i-ResNet (ours)",
    "glow": "Glow",
    "realnvp": "Real NVP",
    "nice": "NICE",
    "made": "MADE",
    "maf": "MAF",
    "nsf": "NSF",
    "ffjord": "FFJORD",
    "residualflow": "residual flow",
}
COUPLING = ("nice", "realnvp", "glow")
# The first is raised when all peers are made in another way, and what is added for one of them when that one is, so
# that what a run folder holds of them is computed again.
_PEERS, _ADDED = 2, {"residualflow": 1}
_SAID_EVERY = 60.0  # seconds of wall time between two lines on one training
_FIRST = 1000  # samples for initialisations that depend on data


class Difference(NamedTuple):
    """By how much one mean log-density lies above another on the same samples.

    Attributes
    ----------
    mean, std_error : float
        In nats; the error is that of the mean of the differences.
    """

    mean: float
    std_error: float


def difference(mine: np.ndarray, theirs: np.ndarray) -> Difference:
    """Return the mean difference of log-densities of the same samples, and its standard error.

    Examples
    --------
    >>> import numpy as np
    >>> difference(np.array([1.0, 3.0]), np.array([0.0, 2.0]))
    Difference(mean=1.0, std_error=0.0)
    """
    apart = np.asarray(mine, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    return Difference(float(np.mean(apart)), float(np.std(apart, ddof=1)) / math.sqrt(len(apart)))


def available(
    request: Request,
    models: Sequence[str],
    find: Callable[[str], object] = find_peer,
    labels: Mapping[str, str] = LABELS,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the models of a run, and those that are left out because a package is missing.

    Parameters
    ----------
    request : Request
        Says which models are asked for.
    models : sequence of str
        All of the target.
    find : callable
        Fails for the name of a model, but ours, whose package is missing.
    labels : mapping
        The names of models in what is said.

    Raises
    ------
    InvalidArgumentError
        If one is asked for that the target does not have.
    MissingDependencyError
        If one is asked for by its name whose package is missing.
    """
    chosen, absent = [], []
    for name in request.chosen("models", models):
        try:
            if name != "ours":
                find(name)
        except MissingDependencyError:
            if request.models:
                raise
            absent.append(name)
        else:
            chosen.append(name)
    if absent:
        listed = ", ".join(labels[name] for name in absent)
        request.say(f"left out, since their packages are missing (pip install 'iresnet-core[peers]'): {listed}")
    return tuple(chosen), tuple(absent)


def made_model(name: str, dataset: Dataset, first: np.ndarray, settings: Mapping[str, Any]) -> Contender:
    """Return our model or a peer for prepared samples; `settings` as for `trained_cell`."""
    if name != "ours":
        task = Task(
            first,
            seed=settings["seed"],
            parameters=settings["parameters"],
            alpha=settings.get("alpha"),
            device=settings.get("device"),
            weight_decay=settings.get("weight_decay", 0.0),
        )
        return find_peer(name)(task)
    source = DatasetSource(settings["data"], seed=settings["seed"])
    # Where no device is asked for, all models of a comparison are on the CPU, whose time is counted.
    device = settings.get("device") or "cpu"
    asked = {"batch": min(settings["batch"], len(dataset.train)), "device": device, **settings.get("asked", {})}
    return Ours(
        Task(first, seed=settings["seed"]),
        default_settings(source, dataset, "torch", asked),
    )


def with_ours(settings: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Return settings with the number of parameters of our model ("parameters") and all that it is made by ("ours")."""
    ours = made_model("ours", dataset, Prepared(dataset).first(100, 0), settings)
    assert isinstance(ours, Ours)
    return {**settings, "parameters": ours.parameter_count(), "ours": ours.settings.of_model_and_training()}


def cell_of(
    name: str, model: str, settings: Mapping[str, Any], compute: Callable[[Mapping[str, Any]], CellResult]
) -> Cell:
    """Return the part of a comparison in which one model is trained.

    The settings of ours hold all of its model and training ("ours"), the defaults too, so that what a run folder holds
    from before a default was another is not taken for the same. A peer's hold nothing of ours but the number of
    parameters, and which models of the packages those of today are.
    """
    if model == "ours":
        return Cell(name, {**settings, "model": model}, compute)
    kept = {key: value for key, value in settings.items() if key != "ours"}
    return Cell(name, {**kept, "model": model, "asked": {}, "peers": _PEERS + _ADDED.get(model, 0)}, compute)


def trained_cell(settings: Mapping[str, Any], dataset: Dataset) -> CellResult:
    """Train one model on one data set for a time.

    Parameters
    ----------
    settings : mapping
        "model", "data", "seed", "seconds", "batch", "parameters" (of the peers), "asked" (settings of ours), "alpha"
        (of the logit that peers have in front of images), "validation_samples", "test_samples", "device", "steps" (None
        but in tests), "grid" (half the side of the square that is drawn, or None), "lr" (of a peer, or None for its
        own).
    dataset : Dataset
        The data.

    Returns
    -------
    CellResult
        The values of a `TimedOutcome`, the constant of residual flows, the log-densities of the test samples as
        "scores", and the densities on a grid as "grid".
    """
    with own_compiler():
        return _trained(settings, dataset)


@contextmanager
def own_compiler() -> Iterator[None]:
    """Let PyTorch compile with one thread and from nothing, so that the clock has all of the compiler's time.

    Programs that an earlier run left would cost nothing, and workers that outlive a step are not counted.
    """
    with TemporaryDirectory() as folder:
        own = {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        with environment(own):
            yield


def _trained(settings: Mapping[str, Any], dataset: Dataset) -> CellResult:
    data = Prepared(dataset)
    model = made_model(settings["model"], dataset, data.first(_FIRST, settings["seed"]), settings)
    if settings.get("lr") is not None:
        model.lr = settings["lr"]
    training = TimedTraining(
        settings["seconds"],
        batch=settings["batch"],
        seed=settings["seed"],
        wall=str(settings.get("device") or "cpu") != "cpu",
        steps=settings.get("steps"),
        validation_samples=settings.get("validation_samples", 1000),
        test_samples=settings.get("test_samples", 10_000),
        warm_up=settings.get("warm_up", 0),
    )
    at_work = in_progress()
    if at_work is None:
        outcome = train_for(model, data, training)
    else:
        outcome = train_for(model, data, training, _progress(model, data, at_work), at_work.unfinished)
    values = {"data": settings["data"], "model": settings["model"], **outcome.values(), "lr": model.lr}
    if isinstance(model, Ours):
        values["constant"] = model.lipschitz()
    elif hasattr(model, "constant"):
        values["constant"] = model.constant()
    arrays = {"scores": outcome.scores.log_prob.astype(np.float32)}
    if settings.get("grid") is not None:
        arrays["grid"] = _on_grid(model, data, settings["grid"], settings.get("grid_points", 100))
    return CellResult(values, arrays)


def _progress(model: Contender, data: Prepared, at_work: InProgress) -> Callable[[float, int, float], None]:
    """Return a function that says how far a training is, once a minute at most."""
    last = time.perf_counter()

    def said(spent: float, step: int, score: float) -> None:
        nonlocal last
        if time.perf_counter() - last >= _SAID_EVERY:
            last = time.perf_counter()
            levels = data.dataset.levels
            shown = f"{score:.3f} nats" if levels is None else f"{data.bits(score):.3f} bits per dimension"
            at_work.say(f"{model.name} on {data.dataset.name}: {spent:.0f} s, step {step}, validation {shown}")

    return said


def _on_grid(model: Contender, data: Prepared, half: float, n: int) -> np.ndarray:
    """Return densities on a square of pixels; the first axis goes up."""
    axis = (np.arange(n) + 0.5) / n * 2 * half - half
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    ready = data.ready(points, np.random.default_rng(0))
    values = np.concatenate([model.log_prob(ready[i : i + 2000]) for i in range(0, len(ready), 2000)])
    density: np.ndarray = np.exp(np.asarray(values, dtype=np.float64) + data.offset).reshape(n, n).astype(np.float32)
    return density


def with_error(mean: float, error: float) -> str:
    """Return a mean with its standard error, in three decimals."""
    if not math.isfinite(mean):
        raise InvalidArgumentError(f"a mean is {mean}.")
    return f"{mean:.3f} ± {error:.3f}"
