"""What `iresnet train` does in several processes: the first one decides and writes, the others follow."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

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
    load_dataset,
    mean_score,
    planned_layers,
    scores,
    train,
)

__all__ = ["begun_together", "follow", "score_of_test_set"]

_TEST_ENTRIES = 200_000  # of the test set, at most, for the score at the end


@contextmanager
def begun_together(processes: Processes) -> Iterator[Callable[[TrainingRun, RunConfig], None]]:
    """Give the first process a function that tells the others the run; where it fails before, they are told so."""
    told = False

    def tell(run: TrainingRun, config: RunConfig) -> None:
        nonlocal told
        told = True
        processes.first((run, config))

    try:
        yield tell
    finally:
        if not told:
            processes.first(None)


def follow(processes: Processes) -> None:
    """Train with the first process, without a word of its own.

    Raises
    ------
    SystemExit
        If the first process could not begin, or the training was interrupted.
    """
    told = processes.first(None)
    if told is None:  # the first process has said why
        raise SystemExit(USAGE_ERROR)
    run, config = told
    dataset = load_dataset(config.settings.data)
    if fingerprint(dataset) != config.data_hash:
        raise RunError(f"process {processes.rank} has other data in {config.settings.data.name} than the first one.")
    context = None if dataset.condition is None else dataset.condition.width
    plan = planned_layers(config.settings.model, config.layout.data_shape, context)
    try:
        outcome = train(run, config, dataset, plan, SilentWatcher(), processes=processes)
    except IResNetError as error:
        print(f"iresnet, process {processes.rank}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if not outcome.finished:
        raise SystemExit(INTERRUPTED)
    score_of_test_set(run, config, dataset, processes)


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
