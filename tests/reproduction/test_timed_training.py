"""The training for a given time, with a model whose log-densities are known, and with our own on a toy set."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from iresnet_core.errors import NonFiniteError
from iresnet_core.reproduction import Ours, Prepared, Task, TimedTraining, Unfinished, timed_training, train_for
from iresnet_core.training import DatasetSource, Scores, default_settings, load_dataset

DATA = load_dataset(DatasetSource("moons", samples=2000))


class Normal:
    """A normal density with trained mean; its third evaluation is the best one."""

    name, lr = "normal", 1.0

    def __init__(self, worst=math.inf):
        self.rates, self.looks, self.mean, self.worst = [], 0, 5.0, worst

    def step(self, x, lr):
        self.rates.append(lr)
        return 0.0

    def log_prob(self, x):
        self.looks += 1
        self.mean = abs(self.looks - 3.0)
        return self.scores(x).log_prob if self.looks < self.worst else np.full(len(x), np.nan)

    def scores(self, x):
        value = -0.5 * ((x.astype(np.float64) - self.mean) ** 2).sum(axis=1) - math.log(2 * math.pi)
        return Scores(value, np.full(len(x), 0.5), np.full(len(x), 0.25), "exact")

    def parameter_count(self):
        return 1

    def state(self):
        return {"mean": self.mean}

    def load_state(self, state):
        self.mean = state["mean"]


def test_the_best_state_is_scored():
    model, data = Normal(), Prepared(DATA)
    steps = iter(np.arange(1000) * 0.05)
    training = TimedTraining(1.0, batch=50, evaluations=5)
    object.__setattr__(training, "clock", lambda: next(steps))
    seen = []
    found = train_for(model, data, training, lambda *row: seen.append(row))
    assert len(found.curve) == 5
    assert [row[:2] for row in found.curve] == [row[:2] for row in seen]
    assert found.steps == len(model.rates) == 20
    assert model.mean == 0
    assert found.best_step == found.curve[2][1]
    test = (DATA.test - DATA.train.mean(0)) / DATA.train.std(0)
    expected = -0.5 * (test**2).sum(1) - math.log(2 * math.pi) - np.log(DATA.train.std(0)).sum()
    assert found.mean == pytest.approx(expected.mean(), abs=1e-6)
    assert found.std_error == pytest.approx(expected.std(ddof=1) / math.sqrt(len(test)), rel=1e-5)
    assert found.probe_error == pytest.approx(0.5 / math.sqrt(len(test)))
    assert found.bias_bound == 0.25
    assert (found.parameters, found.samples, found.method) == (1, len(test), "exact")
    assert model.rates[0] == 1.0
    assert model.rates[-1] < 0.02
    assert np.all(np.diff(model.rates) < 0)


def test_a_model_that_is_never_finite_is_refused():
    with pytest.raises(NonFiniteError, match="diverged"):
        train_for(Normal(worst=0), Prepared(DATA), TimedTraining(1e9, steps=2))


class Counting(Normal):
    """Notes the samples of its steps, and is interrupted before one of them."""

    def __init__(self, stops_at=math.inf):
        super().__init__()
        self.seen, self.stops_at = [], stops_at

    def step(self, x, lr):
        if len(self.seen) == self.stops_at:
            raise KeyboardInterrupt
        self.seen.append(x)
        return super().step(x, lr)

    def state(self):
        return {"mean": np.asarray(self.mean), "looks": np.asarray(self.looks)}

    def load_state(self, state):
        self.mean, self.looks = float(state["mean"]), int(state["looks"])


def test_a_training_goes_on_where_it_was_interrupted(monkeypatch, tmp_path):
    monkeypatch.setattr(timed_training, "_KEEP_AFTER", 0.0)
    data, path = Prepared(DATA), tmp_path / "cell.unfinished.npz"

    def trained(model, unfinished=None):
        times = iter(np.arange(1000) / 16)  # which each step takes
        training = TimedTraining(1.0, batch=50, evaluations=4)
        object.__setattr__(training, "clock", lambda: next(times))
        return train_for(model, data, training, unfinished=unfinished)

    whole, stopped, rest = Counting(), Counting(stops_at=10), Counting()
    expected = trained(whole)
    with pytest.raises(KeyboardInterrupt):
        trained(stopped, Unfinished(path, "a"))
    found = trained(rest, Unfinished(path, "a"))
    assert found.steps == expected.steps == 16
    assert len(rest.seen) == 8  # the last evaluation before was behind eight steps
    np.testing.assert_array_equal(np.stack(rest.seen), np.stack(whole.seen[8:]))
    np.testing.assert_allclose(rest.rates, whole.rates[8:])
    np.testing.assert_allclose(found.curve, expected.curve)
    assert (found.best_step, found.mean) == (expected.best_step, expected.mean)
    other = Counting()
    trained(other, Unfinished(path, "other settings"))
    assert len(other.seen) == 16


def test_an_unfinished_training_with_damage_begins_anew(tmp_path):
    path = tmp_path / "cell.unfinished.npz"
    kept = Unfinished(path, "a")
    assert kept.read() is None
    kept.write({"steps": 3, "best": -math.inf}, {"now.weight": np.arange(3.0)})
    values, arrays = Unfinished(path, "a").read()
    assert values == {"steps": 3, "best": -math.inf}
    np.testing.assert_array_equal(arrays["now.weight"], np.arange(3.0))
    again = Unfinished(path, "a")
    again.read()
    assert again.seconds() >= kept.seconds() - 1.0  # the time of all sittings
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert Unfinished(path, "a").read() is None
    path.write_bytes(whole)
    assert Unfinished(path, "b").read() is None
    kept.remove()
    kept.remove()
    assert not path.exists()


def test_the_learning_rate_rises_first():
    model = Normal()
    train_for(model, Prepared(DATA), TimedTraining(1e9, steps=6, batch=50, warm_up=3))
    np.testing.assert_allclose(model.rates, [0.25, 0.5, 0.75, 1, 1, 1])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say what time a child took")
def test_the_clock_counts_what_a_step_calls():
    training, before = TimedTraining(1.0), os.times()
    begin = training.clock()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    spent, after = training.clock() - begin, os.times()
    of_child = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent >= of_child > 0


def test_prepared_samples_are_those_of_the_data():
    data = Prepared(DATA)
    ready = data.ready(DATA.train, np.random.default_rng(0))
    np.testing.assert_allclose(ready.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(data.as_data(ready), DATA.train, atol=1e-5)
    digits = Prepared(load_dataset(DatasetSource("digits", samples=100)))
    images = digits.first(10, 0)
    assert images.dtype == np.float32
    assert 0 <= images.min() <= images.max() < 1
    assert digits.offset == 0
    assert digits.bits(0.0) == pytest.approx(math.log2(17))


def test_ours_is_trained_and_scored_exactly():
    pytest.importorskip("torch")
    data = Prepared(DATA)
    settings = default_settings(DatasetSource("moons"), DATA, "torch", {"blocks": 2, "hidden": 8})
    task = Task(data.first(500, 0))
    model = Ours(task, settings)
    before = float(np.mean(model.log_prob(data.first(500, 0)))) + data.offset
    found = train_for(model, data, TimedTraining(60, steps=60, validation_samples=100, test_samples=100))
    assert found.mean > before + 0.05
    assert found.method == "exact"
    assert (found.bias_bound < 1e-6, found.probe_error) == (True, 0)
    assert found.parameters == model.parameter_count()
    assert model.lipschitz() < 1
    x = data.first(20, 1)
    np.testing.assert_allclose(model.scores(x).log_prob, model.log_prob(x), atol=1e-4)
    assert model.sample(3, 0).shape == (3, 2)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(Ours(task, settings).log_prob(x), model.log_prob(x), atol=1e-4)
