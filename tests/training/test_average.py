"""The moving average of the parameters, and the penalty on their norms, in the trainers of both frameworks."""

import numpy as np
import pytest
from small_trainings import prepared, require

from iresnet_core.backends import get_backend
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.training.batches import Batches
from iresnet_core.training.data_spread import standardization
from iresnet_core.training.datasets import DatasetSource, load_dataset
from iresnet_core.training.loop import find_trainer
from iresnet_core.training.plans import planned_layers
from iresnet_core.training.settings import default_settings


@pytest.fixture(params=["torch", "keras"])
def framework(request):
    require(request.param)
    return request.param


def trainer_of(framework, tmp_path, **asked):
    _, config, dataset = prepared(tmp_path / "run", framework, **asked)
    settings = config.settings.training
    batches = Batches(dataset, config.layout, settings, standardization(dataset.train, config.layout))
    plan = planned_layers(config.settings.model, config.layout.data_shape, None)
    return find_trainer(framework)(plan, config.layout.model_shape, settings, batches.first(100)), batches


def test_what_is_evaluated_and_exported_is_the_average(framework, tmp_path):
    trainer, batches = trainer_of(framework, tmp_path, ema=0.7)
    average = None
    for step in range(4):
        trainer.step(batches.at(step).x, 0.05)
        averaged = {name: array.copy() for name, array in trainer.state().items() if name.startswith("average.")}
        if average is None:
            average = {name: array for name, array in averaged.items() if array.ndim}
        else:
            own = trained_ones(trainer, framework)
            average = {name: 0.7 * average[name] + 0.3 * own[name] for name in average}
        for name, array in average.items():
            np.testing.assert_allclose(averaged[name], array, atol=1e-6, err_msg=name)
    before = {name: array.copy() for name, array in trainer.state().items()}
    exported, x = trainer.to_core(), batches.validation[:10].astype("float32")
    backend = get_backend(exported.arrays[0])
    found = backend.to_numpy(exported.log_prob(backend.xp.asarray(x), rng=0).value)
    np.testing.assert_allclose(found, trainer.log_prob(x, 0), atol=1e-4)
    for name, array in trainer.state().items():  # the parameters themselves are as they were
        assert np.array_equal(array, before[name]), name


def trained_ones(trainer, framework):
    """The present parameters by the names of their averages."""
    if framework == "torch":
        return {f"average.{name}": p.detach().numpy().copy() for name, p in trainer.flow.named_parameters()}
    return {f"average.{k}": np.asarray(v) for k, v in enumerate(trainer.model.trainable_variables)}


def test_the_penalty_is_part_of_the_loss(framework, tmp_path):
    plain, batches = trainer_of(framework, tmp_path / "a")
    penalised, _ = trainer_of(framework, tmp_path / "b", penalty=0.5)
    flow = penalised.flow if framework == "torch" else penalised.model
    penalty = flow.spectral_penalty(1.0)
    expected = 0.5 * float(get_backend(penalty).to_numpy(penalty))
    assert expected > 1
    difference = penalised.step(batches.at(0).x, 0.01).loss - plain.step(batches.at(0).x, 0.01).loss
    assert difference == pytest.approx(expected, rel=1e-3, abs=0.2)  # the probes of the two differ


@pytest.mark.parametrize(
    ("asked", "match"), [({"ema": 1.0}, "between 0 and 1"), ({"penalty": -1.0}, "penalty"), ({"threads": 0}, "threads")]
)
def test_bad_values(tmp_path, asked, match):
    with pytest.raises(InvalidArgumentError, match=match):
        prepared(tmp_path / "run", "torch", **asked)


def test_a_short_training_is_evaluated_more_than_once():
    source = DatasetSource("moons", samples=600)
    for steps, every in ((None, 100), (2000, 100), (300, 30), (5, 1)):
        asked = {} if steps is None else {"steps": steps}
        settings = default_settings(source, load_dataset(source), "torch", asked)
        assert settings.training.evaluate_every == every
