"""The training of a classifier; the framework's `ClassifierTrainer` takes the steps."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from iresnet_core.classification.augmentation import augmented
from iresnet_core.classification.classifier_run import ClassifierConfig, ClassifierRun
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.training import (
    ONE_PROCESS,
    EpochOrder,
    Evaluation,
    LabelledDataset,
    Outcome,
    Processes,
    StepResult,
    Watcher,
    import_trainer,
    require_share,
    run_task,
    shared_out,
)

__all__ = [
    "ClassifierTrainer",
    "RoundTrip",
    "cross_entropies",
    "find_classifier_trainer",
    "images_for_model",
    "train_classifier",
]

_TRAINERS = {
    "torch": ("iresnet_core.adapters.torch.classifier_training", "torch", "pip install 'iresnet-core[torch]'"),
}
_ENTRIES = 2**22  # numbers of an evaluation's samples between two layers at once
_MOST = 500


class RoundTrip(NamedTuple):
    """The way of images to their features and back.

    Attributes
    ----------
    error : float64 array (n,)
        Distance of what comes back to the image.
    error_bound : float64 array (n,)
        The certified bound on that distance.
    iterations : int64 array (n,)
        Iterations of the solver, over all blocks.
    """

    error: np.ndarray
    error_bound: np.ndarray
    iterations: np.ndarray


class ClassifierTrainer(Protocol):
    """A classifier in training on one framework; each framework has one class of this shape.

    It is made by ``ClassifierTrainer(config, first)``, with parameters drawn from the seed and data-dependent ones set
    from the images `first`. With several processes it is given ``processes=``, and `step` takes the batch of all.
    """

    def step(self, x: np.ndarray, labels: np.ndarray, lr: float) -> StepResult:
        """Take one step of the optimiser on images (n, *input_shape) and labels (n,)."""

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return logits (n, classes) under the certified weights, without touching any state."""

    def lipschitz(self) -> float | None:
        """Return the largest certified constant of a block; None where blocks have no cap."""

    def parameter_count(self) -> int:
        """Return how many numbers are trained."""

    def round_trip(self, x: np.ndarray) -> RoundTrip:
        """Take images to their features and back, with the certified bound on the error, in float64."""

    def export(self, path: Path) -> None:
        """Write the classifier to a file."""

    def require_exported(self, path: Path) -> None:
        """Read such a file, and do nothing with it; StorageError or FileNotFoundError where that cannot be."""

    def load_exported(self, path: Path) -> None:
        """Take up the parameters of a file that `export` wrote; StorageError if it is damaged or another model."""

    def state(self) -> dict[str, np.ndarray]:
        """Return parameters, optimiser and random state as arrays."""

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up what `state` returned; RunError if it belongs to another model."""


def find_classifier_trainer(framework: str) -> Any:
    """Return the class `ClassifierTrainer` of a framework.

    Raises
    ------
    InvalidArgumentError
        If there is none.
    MissingDependencyError
        If the framework is not installed.
    """
    if framework not in _TRAINERS:
        raise InvalidArgumentError(
            f"classifiers are trained with {', '.join(_TRAINERS)}, got {framework!r}. The classifier of Keras, "
            "iresnet_core.adapters.keras.Classifier, trains by its fit()."
        )
    return import_trainer(*_TRAINERS[framework]).ClassifierTrainer


def images_for_model(x: np.ndarray, levels: int | None) -> np.ndarray:
    """Return images as a classifier takes them: float32, grey levels 0 to levels - 1 in [0, 1]."""
    return (x if levels is None else x / (levels - 1)).astype(np.float32)


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return -log of the probability of each label, in nats.

    Examples
    --------
    >>> import numpy as np
    >>> cross_entropies(np.zeros((1, 4)), np.array([2])).round(4).tolist()
    [1.3863]
    """
    logits = np.asarray(logits, dtype=np.float64)
    above = logits - logits.max(axis=1, keepdims=True)
    found: np.ndarray = np.log(np.exp(above).sum(axis=1)) - above[np.arange(len(labels)), labels]
    return found


