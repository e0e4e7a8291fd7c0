"""The settings of a training: what a run folder remembers, what the defaults are, and what may change on resuming."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_origin, get_type_hints

from iresnet_core.branches import Activation
from iresnet_core.errors import InvalidArgumentError, RunError
from iresnet_core.flows import require_share
from iresnet_core.training.common_settings import require_training
from iresnet_core.training.datasets import Dataset, DatasetSource
from iresnet_core.training.logit_parameter import default_alpha
from iresnet_core.training.plans import ModelSettings
from iresnet_core.training.sample_arrays import is_image_shape

__all__ = [
    "RunSettings",
    "TrainingSettings",
    "default_settings",
    "settings_from_json",
    "settings_parts",
    "with_changes",
]

SCHEDULES = ("cosine", "constant")
# As it was in older run folders.
_AS_BEFORE = {
    "optimizer": "adam",
    "share": 1.0,
    "recompute": False,
    "recover": False,
    "compiled": False,
    "penalty": 0.0,
    "ema": None,
    "threads": None,
    "warm_up": 0,
    "flip": False,
    "accumulate": 1,
    "device": None,
    "devices": 1,
    "precision": "float32",
}
STARTS = ("orthogonal", "uniform")
OPTIMIZERS = ("adam", "muon")
DTYPES = ("float32", "float64")
PRECISIONS = ("float32", "tf32", "bfloat16")
# A resumed training may change these settings; all others would make it another training.
CHANGEABLE = frozenset(
    {
        *("steps", "minutes", "evaluate_every", "checkpoint_every"),
        *("recompute", "recover", "compiled", "threads", "device", "devices", "precision"),
    }
)
_CONV_FROM = 16 * 16  # images with at least so many pixels get convolutions by default
# Up to this dimension narrow layers suffice, with sines between them. Sines keep the slope of a block near its cap,
# where lipswish and elu halve it at every layer, so that a few blocks bend the plane much further in the same time. So
# it is with convolutions, whose blocks are few for their dimension: after 350 steps on MNIST with a spread of 1 it is
# 1.61 bits per dimension with sines, 1.69 with elu.
_FEW = 16
# Activations bend at a scale of their own, so that a block of the same constant does more with inputs that are wide.
# Bits per dimension of 250 MNIST images for validation after 150 s of Adam on one core: 1.588 with a spread of 1, 1.440
# with 3, 1.425 with 5, 1.442 with 10. Log-densities of rings after 40 s: -3.553 with a spread of 1, -2.706 with 20, and
# -2.704 with 20 and a cap of .98, which would make the bound of the inverse 5^8 times as large. Of a table, diabetes, a
# spread of 3 is worse than 1 by .9 nats.
_IMAGE_SPREAD, _PLANE_SPREAD = 5.0, 20.0
# Learning rates of convolutions.
_CONV_LR = {"adam": 1e-2, "muon": 2e-2}  # of another optimizer none, since it is refused
# Rows of grey levels have an activation in front of every block, and a smaller decay. Bits per dimension of 180 digits
# for validation after 40 s of one busy core: 2.027 without it (elu, decay 2), between 2.02 and 2.08 with another rate,
# decay, cap, clipping, alpha or activation, 1.980 with it (1.989 with lipswish).
_GREY_DECAY = 0.5
# Muon needs less decay, since its steps are of one length: a weight that is m x n has no norm above
# .24 sqrt(max(m, n)) / decay then. Bits per dimension on MNIST with 2000 images after two minutes, by validation: 1.538
# with a decay of 2, 1.345 with .5; by Adam 1.410 with 2.
_MUON_DECAY = 0.5
# Below so many samples to train on, a flow of the default size learns them by heart.
_FEW_SAMPLES = 10_000
# Below so many rows, tables have other defaults, see docs/benchmarks.md for what they gain. Sines would fit the rows
# that the flow is trained on too closely, and a single row in the tails of a column would cost the normal density much.
_SHORT_TABLE = 1000


@dataclass(frozen=True)
class TrainingSettings:
    """How a flow is trained.

    Attributes
    ----------
    framework : str
        The framework.
    steps : int or None
        Length of the training in steps of the optimiser; None where time is the measure.
    minutes : float or None
        Length in minutes, evaluations included.
    batch : int
        Samples per step.
    lr : float
        Learning rate at the start.
    schedule : {"cosine", "constant"}
        "cosine" takes the learning rate to a hundredth along half a cosine.
    start : {"orthogonal", "uniform"}
        Weights at the start: orthogonal, with all singular values at the cap, so that none has to grow first, and of
        convolutions near to that (`ConvolutionPlan.noise_at_start`); or uniform between +-1 / sqrt(inputs), below it.
    optimizer : {"adam", "muon"}
        Adam; or Muon, see `muon_step`, for the weights that have a cap, and Adam for all else, at the same rate.
    weight_decay : float
        Each step shrinks the weights, not biases and scales, by lr times this (Loshchilov and Hutter 2019); for few
        samples, which a flow learns by heart.
    clip : float
        Largest norm of the gradient; longer ones are shortened to it.
    share : float or None
        Part of a batch whose log-determinants are taken in a step; None for the default of `training_loss`.
    seed : int
        Seed of the initialisation, the order of the samples, the dequantisation and the probes.
    dtype : {"float32", "float64"}
        Dtype of parameters and samples.
    evaluate_every, checkpoint_every : int
        Steps between evaluations on the validation set, and between checkpoints.
    evaluation_samples : int
        How many samples of the validation set an evaluation takes.
    recompute : bool
        Whether a step keeps only the inputs of the blocks, and computes each block again on its way back: less memory,
        more time, the same training.
    recover : bool
        Whether it keeps one input of eight blocks, and finds the others again by inversion: on PyTorch.
    compiled : bool
        Whether PyTorch compiles the blocks, once for all that are alike. Keras compiles its steps in any case.
    penalty : float
        The loss has this times the sum of the squared spectral norms of the free weights (Behrmann et al. 2019).
    ema : float or None
        Decay of the moving average of all parameters, which is what is evaluated and exported; None without one.
    threads : int or None
        Threads of the framework on the CPU; None for its own number.
    warm_up : int
        Over so many steps the learning rate rises in a line to where it begins.
    flip : bool
        Whether images to train on are mirrored, each with a probability of a half at every step.
    accumulate : int
        In how many parts a step takes its batch, one after the other: less memory, the same gradient.
    device : str or None
        Of PyTorch, such as "cpu" or "cuda:1"; None for a GPU where there is one.
    devices : int
        How many devices of the machine share out every batch in one process: with Keras.
    precision : {"float32", "tf32", "bfloat16"}
        Of the products of steps, but for those of norms: TF32 on a GPU, bfloat16 on a processor, with PyTorch.
    """

    framework: str
    steps: int | None
    minutes: float | None
    batch: int
    lr: float
    schedule: str
    start: str
    weight_decay: float
    clip: float
    share: float | None
    seed: int
    dtype: str
    evaluate_every: int
    checkpoint_every: int
    evaluation_samples: int
    recompute: bool = False
    recover: bool = False
    compiled: bool = False
    penalty: float = 0.0
    ema: float | None = None
    threads: int | None = None
    warm_up: int = 0
    flip: bool = False
    accumulate: int = 1
    device: str | None = None
    devices: int = 1
    optimizer: str = "adam"
    precision: str = "float32"

    def __post_init__(self) -> None:
        require_training(self, SCHEDULES)
        if not 1 <= self.accumulate <= self.batch:
            raise InvalidArgumentError(
                f"accumulate must lie between 1 and the batch of {self.batch}, got {self.accumulate}."
            )
        if self.devices < 1 or self.batch % self.devices:
            raise InvalidArgumentError(
                f"a batch of {self.batch} cannot be shared out evenly to {self.devices} devices; try a --batch that is "
                "a multiple of --devices."
            )
        if self.recover and self.compiled:
            raise InvalidArgumentError(
                "a compiled step cannot look whether inputs were found again by inversion: leave out --compile, or try "
                "--checkpoint input."
            )
        if self.start not in STARTS:
            raise InvalidArgumentError(f"there is no start {self.start!r}; there are {', '.join(STARTS)}.")
        if self.optimizer not in OPTIMIZERS:
            raise InvalidArgumentError(f"there is no optimizer {self.optimizer!r}; there are {', '.join(OPTIMIZERS)}.")
        if self.dtype not in DTYPES:
            raise InvalidArgumentError(f"dtype must be {' or '.join(DTYPES)}, got {self.dtype!r}.")
        if self.precision not in PRECISIONS[: 1 if self.dtype == "float64" else None]:
            raise InvalidArgumentError(
                f"precision must be {', '.join(PRECISIONS)}, the last two with dtype float32; got "
                f"{self.precision!r} and {self.dtype}."
            )
        if self.precision != "float32" and (self.recover or self.compiled):
            raise InvalidArgumentError(
                f"--precision {self.precision} goes with neither --compile nor --checkpoint inverse; leave one out."
            )
        require_share(self.share)
        if not 0 <= self.penalty < float("inf"):
            raise InvalidArgumentError(f"penalty must be a number of at least 0, got {self.penalty:g}.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise InvalidArgumentError(f"ema, the decay of an average, must lie between 0 and 1, got {self.ema:g}.")


@dataclass(frozen=True)
class RunSettings:
    """Everything that a run folder remembers of how its training was begun.

    Attributes
    ----------
    data, model, training : DatasetSource, ModelSettings, TrainingSettings
        The three parts.
    """

    data: DatasetSource
    model: ModelSettings
    training: TrainingSettings

    def as_json(self) -> dict[str, Any]:
        """Return plain data, which `settings_from_json` reads."""
        return dataclasses.asdict(self)

    def of_model_and_training(self) -> dict[str, Any]:
        """Return the settings but those of the data, as plain data; an older one's are without `precision`."""
        found = {**dataclasses.asdict(self.model), **dataclasses.asdict(self.training)}
        return {name: value for name, value in found.items() if (name, value) != ("precision", "float32")}


