"""Training of a model for a given time: the clock, the evaluations, the best state, and the score at the end."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from iresnet_core.errors import InvalidArgumentError, NonFiniteError
from iresnet_core.reproduction.contender import Contender
from iresnet_core.reproduction.unfinished import Unfinished
from iresnet_core.training import Dataset, EpochOrder, Scores, bits_per_dim, cosine, dequantized, mean_score, warmed

__all__ = ["Prepared", "TimedOutcome", "TimedTraining", "train_for"]

_CHUNK = 500  # samples that are scored at once
_KEEP_AFTER = 60.0  # seconds of wall time from which on a state is worth a file


@dataclass(frozen=True)
class TimedTraining:
    """How long a model is trained, and how it is watched.

    Attributes
    ----------
    seconds : float
        Seconds of the clock, evaluations not counted.
    batch : int
        Samples a step.
    seed : int
        Seed of the order of the samples, and of the noise that dequantises them.
    evaluations : int
        How often the model is evaluated, at equal distances in time.
    validation_samples, test_samples : int
        How many samples an evaluation and the score at the end take, at most.
    wall : bool
        Whether the clock is wall time, as on a GPU, instead of the processor time of this process and of those that it
        started and waited for (on Windows of this process alone), which a busy machine does not change.
    steps : int or None
        A number of steps at which the training ends even if there is time left; for tests.
    warm_up : int
        Over so many steps the learning rate rises in a line to where it begins.
    """

    seconds: float
    batch: int = 256
    seed: int = 0
    evaluations: int = 20
    validation_samples: int = 1000
    test_samples: int = 10_000
    wall: bool = False
    steps: int | None = None
    warm_up: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "evaluations", "validation_samples", "test_samples"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.seconds < float("inf"):
            raise InvalidArgumentError(f"seconds must be a positive number, got {self.seconds:g}.")

    def clock(self) -> float:
        """Return the time of the clock, in seconds."""
        if self.wall:
            return time.perf_counter()
        total = os.times()
        # A step may call a compiler, which is a process of its own.
        return time.process_time() + total.children_user + total.children_system


class TimedOutcome(NamedTuple):
    """What a training for a given time came to.

    Attributes
    ----------
    mean, std_error, probe_error, bias_bound : float
        Mean log-density of the test set in nats, its standard error over the samples (the noise of the estimator is
        part of it), the part of the estimator alone, and the bound on its bias.
    samples : int
        Number of test samples.
    steps, seconds : int, float
        Length of the training.
    parameters : int
        Number of trained parameters.
    best_step : int
        Step of the best evaluation, whose parameters were scored.
    method : str
        How the log-determinants of the score were computed.
    curve : list of (seconds, step, mean)
        Mean log-density of the validation samples over the training.
    scores : Scores
        The log-densities of the test samples.
    """

    mean: float
    std_error: float
    probe_error: float
    bias_bound: float
    samples: int
    steps: int
    seconds: float
    parameters: int
    best_step: int
    method: str
    curve: list[tuple[float, int, float]]
    scores: Scores

    def values(self) -> dict[str, Any]:
        """Return plain data for the file of a cell: all but the scores of the samples."""
        plain = {name: value for name, value in self._asdict().items() if name != "scores"}
        return {**plain, "curve": list(map(list, self.curve))}


class Prepared:
    """The samples of a data set as models are trained on them.

    Real vectors are standardised by the mean and the standard deviation of the training set, the same for every model;
    `offset` is what that adds to a log-density. Grey levels are dequantised to [0, 1).
    """

    def __init__(self, dataset: Dataset, dtype: str = "float32") -> None:
        self.dataset, self.dtype = dataset, dtype
        shape = dataset.event_shape
        self.mean, self.std = np.zeros(shape), np.ones(shape)
        if dataset.levels is None:
            self.mean = dataset.train.mean(axis=0)
            self.std = dataset.train.std(axis=0)
            if not np.all(self.std > 0):
                raise InvalidArgumentError(f"{dataset.name} has a constant column; leave it out.")

    @property
    def offset(self) -> float:
        """Log-density of a sample less that of the prepared one, in nats."""
        return -float(np.sum(np.log(self.std)))

    def ready(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return samples as a model takes them."""
        prepared: np.ndarray = (dequantized(x, self.dataset.levels, rng) - self.mean) / self.std
        return prepared.astype(self.dtype)

    def as_data(self, x: np.ndarray) -> np.ndarray:
        """Return samples of a model in the units of the data."""
        restored: np.ndarray = np.asarray(x, dtype=np.float64) * self.std + self.mean
        return restored

    def first(self, n: int, seed: int) -> np.ndarray:
        """Return samples for initialisations that depend on data."""
        return self.ready(self.dataset.train[:n], np.random.default_rng([seed, 4]))

    def bits(self, mean: float) -> float:
        """Turn a mean log-density of images into bits per dimension."""
        assert self.dataset.levels is not None
        return bits_per_dim(-mean, self.dataset.levels, math.prod(self.dataset.event_shape))


