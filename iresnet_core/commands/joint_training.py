"""What the commands that train do in several processes: the first one decides and writes, the others follow."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from iresnet_core.classification import (
    ClassifierConfig,
    ClassifierRun,
    score_classifier,
    score_inverse,
    train_classifier,
)
from iresnet_core.commands import INTERRUPTED, USAGE_ERROR
from iresnet_core.commands.terminal import one_thread
from iresnet_core.errors import IResNetError, RunError
from iresnet_core.files import load
from iresnet_core.training import (
    Dataset,
    MeanScore,
    Processes,
    RunConfig,
    Scores,
    SilentWatcher,
    TrainingRun,
    dequantized,
    fingerprint,
    labelled_fingerprint,
    load_dataset,
    load_labelled,
    mean_score,
    planned_layers,
    scores,
    train,
)

__all__ = ["begun_together", "follow", "follow_classifier", "follow_flow", "score_of_test_set"]

_TEST_ENTRIES = 200_000  # of the test set, at most, for the score at the end


@contextmanager
def begun_together(processes: Processes) -> Iterator[Callable[..., None]]:
    """Give the first process a function that tells the others the run and its settings, as `follow` hands them on.

    Where it fails before, they are told so.
    """
    told = False

    def tell(*what: Any) -> None:
        nonlocal told
        told = True
        processes.first(what)

    try:
        yield tell
    finally:
        if not told:
            processes.first(None)


def follow(processes: Processes, work: Callable[..., bool]) -> None:
    """Train with the first process, without a word of its own.

    Parameters
    ----------
    processes : Processes
        All of them.
    work : callable
        Takes what the first process told, and `processes`; says whether the training was finished.

    Raises
    ------
    SystemExit
        If the first process could not begin, or the training was interrupted.
    """
    told = processes.first(None)
    if told is None:  # the first process has said why
        raise SystemExit(USAGE_ERROR)
    try:
        finished = work(*told, processes)
    except IResNetError as error:
        print(f"iresnet, process {processes.rank}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if not finished:
        raise SystemExit(INTERRUPTED)


def follow_flow(run: TrainingRun, config: RunConfig, processes: Processes) -> bool:
    """Train and score a flow with the first process."""
    dataset = load_dataset(config.settings.data)
    _require_same(fingerprint(dataset), config, processes)
    context = None if dataset.condition is None else dataset.condition.width
    plan = planned_layers(config.settings.model, config.layout.data_shape, context)
    outcome = train(run, config, dataset, plan, SilentWatcher(), processes=processes)
    if outcome.finished:
        score_of_test_set(run, config, dataset, processes)
    return outcome.finished


def follow_classifier(run: ClassifierRun, config: ClassifierConfig, invert: bool, processes: Processes) -> bool:
    """Train and score a classifier with the first process."""
    dataset = load_labelled(config.settings.data)
    _require_same(labelled_fingerprint(dataset), config, processes)
    outcome, trainer = train_classifier(run, config, dataset, SilentWatcher(), processes=processes)
    if outcome.finished:
        trainer.load_exported(run.model_path)
        score_classifier(trainer, config, dataset, processes)
        if invert:
            score_inverse(trainer, config, dataset, processes=processes)
    return outcome.finished


def _require_same(found: str, config: RunConfig | ClassifierConfig, processes: Processes) -> None:
    if found != config.data_hash:
        raise RunError(f"process {processes.rank} has other data in {config.settings.data.name} than the first one.")


def score_of_test_set(run: TrainingRun, config: RunConfig, dataset: Dataset, processes: Processes) -> MeanScore:
    """Score the exported model on the test set in float64, every process a part of it."""
    settings = config.settings.training
    most = max(settings.evaluation_samples, _TEST_ENTRIES // math.prod(dataset.event_shape) // 10)
    test = dataset.test[:most]
    x = config.layout.to_model(dequantized(test, dataset.levels, np.random.default_rng([settings.seed, 5])))
    context = None if dataset.contexts is None else dataset.contexts[2][: len(x)]
    own = np.array_split(np.arange(len(x)), processes.count)[processes.rank]
    found = None
    if len(own):
        with one_thread():
            flow = load(run.model_path).astype(np.float64)
            found = scores(flow, x[own], context=None if context is None else context[own])
    parts = [part for part in processes.all(found) if part is not None]
    log_prob, std_error, bias_bound = (np.concatenate([part[k] for part in parts]) for k in range(3))
    return mean_score(Scores(log_prob, std_error, bias_bound, parts[0].method))
