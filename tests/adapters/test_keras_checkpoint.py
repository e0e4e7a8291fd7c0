"""Keras flows whose blocks keep only their input: the same training by `fit`, compiled and not, on every backend."""

import importlib.util
import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)

from keras_models import in_a_process  # noqa: E402

STRICT = pytest.mark.strict_suite


@pytest.mark.parametrize("name", ["tensorflow", *(pytest.param(name, marks=STRICT) for name in ("jax", "torch"))])
def test_training_is_that_without(tmp_path, name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    assert in_a_process("checkpoint", tmp_path, KERAS_BACKEND=name)[-1] == "agreed"


def test_inputs_that_are_found_again(tmp_path):
    """The other kind, which docs/keras.md promises for Keras on PyTorch."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    assert in_a_process("inverse_checkpoint", tmp_path, KERAS_BACKEND="torch")[-1] == "agreed"
