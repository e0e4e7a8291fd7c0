"""Data of any offset and scale: the density is right in their own units, and a cast that loses them is refused."""

import json

import numpy as np
import pytest
from small_trainings import Watcher, prepared, trained

import iresnet_core
from iresnet_core.errors import DataFileError, InvalidArgumentError
from iresnet_core.flows.standardize import Standardize
from iresnet_core.training import loop as training
from iresnet_core.training.data_spread import standardization
from iresnet_core.training.datasets import DatasetSource, dequantized, load_dataset
from iresnet_core.training.evaluation import draw_samples, scores
from iresnet_core.training.sample_layout import SampleLayout
from iresnet_core.training.settings import default_settings, with_changes

PLACES = [(1e8, 1.0), (0.0, 1e-8), (0.0, 1e8), (1e8, 1e-6), (-1e8, 1e8), (0.0, 1e-150), (0.0, 1e150)]


@pytest.fixture
def numpy_framework(monkeypatch):
    monkeypatch.setitem(training._TRAINERS, "numpy", ("numpy_trainer", "numpy", ""))
    return "numpy"


def gaussian(path, offset, scale, n=2000):
    np.save(path, offset + scale * np.random.default_rng(0).standard_normal((n, 2)))
    return str(path)


def fitted_normal(dataset):
    """Mean log-density of the test set under the normal distribution with the moments of the training set."""
    mean, std = dataset.train.mean(axis=0), dataset.train.std(axis=0)
    z = (dataset.test - mean) / std
    return np.mean(np.sum(-0.5 * z**2 - np.log(std) - 0.5 * np.log(2 * np.pi), axis=1))


@pytest.mark.parametrize(("offset", "scale"), PLACES)
def test_the_density_is_that_of_a_fitted_normal(numpy_framework, tmp_path, offset, scale):
    data = gaussian(tmp_path / "x.npy", offset, scale)
    run, config, dataset = prepared(tmp_path / "run", numpy_framework, data, None, lr=1e-3)
    watcher = Watcher()
    trained(run, config, dataset, watcher)
    flow = iresnet_core.load(run.model_path).astype(np.float64)
    found = scores(flow, dataset.test).log_prob.mean()
    assert found == pytest.approx(fitted_normal(dataset), abs=0.1)
    # What the log says is in the same units.
    row = min(watcher.rows, key=lambda row: row["validation_nats"])
    validation = scores(flow, dataset.validation).log_prob.mean()
    assert -row["validation_nats"] == pytest.approx(validation, abs=1e-4 * abs(validation) + 1e-4)
    assert row["train_nats"] == pytest.approx(row["validation_nats"], abs=0.5)
    drawn = draw_samples(flow, 500, seed=1).value
    assert np.mean(drawn) == pytest.approx(offset, abs=0.2 * scale)
    assert np.std(drawn, axis=0) == pytest.approx(scale, rel=0.2)


@pytest.mark.parametrize(("offset", "scale"), [(1e8, 1.0), (0.0, 1e-8)])
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_flow_of_either_framework_has_it_too(framework, tmp_path, offset, scale):
    for module in {"torch": ["torch"], "keras": ["keras", "tensorflow"]}[framework]:
        pytest.importorskip(module)
    data = gaussian(tmp_path / "x.npy", offset, scale)
    run, config, dataset = prepared(tmp_path / "run", framework, data, None, steps=30, evaluate_every=30)
    trained(run, config, dataset)
    flow = iresnet_core.load(run.model_path).astype(np.float64)
    assert scores(flow, dataset.test).log_prob.mean() == pytest.approx(fitted_normal(dataset), abs=0.1)


def test_samples_that_lose_their_spread_in_a_cast_are_refused(numpy_framework, tmp_path):
    data = gaussian(tmp_path / "x.npy", 1e8, 1.0)
    run, config, dataset = prepared(tmp_path / "run", numpy_framework, data, None, standardize=False)
    with pytest.raises(DataFileError, match=r"float32 rounds .* Leave out --no-standardize"):
        trained(run, config, dataset)
    wide = {"standardize": False, "dtype": "float64"}
    run, config, dataset = prepared(tmp_path / "float64", numpy_framework, data, None, **wide)
    trained(run, config, dataset)
    run, config, dataset = prepared(tmp_path / "standard", numpy_framework, data, None)
    trained(run, config, dataset)
    flow = iresnet_core.load(run.model_path)
    with pytest.raises(DataFileError, match=r"float32 rounds .* --dtype float64"):
        scores(flow.astype(np.float32), dataset.test[:1])


