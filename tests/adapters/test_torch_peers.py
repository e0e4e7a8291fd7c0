"""The flows of other packages: their densities, samples and scores against what is known of them."""

from importlib import import_module

import numpy as np
import pytest

from iresnet_core.errors import MissingDependencyError
from iresnet_core.reproduction import Prepared, Task, TimedTraining, find_peer, peer_names, train_for
from iresnet_core.training import DatasetSource, load_dataset

torch = pytest.importorskip("torch")
VECTORS = Prepared(load_dataset(DatasetSource("moons", samples=1000)))
IMAGES = Prepared(load_dataset(DatasetSource("digits", samples=200)))
FLOWS = ("nice", "realnvp", "glow", "made", "maf", "nsf", "ffjord", "residualflow")


def peer(name, task):
    try:
        return find_peer(name)(task)
    except MissingDependencyError as error:
        pytest.skip(str(error))


def on_a_grid(model, half=7.0, n=141):
    """Return the integral of a density over a square, by the sum over a grid."""
    axis = np.linspace(-half, half, n)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return np.exp(model.scores(points).log_prob).sum() * (axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("name", FLOWS)
def test_a_peer_of_vectors(name):
    task = Task(VECTORS.first(200, 0), seed=1, parameters=2000)
    model = peer(name, task)
    assert model.parameter_count() == pytest.approx(2000, rel=0.15)
    x = VECTORS.first(50, 0)
    before, state = model.log_prob(x), model.state()
    np.testing.assert_allclose(model.scores(x).log_prob, before, atol=2e-3)
    found = train_for(model, VECTORS, TimedTraining(1e9, steps=12, batch=64, evaluations=1))
    assert np.isfinite(found.mean)
    after = model.log_prob(x)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_array_equal(after, model.log_prob(x))  # nothing was touched
    assert on_a_grid(model) == pytest.approx(1, abs=0.02)
    drawn = model.sample(300, 0)
    assert drawn.shape == (300, 2)
    np.testing.assert_array_equal(drawn, model.sample(300, 0))
    model.load_state(state)
    np.testing.assert_allclose(model.log_prob(x), before, atol=1e-6)


@pytest.mark.parametrize("name", ["glow", "residualflow", "ffjord"])
def test_a_training_goes_on_from_a_state(name):
    def losses(model, steps):
        return [model.step(IMAGES.first(32, k), 1e-3) for k in steps]

    task = Task(IMAGES.first(100, 0), alpha=0.1 / 17, parameters=5000)
    model = peer(name, task)
    losses(model, range(3))
    state = model.state()
    expected = losses(model, range(3, 6))
    again = peer(name, task)
    again.load_state(state)
    assert losses(again, range(3, 6)) == expected


@pytest.mark.parametrize("name", ["glow", "residualflow", "made", "realnvp", "ffjord"])
def test_a_peer_of_images(name):
    model = peer(name, Task(IMAGES.first(100, 0), alpha=0.1 / 17, parameters=20_000))
    x = IMAGES.first(20, 0)
    before = model.log_prob(x).mean()
    found = train_for(model, IMAGES, TimedTraining(1e9, steps=10, batch=50, evaluations=1, test_samples=20))
    assert found.mean > before
    scores = model.scores(x)
    assert scores.log_prob.shape == (20,)
    assert np.all(scores.std_error > 0) == (name == "residualflow")
    assert model.parameter_count() == pytest.approx(20_000, rel=0.15)
    drawn = model.sample(2, 0)
    assert drawn.shape == (2, 1, 8, 8)
    assert np.all(np.isfinite(drawn))
    assert -0.1 < drawn.min() <= drawn.max() < 1.1


def test_glow_of_larger_images():
    first = np.random.default_rng(0).random((20, 1, 16, 16))
    model = peer("glow", Task(first, alpha=1e-3, parameters=60_000))
    assert sum(type(part).__name__ == "ActNorm" for part in model.module.modules()) == 16  # 8 at each scale
    assert model.parameter_count() == pytest.approx(60_000, rel=0.15)
    before = model.log_prob(first).mean()
    for _ in range(3):
        model.step(first, 1e-3)
    assert model.log_prob(first).mean() > before
    assert model.sample(2, 0).shape == (2, 1, 16, 16)


def test_samples_are_those_of_the_density():
    model = peer("glow", Task(VECTORS.first(200, 0), parameters=500))
    train_for(model, VECTORS, TimedTraining(1e9, steps=10, batch=64, evaluations=1))
    x = model.sample(20_000, 0)
    axis = np.linspace(-7, 7, 141)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    weight = np.exp(model.scores(points).log_prob) * (axis[1] - axis[0]) ** 2
    for moment in (np.sin, np.cos):
        ours, theirs = moment(x), (weight[:, None] * moment(points)).sum(axis=0)
        assert np.all(np.abs(ours.mean(axis=0) - theirs) < 5 * ours.std(axis=0) / np.sqrt(len(x)) + 1e-3)


def test_the_estimate_of_the_residual_flow_agrees_with_the_exact_jacobian():
    model = peer("residualflow", Task(VECTORS.first(200, 0), parameters=1000))
    x = VECTORS.first(30, 0)
    np.testing.assert_allclose(model.log_prob(x), model.scores(x).log_prob, atol=1e-3)
    assert model.constant() < 1.05


def test_the_estimated_trace_of_ffjord_agrees_with_the_exact_one(monkeypatch):
    first = np.random.default_rng(0).standard_normal((300, 6)) @ np.tri(6)
    task = Task(first, parameters=1000)
    exact = peer("ffjord", task)
    for _ in range(5):
        exact.step(first, 1e-2)
    monkeypatch.setattr(import_module("iresnet_core.adapters.torch.peers.zuko"), "_EXACT", 5)
    drawn = peer("ffjord", task)
    drawn.load_state(exact.state())
    known, found = exact.scores(first), drawn.scores(first)
    assert not known.std_error.any()
    apart, error = found.log_prob - known.log_prob, found.std_error
    assert np.abs(apart.mean()) < 5 * np.sqrt(np.mean(error**2) / len(first))
    # The errors are those that there are, over all samples.
    assert np.sqrt(np.mean(apart**2) / np.mean(error**2)) == pytest.approx(1, abs=0.3)
    assert (known.method.split(",")[0], found.method.split(",")[0]) == (
        "exact trace",
        "mean of 4 draws of Hutchinson's trace",
    )


def test_every_peer_is_tested():
    assert set(FLOWS) == {name for name in peer_names() if name in FLOWS}
