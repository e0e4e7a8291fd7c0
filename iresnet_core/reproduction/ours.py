"""Our own model of a comparison: the flow that `iresnet train` trains, scored as the core has it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from iresnet_core.files import load, save
from iresnet_core.flows import Flow
from iresnet_core.reproduction.contender import Task
from iresnet_core.training import (
    RunSettings,
    SampleLayout,
    Scores,
    draw_samples,
    find_trainer,
    planned_layers,
    planned_shape,
    scores,
)

__all__ = ["Ours"]


class Ours:
    """The flow of `iresnet train` with these settings, in training.

    Parameters
    ----------
    task : Task
        What it is made for. Its samples are already standardised or dequantised.
    settings : RunSettings
        The model and the training; `standardize` is left out, since the samples are standardised. One thread is used
        unless the settings say otherwise.
    name : str
        Its name in tables.
    score_options : mapping
        Options of `Flow.log_prob` for the scores at the end; by default exact log-determinants for vectors, and for
        images the certified estimate of the core.
    """

    def __init__(
        self,
        task: Task,
        settings: RunSettings,
        name: str = "i-ResNet (ours)",
        score_options: Mapping[str, Any] | None = None,
    ) -> None:
        model = dataclasses.replace(settings.model, standardize=False)
        training = dataclasses.replace(settings.training, threads=settings.training.threads or 1)
        self.name, self.lr, self.settings = name, training.lr, settings
        self.layout = SampleLayout(task.event_shape, planned_shape(model, task.event_shape))
        self._dtype = training.dtype
        vector = len(self.layout.model_shape) == 1
        plan = planned_layers(model, task.event_shape)
        self.trainer: Any = find_trainer(training.framework)(
            plan, self.layout.model_shape, training, self._ready(task.first), base=model.base
        )
        self.score_options = dict(score_options or ({"method": "exact"} if vector else {}))
        self._exported: Flow | None = None

    def _ready(self, x: np.ndarray) -> np.ndarray:
        return self.layout.to_model(np.asarray(x)).astype(self._dtype)

    def step(self, x: np.ndarray, lr: float) -> float:
        """Take one step; see `Contender`."""
        self._exported = None
        loss: float = self.trainer.step(self._ready(x), lr).loss
        return loss

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """Log-densities under the certified weights."""
        values: np.ndarray = self.trainer.log_prob(self._ready(x), 0)
        return values

    def scores(self, x: np.ndarray) -> Scores:
        """Log-densities of the exported flow in float64, on NumPy, as anybody else would compute them."""
        return scores(self.flow(), self.layout.to_model(np.asarray(x, dtype=np.float64)), **self.score_options)

    def sample(self, n: int, seed: int) -> np.ndarray:
        """Draw samples."""
        return self.layout.to_data(draw_samples(self.flow(), n, seed=seed).value)

    def flow(self) -> Flow:
        """Return the certified flow of the core in float64."""
        if self._exported is None:
            with TemporaryDirectory() as folder:
                path = Path(folder) / "model.safetensors"
                save(self.trainer.to_core(), path)
                flow: Flow = load(path)  # on NumPy
            self._exported = flow.astype(np.float64)
        return self._exported

    def lipschitz(self) -> float:
        """Return the largest certified constant of a block."""
        return float(self.trainer.lipschitz())

    def parameter_count(self) -> int:
        """Return how many numbers are trained."""
        return int(self.trainer.parameter_count())

    def state(self) -> dict[str, np.ndarray]:
        """Return a copy of the state."""
        return {name: np.array(array) for name, array in self.trainer.state().items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Come back to a state."""
        self._exported = None
        self.trainer.load_state(state)
