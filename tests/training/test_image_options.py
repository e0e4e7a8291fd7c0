"""What `iresnet train` has for images: scales, warm-up, mirrored images, batches in parts, the device."""

import dataclasses

import numpy as np
import pytest
from small_trainings import Watcher, prepared, trained

from iresnet_core.errors import DeviceError, InvalidArgumentError, ShapeError
from iresnet_core.training.batches import Batches
from iresnet_core.training.datasets import DatasetSource, load_dataset
from iresnet_core.training.loop import find_trainer, require_able
from iresnet_core.training.plans import FactorOutPlan, ModelSettings, planned_layers
from iresnet_core.training.processes import ONE_PROCESS
from iresnet_core.training.run import TrainingRun
from iresnet_core.training.sample_layout import SampleLayout
from iresnet_core.training.settings import default_settings, settings_from_json, with_changes


def depth(plan):
    return 1 + max((depth(layer.layers) for layer in plan if isinstance(layer, FactorOutPlan)), default=0)


def test_scales():
    settings = {scales: ModelSettings("conv", 1, 8, 2, "elu", 0.9, scales=scales) for scales in (1, 2, 3)}
    for scales, own in settings.items():
        assert depth(planned_layers(own, (3, 32, 32))) == scales
    with pytest.raises(ShapeError, match="halved 3 times"):
        planned_layers(settings[3], (1, 28, 28))
    with pytest.raises(InvalidArgumentError, match="scales are for the model conv"):
        ModelSettings("mlp", 1, 8, 2, "elu", 0.9, scales=3)


def digits(**asked):
    source = DatasetSource("digits", samples=400)
    dataset = load_dataset(source)
    return dataset, default_settings(source, dataset, "torch", asked)


def test_mirrored_images_are_a_function_of_the_step():
    dataset, settings = digits(flip=True, batch=32)
    layout = SampleLayout((1, 8, 8), (1, 8, 8))
    plain = Batches(dataset, layout, default_settings(settings.data, dataset, "torch", {"batch": 32}).training)
    flipped = Batches(dataset, layout, settings.training)
    levels = [np.floor(17 * batches.at(3).x) for batches in (plain, flipped)]
    same = [bool(np.array_equal(a, b)) for a, b in zip(*levels, strict=True)]
    turned = [bool(np.array_equal(a[..., ::-1], b)) for a, b in zip(*levels, strict=True)]
    assert all(a or b for a, b in zip(same, turned, strict=True))
    assert 5 < sum(turned) < 27
    np.testing.assert_array_equal(flipped.at(3).x, flipped.at(3).x)
    moons = load_dataset(DatasetSource("moons", samples=100))
    with pytest.raises(InvalidArgumentError, match="flip mirrors images"):
        default_settings(DatasetSource("moons", samples=100), moons, "torch", {"flip": True})


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_warm_up(tmp_path, framework, monkeypatch):
    if framework == "numpy":
        from iresnet_core.training import loop

        monkeypatch.setitem(loop._TRAINERS, "numpy", ("numpy_trainer", "numpy", ""))
    else:
        pytest.importorskip(framework)
    run, config, dataset = prepared(
        tmp_path / "run", framework, warm_up=10, schedule="constant", steps=12, evaluate_every=5
    )
    trained(run, config, dataset)
    lr = config.settings.training.lr
    rates = [row["learning_rate"] for row in run.read_log()]
    np.testing.assert_allclose(rates, [6 / 11 * lr, lr, lr])


def test_batches_in_parts_are_whole_batches(tmp_path):
    torch = pytest.importorskip("torch")
    states = []
    for accumulate in (1, 3):
        run, config, dataset = prepared(
            tmp_path / str(accumulate), "torch", accumulate=accumulate, share=1.0, dtype="float64", steps=5
        )
        trained(run, config, dataset)
        states.append(run.load_checkpoint().arrays)
    for name, array in states[0].items():
        if not name.startswith("random.") and not name.endswith(".basis"):
            np.testing.assert_allclose(array, states[1][name], rtol=1e-9, atol=1e-12, err_msg=name)
    assert torch.get_default_dtype() == torch.float32
    with pytest.raises(InvalidArgumentError, match="accumulate must lie"):
        prepared(tmp_path / "no", "torch", accumulate=51)