def default_settings(source: DatasetSource, dataset: Dataset, framework: str, asked: Mapping[str, Any]) -> RunSettings:
    """Return the settings for a data set.

    The logit of images has alpha = 0.1 / levels where more than half of the pixels to train on are black or white, else
    0.05.

    Parameters
    ----------
    source, dataset : DatasetSource, Dataset
        The data of the training.
    framework : str
        The framework.
    asked : mapping
        Fields of `ModelSettings` and `TrainingSettings` that shall differ from their default.

    Raises
    ------
    InvalidArgumentError
        If a value has no meaning.
    """
    shape = dataset.event_shape
    image = is_image_shape(shape)
    large = image and shape[1] * shape[2] >= _CONV_FROM and not (shape[1] % 2 or shape[2] % 2)
    kind = asked.get("kind", "conv" if large else "mlp")
    size = 1
    for n in shape:
        size *= n
    few = dataset.train_count < _FEW_SAMPLES
    grey_rows = kind == "mlp" and dataset.levels is not None
    short_table = not image and size > 2 and dataset.levels is None and dataset.train_count < _SHORT_TABLE
    optimizer = asked.get("optimizer", "muon" if kind == "conv" else "adam")
    decay = _MUON_DECAY if optimizer == "muon" else _GREY_DECAY if grey_rows else 2.0
    model: dict[str, Any] = {
        "kind": kind,
        "blocks": 4 if kind == "conv" else 8,
        "hidden": 32 if kind == "conv" else 64 if size < _FEW else 128,
        "layers": 2,
        "activation": "sin" if kind == "conv" or (size < _FEW and not image and not short_table) else "elu",
        "coeff": 0.9,
        "alpha": None if dataset.levels is None else default_alpha(dataset),
        "standardize": dataset.levels is None,
        "activation_first": grey_rows,
        "scales": 2,
        "spread": _IMAGE_SPREAD if kind == "conv" else _PLANE_SPREAD if size == 2 else 1.0,
        "base": "student-t" if short_table else "normal",
        # On MNIST, by Adam, 1.42 bits per dimension after 124 steps with wavelets, 1.47 with pixels.
        "squeeze": "haar" if kind == "conv" else "pixels",
    }
    training: dict[str, Any] = {
        "framework": framework,
        "steps": None if asked.get("minutes") is not None else 2000,
        "minutes": None,
        "batch": min(64 if kind == "conv" else 256, dataset.train_count),
        "lr": _CONV_LR.get(optimizer) if kind == "conv" else 2e-3 if short_table and size < _FEW else 5e-3,
        "schedule": "cosine",
        "start": "uniform" if few else "orthogonal",
        "weight_decay": decay if few else 0.0,
        "clip": 10.0,
        "share": None,
        "seed": source.seed,
        "dtype": "float32",
        "evaluate_every": _evaluate_every(kind == "conv", asked.get("steps")),
        "checkpoint_every": 500,
        "evaluation_samples": 1000,
        "recompute": False,
        "recover": False,
        "compiled": False,
        "penalty": 0.0,
        "ema": None,
        "threads": None,
        "warm_up": 0,
        "flip": False,
        "accumulate": 1,
        "device": None,
        "devices": 1,
        "optimizer": optimizer,
        "precision": "float32",
    }
    for name, value in asked.items():
        (model if name in model else training)[name] = value
    if asked.get("steps") is not None and asked.get("minutes") is not None:
        raise InvalidArgumentError("give either steps or minutes, not both.")
    if dataset.levels is None and model["alpha"] is not None:
        raise InvalidArgumentError(f"alpha is for images of grey levels, which {dataset.name} does not hold.")
    if dataset.levels is not None and model["standardize"]:
        raise InvalidArgumentError(f"standardize is for real numbers; {dataset.name} holds grey levels, for a logit.")
    if training["flip"] and not image:
        raise InvalidArgumentError(f"flip mirrors images; {dataset.name} has samples of shape {shape}.")
    Activation(model["activation"])
    settings = RunSettings(source, ModelSettings(**model), TrainingSettings(**training))
    if settings.training.batch > dataset.train_count:
        raise InvalidArgumentError(
            f"a batch of {settings.training.batch} is more than the {dataset.train_count} samples to train on."
        )
    return settings


