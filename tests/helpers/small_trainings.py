"""Small trainings in run folders, for the tests."""

import signal

import pytest

from iresnet_core.training.datasets import DatasetSource, fingerprint, load_dataset
from iresnet_core.training.loop import find_trainer, train
from iresnet_core.training.plans import planned_layers, planned_shape
from iresnet_core.training.run import RunConfig, TrainingRun
from iresnet_core.training.sample_layout import SampleLayout
from iresnet_core.training.settings import default_settings


def require(framework):
    """Skip a test of a framework that is not installed."""
    for module in {"torch": ["torch"], "keras": ["tensorflow", "keras"]}.get(framework, []):
        pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ImportError)


class Watcher:
    """Remembers the rows; sends a signal after a step."""

    def __init__(self, stop_after=None, number=signal.SIGINT):
        self.stop_after, self.number, self.rows, self.steps = stop_after, number, [], []

    def stepped(self, step, seconds, loss):
        self.steps.append(step)
        if step == self.stop_after:
            signal.raise_signal(self.number)

    def evaluated(self, row):
        self.rows.append(dict(row))


def prepared(folder, framework, data="moons", samples=600, **asked):
    """A new run with its data."""
    source = DatasetSource(data, samples=samples)
    dataset = load_dataset(source)
    small = {
        "blocks": 1 if framework == "keras" else 2,
        "hidden": 8,
        "batch": 50,
        "steps": 20,
        "evaluate_every": 6,
        "checkpoint_every": 7,
    }
    settings = default_settings(source, dataset, framework, {**small, **asked})
    shape = planned_shape(settings.model, dataset.event_shape)
    if len(shape) == 3 and find_trainer(framework).channels_last:
        shape = (*shape[1:], shape[0])
    layout = SampleLayout(dataset.event_shape, shape)
    config = RunConfig(settings, layout, dataset.levels, dataset.name, fingerprint(dataset), {})
    return TrainingRun.create(folder, config), config, dataset


def trained(run, config, dataset, watcher=None, **options):
    plan = planned_layers(config.settings.model, config.layout.data_shape)
    return train(run, config, dataset, plan, watcher or Watcher(), **options)


def without_times(run):
    return [{name: cell for name, cell in row.items() if name != "seconds"} for row in run.read_log()]
