"""The training loop and its folder: what is written, and that an interrupted training resumes as if it had not been."""

import dataclasses
import itertools
import json
import math
import signal
import sys

import numpy as np
import numpy_trainer
import pytest
from safetensors.numpy import load_file
from small_trainings import Watcher, prepared, require, trained, without_times

import iresnet_core
from iresnet_core.errors import InvalidArgumentError, MissingDependencyError, NonFiniteError, RunError
from iresnet_core.training import loop as training
from iresnet_core.training import task_loop, tensorboard_log
from iresnet_core.training.batches import Batches
from iresnet_core.training.loop import bits_per_dim, find_trainer
from iresnet_core.training.plans import planned_layers
from iresnet_core.training.run import Checkpoint, TrainingRun, model_file
from iresnet_core.training.settings import with_changes

BACKENDS = ["numpy", "torch", "keras"]


@pytest.fixture(params=BACKENDS)
def framework(request, monkeypatch):
    """Each framework that can train here, and one without a framework."""
    monkeypatch.setitem(training._TRAINERS, "numpy", ("numpy_trainer", "numpy", ""))
    require(request.param)
    return request.param


@pytest.fixture
def numpy_framework(monkeypatch):
    monkeypatch.setitem(training._TRAINERS, "numpy", ("numpy_trainer", "numpy", ""))
    return "numpy"


def test_a_training_writes_its_folder(framework, tmp_path):
    run, config, dataset = prepared(tmp_path / "run", framework)
    watcher = Watcher()
    outcome = trained(run, config, dataset, watcher)
    assert outcome.finished
    assert outcome.step == 20
    assert watcher.steps == list(range(1, 21))
    assert [row["step"] for row in run.read_log()] == [6, 12, 18, 20]
    for written, told in zip(run.read_log(), watcher.rows, strict=True):
        assert written == {name: value if value is None else float(value) for name, value in told.items()}
        assert written["lipschitz"] <= 0.9
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "checkpoint.safetensors",
        "config.json",
        "log.csv",
        "model.safetensors",
    ]
    best = min(watcher.rows, key=lambda row: row["validation_nats"])
    assert (outcome.best_step, outcome.best) == (best["step"], best["validation_nats"])
    # The exported model on NumPy has the validation score of the row that it was exported at.
    flow = iresnet_core.load(run.model_path)
    nats = -flow.log_prob(dataset.validation.astype(flow.arrays[0].dtype)).value
    assert np.mean(nats) == pytest.approx(best["validation_nats"], abs=1e-3)
    error = np.std(nats, ddof=1) / math.sqrt(len(nats))
    assert error == pytest.approx(best["validation_error"], rel=1e-2)


@pytest.mark.parametrize("stop", [3, 12, 17])
def test_an_interrupted_training_resumes_as_if_it_had_not_been(framework, tmp_path, stop):
    if framework == "keras" and stop != 12:
        pytest.skip("it compiles for seconds")
    more = {} if framework == "numpy" or stop == 3 else {"ema": 0.8, "penalty": 1e-3}
    whole, config, dataset = prepared(tmp_path / "whole", framework, **more)
    trained(whole, config, dataset)
    run, _, _ = prepared(tmp_path / "run", framework, **more)
    outcome = trained(run, config, dataset, Watcher(stop_after=stop))
    assert not outcome.finished
    assert outcome.step == stop
    assert run.load_checkpoint().progress["step"] == stop
    # What was written after the checkpoint, had the machine been switched off.
    run.append_row({**dict.fromkeys(watcher_columns(whole), 1.0), "step": 19})
    resumed = trained(run, config, dataset)
    assert resumed.finished
    assert resumed.seconds > outcome.seconds
    first, second = load_file(whole.checkpoint_path), load_file(run.checkpoint_path)
    assert set(first) == set(second)
    for name, array in first.items():
        assert np.array_equal(array, second[name]), name
    assert without_times(run) == without_times(whole)
    assert run.model_path.read_bytes() == whole.model_path.read_bytes()


