"""The ablation of estimators at a tiny size: the record, and that biases are measured as they are."""

import dataclasses

import numpy as np
import pytest

from iresnet_core import Chain, Dense, Flow, ResidualBlock
from iresnet_core.reproduction import Request, find_target

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from iresnet_core.reproduction import ablation


def test_estimators_on_the_plane(monkeypatch, tmp_path):
    small = {"steps": 4, "looks": 2, "draws": 3, "held": 20, "test": 30}
    monkeypatch.setattr(ablation, "_SIZE", {**ablation._SIZE, **small})
    monkeypatch.setattr(ablation.os, "cpu_count", lambda: 1)
    record = find_target("ablation")(Request(tmp_path, data=("moons",)))
    assert [row[0] for row in record.rows] == [ablation.LABELS[name] for name in ("series", "roulette", "ours", "two")]
    curves = [one["curve"] for one in record.details]
    assert all([look["step"] for look in curve] == [0, 2, 4] for curve in curves)
    assert len({curve[0]["nats"] for curve in curves}) == 1  # the same weights at the start
    assert len({curve[-1]["nats"] for curve in curves}) == 4  # and others behind steps by other estimators
    assert max(abs(look["bias"]) for look in curves[2]) < 1e-9  # in the plane ours is exact
    assert (tmp_path / "ablation.png").stat().st_size > 1000


@pytest.mark.parametrize("data", ["moons", "digits"])
def test_validation_and_test_are_scored_alike(monkeypatch, data):
    size = {**ablation._SIZE, "steps": 1, "looks": 1, "draws": 2, "held": 20, "test": 20}
    load = ablation.load_dataset
    monkeypatch.setattr(ablation, "load_dataset", lambda source: _with_one_sample(load(source)))
    values = ablation._cell({**size, "data": data, "model": "ours", "seed": 0, "seconds": None}).values
    if data == "moons":
        assert values["test"] == pytest.approx(values["validation"], abs=1e-4)  # the latter of samples in float32
    else:  # other noise makes pixels of grey levels
        assert values["test"] == pytest.approx(values["validation"], abs=0.1)


def _with_one_sample(dataset):
    """The data with one sample, time and again, for validation and for test."""
    once = np.repeat(dataset.validation[:1], 20, axis=0)
    return dataclasses.replace(dataset, validation=once, test=once)


def test_the_bias_of_a_truncated_series_is_its_tail():
    flow = Flow([ResidualBlock(Chain([Dense(0.8 * np.eye(2))]))], (2,))
    x = np.random.default_rng(0).standard_normal((5, 2))
    exact = flow.log_prob(x, method="exact").value
    bias = ablation._bias(flow, x, exact, ablation.ESTIMATORS["series"], 4, seed=0)
    tail = sum((-1) ** k * 0.8**k / k for k in range(ablation.TERMS + 1, 400))
    assert bias.mean == pytest.approx(2 * tail, rel=0.02)
    assert bias.spread < 1e-9


def test_the_page_says_what_a_second_product_changes():
    one, two = (
        {
            "method": "mean-jacobian",
            "curve": [{"bias": bias, "bias_error": 0.05}],
            "validation": validation,
            "seconds_per_step": seconds,
            "exact_seconds_per_step": 1.0,
        }
        for bias, validation, seconds in ((0.6, 1.95, 0.1), (0.2, 1.96, 0.125))
    )
    notes = ablation._notes({("digits", "ours"): one, ("digits", "two"): two}, {"draws": 16})
    assert "+0.20 ± 0.05 instead of +0.60 ± 0.05 nats" in notes[-1]
    assert "1.9600 instead of 1.9500, and a step takes 1.25 times as long" in notes[-1]