@pytest.mark.parametrize("framework", ["torch", pytest.param("keras", marks=pytest.mark.strict_suite)])
def test_images_resume_with_all_of_it(tmp_path, framework):
    pytest.importorskip(framework)
    asked = {"kind": "conv", "flip": True, "warm_up": 6, "ema": 0.9, "schedule": "constant", "batch": 30, "steps": 10}
    if framework == "torch":
        asked["accumulate"] = 3
    whole, parts = (prepared(tmp_path / name, framework, "digits", 200, **asked) for name in ("whole", "parts"))
    assert trained(*whole).finished
    assert not trained(*parts, Watcher(stop_after=5)).finished
    assert trained(*parts).finished
    expected, found = (run.load_checkpoint().arrays for run, _, _ in (whole, parts))
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_devices(tmp_path):
    pytest.importorskip("torch")
    for device in ("cuda:77", "abacus", "meta"):
        run, config, dataset = prepared(tmp_path / device.replace(":", ""), "torch", device=device)
        with pytest.raises(DeviceError, match=f"--device {device} cannot be used"):
            trained(run, config, dataset)
    run, config, dataset = prepared(tmp_path / "cpu", "torch", device="cpu", steps=2)
    assert trained(run, config, dataset).finished


def test_precision(tmp_path, monkeypatch):
    """Of the steps, in whose products alone it is met; a resumed training may have another."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("before PyTorch 2.9 there is no such setting for processors")
    from torch.overrides import TorchFunctionMode

    class Seen(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.settings = set()

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.settings.add(torch.backends.mkldnn.matmul.fp32_precision)
            return func(*args, **(kwargs or {}))

    behind, backward = set(), torch.Tensor.backward

    def watched(loss, **options):
        behind.add(torch.backends.mkldnn.matmul.fp32_precision)
        backward(loss, **options)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    run, config, dataset = prepared(tmp_path / "run", "torch", device="cpu", precision="bfloat16")
    with Seen() as seen:
        assert not trained(run, config, dataset, Watcher(stop_after=5)).finished
    assert seen.settings == {"none", "bf16"}
    assert behind == {"bf16"}
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"
    config = with_precision(config, "float32")
    with Seen() as seen:
        assert trained(run, config, dataset).finished
    assert seen.settings == {"none"}
    run, config, dataset = prepared(tmp_path / "tf32", "torch", device="cpu", precision="tf32")
    with pytest.raises(InvalidArgumentError, match="an NVIDIA GPU, and the arrays are on cpu; try precision bfloat16"):
        trained(run, config, dataset)
    for other in ("compiled", "recover"):
        with pytest.raises(InvalidArgumentError, match="neither --compile nor --checkpoint inverse"):
            digits(precision="bfloat16", **{other: True})
    for asked in ({"precision": "half"}, {"precision": "bfloat16", "dtype": "float64"}):
        with pytest.raises(InvalidArgumentError, match="precision must be float32, tf32, bfloat16"):
            digits(**asked)


def with_precision(config, precision):
    settings = with_changes(config.settings, {"precision": precision}, "here")
    return dataclasses.replace(config, settings=settings)


def test_keras_says_what_it_lacks():
    pytest.importorskip("keras")
    for asked in ({"accumulate": 2}, {"device": "cpu"}, {"precision": "bfloat16"}):
        _, settings = digits(**asked)
        with pytest.raises(InvalidArgumentError, match=f"--{next(iter(asked))} "):
            require_able(find_trainer("keras"), settings.training, ONE_PROCESS)


def test_older_run_folders(tmp_path):
    run, config, _ = prepared(tmp_path / "run", "torch")
    node = config.settings.as_json()
    for name in ("warm_up", "flip", "accumulate", "device", "precision"):
        del node["training"][name]
    del node["model"]["scales"]
    assert settings_from_json(node, "here") == config.settings == TrainingRun(run.folder).read_config().settings


def test_checkpoints_from_before_there_was_a_reference(tmp_path):
    pytest.importorskip("torch")
    _, config, _ = prepared(tmp_path / "run", "torch", "digits", 200, kind="conv")
    plan = planned_layers(config.settings.model, config.layout.data_shape)
    shape = config.layout.model_shape
    first = np.random.default_rng(0).uniform(size=(20, *shape)).astype("float32")
    trainer = find_trainer("torch")(plan, shape, config.settings.training, first)
    state = trainer.state()
    np.testing.assert_array_equal(state["flow.reference"], first[:16])
    trainer.load_state({name: array for name, array in state.items() if name != "flow.reference"})
    for name, array in trainer.state().items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)