def watcher_columns(run):
    return list(run.read_log()[0])


def test_a_training_on_images_resumes_too(framework, tmp_path):
    if framework != "torch":
        pytest.skip("NumPy's has vectors only; Keras' compiles for long, and is compared with PyTorch's")
    asked = {"steps": 4, "evaluate_every": 3, "evaluation_samples": 20, "blocks": 1, "hidden": 4, "kind": "conv"}
    whole, config, dataset = prepared(tmp_path / "whole", framework, "digits", 300, **asked)
    trained(whole, config, dataset)
    assert config.levels == 17
    assert config.layout.model_shape == (1, 8, 8)
    run, _, _ = prepared(tmp_path / "run", framework, "digits", 300, **asked)
    trained(run, config, dataset, Watcher(stop_after=2))
    trained(run, config, dataset)
    for name, array in load_file(whole.checkpoint_path).items():
        assert np.array_equal(array, load_file(run.checkpoint_path)[name]), name
    row = run.read_log()[-1]
    assert row["validation_bits_per_dim"] == pytest.approx(bits_per_dim(row["validation_nats"], 17, 64))
    assert 2 < row["validation_bits_per_dim"] < 6
    assert iresnet_core.load(run.model_path).event_shape == (1, 8, 8)


@pytest.mark.parametrize("how", ["recompute", "recover"])
def test_recomputed_blocks_train_alike(tmp_path, how):
    pytest.importorskip("torch")
    asked = {"steps": 4, "evaluate_every": 4, "evaluation_samples": 20, "blocks": 1, "hidden": 4, "kind": "conv"}
    asked["optimizer"] = "adam"  # Muon enlarges the rounding of small singular values
    whole, config, dataset = prepared(tmp_path / "whole", "torch", "digits", 300, **asked)
    trained(whole, config, dataset)
    assert not getattr(config.settings.training, how)
    run, config, dataset = prepared(tmp_path / "run", "torch", "digits", 300, **asked, **{how: True})
    trained(run, config, dataset, Watcher(stop_after=2))
    assert getattr(run.read_config().settings.training, how)
    trained(run, config, dataset)
    first, second = load_file(whole.checkpoint_path), load_file(run.checkpoint_path)
    assert set(first) == set(second)
    for name, array in first.items():
        found = second[name]
        if name.endswith(".basis"):  # singular vectors, whose signs are rounding's
            array, found = abs(array), abs(found)
        np.testing.assert_allclose(array, found, atol=1e-6 if how == "recompute" else 1e-4, err_msg=name)


