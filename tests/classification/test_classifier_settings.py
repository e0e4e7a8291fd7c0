"""The settings of a classifier: what has no meaning is refused, and files give back what was written."""

import dataclasses
import json
from itertools import pairwise

import pytest

from iresnet_core.classification.classifier_settings import ClassifierSettings, default_classifier
from iresnet_core.errors import InvalidArgumentError, RunError
from iresnet_core.training.datasets import DatasetSource
from iresnet_core.training.labelled_data import load_labelled

SOURCE = DatasetSource("digits", samples=200)


@pytest.fixture(scope="module")
def digits():
    return load_labelled(SOURCE)


@pytest.mark.parametrize(
    "asked",
    [
        {"widths": (4,)},
        {"blocks": (0, 0), "widths": (4, 4)},
        {"padding": -1},
        {"coeff": 1.0},
        {"network": "vanilla", "coeff": 0.9},
        {"network": "other"},
        {"widths": (10**6,), "blocks": (3,)},
        {"activation": "nothing"},
        {"batch": 0},
        {"batch": 161},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"momentum": 1.0},
        {"momentum": 0.0},
        {"weight_decay": -1.0},
        {"weight_decay": 1e3},
        {"steps": 3, "minutes": 1.0},
        {"steps": 3, "epochs": 1.0},
        {"epochs": 0.0},
        {"steps": 0},
        {"minutes": 0.0},
        {"schedule": "other"},
        {"precision": "float8"},
        {"threads": 0},
        {"seed": -1},
        {"crop": 8},
        {"crop": -1},
        {"warm_up": -1},
    ],
    ids=str,
)
def test_refusals(digits, asked):
    with pytest.raises(InvalidArgumentError):
        default_classifier(SOURCE, digits, asked)


def test_files_give_back_what_was_written(digits):
    settings = default_classifier(SOURCE, digits, {"minutes": 2.0})
    node = json.loads(json.dumps(dataclasses.asdict(settings)))
    assert ClassifierSettings.from_json(node, "here") == settings
    for part, name, value in (("model", "widths", [1.5, 2]), ("training", "lr", "a"), ("training", "steps", True)):
        broken = {**node, part: {**node[part], name: value}}
        with pytest.raises(RunError, match=name):
            ClassifierSettings.from_json(broken, "here")


def test_rates(digits):
    def rates(**asked):
        training = default_classifier(SOURCE, digits, {"lr": 1.0, "steps": 100, "warm_up": 4, **asked}).training
        return [training.rate(step, step / 100) for step in range(100)]

    constant = rates(schedule="constant")
    assert constant[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(constant[4:]) == {1.0}
    stairs = rates(schedule="step")
    assert [stairs[k] for k in (29, 30, 60, 80)] == pytest.approx([1.0, 0.2, 0.04, 0.008])
    cosine = rates()
    assert cosine[50] == pytest.approx(0.505)
    assert all(a >= b for a, b in pairwise(cosine[4:]))


def test_epochs_are_passes_over_the_data(digits):
    assert default_classifier(SOURCE, digits, {"epochs": 2.5, "batch": 16}).training.steps == 25


def test_runs_from_before_the_head_had_batch_normalisation(digits):
    settings = default_classifier(SOURCE, digits, {})
    assert settings.model.batch_norm
    node = json.loads(json.dumps(dataclasses.asdict(settings)))
    del node["model"]["batch_norm"]
    model = dataclasses.replace(settings.model, batch_norm=False)
    assert ClassifierSettings.from_json(node, "run") == dataclasses.replace(settings, model=model)
