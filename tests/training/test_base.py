"""Densities of the latents that a training is told by their names."""

import numpy as np
import pytest
from runs_for_tests import iresnet
from small_trainings import Watcher, prepared, trained

import iresnet_core
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.training.datasets import DatasetSource, load_dataset
from iresnet_core.training.evaluation import scores
from iresnet_core.training.plans import planned_layers
from iresnet_core.training.settings import default_settings, settings_from_json

SMALL = {"blocks": 1, "hidden": 8, "dtype": "float64", "batch": 50}
FRAMEWORKS = [("torch", "iresnet_core.adapters.torch.training"), ("keras", "iresnet_core.adapters.keras.training")]


def heavy_table(folder, n=400):
    """A table with the tails of Student's t of 2 degrees of freedom."""
    np.save(folder / "x.npy", np.random.default_rng(0).standard_t(2.0, size=(n, 3)))
    return str(folder / "x.npy")


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_the_base_of_a_training_is_in_its_file_and_learned(tmp_path, framework):
    pytest.importorskip(framework)
    data = heavy_table(tmp_path)
    found = {}
    for name in ("normal", "diagonal-normal", "student-t"):
        run, config, dataset = prepared(tmp_path / name, framework, data, None, base=name, steps=40, lr=0.02, **SMALL)
        watcher = Watcher()
        trained(run, config, dataset, watcher)
        flow = iresnet_core.load(run.model_path)
        row = min(watcher.rows, key=lambda row: row["validation_nats"])
        assert -row["validation_nats"] == pytest.approx(scores(flow, dataset.validation).log_prob.mean(), abs=1e-6)
        found[name] = flow.base, scores(flow, dataset.test).log_prob.mean()
    assert found["normal"][0] == "normal"
    diagonal, tailed = found["diagonal-normal"][0], found["student-t"][0]
    assert type(diagonal).__name__ == "DiagonalNormal"
    assert type(tailed).__name__ == "StudentT"
    for base in (diagonal, tailed):
        assert base.shape == (3,)
        assert np.all(np.abs(base.mean) > 0)
        assert np.all(base.scale != 1)
    assert found["student-t"][1] > found["normal"][1] + 0.2


def test_a_flow_under_conditions_has_its_base(tmp_path):
    pytest.importorskip("torch")
    run, small = tmp_path / "run", ("--steps", 1, "--batch", 50, "--hidden", 8, "--blocks", 1)
    result = iresnet(
        "train",
        heavy_table(tmp_path),
        "--condition",
        "2",
        "--base",
        "student-t",
        "--out",
        run,
        "--no-tensorboard",
        *small,
    )
    assert result.exit_code == 0, result.output
    assert type(iresnet_core.load(run / "model.safetensors").base).__name__ == "StudentT"


@pytest.mark.parametrize(("framework", "module"), FRAMEWORKS)
def test_weight_decay_spares_the_base(framework, module):
    pytest.importorskip(framework)
    trainer = pytest.importorskip(module).Trainer
    source = DatasetSource("digits", samples=100)
    dataset = load_dataset(source)
    # One scale, so that latents are images and the mean is no vector.
    asked = {"kind": "conv", "scales": 1, "base": "diagonal-normal", "weight_decay": 500.0, "lr": 1e-3, **SMALL}
    settings = default_settings(source, dataset, framework, asked)
    shape = (8, 8, 1) if trainer.channels_last else (1, 8, 8)
    x = np.random.default_rng(0).random((50, *shape))
    made = trainer(planned_layers(settings.model, (1, 8, 8)), shape, settings.training, x, base=settings.model.base)
    flow = made.model if framework == "keras" else made.flow
    if framework == "keras":
        mean = next(variable for variable in flow.base.trainable_variables if variable.name == "mean")
        mean.assign(np.ones(tuple(mean.shape)))
    else:
        mean = flow.base.mean
        mean.data.fill_(1.0)
    assert mean.ndim == 3
    made.step(x, 1e-3)
    np.testing.assert_allclose(made.to_core().base.mean, 1.0, atol=2e-3)  # half of it with the decay


def test_a_base_that_there_is_not_is_refused():
    source = DatasetSource("moons", samples=100)
    with pytest.raises(InvalidArgumentError, match="there are normal, diagonal-normal, student-t"):
        default_settings(source, load_dataset(source), "torch", {"base": "cauchy"})


def test_a_run_from_before_there_was_a_base_has_the_normal_one():
    source = DatasetSource("moons", samples=100)
    settings = default_settings(source, load_dataset(source), "torch", {})
    node = settings.as_json()
    del node["model"]["base"]
    assert settings_from_json(node, "run") == settings
