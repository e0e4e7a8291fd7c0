"""Training of classifiers: settings, augmentation, the task of the loop, the run folder, the result."""

from iresnet_core.classification.augmentation import augmented
from iresnet_core.classification.classifier_result import (
    ClassifierScore,
    Invertibility,
    as_result,
    score_classifier,
    score_inverse,
)
from iresnet_core.classification.classifier_run import ClassifierConfig, ClassifierRun, begun, resumed
from iresnet_core.classification.classifier_settings import (
    NETWORKS,
    PRECISIONS,
    ClassifierModel,
    ClassifierSettings,
    ClassifierTraining,
    default_classifier,
)
from iresnet_core.classification.classifier_training import (
    RoundTrip,
    find_classifier_trainer,
    images_for_model,
    train_classifier,
)

__all__ = [
    "NETWORKS",
    "PRECISIONS",
    "ClassifierConfig",
    "ClassifierModel",
    "ClassifierRun",
    "ClassifierScore",
    "ClassifierSettings",
    "ClassifierTraining",
    "Invertibility",
    "RoundTrip",
    "as_result",
    "augmented",
    "begun",
    "default_classifier",
    "find_classifier_trainer",
    "images_for_model",
    "resumed",
    "score_classifier",
    "score_inverse",
    "train_classifier",
]