def chunk_size(config: ClassifierConfig) -> int:
    """Return how many images are evaluated at once."""
    model, pixels = config.settings.model, math.prod(config.input_shape[1:])
    channels = config.input_shape[0] + model.padding
    widest = max(channels, model.widths[0] if model.blocks[0] else 0) * pixels
    return max(1, min(_MOST, _ENTRIES // max(1, widest)))


def train_classifier(
    run: ClassifierRun,
    config: ClassifierConfig,
    dataset: LabelledDataset,
    watcher: Watcher,
    *,
    tensorboard: bool = False,
    processes: Processes = ONE_PROCESS,
) -> tuple[Outcome, ClassifierTrainer]:
    """Train a classifier, from the run's last checkpoint if it has one; see `iresnet_core.training.run_task`.

    Where there are several processes, all of them call this function, and the first one writes.

    The model with the fewest errors on the validation set is exported, and among equal ones that with the lowest
    cross-entropy.

    Returns
    -------
    outcome : Outcome
        How the training ended.
    trainer : ClassifierTrainer
        The classifier as it was after the last step.
    """
    settings = config.settings.training
    require_share(processes, settings.batch)
    with run.locked() if processes.rank == 0 else nullcontext():
        found = find_classifier_trainer(settings.framework)
        first = images_for_model(dataset.images.train[: settings.batch], config.levels)
        more = {"processes": processes} if processes.count > 1 else {}
        trainer: ClassifierTrainer = found(config, first, **more)
        task = _ClassifierTask(config, dataset, trainer, processes)
        return run_task(run, settings, task, watcher, tensorboard=tensorboard, processes=processes), trainer


class _ClassifierTask:
    """A classifier with its data, as the loop takes it."""

    advice = "Look at the data, and try a smaller --lr or --precision float32."

    def __init__(
        self, config: ClassifierConfig, dataset: LabelledDataset, trainer: ClassifierTrainer, processes: Processes
    ) -> None:
        self.config, self.trainer, self.settings = config, trainer, config.settings.training
        self.processes = processes
        (self.images, self.labels), (held, held_labels), _ = dataset.parts
        n = self.settings.evaluation_samples
        self.held, self.held_labels = images_for_model(held[:n], config.levels), held_labels[:n]
        self.order = EpochOrder(len(self.images), self.settings.batch, self.settings.seed)

    def rate(self, step: int, share: float) -> float:
        return self.settings.rate(step, share)

    def step(self, step: int, lr: float) -> StepResult:
        chosen = self.order.chosen(step)
        rng = np.random.default_rng([self.settings.seed, 6, step])
        x = augmented(self.images[chosen], rng, crop=self.settings.crop, flip=self.settings.flip)
        return self.trainer.step(images_for_model(x, self.config.levels), self.labels[chosen], lr)

    def evaluate(self, train_nats: float) -> Evaluation:
        n, size = len(self.held), chunk_size(self.config)
        chunks = [self.held[i : i + size] for i in range(0, n, size)]
        logits = np.concatenate(shared_out(self.processes, chunks, self.trainer.logits))
        nats = cross_entropies(logits, self.held_labels)
        mean, deviation = float(np.mean(nats)), float(np.std(nats, ddof=1)) if n > 1 else 0.0
        share = float(np.mean(np.argmax(logits, axis=1) != self.held_labels))
        row = {
            "validation_nats": mean,
            "validation_error": deviation / math.sqrt(n),
            "validation_wrong": share,
            "lipschitz": self.trainer.lipschitz(),
        }
        # Errors first, which come in steps of 1 / n, and then the cross-entropy.
        return Evaluation(share + mean / (1 + mean) / n if math.isfinite(mean) else mean, row)

    def export(self, path: Path) -> None:
        self.trainer.export(path)

    def require_exported(self, path: Path) -> None:
        self.trainer.require_exported(path)

    def state(self) -> dict[str, np.ndarray]:
        return self.trainer.state()

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.trainer.load_state(arrays)
