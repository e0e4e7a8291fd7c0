"""Compiled programs of Keras models give what the models give eagerly, whatever happened to the weights in between."""

import importlib.util
import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
if keras.backend.backend() != "tensorflow":
    pytest.skip(f"Keras runs on {keras.backend.backend()} in this process", allow_module_level=True)

import keras_program_checks as checks  # noqa: E402
from keras_models import in_a_process  # noqa: E402

OPTIONS = [{"jit_compile": True}, {"jit_compile": False}, {"steps_per_execution": 3}, {"run_eagerly": True}]


def few(names, *quick):
    """All names; those that are not quick in the strict suite alone, since TensorFlow compiles slowly."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.strict_suite) for name in names]


@pytest.mark.parametrize("kind", few(checks.MODELS))
def test_after_every_change_of_the_weights(kind, tmp_path):
    checks.agreement_after(kind, "all", tmp_path)


@pytest.mark.parametrize("kind", few(checks.MODELS, "subclassed"))
def test_after_a_change_of_the_weights(kind, tmp_path):
    checks.agreement_after(kind, "enlarge", tmp_path)


@pytest.mark.parametrize("policy", few(checks.POLICIES))
def test_dtype_policies(policy):
    checks.agreement_in(policy)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_trains(dtype):
    """The power iteration is in float32."""
    layer = checks.InvertibleResidual(
        [keras.layers.Dense(8, dtype=dtype), keras.layers.Dense(2, dtype=dtype)], dtype=dtype
    )
    x = checks.vectors()
    layer(x)
    layer.set_weights([w * 5 if w.ndim == 2 else w for w in layer.get_weights()])
    found, expected = layer(x, training=True), layer(x)
    assert found.dtype == dtype
    np.testing.assert_allclose(
        checks.numbers(found).astype(float), checks.numbers(expected).astype(float), rtol=0.1, atol=0.1
    )


@pytest.mark.parametrize("options", few(OPTIONS), ids=str)
def test_options_of_compile(options):
    checks.agreement_with_options(**options)


@pytest.mark.strict_suite
def test_on_jax(tmp_path):
    if not importlib.util.find_spec("jax"):
        pytest.skip("jax is not installed")
    assert in_a_process("programs", tmp_path, KERAS_BACKEND="jax", JAX_ENABLE_X64="0")[-1] == "agreed"


def test_jax_compiles_a_training_once(tmp_path):
    if not importlib.util.find_spec("jax"):
        pytest.skip("jax is not installed")
    assert in_a_process("one_program", tmp_path, KERAS_BACKEND="jax", JAX_ENABLE_X64="0")[-2:] == ["True", "0"]
