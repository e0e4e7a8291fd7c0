"""Settings of a training: their defaults, what has no meaning, what a resumed training may change."""

import json
import math

import numpy as np
import pytest

from iresnet_core.errors import InvalidArgumentError, RunError
from iresnet_core.training.datasets import Dataset, DatasetSource, load_dataset
from iresnet_core.training.logit_parameter import share_at_ends
from iresnet_core.training.settings import default_settings, settings_from_json, with_changes


def moons_settings(**asked):
    source = DatasetSource("moons", samples=100)
    return default_settings(source, load_dataset(source), "torch", asked)


def test_what_a_resumed_training_may_change():
    settings = moons_settings()
    changed = with_changes(settings, {"minutes": 3.0, "checkpoint_every": 5, "coeff": 0.9}, "run")
    assert (changed.training.minutes, changed.training.steps, changed.training.checkpoint_every) == (3.0, None, 5)
    assert with_changes(changed, {"steps": 7}, "run").training.minutes is None
    with pytest.raises(RunError, match=r"blocks 8 instead of 4, lr 0\.005 instead of 0\.1"):
        with_changes(settings, {"blocks": 4, "lr": 0.1}, "run")


@pytest.mark.parametrize(
    "asked",
    [
        {"kind": "cnn"},
        {"blocks": 0},
        {"coeff": 1.0},
        {"alpha": 0.05},
        {"activation": "swish"},
        {"steps": 0},
        {"steps": 5, "minutes": 1.0},
        {"minutes": -1.0},
        {"batch": 0},
        {"batch": 1000},
        {"lr": math.nan},
        {"weight_decay": -1.0},
        {"weight_decay": math.inf},
        {"lr": 0.1, "weight_decay": 20.0},
        {"schedule": "linear"},
        {"start": "zeros"},
        {"dtype": "float16"},
        {"seed": -1},
    ],
)
def test_settings_without_meaning_are_refused(asked):
    with pytest.raises(InvalidArgumentError):
        moons_settings(**asked)


def test_settings_are_plain_data():
    settings = moons_settings()
    assert settings_from_json(json.loads(json.dumps(settings.as_json())), "here") == settings


def test_few_samples_are_trained_on_with_decay_from_a_lower_start():
    few = moons_settings().training
    assert (few.weight_decay, few.start) == (2, "uniform")
    source = DatasetSource("moons")
    many = default_settings(source, load_dataset(source), "torch", {}).training
    assert (many.weight_decay, many.start) == (0, "orthogonal")


@pytest.mark.parametrize(
    ("levels", "ends", "alpha"),
    [
        (256, 0.9, 0.1 / 256),
        (256, 0.51, 0.1 / 256),
        (256, 0.49, 0.05),
        (256, 0.0, 0.05),
        (17, 0.9, 0.1 / 17),
        (None, 0.9, None),
    ],
)
def test_alpha_of_images_that_are_mostly_black_or_white_is_a_tenth_of_a_level(levels, ends, alpha):
    """A tenth of a level; 0.05, for photographs, costs 1.4 bits per dimension on MNIST."""
    x = np.random.default_rng(0).integers(1, (levels or 256) - 1, (20, 1, 10, 10))
    at_ends = np.arange(x.size) < ends * x.size
    x.reshape(-1)[at_ends] = np.where(np.arange(x.size)[at_ends] % 3, 0, (levels or 256) - 1)
    dataset = Dataset("x", x, x[:2], x[:2], levels)
    settings = default_settings(DatasetSource("x"), dataset, "torch", {})
    assert settings.model.alpha == alpha
    assert share_at_ends(dataset) == pytest.approx(ends if levels else 0)
    if levels:
        assert default_settings(DatasetSource("x"), dataset, "torch", {"alpha": 0.01}).model.alpha == 0.01


def test_a_run_that_was_begun_with_another_alpha_keeps_it():
    source = DatasetSource("digits")
    old = default_settings(source, load_dataset(source), "torch", {"alpha": 0.02})
    read = settings_from_json(json.loads(json.dumps(old.as_json())), "here")
    assert with_changes(read, {"steps": 9}, "run").model.alpha == 0.02
    with pytest.raises(RunError, match=r"alpha 0\.02 instead of 0\.05"):
        with_changes(read, {"alpha": 0.05}, "run")


def test_convolutions_are_trained_with_sines_at_a_higher_rate():
    source = DatasetSource("digits")
    settings = default_settings(source, load_dataset(source), "torch", {"kind": "conv"})
    assert (settings.model.activation, settings.training.lr, settings.training.batch) == ("sin", 2e-2, 64)
    by_adam = default_settings(source, load_dataset(source), "torch", {"kind": "conv", "optimizer": "adam"})
    assert by_adam.training.lr == 1e-2
    rows = default_settings(source, load_dataset(source), "torch", {})
    assert (rows.model.activation, rows.training.lr, rows.training.batch) == ("elu", 5e-3, 256)


def test_rows_of_grey_levels_have_an_activation_in_front():
    source = DatasetSource("digits")
    rows, images = (default_settings(source, load_dataset(source), "torch", {"kind": kind}) for kind in ("mlp", "conv"))
    assert (rows.model.activation_first, rows.training.weight_decay) == (True, 0.5)
    assert (images.model.activation_first, images.training.weight_decay) == (False, 0.5)
    by_adam = default_settings(source, load_dataset(source), "torch", {"kind": "conv", "optimizer": "adam"})
    assert by_adam.training.weight_decay == 2.0
    assert not moons_settings().model.activation_first
    node = json.loads(json.dumps(rows.as_json()))
    del node["model"]["activation_first"]  # as it was written before there was the setting
    assert not settings_from_json(node, "here").model.activation_first


def test_blocks_see_wide_inputs_where_that_helps():
    digits = load_dataset(DatasetSource("digits", samples=100))
    table = Dataset("table", *(np.random.default_rng(0).standard_normal((n, 6)) for n in (100, 20, 20)))
    source = DatasetSource("moons")
    assert default_settings(source, load_dataset(source), "torch", {}).model.spread == 20
    assert default_settings(DatasetSource("digits"), digits, "torch", {"kind": "conv"}).model.spread == 5
    assert default_settings(DatasetSource("digits"), digits, "torch", {}).model.spread == 1
    assert default_settings(DatasetSource("table.csv"), table, "torch", {}).model.spread == 1


def test_a_run_from_before_there_was_a_spread_has_one_of_one():
    settings = moons_settings(spread=1.0)
    node = settings.as_json()
    for old in ({**node["model"], "spread": None}, {k: v for k, v in node["model"].items() if k != "spread"}):
        assert settings_from_json({**node, "model": old}, "here") == settings
