"""Flows as inference networks of the package BayesFlow, with the real package."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
pytest.importorskip(keras.backend.backend(), reason="Keras has no backend", exc_type=ImportError)
bayesflow = pytest.importorskip("bayesflow", reason="bayesflow is not installed", exc_type=ImportError)

import iresnet_core as core  # noqa: E402
from iresnet_core.adapters.keras.bayesflow import FlowNetwork  # noqa: E402
from iresnet_core.errors import InvalidArgumentError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of the package, about what it is deprecated of


def workflow(network):
    return bayesflow.BasicWorkflow(
        inference_network=network,
        inference_variables=["theta"],
        inference_conditions=["x"],
        initial_learning_rate=1e-2,
    )


def simulations(n=600):
    rng = np.random.default_rng(0)
    theta = rng.uniform(-1, 1, (n, 2)).astype("float32")
    return {"theta": theta, "x": theta + 0.1 * rng.standard_normal((n, 2)).astype("float32")}


def test_a_workflow_of_bayesflow(tmp_path):
    keras.utils.set_random_seed(0)
    base = core.StudentT(8.0, np.zeros(2), np.ones(2))
    flow, data = workflow(FlowNetwork(blocks=2, width=16, features=8, base=base)), simulations()
    losses = flow.fit_offline(data, epochs=6, batch_size=64, validation_data=simulations(100), verbose=0).history
    assert losses["val_loss"][-1] < losses["val_loss"][0] - 0.5
    seen = {"x": np.array([[0.3, -0.2], [0.0, 0.0]], "float32")}
    drawn = flow.approximator.sample(num_samples=300, conditions=seen, seed=1)["theta"]
    np.testing.assert_array_equal(drawn, flow.approximator.sample(num_samples=300, conditions=seen, seed=1)["theta"])
    assert drawn.shape == (2, 300, 2)
    assert np.abs(drawn.mean(1) - seen["x"]).max() < 0.15
    some = {name: values[:9] for name, values in data.items()}
    nats = flow.log_prob(some)
    flow.approximator.save(tmp_path / "approximator.keras")
    again = keras.saving.load_model(tmp_path / "approximator.keras")
    np.testing.assert_allclose(again.log_prob(some), nats, rtol=1e-5, atol=1e-5)
    assert isinstance(again.inference_network.flow.base.density, core.StudentT)
    flow.approximator.inference_network.flow.save(tmp_path / "flow")
    assert core.load(tmp_path / "flow").context_features == 2


def test_both_directions_and_shapes():
    network = FlowNetwork(blocks=1, width=8, features=4)
    network.build((None, 2), (None, 3))
    x, conditions = np.ones((4, 5, 2), "float32"), np.zeros((4, 5, 3), "float32")
    z, nats = network(x, conditions=conditions, density=True)
    back, same = network(z, conditions=conditions, inverse=True, density=True)
    for one, other in ((back, x), (same, nats)):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other), atol=1e-4)
    assert tuple(nats.shape) == (4, 5)
    with pytest.raises(InvalidArgumentError, match="base="):
        FlowNetwork(base_distribution="student_t")
