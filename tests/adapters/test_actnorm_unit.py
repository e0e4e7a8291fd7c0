"""ActNorm learns alike at every scale of the data, in both frameworks, and takes what was saved before it did."""

import math

import numpy as np
import pytest

SCALES = [(0.0, 1.0), (0.0, 1e-8), (0.0, 1e8), (3e-7, 1e-8)]


def data(offset, scale):
    return (offset + scale * np.random.default_rng(0).standard_normal((1000, 2))).astype("float32")


def above_normal(mean_log_prob, scale):
    """How far a mean log-density is above that of the normal distribution which the data are of."""
    return mean_log_prob + math.log(2 * math.pi) + 1 + 2 * math.log(scale)


@pytest.mark.parametrize(("offset", "scale"), SCALES)
def test_a_loop_of_ones_own_learns_data_of_any_scale_with_torch(offset, scale):
    torch = pytest.importorskip("torch")
    from iresnet_core.adapters.torch import ActNorm, Flow, InvertibleResidual

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ELU(), torch.nn.Linear(8, 2))
    flow = Flow([ActNorm(2), InvertibleResidual(net, coeff=0.9)], event_shape=(2,))
    x = torch.from_numpy(data(offset, scale))
    flow.initialize(x[:200])
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for step in range(30):
        optimizer.zero_grad()
        flow.training_loss(x[20 * step : 20 * step + 200]).backward()
        optimizer.step()
    assert above_normal(float(flow.eval().log_prob(x).detach().mean()), scale) == pytest.approx(0, abs=0.1)


def test_a_flow_in_keras_learns_data_of_tiny_scale():
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    from iresnet_core.adapters.keras import ActNorm, Flow, InvertibleResidual

    keras.utils.set_random_seed(0)
    net = [keras.layers.Dense(8, activation="elu"), keras.layers.Dense(2)]
    flow = Flow([ActNorm(), InvertibleResidual(net, coeff=0.9)], event_shape=(2,))
    x = data(3e-7, 1e-8)
    flow.initialize(x[:200])
    flow.compile(keras.optimizers.Adam(5e-3))
    flow.fit(x, batch_size=100, epochs=3, verbose=0)
    assert above_normal(float(np.mean(flow.predict(x, verbose=0))), 1e-8) == pytest.approx(0, abs=0.1)


def test_the_unit_changes_neither_the_first_values_nor_what_goes_to_the_core():
    torch = pytest.importorskip("torch")
    from iresnet_core.adapters.torch import ActNorm
    from iresnet_core.flows.actnorm import ActNorm as CoreActNorm

    x = torch.from_numpy(data(3e-3, 1e-4))
    norm = ActNorm(2).initialize(x)
    core = CoreActNorm.initialize(x)
    assert torch.equal(norm.core_layer().log_scale, core.log_scale)
    torch.testing.assert_close(norm.core_layer().bias, core.bias, rtol=3e-7, atol=0)
    assert torch.all(norm.bias.abs() < 100)
    assert torch.all((norm.unit > 5e-5) & (norm.unit < 2e-4))


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_without_a_unit_is_taken_as_it_was(assign):
    torch = pytest.importorskip("torch")
    from iresnet_core.adapters.torch import ActNorm

    old = {
        "log_scale": torch.tensor([0.5, 2.0]),
        "bias": torch.tensor([-3.0, 0.25]),
        "is_initialized": torch.tensor(1.0),
    }
    norm = ActNorm(2).initialize(torch.from_numpy(data(0.0, 1e-3)))
    norm.load_state_dict(old, assign=assign)
    assert torch.equal(norm.core_layer().bias, old["bias"])
    assert norm.initialized
    again = ActNorm(2)
    again.load_state_dict(norm.state_dict())
    assert torch.equal(again.unit, torch.ones(2))
    assert set(old) == {"log_scale", "bias", "is_initialized"}


def test_a_keras_file_without_a_unit_is_taken_as_it_was():
    pytest.importorskip("tensorflow")
    pytest.importorskip("keras")
    from iresnet_core.adapters.keras import ActNorm

    old = {"0": np.array([0.5, 2.0], "float32"), "1": np.array([-3.0, 0.25], "float32"), "2": np.array(True)}
    norm = ActNorm()
    norm.build((None, 2))
    norm.initialize(data(0.0, 1e-3))
    norm.load_own_variables(old)
    np.testing.assert_array_equal(np.array(norm.core_layer().bias), old["1"])
    assert norm.initialized
    store = {}
    norm.save_own_variables(store)
    again = ActNorm()
    again.build((None, 2))
    again.load_own_variables(store)
    np.testing.assert_array_equal(np.array(again.core_layer().bias), old["1"])


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_checkpoint_of_a_run_without_units_is_resumed(framework, tmp_path):
    for module in {"torch": ["torch"], "keras": ["keras", "tensorflow"]}[framework]:
        pytest.importorskip(module)
    from small_trainings import prepared

    from iresnet_core.training import find_trainer, planned_layers

    _, config, dataset = prepared(tmp_path / "run", framework)
    plan = planned_layers(config.settings.model, config.layout.data_shape)
    x = dataset.train[:50].astype("float32")
    trainer = find_trainer(framework)(plan, config.layout.model_shape, config.settings.training, x)
    trainer.step(x, 1e-3)
    state = trainer.state()
    units = [name for name in state if name.endswith(".unit") or name.startswith("unit.")]
    assert len(units) == sum(type(layer).__name__ == "ActNormPlan" for layer in plan)
    trainer.load_state({name: array for name, array in state.items() if name not in units})
    after = trainer.state()
    assert set(after) == set(state)
    for name, array in after.items():
        assert np.array_equal(array, np.ones_like(array) if name in units else state[name]), name
