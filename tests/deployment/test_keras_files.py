"""Keras: metrics of a flow, files of classifiers, and programs; ONNX and SavedModel need the real packages."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)

from iresnet_core.adapters.keras import ActNorm, Classifier, Flow, InvertibleResidual  # noqa: E402
from iresnet_core.errors import InvalidArgumentError, StorageError  # noqa: E402

X = np.random.default_rng(0).standard_normal((64, 2)).astype("float32")
IMAGES = np.random.default_rng(1).uniform(size=(6, 8, 8, 1)).astype("float32")


def flow():
    keras.utils.set_random_seed(0)
    net = [keras.layers.Dense(8, activation="elu"), keras.layers.Dense(2)]
    return Flow([ActNorm(), InvertibleResidual(net)])


def classifier():
    keras.utils.set_random_seed(0)
    return Classifier((8, 8, 1), 3, padding=1, widths=(4, 4), blocks=(1, 1)).initialize(IMAGES)


def host(x):
    return keras.ops.convert_to_numpy(x)


def test_bits_per_dimension_in_fit(tmp_path):
    model = flow()
    model.compile(optimizer=keras.optimizers.Adam(1e-2), metrics=["bits_per_dim"])
    history = model.fit(X, epochs=1, batch_size=32, verbose=0, validation_data=X).history
    expected = 8 - host(model.log_prob(X)).mean() / (2 * np.log(2))
    assert history["val_bits_per_dim"][0] == pytest.approx(expected, rel=1e-5)
    assert "bits_per_dim" in history
    model.save(tmp_path / "flow.keras")
    again = keras.saving.load_model(tmp_path / "flow.keras")
    assert again.evaluate(X, verbose=0, return_dict=True)["bits_per_dim"] == pytest.approx(expected, rel=1e-5)


def test_a_classifier_is_saved_and_loaded(tmp_path):
    model = classifier()
    model.save(tmp_path / "model.keras")
    again = Classifier.load(tmp_path / "model.keras")
    np.testing.assert_allclose(host(again(IMAGES)), host(model(IMAGES)), atol=1e-6)
    flow().save(tmp_path / "flow.keras")
    with pytest.raises(StorageError, match="no Classifier"):
        Classifier.load(tmp_path / "flow.keras")


def test_what_is_no_program_is_refused_at_once(tmp_path):
    model = flow()
    model.initialize(X)
    with pytest.raises(InvalidArgumentError, match="is for ONNX"):
        model.export(tmp_path / "folder", "inverse")
    pytest.importorskip("torch", reason="PyTorch is not installed")
    with pytest.raises(InvalidArgumentError, match="method must be one of"):
        model.export(tmp_path / "flow.onnx", "score")
    with pytest.raises(InvalidArgumentError, match="takes no n"):
        classifier().export(tmp_path / "model.onnx", n=3)


# From inside the exporter.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_onnx(tmp_path):
    for package in ("torch", "onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = flow()
    model.initialize(X)
    for name, x in (("log_prob", X), ("inverse", X), ("logits", IMAGES)):
        path = str(tmp_path / f"{name}.onnx")
        if name == "logits":
            made = classifier()
            made.export(path)
            expected = made(x)
        else:
            model.export(path, name)
            expected = getattr(model, name)(x)
        session = onnxruntime.InferenceSession(path)
        found = session.run(None, {session.get_inputs()[0].name: x})[0]
        np.testing.assert_allclose(found, host(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras writes no SavedModel on PyTorch")
def test_saved_model(tmp_path):
    tensorflow = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    model = flow()
    model.initialize(X)
    model.export(tmp_path / "flow", verbose=False)
    loaded = tensorflow.saved_model.load(str(tmp_path / "flow"))
    np.testing.assert_allclose(loaded.serve(X[:5]).numpy(), host(model.log_prob(X[:5])), atol=1e-5)
