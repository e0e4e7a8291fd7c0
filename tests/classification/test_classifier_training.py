"""The training of classifiers: what is written, and that an interrupted one takes the same steps."""

import dataclasses
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_classifiers import VANILLA, prepared_classifier, trained_classifier
from small_trainings import Watcher, without_times

from iresnet_core.classification.classifier_result import score_classifier, score_inverse
from iresnet_core.classification.classifier_run import ClassifierRun, resumed
from iresnet_core.classification.classifier_training import find_classifier_trainer, images_for_model
from iresnet_core.errors import DeviceError, InvalidArgumentError, NonFiniteError, RunError, StorageError
from iresnet_core.training.run import TrainingRun

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

RESNET = {"network": "resnet", "coeff": None, "padding": 0}
KINDS = {
    "invertible": {},
    "vanilla": VANILLA,
    "resnet": RESNET,
    "float16": {"precision": "float16"},
    "bfloat16": {"precision": "bfloat16"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_takes_the_same_steps(tmp_path, kind):
    whole = prepared_classifier(tmp_path / "whole", **KINDS[kind])
    outcome, _ = trained_classifier(*whole)
    assert outcome.finished
    run, config, dataset = prepared_classifier(tmp_path / "parts", **KINDS[kind])
    stopped, _ = trained_classifier(run, config, dataset, Watcher(stop_after=5, number=signal.SIGTERM))
    assert (stopped.finished, stopped.step) == (False, 5)
    outcome, _ = trained_classifier(run, *resumed(run, "digits", {}, {}))
    assert outcome.finished
    assert without_times(whole[0]) == without_times(run)
    a, b = (load_file(folder.checkpoint_path) for folder in (whole[0], run))
    assert set(a) == set(b)
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)


@pytest.mark.parametrize("kind", ["invertible", "vanilla", "resnet"])
def test_what_is_exported_scores_as_in_the_log(tmp_path, kind):
    run, config, dataset = prepared_classifier(tmp_path / "run", **KINDS[kind])
    outcome, trainer = trained_classifier(run, config, dataset)
    trainer.load_exported(run.model_path)
    held = dataclasses.replace(
        dataset,
        images=dataclasses.replace(dataset.images, test=dataset.images.validation),
        labels=(*dataset.labels[:2], dataset.labels[1]),
    )
    found = score_classifier(trainer, config, held)
    best = min(run.read_log(), key=lambda row: (row["validation_wrong"], row["validation_nats"]))
    assert best["step"] == outcome.best_step
    assert found.error == pytest.approx(best["validation_wrong"])
    assert found.cross_entropy == pytest.approx(best["validation_nats"], rel=1e-5)
    assert (trainer.lipschitz() is None) == (kind != "invertible")


@pytest.mark.parametrize("coeff", [0.5, 0.9])
def test_every_image_of_the_test_set_comes_back_within_its_bound(tmp_path, coeff):
    run, config, dataset = prepared_classifier(tmp_path / "run", coeff=coeff)
    _, trainer = trained_classifier(run, config, dataset)
    assert trainer.lipschitz() <= coeff
    told = []
    found = score_inverse(trainer, config, dataset, lambda *numbers: told.append(numbers))
    assert found.within_bound
    assert found.inverted == len(dataset.labels[2]) == told[-1][0]
    assert 0 < found.inverse_error <= found.inverse_bound < 1e-4
    assert found.mean_iterations <= found.iterations


def test_lower_precision_takes_the_same_step_up_to_its_rounding(tmp_path):
    gradients = {}
    for precision in ("float32", "bfloat16", "float16"):
        _, config, dataset = prepared_classifier(tmp_path / precision, precision=precision)
        x = images_for_model(dataset.images.train[:20], config.levels)
        trainer = find_classifier_trainer("torch")(config, x)
        loss, _ = trainer.step(x, dataset.labels[0][:20], 0.0)
        gradients[precision] = loss, torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    loss, exact = gradients["float32"]
    for precision, error in (("bfloat16", 0.1), ("float16", 0.02)):
        other, gradient = gradients[precision]
        assert 0 < abs(other - loss) < 0.02
        assert torch.linalg.norm(gradient - exact) < error * torch.linalg.norm(exact)


def test_a_training_that_diverges_ends_with_an_error(tmp_path):
    run, config, dataset = prepared_classifier(tmp_path / "run", lr=1e5, clip=1e5, weight_decay=0.0, **VANILLA)
    with pytest.raises((NonFiniteError, InvalidArgumentError)):  # the loss, or a scale that leaves float32
        trained_classifier(run, config, dataset)


def test_other_settings_and_other_files_are_refused(tmp_path):
    run, config, dataset = prepared_classifier(tmp_path / "run")
    trained_classifier(run, config, dataset)
    with pytest.raises(RunError, match=r"coeff 0\.9"):
        resumed(run, None, {"coeff": 0.8}, {})
    with pytest.raises(RunError, match="not on mnist"):
        resumed(run, "mnist", {}, {})
    with pytest.raises(RunError, match="samples"):
        resumed(run, "digits", {}, {"samples": 100})
    assert resumed(run, "digits", {"steps": 12}, {})[0].settings.training.steps == 12
    assert resumed(run, "digits", {"epochs": 2.0}, {})[0].settings.training.steps == 16
    with pytest.raises(RunError, match="iresnet classify"):
        TrainingRun(run.folder).read_config()
    other = prepared_classifier(tmp_path / "vanilla", **VANILLA)
    _, trainer = trained_classifier(*other)
    with pytest.raises(StorageError):
        trainer.load_exported(run.model_path)
    run.model_path.unlink()
    with pytest.raises(RunError, match="model of step"):
        trained_classifier(run, config, dataset)


def test_damage_is_named(tmp_path):
    run, config, dataset = prepared_classifier(tmp_path / "run")
    trained_classifier(run, config, dataset)
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace('"crop": 1', '"crop": 2'))
    with pytest.raises(RunError, match="SHA-256"):
        run.read_config()
    run.config_path.write_text(text)
    content = bytearray(run.checkpoint_path.read_bytes())
    content[-1] ^= 1
    run.checkpoint_path.write_bytes(content)
    with pytest.raises(RunError, match="damaged"):
        trained_classifier(run, config, dataset)
    with pytest.raises(RunError, match="iresnet classify DATA --out"):
        ClassifierRun.open(tmp_path / "nothing")


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="fit"):
        find_classifier_trainer("keras")
    run, config, dataset = prepared_classifier(tmp_path / "run", device="nowhere:0")
    with pytest.raises(DeviceError, match="nowhere"):
        trained_classifier(run, config, dataset)
    vanilla = prepared_classifier(tmp_path / "vanilla", **VANILLA)
    _, trainer = trained_classifier(*vanilla)
    with pytest.raises(InvalidArgumentError, match="inverse"):
        trainer.round_trip(np.zeros((1, 1, 8, 8), dtype=np.float32))
