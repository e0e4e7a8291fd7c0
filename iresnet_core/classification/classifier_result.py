"""What a trained classifier is worth: its error on the test set, and the inverse of its features there."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from iresnet_core.classification.classifier_run import ClassifierConfig
from iresnet_core.classification.classifier_training import (
    ClassifierTrainer,
    RoundTrip,
    chunk_size,
    cross_entropies,
    images_for_model,
)
from iresnet_core.training import ONE_PROCESS, LabelledDataset, Processes, shared_out

__all__ = ["ClassifierScore", "Invertibility", "score_classifier", "score_inverse"]

Progress = Callable[[int, int], None]


class ClassifierScore(NamedTuple):
    """Error on the test set.

    Attributes
    ----------
    error, error_std : float
        Share of images that get a wrong class, and its standard error over the images.
    cross_entropy, cross_entropy_std : float
        Mean of -log p(label), in nats, and its standard error.
    samples : int
        Number of images.
    wrong : tuple of int
        The places of the images that get a wrong class, by which two classifiers are compared image by image.
    """

    error: float
    error_std: float
    cross_entropy: float
    cross_entropy_std: float
    samples: int
    wrong: tuple[int, ...]


class Invertibility(NamedTuple):
    """The inverse of the features on a set of images, in the units of the model's input.

    Attributes
    ----------
    inverse_error, inverse_bound : float
        The largest distance of a reconstruction to its image, and the largest certified bound on one.
    iterations : int
        The largest number of iterations of the solver for an image, over all blocks.
    mean_iterations : float
        The mean number.
    within_bound : bool
        Whether the error of every image is at most its own bound.
    inverted : int
        How many images.
    """

    inverse_error: float
    inverse_bound: float
    iterations: int
    mean_iterations: float
    within_bound: bool
    inverted: int


def score_classifier(
    trainer: ClassifierTrainer, config: ClassifierConfig, dataset: LabelledDataset, processes: Processes = ONE_PROCESS
) -> ClassifierScore:
    """Return the error on the whole test set under the certified weights; every process computes its share."""
    images, labels = dataset.parts[2]
    size, n = chunk_size(config), len(images)

    def logits_from(i: int) -> np.ndarray:
        return trainer.logits(images_for_model(images[i : i + size], config.levels))

    logits = np.concatenate(shared_out(processes, range(0, n, size), logits_from))
    nats, wrong = cross_entropies(logits, labels), np.flatnonzero(np.argmax(logits, axis=1) != labels)
    share = len(wrong) / n
    # Of a share that is zero the standard error is none of the images seen, so a third of the "rule of three" stands
    # in: 1 / n.
    spread = math.sqrt(share * (1 - share) / max(1, n - 1)) if 0 < share < 1 else 1 / n
    deviation = float(np.std(nats, ddof=1)) if n > 1 else 0.0
    return ClassifierScore(share, spread, float(np.mean(nats)), deviation / math.sqrt(n), n, tuple(wrong.tolist()))


def score_inverse(
    trainer: ClassifierTrainer,
    config: ClassifierConfig,
    dataset: LabelledDataset,
    progress: Progress | None = None,
    processes: Processes = ONE_PROCESS,
) -> Invertibility:
    """Take all images of the test set to their features and back; every process takes its share.

    It computes in float64: features are then so exact that their distance to the true ones, which no bound on the
    inverse counts, is far below the bound.
    """
    images = dataset.parts[2][0]
    size = max(1, chunk_size(config) // 4)

    def round_trip_from(i: int) -> RoundTrip:
        found = trainer.round_trip(images_for_model(images[i : i + size], config.levels))
        if progress is not None:
            progress(min(i + size, len(images)), len(images))
        return found

    found = shared_out(processes, range(0, len(images), size), round_trip_from)
    if progress is not None:
        progress(len(images), len(images))
    error, bound, iterations = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Invertibility(
        inverse_error=float(error.max()),
        inverse_bound=float(bound.max()),
        iterations=int(iterations.max()),
        mean_iterations=float(iterations.mean()),
        within_bound=bool(np.all(error <= bound)),
        inverted=len(images),
    )


def as_result(score: ClassifierScore, inverse: Invertibility | None) -> dict[str, Any]:
    """Return the numbers of both as plain data."""
    numbers = {name: value for name, value in score._asdict().items() if name != "wrong"}
    return {**numbers, **({} if inverse is None else inverse._asdict())}
