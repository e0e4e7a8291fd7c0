"""Small trainings of classifiers in run folders, for the tests."""

from small_trainings import Watcher

from iresnet_core.classification.classifier_run import ClassifierRun, begun
from iresnet_core.classification.classifier_training import train_classifier

SMALL = {
    **{"widths": (4, 4), "blocks": (1, 1), "padding": 1, "batch": 20, "steps": 8, "threads": 1},
    **{"evaluate_every": 3, "checkpoint_every": 4, "evaluation_samples": 40},
}
VANILLA = {"network": "vanilla", "coeff": None}


def prepared_classifier(folder, data="digits", samples=200, **asked):
    """A new run with its data."""
    config, dataset = begun(data, {**SMALL, **asked}, {"samples": samples})
    return ClassifierRun.create(folder, config), config, dataset


def trained_classifier(run, config, dataset, watcher=None):
    return train_classifier(run, config, dataset, watcher or Watcher())
