"""The settings of a classifier's training, and their defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iresnet_core.branches import Activation
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.training import DatasetSource, LabelledDataset, cosine, require_training, settings_parts, warmed

__all__ = [
    "CHANGEABLE",
    "NETWORKS",
    "PRECISIONS",
    "ClassifierModel",
    "ClassifierSettings",
    "ClassifierTraining",
    "default_classifier",
]

# Ours; the same blocks without a cap; a residual network of ordinary layers. The last two are for comparison only.
NETWORKS = ("invertible", "vanilla", "resnet")
SCHEDULES = ("cosine", "step", "constant")
PRECISIONS = ("float32", "bfloat16", "float16")
# A resumed training may change these settings.
CHANGEABLE = frozenset({"steps", "minutes", "evaluate_every", "checkpoint_every", "threads", "device"})
# The schedule "step" takes the rate to a fifth after each of these shares of the training, as the paper's code does
# after 60, 120 and 160 of 200 epochs.
_DROPS, _DROP = (0.3, 0.6, 0.8), 0.2
_MOST_WEIGHTS = 2e9


@dataclass(frozen=True)
class ClassifierModel:
    """The network.

    Attributes
    ----------
    network : {"invertible", "vanilla", "resnet"}
        Blocks with certified constants; the same blocks without a cap; or a residual network of ordinary layers.
    padding : int
        Zero channels that are appended to the images.
    widths, blocks : tuple of int
        Hidden channels and number of blocks, for each stage.
    coeff : float or None
        Cap on the Lipschitz constant of every block; None where there is none.
    activation : str
        Activation between the layers of a block.
    batch_norm : bool
        Whether the head begins with batch normalisation. Runs from before there was this field have none.
    """

    network: str
    padding: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    coeff: float | None
    activation: str
    batch_norm: bool

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise InvalidArgumentError(f"there is no network {self.network!r}; there are {', '.join(NETWORKS)}.")
        if len(self.widths) != len(self.blocks) or not self.blocks:
            raise InvalidArgumentError(
                f"widths and blocks have one number for each stage, got widths {_listed(self.widths)} and blocks "
                f"{_listed(self.blocks)}."
            )
        if min(self.widths) < 1 or min(self.blocks) < 0 or not sum(self.blocks) or self.padding < 0:
            raise InvalidArgumentError(
                f"widths must be at least 1, padding 0, and there must be a block, got widths {_listed(self.widths)}, "
                f"blocks {_listed(self.blocks)} and padding {self.padding}."
            )
        if sum(n * width**2 for n, width in zip(self.blocks, self.widths, strict=True)) > _MOST_WEIGHTS:
            raise InvalidArgumentError(
                f"widths {_listed(self.widths)} and blocks {_listed(self.blocks)} have more than {_MOST_WEIGHTS:.1e} "
                "weights; make them fewer or narrower."
            )
        if (self.coeff is None) != (self.network != "invertible"):
            raise InvalidArgumentError("invertible blocks have a cap, coeff; others have none.")
        if self.coeff is not None and not 0 < self.coeff < 1:
            raise InvalidArgumentError(f"coeff must be in (0, 1), got {self.coeff:g}.")
        Activation(self.activation)


@dataclass(frozen=True)
class ClassifierTraining:
    """How it is trained: stochastic gradient descent on the cross-entropy.

    Attributes
    ----------
    framework : str
        The framework.
    steps, minutes : int or None, float or None
        Length; one of the two.
    batch : int
        Samples of a step.
    lr : float
        Learning rate after the warm-up.
    schedule : {"cosine", "step", "constant"}
        How it falls: along half a cosine to a hundredth; or to a fifth after 30, 60 and 80 per cent of the training.
    warm_up : int
        Steps over which the rate grows from zero.
    momentum : float
        Of the gradient.
    nesterov : bool
        Whether the momentum looks ahead (Nesterov).
    weight_decay : float
        Times the squared length of the weights, half of which is added to the loss; not for biases and scales.
    clip : float
        Longer gradients are shortened to this norm.
    crop, flip : int, bool
        Augmentation, see `augmented`.
    precision : {"float32", "bfloat16", "float16"}
        In which the convolutions of training steps are taken. Norms, certificates and evaluations are in float32.
    seed : int
        Seed of the initialisation, the order of the samples and the augmentation.
    evaluate_every, checkpoint_every : int
        Steps between evaluations, and between checkpoints.
    evaluation_samples : int
        How many samples of the validation set an evaluation takes.
    device : str or None
        Such as "cuda:0"; None for the GPU where there is one, else the CPU.
    threads : int or None
        Threads on the CPU; None for the framework's own number.
    """

    framework: str
    steps: int | None
    minutes: float | None
    batch: int
    lr: float
    schedule: str
    warm_up: int
    momentum: float
    nesterov: bool
    weight_decay: float
    clip: float
    crop: int
    flip: bool
    precision: str
    seed: int
    evaluate_every: int
    checkpoint_every: int
    evaluation_samples: int
    device: str | None
    threads: int | None

    def __post_init__(self) -> None:
        require_training(self, SCHEDULES)
        if self.crop < 0:
            raise InvalidArgumentError(f"crop must be at least 0, got {self.crop}.")
        if not 0 <= self.momentum < 1:
            raise InvalidArgumentError(f"momentum must be in [0, 1), got {self.momentum:g}.")
        if self.nesterov and not self.momentum:
            raise InvalidArgumentError("Nesterov's momentum needs a momentum above 0.")
        if self.precision not in PRECISIONS:
            raise InvalidArgumentError(f"precision must be {', '.join(PRECISIONS)}, got {self.precision!r}.")

    def rate(self, step: int, share: float) -> float:
        """Return the learning rate of a step, before which this share of the training is done."""
        falls = {
            "cosine": lambda: cosine(share),
            "step": lambda: _DROP ** sum(share >= drop for drop in _DROPS),
            "constant": lambda: 1.0,
        }
        return self.lr * warmed(step, self.warm_up) * falls[self.schedule]()


@dataclass(frozen=True)
class ClassifierSettings:
    """Everything that a run folder remembers of how its training was begun.

    Attributes
    ----------
    data, model, training : DatasetSource, ClassifierModel, ClassifierTraining
        The three parts.
    """

    data: DatasetSource
    model: ClassifierModel
    training: ClassifierTraining

    @classmethod
    def from_json(cls, node: Any, where: str) -> "ClassifierSettings":
        """Read what `dataclasses.asdict` and JSON made of one; RunError if a field is wrong."""
        if isinstance(node, dict) and isinstance(node.get("model"), dict):
            node = {**node, "model": {"batch_norm": False, **node["model"]}}
        kinds = {"data": DatasetSource, "model": ClassifierModel, "training": ClassifierTraining}
        return cls(**settings_parts(kinds, node, where))


def default_classifier(source: DatasetSource, dataset: LabelledDataset, asked: Mapping[str, Any]) -> ClassifierSettings:
    """Return the settings for a data set.

    Parameters
    ----------
    source, dataset : DatasetSource, LabelledDataset
        The data.
    asked : mapping
        Fields of `ClassifierModel` and `ClassifierTraining` that shall differ from their default; "epochs" instead of
        "steps".

    Raises
    ------
    InvalidArgumentError
        If a value has no meaning.
    """
    asked = dict(asked)
    images = dataset.images
    n, spatial = len(images.train), images.event_shape[1:]
    batch = asked.get("batch", min(128, n))
    if batch > n:
        raise InvalidArgumentError(f"a batch of {batch} is more than the {n} samples to train on.")
    epochs = asked.pop("epochs", None)
    if epochs is not None:
        if asked.get("steps") is not None or asked.get("minutes") is not None:
            raise InvalidArgumentError("give one of steps, epochs and minutes.")
        if not 0 < epochs < float("inf"):
            raise InvalidArgumentError(f"epochs must be a positive number, got {epochs:g}.")
        asked["steps"] = max(1, round(epochs * (n // max(1, batch))))
    network = asked.get("network", "invertible")
    colour = images.event_shape[0] > 1
    widths, blocks = _default_stages(spatial)
    model: dict[str, Any] = {
        "network": network,
        "padding": 0 if network == "resnet" else 3,
        "widths": widths,
        "blocks": blocks,
        "coeff": 0.9 if network == "invertible" else None,
        "activation": "elu",
        "batch_norm": True,
    }
    steps = None if asked.get("minutes") is not None else asked.get("steps", 2000)
    training: dict[str, Any] = {
        "framework": "torch",
        "steps": steps,
        "minutes": None,
        "batch": batch,
        "lr": 0.1,
        "schedule": "cosine",
        "warm_up": 50 if steps is None else min(50, steps // 10),
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        "clip": 5.0,
        "crop": 4 if colour else 2 if min(spatial) >= 16 else 1,
        "flip": colour,
        "precision": "float32",
        "seed": source.seed,
        "evaluate_every": 200 if steps is None else max(1, min(500, steps // 5)),
        "checkpoint_every": 500,
        "evaluation_samples": 2000,
        "device": None,
        "threads": None,
    }
    for name, value in asked.items():
        (model if name in model else training)[name] = value
    if training["crop"] >= min(spatial):
        raise InvalidArgumentError(f"crop {training['crop']} is as large as the images, {'x'.join(map(str, spatial))}.")
    return ClassifierSettings(source, ClassifierModel(**model), ClassifierTraining(**training))


def _default_stages(spatial: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return widths and blocks: where the extent can be halved twice, blocks begin at half of it.

    Three stages make enough channels for the linear head, which sees their means only; blocks at the full extent would
    cost four times as much and change little.
    """
    halved, stages = list(spatial), 1
    while stages < 3 and all(n % 2 == 0 for n in halved):
        halved, stages = [n // 2 for n in halved], stages + 1
    return ((16, 16, 32), (0, 2, 2)) if stages == 3 else ((16, 32)[:stages], (2, 2)[:stages])


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