def test_both_frameworks_have_the_same_architecture(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    kinds = {}
    for name in ("torch", "keras"):
        _, config, dataset = prepared(tmp_path / name, name, "digits", 300, blocks=1, hidden=4, kind="conv")
        plan = planned_layers(config.settings.model, config.layout.data_shape)
        first = config.layout.to_model(dataset.train[:20] / 17).astype("float32")
        trainer = find_trainer(name)(plan, config.layout.model_shape, config.settings.training, first)
        iresnet_core.save(trainer.to_core(), tmp_path / f"{name}.safetensors")
        flow = iresnet_core.load(tmp_path / f"{name}.safetensors")
        assert flow.event_shape == config.layout.model_shape == ((1, 8, 8) if name == "torch" else (8, 8, 1))
        kinds[name] = [type(layer).__name__ for layer in flow.layers], sum(a.size for a in flow.arrays)
        assert trainer.parameter_count() == kinds[name][1]
        assert trainer.lipschitz() <= 0.9
        # No branch begins as an odd function, as one of sines without biases would.
        operators = [o for layer in flow.layers if hasattr(layer, "branch") for o in layer.branch.operators]
        assert operators
        assert all(np.all(o.bias != 0) for o in operators)
    assert kinds["torch"] == kinds["keras"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_training_after_the_step_and_are_as_before_afterwards(numpy_framework, tmp_path, number):
    before = signal.getsignal(number)
    run, config, dataset = prepared(tmp_path / "run", numpy_framework)
    assert trained(run, config, dataset, Watcher(stop_after=4, number=number)).step == 4
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_it_at_once_and_leaves_the_checkpoint(numpy_framework, tmp_path):
    run, config, dataset = prepared(tmp_path / "run", numpy_framework)

    class Impatient(Watcher):
        def stepped(self, step, seconds, loss):
            if step == 9:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            trained(run, config, dataset, Impatient())
    finally:
        signal.signal(signal.SIGINT, before)
    assert run.load_checkpoint().progress["step"] == 7


def test_minutes_are_the_length_over_all_sittings(numpy_framework, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr(task_loop.time, "monotonic", lambda: next(clock))
    run, config, dataset = prepared(tmp_path / "run", numpy_framework, steps=None, minutes=2.0)
    first = trained(run, config, dataset, Watcher(stop_after=5))
    assert not first.finished
    second = trained(run, config, dataset)
    assert second.finished
    assert 120 <= second.seconds < 130
    assert second.step > first.step


def test_evaluations_take_as_many_samples_at_once_as_memory_allows(numpy_framework, tmp_path, monkeypatch):
    run, config, dataset = prepared(tmp_path / "run", numpy_framework, steps=6, evaluation_samples=20)
    monkeypatch.setattr(training, "_CHUNK_ENTRIES", 7 * 8 + 3)  # 8 units are the widest
    sizes, trainer = [], training.find_trainer(numpy_framework)
    score = trainer.log_prob
    monkeypatch.setattr(trainer, "log_prob", lambda self, x, seed: sizes.append(len(x)) or score(self, x, seed))
    trained(run, config, dataset)
    assert sizes == [7, 7, 6]


def test_a_longer_training_goes_on(numpy_framework, tmp_path):
    run, config, dataset = prepared(tmp_path / "run", numpy_framework)
    trained(run, config, dataset)
    settings = with_changes(config.settings, {"steps": 30}, "run")
    outcome = trained(run, dataclasses.replace(config, settings=settings), dataset)
    assert outcome.step == 30
    assert [row["step"] for row in run.read_log()] == [6, 12, 18, 20, 24, 30]


def test_a_loss_that_is_not_finite_ends_the_training(numpy_framework, tmp_path, monkeypatch):
    run, config, dataset = prepared(tmp_path / "run", numpy_framework)
    sound = numpy_trainer.Trainer.step

    def failing(self, x, lr):
        result = sound(self, x, lr)
        failing.count += 1
        return result._replace(loss=math.nan) if failing.count == 10 else result

    failing.count = 0
    monkeypatch.setattr(numpy_trainer.Trainer, "step", failing)
    with pytest.raises(NonFiniteError, match=r"step 9 .*loss is nan.*step 7, which stays.*--lr"):
        trained(run, config, dataset)
    assert run.load_checkpoint().progress["step"] == 7


def test_every_sample_comes_once_an_epoch(numpy_framework, tmp_path):
    _, config, dataset = prepared(tmp_path / "run", numpy_framework, batch=48)
    batches = Batches(dataset, config.layout, config.settings.training)
    epoch = np.concatenate([batches.at(k).x for k in range(10)])
    assert len(np.unique(epoch, axis=0)) == 480
    again = Batches(dataset, config.layout, config.settings.training)
    assert np.array_equal(again.at(7).x, batches.at(7).x)
    assert not np.array_equal(batches.at(0).x, batches.at(10).x)


def test_the_learning_rate_falls_along_a_cosine(numpy_framework, tmp_path):
    run, config, dataset = prepared(tmp_path / "run", numpy_framework, evaluate_every=1, lr=0.5)
    watcher = Watcher()
    trained(run, config, dataset, watcher)
    rates = [row["learning_rate"] for row in watcher.rows]
    assert rates[9] == pytest.approx(0.5 * 0.505)
    assert rates[-1] == pytest.approx(0.005)
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_tensorboard_gets_the_log_where_it_is_installed(numpy_framework, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, config, dataset = prepared(tmp_path / "run", numpy_framework)
    trained(run, config, dataset, Watcher(stop_after=12), tensorboard=True)
    trained(run, config, dataset, tensorboard=True)
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload().Scalars("validation_nats")
    assert [event.step for event in events] == [6, 12, 18, 20]
    assert [event.value for event in events] == pytest.approx([row["validation_nats"] for row in run.read_log()])


def test_without_tensorboard_the_message_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(tensorboard_log, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install tensorboard"):
        tensorboard_log.scalar_writer(tmp_path, 0)


# --- the folder ---


def test_settings_survive_the_file(numpy_framework, tmp_path):
    run, config, _ = prepared(tmp_path / "run", numpy_framework)
    assert TrainingRun.open(run.folder).read_config() == config


def test_a_folder_whose_settings_say_engine_is_read_as_before(numpy_framework, tmp_path):
    run, config, _ = prepared(tmp_path / "run", numpy_framework)
    node = json.loads(run.config_path.read_text().replace('"framework"', '"engine"'))
    del node["sha256"]  # nor did such a file have a hash
    run.config_path.write_text(json.dumps(node))
    assert '"engine"' in run.config_path.read_text()
    assert TrainingRun.open(run.folder).read_config() == config


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for place, word in ((tmp_path / "absent", "is not there"), (tmp_path, "no config.json")):
        with pytest.raises(RunError, match=word):
            TrainingRun.open(place)
    with pytest.raises(RunError, match="no run folder"):
        model_file(tmp_path)


def test_a_run_is_made_only_in_an_empty_folder(numpy_framework, tmp_path):
    run, config, _ = prepared(tmp_path / "run", numpy_framework)
    with pytest.raises(RunError, match="holds a run already"):
        TrainingRun.create(run.folder, config)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="holds other files"):
        TrainingRun.create(tmp_path / "other", config)
    with pytest.raises(RunError, match="is a file"):
        TrainingRun.create(tmp_path / "other" / "thesis.tex", config)
    with pytest.raises(RunError, match="no model yet"):
        model_file(run.folder)


def test_a_checkpoint_of_another_model_is_refused(framework, tmp_path):
    run, config, dataset = prepared(tmp_path / "run", framework)
    trained(run, config, dataset, Watcher(stop_after=1))
    saved = run.load_checkpoint()
    name, array = next((n, a) for n, a in saved.arrays.items() if a.ndim and n != "random.cpu")
    arrays = {**saved.arrays, name: np.zeros((*array.shape, 2), dtype=array.dtype)}
    run.save_checkpoint(Checkpoint(arrays, saved.progress))
    with pytest.raises(RunError, match="another model"):
        trained(run, config, dataset)
    run.save_checkpoint(Checkpoint(saved.arrays, {"step": 1, "colour": 3}))
    with pytest.raises(RunError, match="another version"):
        trained(run, config, dataset)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(framework, tmp_path, optimizer):
    """Of every kind of array: one that is missing, is too many, or has another shape, dtype or sign."""
    if framework == "numpy" and optimizer == "muon":
        pytest.skip("its trainer is that of the tests, and has no optimiser")
    _, config, dataset = prepared(tmp_path / "run", framework, optimizer=optimizer)
    plan = planned_layers(config.settings.model, config.layout.data_shape)
    first = dataset.train[:50].astype("float32")
    trainer = find_trainer(framework)(plan, config.layout.model_shape, config.settings.training, first)
    trainer.step(first, 1e-3)
    state = trainer.state()
    kinds = {(array.shape, array.dtype, *name.split(".")[:2]): name for name, array in state.items()}
    if framework == "torch":
        assert ("muon" in {kind[2] for kind in kinds}) == (optimizer == "muon")
    for name in kinds.values():
        array = state[name]
        damages = [
            {key: a for key, a in state.items() if key != name},
            {**state, name: array[..., None]},
            {**state, name: np.zeros_like(array, dtype="int16")},
        ]
        if "exp_avg_sq" in name:
            damages.append({**state, name: -array - 1})
        for damage in damages:
            with pytest.raises(RunError):
                trainer.load_state(damage)
    if framework == "keras":
        second = next(k for k, v in enumerate(trainer.optimizer.variables) if v.path.endswith("velocity"))
        with pytest.raises(RunError, match="negative"):
            trainer.load_state({**state, f"adam.{second}": -state[f"adam.{second}"] - 1})
    if framework != "numpy":
        with pytest.raises(RunError):
            trainer.load_state({**state, "flow.more": np.zeros(2, dtype="float32")})
    for name, array in trainer.state().items():
        assert np.array_equal(array, state[name]), name


@pytest.mark.parametrize("decay", [0.0, 400.0])
def test_the_decay_shrinks_weights_but_not_biases_and_scales(framework, tmp_path, decay):
    if framework == "numpy":
        pytest.skip("its trainer is that of the tests, and has no optimiser")
    _, config, dataset = prepared(tmp_path / "run", framework, weight_decay=decay, lr=1e-3, dtype="float64")
    plan = planned_layers(config.settings.model, config.layout.data_shape)
    first = dataset.train[:50]
    trainer = find_trainer(framework)(plan, config.layout.model_shape, config.settings.training, first)
    variables = list(trainer.flow.parameters() if framework == "torch" else trainer.model.trainable_variables)

    def values():
        return [np.array(v.detach().cpu() if framework == "torch" else v) for v in variables]

    lr, before = config.settings.training.lr, values()
    trainer.step(first, lr)
    for old, new in zip(before, values(), strict=True):
        kept = 1 - lr * decay if old.ndim > 1 else 1.0
        np.testing.assert_allclose(new, kept * old, rtol=0, atol=1.01 * lr)  # Adam's own step is at most lr


@pytest.mark.parametrize("start", ["orthogonal", "uniform"])
@pytest.mark.parametrize("model", ["dense", "conv"])
def test_weights_start_at_their_caps_if_orthogonal(framework, tmp_path, model, start):
    if framework == "numpy":
        pytest.skip("its trainer is that of the tests")
    asked = {"kind": "conv", "data": "digits"} if model == "conv" else {"layers": 1}
    _, config, dataset = prepared(tmp_path / "run", framework, start=start, dtype="float64", **asked)
    plan = planned_layers(config.settings.model, config.layout.data_shape)
    first = dataset.train[:50].reshape(-1, *config.layout.model_shape) / np.max(dataset.train)
    trainer = find_trainer(framework)(plan, config.layout.model_shape, config.settings.training, first)
    variables = list(trainer.flow.parameters() if framework == "torch" else trainer.model.trainable_variables)
    weights = [np.array(v.detach().cpu() if framework == "torch" else v) for v in variables if v.ndim > 1]
    # Of a convolution those of its symbol, one for each channel and frequency, which noise keeps from being equal.
    extent = (2, 3) if framework == "torch" else (0, 1)
    symbols = [np.moveaxis(np.fft.fft2(w, (8, 8), extent), extent, (0, 1)) if w.ndim == 4 else w for w in weights]
    assert {w.ndim for w in weights} == ({4} if model == "conv" else {2})
    spectra = [np.linalg.svd(s)[1] for s in symbols]
    least = [0.5 if w.ndim == 4 and w.shape[extent[0]] > 1 else 1 - 1e-5 for w in weights]
    found = [bool(s.min() > share * s.max()) for s, share in zip(spectra, least, strict=True)]
    assert all(found) == (start == "orthogonal")


def test_frameworks_that_are_missing_are_answered_with_the_command_that_installs_them(monkeypatch):
    with pytest.raises(InvalidArgumentError, match="torch, keras"):
        find_trainer("fortran")
    for name in ("torch", "keras"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingDependencyError, match=rf"pip install 'iresnet-core\[{name}"):
            find_trainer(name)
