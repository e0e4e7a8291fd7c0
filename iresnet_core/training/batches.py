"""The samples of every step of a training, with their conditions, as the trainer takes them."""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from iresnet_core.flows import Flow, Standardize
from iresnet_core.training.data_spread import require_spread
from iresnet_core.training.datasets import Dataset, dequantized
from iresnet_core.training.sample_layout import SampleLayout
from iresnet_core.training.settings import TrainingSettings
from iresnet_core.training.stored_samples import ShuffledBlocks

__all__ = ["Batch", "Batches", "EpochOrder"]


class Batch(NamedTuple):
    """The samples of a step, as the trainer takes them, and their conditions, where there are any."""

    x: np.ndarray
    context: np.ndarray | None


class EpochOrder:
    """Which samples each step takes: every epoch goes through all of them in an order of its own."""

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n, self.batch, self.seed = n, batch, seed
        self.per_epoch = n // batch
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)

    def chosen(self, step: int) -> np.ndarray:
        """Return the numbers of the samples of a step."""
        epoch, k = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, 1, epoch])
            self._epoch, self._order = epoch, rng.permutation(self.n)
        return self._order[k * self.batch : (k + 1) * self.batch]


class Batches:
    """The samples of every step, each a function of the seed and the step alone."""

    def __init__(
        self,
        dataset: Dataset,
        layout: SampleLayout,
        settings: TrainingSettings,
        standardize: Standardize | None = None,
    ) -> None:
        self.dataset, self.layout, self.settings, self.standardize = dataset, layout, settings, standardize
        if standardize is None and dataset.levels is None:
            spread = np.std(dataset.train, axis=0)
            require_spread(dataset.train, settings.dtype, spread, "Leave out --no-standardize, or try --dtype float64.")
        self.order = EpochOrder(len(dataset.train), settings.batch, settings.seed)
        self.blocks = None
        if dataset.stored is not None:
            self.blocks = ShuffledBlocks(dataset.stored, settings.batch, settings.seed)
        # The same noise at every evaluation, so that they can be compared.
        held = dataset.validation[: settings.evaluation_samples]
        self.validation = self._ready(held, np.random.default_rng([settings.seed, 3]))
        if dataset.contexts is not None and dataset.condition is not None:
            numbers = [own is None for own in dataset.condition.labels]
            spread = np.where(numbers, dataset.contexts[0].std(axis=0), 0.0)
            require_spread(dataset.contexts[0], settings.dtype, spread, "Of the conditions; try --dtype float64.")

    def first(self, n: int) -> np.ndarray:
        """Return samples for the data-dependent initialisation."""
        return self._ready(self.dataset.train[:n], np.random.default_rng([self.settings.seed, 4]))

    def contexts(self, part: int, n: slice) -> np.ndarray | None:
        """Return the conditions of samples of one of the three parts, or None where there are none."""
        if self.dataset.contexts is None:
            return None
        found: np.ndarray = self.dataset.contexts[part][n].astype(self.settings.dtype)
        return found

    def at(self, step: int) -> Batch:
        """Return the batch of a step."""
        x, context = self._chosen(step)
        if self.settings.flip:  # rows of pixels are the last axis of the data
            turned = np.random.default_rng([self.settings.seed, 9, step]).random(len(x)) < 0.5
            x = np.where(turned[:, None, None, None], x[..., ::-1], x)
        x = self._ready(x, np.random.default_rng([self.settings.seed, 2, step]))
        return Batch(x, None if context is None else context.astype(self.settings.dtype))

    def _chosen(self, step: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the samples of a step as the data have them, and their conditions."""
        if self.blocks is not None:
            return self.dataset.parted(self.blocks.at(step))
        chosen, contexts = self.order.chosen(step), self.dataset.contexts
        return self.dataset.train[chosen], None if contexts is None else contexts[0][chosen]

    def _ready(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        ready = self.layout.to_model(dequantized(x, self.dataset.levels, rng))
        if self.standardize is not None:  # in float64, since the cast might lose the spread
            ready = self.standardize(ready)
        return ready.astype(self.settings.dtype)

    @cached_property
    def offset(self) -> float:
        """Nats by which the negative log-density of the data lies above that of what the trainer is given."""
        if self.standardize is None:
            return 0.0
        origin = np.zeros((1, *self.layout.model_shape))
        return -float(self.standardize.forward(origin).logdet.value[0])

    def exported(self, flow: Flow) -> Flow:
        """Return the flow on the data from that on what the trainer is given."""
        if self.standardize is None:
            return flow
        return Flow([self.standardize, *flow.layers], flow.event_shape, base=flow.base, condition=flow.condition)