def train_for(
    model: Contender,
    data: Prepared,
    training: TimedTraining,
    watch: Callable[[float, int, float], None] | None = None,
    unfinished: Unfinished | None = None,
) -> TimedOutcome:
    """Train a model for a time, go back to its best state on the validation set, and score that on the test set.

    Parameters
    ----------
    model : Contender
        The model; afterwards it is in its best state.
    data : Prepared
        The data.
    training : TimedTraining
        The time, the batch, the seed.
    watch : callable (seconds, step, validation), optional
        Called after every evaluation.
    unfinished : Unfinished, optional
        Where the state is kept after every evaluation, but in the first minute, and from where a training goes on that
        was interrupted: with the same samples in the same order, and the time that it had left.

    Returns
    -------
    TimedOutcome
        Log-densities are those of the data, not of the prepared samples.

    Raises
    ------
    NonFiniteError
        If no evaluation of the model is finite.
    """
    dataset, seed = data.dataset, training.seed
    held = data.ready(dataset.validation[: training.validation_samples], np.random.default_rng([seed, 3]))
    test = data.ready(dataset.test[: training.test_samples], np.random.default_rng([seed, 5]))
    batch = min(training.batch, len(dataset.train))
    state = _State() if unfinished is None else _State.found(unfinished, model)
    order = EpochOrder(len(dataset.train), batch, seed)
    while state.spent < training.seconds and state.steps != training.steps:
        x = data.ready(dataset.train[order.chosen(state.steps)], np.random.default_rng([seed, 2, state.steps]))
        rate = model.lr * cosine(state.spent / training.seconds) * warmed(state.steps, training.warm_up)
        begin = training.clock()
        model.step(x, rate)
        state.spent += training.clock() - begin
        state.steps += 1
        ended = state.spent >= training.seconds or state.steps == training.steps
        if ended or state.spent >= training.seconds * state.looks / training.evaluations:
            state.looks = 1 + int(training.evaluations * state.spent / training.seconds)
            score = float(np.mean(_in_chunks(model.log_prob, held))) + data.offset
            state.add(score, model)
            if watch is not None:
                watch(state.spent, state.steps, score)
            if unfinished is not None and unfinished.seconds() >= _KEEP_AFTER:
                state.keep(unfinished, model)
    if state.kept is None:
        raise NonFiniteError(f"no evaluation of {model.name} was finite: its training diverged. Try a smaller lr.")
    model.load_state(state.kept)
    scored = _scored(model, test)
    found = mean_score(scored)
    return TimedOutcome(
        mean=found.mean + data.offset,
        std_error=found.sampling_error,
        probe_error=found.probe_error,
        bias_bound=found.bias_bound,
        samples=found.n,
        steps=state.steps,
        seconds=state.spent,
        parameters=model.parameter_count(),
        best_step=state.best_step,
        method=scored.method,
        curve=state.curve,
        scores=scored._replace(log_prob=scored.log_prob + data.offset),
    )


@dataclass
class _State:
    """How far a training is: its time and steps, the next evaluation, the best one and its state, and the curve."""

    spent: float = 0.0
    steps: int = 0
    looks: int = 1
    best: float = -math.inf
    best_step: int = 0
    curve: list[tuple[float, int, float]] = field(default_factory=list)
    kept: dict[str, Any] | None = None

    def add(self, score: float, model: Contender) -> None:
        """Note an evaluation."""
        self.curve.append((self.spent, self.steps, score))
        if score > self.best:
            self.best, self.kept, self.best_step = score, model.state(), self.steps

    def keep(self, unfinished: Unfinished, model: Contender) -> None:
        """Write everything from which the training can go on."""
        values = {name: value for name, value in vars(self).items() if name != "kept"}
        arrays = {f"now.{name}": array for name, array in model.state().items()}
        arrays |= {f"best.{name}": array for name, array in (self.kept or {}).items()}
        unfinished.write(values, arrays)

    @classmethod
    def found(cls, unfinished: Unfinished, model: Contender) -> "_State":
        """Return where a training was left, and bring the model there; a new one where there is none."""
        read = unfinished.read()
        if read is None:
            return cls()
        values, arrays = read
        now, best = (
            {name.removeprefix(part): array for name, array in arrays.items() if name.startswith(part)}
            for part in ("now.", "best.")
        )
        model.load_state(now)
        return cls(**{**values, "curve": [tuple(row) for row in values["curve"]]}, kept=best or None)


def _in_chunks(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    return np.concatenate([function(x[i : i + _CHUNK]) for i in range(0, len(x), _CHUNK)]).astype(np.float64)


def _scored(model: Contender, x: np.ndarray) -> Scores:
    parts = [model.scores(x[i : i + _CHUNK]) for i in range(0, len(x), _CHUNK)]
    value, error, bias = (np.concatenate([part[k] for part in parts]).astype(np.float64) for k in range(3))
    return Scores(value, error, bias, parts[0].method)
