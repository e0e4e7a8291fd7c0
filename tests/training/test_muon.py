"""Steps of Muon: the orthogonal factor against the SVD's, the same steps in both frameworks, and the setting."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_trainings import Watcher, prepared, require, trained, without_times

from iresnet_core.errors import InvalidArgumentError
from iresnet_core.training import ConditionPlan, find_trainer, muon_step, orthogonal_factor, planned_layers
from iresnet_core.training.datasets import Dataset, DatasetSource, load_dataset
from iresnet_core.training.settings import default_settings

# A weight of a dense layer, and kernels of convolutions: outputs first, as PyTorch has them.
SHAPES = [(3, 5), (64, 4, 3, 3), (4, 64, 3, 3), (64, 64, 1, 1), (1, 7), (6, 2, 3)]


@given(m=st.integers(1, 12), n=st.integers(1, 12), seed=st.integers(0, 2**31), scale=st.integers(-12, 12))
def test_the_factor_has_the_singular_vectors_and_values_near_one(backend, m, n, seed, scale):
    matrix = 10.0**scale * np.random.default_rng(seed).standard_normal((m, n))
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    factor = backend.to_numpy(orthogonal_factor(backend.from_numpy(matrix)))
    inner = u.T @ factor @ vt.T
    values = np.diag(inner)
    np.testing.assert_allclose(inner, np.diag(values), atol=1e-8)
    assert np.all((values > 0) & (values < 1.21))
    assert np.all(values[s >= 0.003 * np.linalg.norm(s)] > 0.68)


@pytest.mark.parametrize("exponent", [-36, -21, -20, -19, -18, 0, 18, 19, 25, 37])
def test_the_factor_has_no_scale_in_float32(backend, exponent):
    """Squares of the entries would overflow, or vanish where a backend takes small numbers for zero."""
    matrix = np.random.default_rng(0).standard_normal((4, 9))
    factors = [
        backend.to_numpy(orthogonal_factor(backend.from_numpy((scale * matrix).astype("float32"))))
        for scale in (1.0, 10.0**exponent)
    ]
    np.testing.assert_allclose(factors[1], factors[0], atol=1e-4)


def test_zeros_stay_zeros(backend):
    zeros = backend.from_numpy(np.zeros((3, 4), dtype="float32"))
    assert not np.any(backend.to_numpy(orthogonal_factor(zeros)))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_does_not_depend_on_where_the_outputs_are(backend, shape):
    rng = np.random.default_rng(0)
    gradient, momentum = rng.standard_normal((2, *shape))
    step, after = map(
        backend.to_numpy, muon_step(backend.from_numpy(gradient), backend.from_numpy(momentum), outputs_axis=0)
    )
    last = [np.ascontiguousarray(np.moveaxis(a, 0, -1)) for a in (gradient, momentum)]
    turned, after_turned = map(backend.to_numpy, muon_step(*map(backend.from_numpy, last), outputs_axis=-1))
    np.testing.assert_allclose(np.moveaxis(turned, -1, 0), step, atol=1e-10)
    np.testing.assert_allclose(np.moveaxis(after_turned, -1, 0), after, atol=1e-12)
    np.testing.assert_allclose(after, 0.95 * momentum + 0.05 * gradient, atol=1e-12)
    size = np.prod(shape)
    u, _, vt = np.linalg.svd((0.95 * after + 0.05 * gradient).reshape(shape[0], -1), full_matrices=False)
    exact = 0.2 * max(shape[0], size // shape[0]) ** 0.5 * u @ vt
    cosine = np.sum(exact * step.reshape(exact.shape)) / np.linalg.norm(exact) / np.linalg.norm(step)
    assert cosine > 0.97


@pytest.mark.parametrize("shape", [(), (5,)])
def test_a_parameter_that_is_no_matrix_is_refused(backend, shape):
    gradient = backend.from_numpy(np.ones(shape))
    with pytest.raises(InvalidArgumentError, match="capped_layers"):
        muon_step(gradient, gradient, outputs_axis=0)


def steps_of(gradients, lr=0.1, decay=0.5):
    """The steps by hand."""
    weight, momentum = np.ones(gradients[0].shape), np.zeros(gradients[0].shape)
    for gradient in gradients:
        step, momentum = muon_step(gradient, momentum, outputs_axis=0)
        weight = weight * (1 - lr * decay) - lr * step
    return weight


@pytest.mark.parametrize("shape", SHAPES)
def test_the_optimiser_of_pytorch(shape):
    torch = pytest.importorskip("torch")
    from iresnet_core.adapters.torch.muon import Muon

    gradients = np.random.default_rng(1).standard_normal((3, *shape))
    weight, idle = (torch.nn.Parameter(torch.ones(shape, dtype=torch.float64)) for _ in range(2))
    optimizer = Muon([weight, idle], lr=0.1, weight_decay=0.5)

    def closure():
        weight.grad = torch.from_numpy(gradients[k].copy())
        return k

    for k in range(3):
        assert optimizer.step(closure) == k
    np.testing.assert_allclose(weight.detach().numpy(), steps_of(gradients), atol=1e-10)
    assert bool((idle == 1).all())  # a weight without a gradient stays


@pytest.mark.parametrize("shape", SHAPES)
def test_the_optimiser_of_keras(shape):
    require("keras")
    import keras

    from iresnet_core.adapters.keras.muon import Muon

    rng = np.random.default_rng(1)
    gradients, of_bias = rng.standard_normal((3, *shape)), rng.standard_normal((3, 5))
    last = np.moveaxis(gradients, 1, -1)
    weight = keras.Variable(np.ones(last[0].shape), dtype="float64")
    biases = [keras.Variable(np.ones(5), dtype="float64") for _ in range(2)]
    optimizer = Muon(0.1, [weight], weight_decay=0.5)
    adam = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    for k in range(3):
        of_both = [keras.ops.convert_to_tensor(a, "float64") for a in (last[k], of_bias[k])]
        optimizer.apply(of_both, [weight, biases[0]])
        adam.apply(of_both[1:], [biases[1]])
    np.testing.assert_allclose(
        np.moveaxis(keras.ops.convert_to_numpy(weight), -1, 0), steps_of(gradients), atol=1e-6
    )  # Keras has its rate in float32
    np.testing.assert_allclose(*(keras.ops.convert_to_numpy(bias) for bias in biases), atol=1e-12)


def test_a_model_of_keras_is_saved_with_it(tmp_path):
    require("keras")
    import keras

    from iresnet_core.adapters.keras import Flow, InvertibleResidual, Muon

    x = np.random.default_rng(0).standard_normal((32, 2)).astype("float32")
    keras.utils.set_random_seed(0)
    blocks = [InvertibleResidual([keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(2)]) for _ in range(2)]
    flow = Flow(blocks, event_shape=2)
    kernels = [layer.state.kernel for layer in flow.capped_layers()]
    flow.compile(optimizer=Muon(0.02, kernels), run_eagerly=True)
    flow.fit(x, batch_size=32, verbose=0)
    flow.save(tmp_path / "flow.keras")
    again = keras.saving.load_model(tmp_path / "flow.keras")
    assert isinstance(again.optimizer, Muon)
    for model in (flow, again):
        before = [host(variable) for variable in model.trainable_variables]
        gradients = [np.ones(a.shape, dtype="float32") for a in before]
        model.optimizer.apply([keras.ops.convert_to_tensor(a) for a in gradients], model.trainable_variables)
    for one, other in zip(flow.trainable_variables, again.trainable_variables, strict=True):
        np.testing.assert_allclose(host(other), host(one), atol=1e-6)
    assert len(again.optimizer._matrices) == len(kernels) == 4  # Adam would go another way


@pytest.mark.parametrize("given", ["place", "variable"])
def test_a_weight_of_another_model_is_refused(given):
    require("keras")
    import keras

    from iresnet_core.adapters.keras import Muon

    one, other = (keras.Variable(np.ones((2, 2)), name=name) for name in ("one", "other"))
    optimizer = Muon.from_config({**Muon().get_config(), "matrices": [1]}) if given == "place" else Muon(0.02, [other])
    with pytest.raises(InvalidArgumentError, match="variable 1" if given == "place" else "other"):
        optimizer.build([one])


def test_it_is_not_saved_before_it_knows_its_weights():
    require("keras")
    import keras

    from iresnet_core.adapters.keras import Muon

    variable = keras.Variable(np.ones((2, 2)))
    optimizer = Muon(0.02, [variable])
    with pytest.raises(InvalidArgumentError, match="Train a step"):
        optimizer.get_config()
    optimizer.build([keras.Variable(np.ones(2)), variable])
    assert optimizer.get_config()["matrices"] == [1]


@pytest.fixture(params=["torch", "keras"])
def framework(request):
    require(request.param)
    return request.param


def host(variable):
    if hasattr(variable, "detach"):
        return variable.detach().numpy().copy()
    import keras

    return np.array(keras.ops.convert_to_numpy(variable))


def test_weights_with_a_cap_are_trained_by_it_and_all_others_by_adam(framework, tmp_path):
    _, config, dataset = prepared(
        tmp_path / "run", framework, "digits", optimizer="muon", kind="conv", base="diagonal-normal", weight_decay=0.0
    )
    plan = planned_layers(config.settings.model, config.layout.data_shape)
    first = config.layout.to_model(dataset.train[:50] / 17 + 0.02).astype("float32")
    make = find_trainer(framework)
    trainer = make(plan, config.layout.model_shape, config.settings.training, first, base="diagonal-normal")
    assert moved_by_muon(trainer, framework, lambda: trainer.step(first, 0.01)) == (12 if framework == "torch" else 6)


def test_the_map_of_a_condition_is_trained_by_adam(framework, tmp_path):
    """Its weights and those of conditional ActNorms have no cap."""
    _, config, dataset = prepared(tmp_path / "run", framework, optimizer="muon", weight_decay=0.0)
    plan = planned_layers(config.settings.model, config.layout.data_shape, 8)
    first, context = dataset.train[:50].astype("float32"), np.arange(50.0, dtype="float32")[:, None] % 3
    condition = ConditionPlan(labels=((0.0, 1.0, 2.0),), mean=(0.0,), std=(1.0,), width=8)
    trainer = find_trainer(framework)(
        plan, (2,), config.settings.training, first, condition=condition, first_context=context
    )
    assert moved_by_muon(trainer, framework, lambda: trainer.step(first, 0.01, context)) == (
        6 if framework == "torch" else 3
    )


def moved_by_muon(trainer, framework, step):
    """How many parameters a first step at the rate 0.01 has moved in all directions alike.

    Adam's step has entries of the rate's size, and a singular value that is five times as large at least.
    """
    model = trainer.flow if framework == "torch" else trainer.model
    variables = list(model.parameters() if framework == "torch" else model.trainable_variables)
    before = [host(v) for v in variables]
    step()
    seen = 0
    for variable, old in zip(variables, before, strict=True):
        moved = host(variable) - old
        if moved.ndim > 1 and np.any(moved):
            matrix = moved.reshape(len(moved), -1) if framework == "torch" else moved.reshape(-1, moved.shape[-1])
            values = np.linalg.svd(matrix, compute_uv=False) / (0.01 * 0.2 * max(matrix.shape) ** 0.5)
            seen += bool(values[0] < 1.21 and np.median(values) > 0.1)
    return seen


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_images_of_usual_sizes_learn_below_their_caps(shape):
    require("torch")
    images = np.random.default_rng(0).integers(0, 64, (40, *shape))
    dataset = Dataset("noise", images[:30], images[30:], images[30:], levels=256)
    asked = {"coeff": 0.98, "hidden": 16, "blocks": 2, "batch": 16}
    settings = default_settings(DatasetSource("noise.npy"), dataset, "torch", asked)
    assert (settings.model.kind, settings.training.optimizer) == ("conv", "muon")
    x = ((images[:16] + 0.5) / 256).astype("float32")
    trainer = find_trainer("torch")(planned_layers(settings.model, shape), shape, settings.training, x)
    losses = [trainer.step(x, 0.02).loss for _ in range(6)]
    assert losses[-1] < losses[0] - 10
    assert 0.9 < trainer.lipschitz() <= 0.98 * (1 + 1e-6)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(framework, tmp_path):
    whole = prepared(tmp_path / "whole", framework, optimizer="muon")
    trained(*whole)
    parts = prepared(tmp_path / "parts", framework, optimizer="muon")
    trained(*parts, Watcher(stop_after=9))
    trained(*parts)
    assert without_times(whole[0]) == without_times(parts[0])


def test_a_run_from_before_there_was_a_choice_goes_on_by_adam(tmp_path):
    pytest.importorskip("torch")
    asked = {"kind": "conv", "hidden": 4, "blocks": 1, "steps": 6, "evaluate_every": 3, "optimizer": "adam"}
    whole = prepared(tmp_path / "whole", "torch", "digits", 300, **asked)
    trained(*whole)
    run, config, dataset = prepared(tmp_path / "run", "torch", "digits", 300, **asked)
    trained(run, config, dataset, Watcher(stop_after=2))
    node = json.loads(run.config_path.read_text())
    del node["settings"]["training"]["optimizer"], node["sha256"]
    run.config_path.write_text(json.dumps(node))
    trained(run, run.read_config(), dataset)
    assert without_times(whole[0]) == without_times(run)


def test_the_setting():
    source = DatasetSource("digits", samples=100)
    dataset = load_dataset(source)
    assert default_settings(source, dataset, "torch", {}).training.optimizer == "adam"
    assert default_settings(source, dataset, "torch", {"kind": "conv"}).training.optimizer == "muon"
    with pytest.raises(InvalidArgumentError, match="no optimizer 'sgd'; there are adam, muon"):
        default_settings(source, dataset, "torch", {"optimizer": "sgd"})