def _evaluate_every(convolutional: bool, steps: int | None) -> int:
    """Return the steps between evaluations; of images one takes as long as thirty steps.

    A short training is evaluated a few times as well, since its best model is that of an evaluation.
    """
    usual, fewest = (250, 4) if convolutional else (100, 10)
    return usual if steps is None else max(1, min(usual, steps // fewest))


def with_changes(old: Any, asked: Mapping[str, Any], where: str, changeable: Collection[str] = CHANGEABLE) -> Any:
    """Return the settings of a run with the changes that a resumed training allows.

    Parameters
    ----------
    old : RunSettings, or settings of the same parts
        What the run was begun with.
    asked : mapping
        Settings of the model or the training that are asked for now.
    where : str
        The folder, for the message.
    changeable : collection of str
        Which settings may differ.

    Raises
    ------
    RunError
        If something else was asked for than what the run was begun with; the message lists it.
    """
    changes: dict[str, Any] = {}
    different = []
    for name, value in asked.items():
        part: Any = old.model if hasattr(old.model, name) else old.training
        before = getattr(part, name)
        if name in changeable:
            changes[name] = value
        elif before != value:
            different.append(f"{name} {before} instead of {value}")
    if different:
        raise RunError(
            f"{where} holds a training with {', '.join(different)}. Resume it with what it was begun with "
            "(leave the options out), or give another --out."
        )
    if "minutes" in changes and "steps" not in changes:
        changes["steps"] = None
    if "steps" in changes and changes["steps"] is not None and "minutes" not in changes:
        changes["minutes"] = None
    return dataclasses.replace(old, training=dataclasses.replace(old.training, **changes))


def settings_from_json(node: Any, where: str) -> RunSettings:
    """Read what `RunSettings.as_json` wrote.

    Raises
    ------
    RunError
        If a field is missing, unknown or of another type.
    """
    if not isinstance(node, dict):
        raise RunError(f"{where}: the settings are no object.")
    kinds = {"data": DatasetSource, "model": ModelSettings, "training": TrainingSettings}
    training = node.get("training")
    if isinstance(training, dict) and "engine" in training and "framework" not in training:
        # Run folders that were begun before the setting had its name are resumed too.
        training = {("framework" if name == "engine" else name): value for name, value in training.items()}
        node = {**node, "training": training}
    if isinstance(training, dict):  # as before there were these settings
        node = {**node, "training": {**_AS_BEFORE, **training}}
    data = node.get("data")
    if isinstance(data, dict):
        before = dict.fromkeys(("condition", "labels", "drop", "missing", "label_key", "memory"))
        node = {**node, "data": {**before, **data}}
    model = node.get("model")
    if isinstance(model, dict):  # as before there were these settings; the first runs with a spread wrote None for 1
        before = {"standardize": False, "activation_first": False, "scales": 2, "base": "normal", "squeeze": "pixels"}
        before |= model
        node = {**node, "model": {**before, "spread": 1.0 if model.get("spread") is None else model["spread"]}}
    return RunSettings(**settings_parts(kinds, node, where))


def settings_parts(kinds: Mapping[str, Any], node: Any, where: str) -> dict[str, Any]:
    """Read the parts of settings, each a dataclass of its kind, from what `dataclasses.asdict` and JSON made of them.

    Raises
    ------
    RunError
        If a field is missing, unknown or of another type.
    """
    if not isinstance(node, dict):
        raise RunError(f"{where}: the settings are no object.")
    return {name: _from_json(kind, node.get(name), f"{where}: {name}") for name, kind in kinds.items()}


def _from_json(kind: Any, node: Any, where: str) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(node, dict) or set(node) != names:
        seen = ", ".join(sorted(set(node) ^ names)) if isinstance(node, dict) else type(node).__name__
        raise RunError(f"{where} does not have the fields of this version ({seen}).")
    node = dict(node)
    for name, expected in get_type_hints(kind).items():
        value = node[name]
        if get_origin(expected) is tuple:  # of whole numbers
            if not isinstance(value, list) or not all(type(n) is int for n in value):
                raise RunError(f"{where}: {name} is {value!r}.")
            node[name] = tuple(value)
            continue
        allowed = expected | int if expected in (float, float | None) else expected
        if isinstance(value, bool) != (expected is bool) or not isinstance(value, allowed):
            raise RunError(f"{where}: {name} is {value!r}.")
    try:
        return kind(**node)
    except InvalidArgumentError as error:
        raise RunError(f"{where}: {error}") from error
