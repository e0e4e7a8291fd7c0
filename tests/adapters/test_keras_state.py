"""State of Keras layers, however it got into them: what decides is in the variables."""

import importlib.util
import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
if keras.backend.backend() != "tensorflow":
    pytest.skip(f"Keras runs on {keras.backend.backend()} in this process", allow_module_level=True)

import keras_checks  # noqa: E402
from keras_models import data, in_a_process  # noqa: E402

from iresnet_core.adapters.keras import ActNorm, Flow  # noqa: E402
from iresnet_core.errors import InvalidArgumentError  # noqa: E402

CHECKS = keras_checks.__all__


@pytest.mark.parametrize("check", CHECKS)
def test_on_tensorflow(check, tmp_path):
    keras.utils.set_random_seed(0)
    getattr(keras_checks, check)(tmp_path)


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_on_other_backends_of_keras(name, tmp_path):
    """All checks in one process, since it is the import that takes most time."""
    if not importlib.util.find_spec(name):
        pytest.skip(f"{name} is not installed")
    assert in_a_process("checks", tmp_path, KERAS_BACKEND=name, JAX_ENABLE_X64="0") == CHECKS


def test_a_program_refuses_to_train_an_actnorm_that_has_seen_no_data():
    inputs = keras.Input((2,))
    norm = ActNorm()
    model = keras.Model(inputs, norm(inputs))
    model.compile("sgd", "mse")
    x = data(2, 20)
    model.predict(x, verbose=0)
    with pytest.raises(InvalidArgumentError, match="initialize"):
        model.fit(x, x, verbose=0)
    norm.initialize(x)
    model.fit(x, x, verbose=0)
    flow = Flow([ActNorm()], (2,))
    with pytest.raises(InvalidArgumentError, match="initialize"):
        tf.function(lambda x: flow.log_prob(x, training=True), autograph=False)(tf.constant(x))
    with pytest.raises(InvalidArgumentError, match="initialize"):
        flow.to_core()
