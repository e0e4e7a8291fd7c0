"""What `sample`, `score` and `plot` have in common: their options, and the flow that they open with its data.

They need no framework: the model is loaded into the core, on NumPy unless another backend is asked for.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from iresnet_core.backends import backend as find_backend
from iresnet_core.commands.terminal import one_thread
from iresnet_core.errors import InvalidArgumentError, RunError
from iresnet_core.files import load
from iresnet_core.flows import Flow
from iresnet_core.training import (
    RunConfig,
    SampleLayout,
    TrainingRun,
    dequantized,
    load_dataset,
    model_file,
)

__all__ = ["BackendOption", "DtypeOption", "OpenedModel", "RunArgument", "SeedOption", "opened", "require_file"]


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or a model file.", show_default=False)]
BackendOption = Annotated[str, typer.Option("--backend", metavar="NAME", help="Backend that computes.")]
DtypeOption = Annotated[
    str, typer.Option("--dtype", metavar="DTYPE", help="float64 or float32, whatever the model was trained in.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0)]


@dataclass(frozen=True)
class OpenedModel:
    """A flow with what its run says about its data."""

    flow: Flow
    layout: SampleLayout
    levels: int | None
    run: TrainingRun | None
    config: RunConfig | None

    @property
    def size(self) -> int:
        """Numbers in one sample of the data."""
        return math.prod(self.layout.data_shape)

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of the columns of a sample, if the run was trained on a table that has any."""
        if self.config is None or self.config.columns is None:
            return None
        columns, condition = self.config.columns, self.config.settings.data.condition
        placed = "" if condition is None else columns.placed(condition, "--condition")
        return columns.without([int(k) for k in placed.split(",") if k])

    def test_set(self, seed: int) -> np.ndarray:
        """Return the test set of the run, dequantised."""
        if self.config is None:
            raise InvalidArgumentError("a model file has no test set; give a FILE of samples.")
        return self.ready(load_dataset(self.config.settings.data).test, seed)

    def test_contexts(self) -> np.ndarray | None:
        """Return the conditions of the test set."""
        contexts = None if self.config is None else load_dataset(self.config.settings.data).contexts
        return None if contexts is None else contexts[2]

    def ready(self, x: np.ndarray, seed: int) -> np.ndarray:
        """Return samples of the data with uniform noise added to their grey levels, if they have any."""
        return dequantized(x, self.levels, np.random.default_rng([seed, 5]))


@contextmanager
def opened(path: Path, backend: str, dtype: str) -> Iterator[OpenedModel]:
    """Load a model in the dtype asked for; inside, the backend has that dtype."""
    if dtype not in ("float64", "float32"):
        raise InvalidArgumentError(f"dtype must be float64 or float32, got {dtype!r}.")
    computing = find_backend(backend)
    with computing.full_precision() if dtype == "float64" else nullcontext(), one_thread():
        flow = load(model_file(path), backend=backend)
        if not isinstance(flow, Flow):
            raise RunError(f"{path} holds a {type(flow).__name__}; a flow is needed to score and to sample.")
        if flow.arrays:
            flow = flow.astype(getattr(computing.xp, dtype))
        if path.is_dir():
            run = TrainingRun.open(path)
            config = run.read_config()
            if config.layout.model_shape != flow.event_shape:
                raise RunError(
                    f"{run.model_path} takes samples of shape {flow.event_shape}, the run's are "
                    f"{config.layout.model_shape}: it is the model of another run."
                )
            yield OpenedModel(flow, config.layout, config.levels, run, config)
        else:
            yield OpenedModel(flow, SampleLayout(flow.event_shape, flow.event_shape), None, None, None)


def require_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Fail before the work, not after it."""
    if path.suffix.lower() not in suffixes:
        raise InvalidArgumentError(f"{path}: the name must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is a folder, a file is needed.")
    path.parent.mkdir(parents=True, exist_ok=True)