def test_every_column_and_every_channel_gets_its_own_numbers():
    rng = np.random.default_rng(0)
    offsets = np.array([1e6, 0.0, -3.0])
    table = offsets + rng.standard_normal((50, 3)) * [1.0, 1e-9, 1e4]
    table[:, 1] = 7.0
    z = standardization(table, SampleLayout((3,), (3,)))(table)
    assert np.mean(z, axis=0) == pytest.approx(0, abs=1e-8)
    assert np.std(z, axis=0) == pytest.approx([1, 0, 1], abs=1e-8)
    images = rng.random((40, 2, 4, 6)) + np.array([5.0, -1.0])[:, None, None]
    for shape, axes in (((2, 4, 6), (0, 2, 3)), ((4, 6, 2), (0, 1, 2)), ((48,), None)):
        layout = SampleLayout((2, 4, 6), shape)
        layer = standardization(images, layout)
        assert len(set(layer.mean)) == len(set(layer.std)) == 2
        z = layout.to_data(layer(layout.to_model(images)))
        assert np.mean(z, axis=(0, 2, 3)) == pytest.approx(0, abs=1e-12)
        assert np.std(z, axis=(0, 2, 3)) == pytest.approx(1)
        if axes is not None:
            assert layer.axis == (1 if axes == (0, 2, 3) else -1)


def test_grey_levels_have_a_logit_instead():
    source = DatasetSource("digits", samples=100)
    dataset = load_dataset(source)
    assert not default_settings(source, dataset, "torch", {}).model.standardize
    with pytest.raises(InvalidArgumentError, match="grey levels"):
        default_settings(source, dataset, "torch", {"standardize": True})


def test_a_run_from_before_goes_on_without(numpy_framework, tmp_path):
    run, config, dataset = prepared(tmp_path / "run", numpy_framework, standardize=False)
    node = json.loads(run.config_path.read_text())
    assert node["settings"]["model"].pop("standardize") is False
    del node["sha256"]
    run.config_path.write_text(json.dumps(node))
    assert run.read_config() == config
    trained(run, run.read_config(), dataset)
    assert not any(isinstance(layer, Standardize) for layer in iresnet_core.load(run.model_path).layers)
    with pytest.raises(iresnet_core.errors.RunError, match="standardize False instead of True"):
        with_changes(config.settings, {"standardize": True}, "run")


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_spread_changes_the_blocks_and_not_the_units(tmp_path, framework):
    pytest.importorskip(framework)
    data = gaussian(tmp_path / "x.npy", 100.0, 3.0)
    run, config, dataset = prepared(tmp_path / "run", framework, data, None, spread=20.0, dtype="float64", steps=4)
    watcher = Watcher()
    trained(run, config, dataset, watcher)
    flow = iresnet_core.load(run.model_path)
    kinds = [type(layer).__name__ for layer in flow.layers]
    assert kinds == ["Standardize", *["ActNorm", "ResidualBlock"] * config.settings.model.blocks, "ActNorm"]
    inputs = flow.layers[1].forward(flow.layers[0].forward(dataset.train).value).value
    np.testing.assert_allclose(np.std(inputs, axis=0), 20.0, rtol=0.1)  # of the first batch, and four steps later
    row = min(watcher.rows, key=lambda row: row["validation_nats"])
    assert -row["validation_nats"] == pytest.approx(scores(flow, dataset.validation).log_prob.mean(), abs=1e-6)
    assert scores(flow, dataset.test).log_prob.mean() == pytest.approx(fitted_normal(dataset), abs=0.5)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"spread": 0.01}, "from 0.1 to 10000"),
        ({"spread": float("nan")}, "from 0.1 to 10000"),
    ],
)
def test_a_spread_without_a_meaning_is_refused(asked, words):
    source = DatasetSource("moons", samples=100)
    with pytest.raises(InvalidArgumentError, match=words):
        default_settings(source, load_dataset(source), "torch", asked)


def spreads_behind_actnorms(layers, x):
    """What follows each ActNorm, and the deviation of a middling channel behind it, on every scale."""
    found = []
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if type(layer).__name__ == "FactorOut":
            channels = np.split(x, [layer.keep], axis=layer.axis)[0]
            found += spreads_behind_actnorms(layer.layers, channels)
        x = layer.forward(x).value
        if type(layer).__name__ == "ActNorm":
            axes = tuple(a for a in range(x.ndim) if a != layer.axis % x.ndim)
            found.append((type(following).__name__, np.median(np.std(x, axis=axes))))
    return found


@pytest.mark.parametrize("framework", ["torch", "keras"])
@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_a_spread_is_what_enters_the_blocks_of_images(tmp_path, framework, kind):
    pytest.importorskip(framework)
    asked = {"kind": kind, "spread": 5.0, "blocks": 2, "hidden": 8, "dtype": "float64", "batch": 50, "steps": 1}
    run, config, dataset = prepared(tmp_path / "run", framework, "digits", 100, lr=1e-12, **asked)
    trained(run, config, dataset)
    flow = iresnet_core.load(run.model_path)
    x = config.layout.to_model(dequantized(dataset.train[:50], dataset.levels, np.random.default_rng(1)))
    spreads = spreads_behind_actnorms(flow.layers, x)
    blocks = [spread for following, spread in spreads if following == "ResidualBlock"]
    others = [spread for following, spread in spreads if following != "ResidualBlock"]
    assert len(blocks) == 2 * len(others) == (4 if kind == "conv" else 2)  # conv has two scales
    np.testing.assert_allclose(blocks, 5.0, rtol=0.2)  # other noise and other samples than the layer was set from
    np.testing.assert_allclose(others, 1.0, rtol=0.2)
