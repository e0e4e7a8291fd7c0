"""Keras layers over the core: densities, files, training; on TensorFlow here, on JAX and PyTorch in processes."""

import importlib.util
import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
if keras.backend.backend() != "tensorflow":
    pytest.skip(f"Keras runs on {keras.backend.backend()} in this process", allow_module_level=True)

from keras_models import capped_weights, data, image_flow, in_a_process, largest, mlp, numbers, trained_flow  # noqa: E402
from without_frameworks import answers_without_frameworks  # noqa: E402

import iresnet_core as core  # noqa: E402
from iresnet_core.adapters.keras import (  # noqa: E402
    ActNorm,
    Classifier,
    Flow,
    InjectivePad,
    InvertibleResidual,
    Squeeze,
)
from iresnet_core.adapters.keras import branch as keras_branch  # noqa: E402
from iresnet_core.errors import (  # noqa: E402
    InvalidArgumentError,
    ShapeError,
)

Dense, Conv2D = keras.layers.Dense, keras.layers.Conv2D


@pytest.fixture(scope="module", params=[2, 64])
def trained(request):
    """A flow after 200 Adam steps, and its data."""
    return trained_flow(request.param)


# --- densities ---


def test_log_prob_in_training_is_a_true_estimate(trained):
    flow, x = trained
    present = flow._core(training=True)  # one set of weights for both
    estimate = present.log_prob(tf.constant(x), terms=flow.terms, rng=1)
    exact = present.log_prob(tf.constant(x), method="exact").value
    excess = np.maximum(np.abs(numbers(estimate.value - exact)) - numbers(estimate.bias_bound), 0)
    z = excess / np.maximum(numbers(estimate.std_error), 1e-4)
    assert z.max() < 5
    assert abs(numbers(estimate.value - exact).mean()) < 5 * numbers(estimate.std_error).mean() / len(x) ** 0.5 + 2e-3


def test_evaluate_predict_and_log_prob_agree(trained):
    flow, x = trained
    nats = flow.log_prob(x, errors=True)
    predicted = flow.predict(x, batch_size=50, verbose=0)
    spread = 5 * np.hypot(numbers(nats.std_error), 0.3 if flow.event_shape == (64,) else 1e-5)
    assert (np.abs(predicted - numbers(nats.value)) <= spread + 1e-3).all()
    loss = flow.evaluate(x, batch_size=50, verbose=0)
    assert loss == pytest.approx(-numbers(nats.value).mean(), abs=0.1 if flow.event_shape == (64,) else 1e-4)


def test_inverse_of_encode_is_within_its_bound(trained):
    flow, x = trained
    back = flow.inverse(flow.encode(x), errors=True)
    assert (
        np.linalg.norm(numbers(back.value) - x, axis=1) <= numbers(back.error_bound) + 1e-4
    ).all()  # the latents were rounded
    assert tuple(flow.sample(3).shape) == (3, *flow.event_shape)


def test_numpy_gives_the_same(trained, tmp_path):
    flow, x = trained
    flow.save(tmp_path / "flow")
    host = core.load(tmp_path / "flow")
    np.testing.assert_allclose(host.log_prob(x, rng=3).value, flow.log_prob(x, rng=3), rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(host(x), flow.encode(x), rtol=1e-4, atol=1e-5)
    alone = answers_without_frameworks(tmp_path / "flow", x[:10], tmp_path)
    np.testing.assert_allclose(alone["log_prob"], flow.log_prob(x[:10], method="exact"), rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(alone["inverse"], x[:10], atol=1e-4)


def test_flow_of_images(tmp_path):
    keras.utils.set_random_seed(0)
    flow = image_flow()
    x = np.random.default_rng(0).uniform(size=(12, 4, 4, 1)).astype("float32")
    flow.initialize(x)
    back = flow.inverse(flow.encode(x), errors=True)
    error = np.linalg.norm((numbers(back.value) - x).reshape(12, -1), axis=1)
    assert (error <= numbers(back.error_bound) + 1e-4).all()
    flow.save(tmp_path / "flow")
    exact = core.load(tmp_path / "flow").log_prob(x, method="exact").value
    np.testing.assert_allclose(flow.log_prob(x, method="exact"), exact, rtol=1e-5, atol=1e-5)
    again = Flow.from_config(flow.get_config())
    again.set_weights(flow.get_weights())
    np.testing.assert_allclose(again.log_prob(x, method="exact"), exact, rtol=1e-5, atol=1e-5)


def test_layers_and_functional_models():
    block = mlp(2)
    x = np.ones((3, 2), "float32")
    inputs = keras.Input((2,))
    model = keras.Model(inputs, Dense(1)(block(inputs)))
    assert model.predict(x, verbose=0).shape == (3, 1)
    np.testing.assert_allclose(block(x), x + numbers(block.core_layer().branch(tf.constant(x))), rtol=1e-6)
    np.testing.assert_allclose(block.inverse(block(x)), x, atol=1e-4)
    padded = InjectivePad(2)(x)
    np.testing.assert_array_equal(padded, np.pad(x, ((0, 0), (0, 2))))
    squeezed = Squeeze()(np.arange(16, dtype="float32").reshape(1, 4, 4, 1))
    np.testing.assert_array_equal(squeezed[0, 0, 0], [0, 1, 4, 5])


def test_conditional_densities(tmp_path):
    """fit takes pairs; the density of the condition, one for all or one per sample, in files too."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    context = rng.standard_normal((60, 3)).astype("float32")
    x = (2 * context[:, :2] + 0.3 * rng.standard_normal((60, 2))).astype("float32")
    net = [Dense(8, activation="elu"), Dense(2)]
    flow = Flow([ActNorm(), InvertibleResidual(net, context_features=3), ActNorm()], event_shape=(2,))
    flow.compile(optimizer=keras.optimizers.Adam(3e-2), run_eagerly=True)
    loss = flow.fit((x, context), batch_size=20, epochs=6, verbose=0).history["loss"]
    assert loss[-1] < loss[0]
    nats = numbers(flow.log_prob(x, context))
    assert flow.evaluate((x, context), verbose=0) == pytest.approx(-nats.mean(), abs=1e-4)
    np.testing.assert_allclose(flow.predict((x, context), verbose=0), nats, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(flow.inverse(flow.encode(x, context), context), x, atol=1e-4)
    assert tuple(flow.sample(4, context[:1]).shape) == tuple(flow.sample(4, context[:4]).shape) == (4, 2)
    assert flow.lipschitz <= 0.9
    flow.save(tmp_path / "flow.keras")
    loaded = keras.saving.load_model(tmp_path / "flow.keras")
    np.testing.assert_allclose(loaded.log_prob(x, context), nats, rtol=1e-5, atol=1e-5)
    with pytest.raises(ShapeError, match="one condition"):
        flow.to_core(context[:3])
    assert tuple(flow.sample(2, [[0.0, 0.0, 0.0]]).shape) == (2, 2)
    flow.save(tmp_path / "flow", context[:1])
    np.testing.assert_allclose(core.load(tmp_path / "flow").log_prob(x[:1]).value, nats[:1], rtol=1e-5, atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="conditional"):
        flow.log_prob(x)
    with pytest.raises(ShapeError, match="context"):
        flow.log_prob(x, context[:, :2])


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("batch", [None, 4])
def test_conditional_densities_in_a_program(rows, batch):
    """One condition for all samples or one each, in batches of known and unknown size."""
    net = [Dense(8, activation="elu"), Dense(2)]
    flow = Flow([ActNorm(), InvertibleResidual(net, context_features=3)], event_shape=(2,))
    x, context = data(2, 4), data(3, 4)
    flow.initialize(x, context)
    expected = flow.log_prob(x, context[:rows], method="exact")
    signature = [tf.TensorSpec([batch, 2]), tf.TensorSpec([rows if rows == 1 else batch, 3])]
    program = tf.function(
        lambda x, context: (flow.log_prob(x, context, method="exact"), flow.inverse(flow.encode(x, context), context)),
        input_signature=signature,
        autograph=False,
    )
    found, back = program(x, context[:rows])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(back, x, atol=1e-4)


def test_a_context_that_nothing_takes_is_refused():
    flow = Flow([ActNorm(), mlp(2)], event_shape=(2,))
    x, context = data(2, 6), data(3, 6)
    with pytest.raises(InvalidArgumentError, match="context_features"):
        flow.initialize(x, context)
    assert not flow.initialized
    flow.initialize(x).compile(optimizer="adam", run_eagerly=True)
    for call in (
        lambda: flow.log_prob(x, context),
        lambda: flow.encode(x, context),
        lambda: flow.inverse(x, context),
        lambda: flow.sample(6, context),
        lambda: flow.to_core(context[:1]),
        lambda: flow((x, context)),
        lambda: flow.fit((x, context), verbose=0),
    ):
        with pytest.raises(InvalidArgumentError, match="context_features"):
            call()


def test_declared_constant():
    net = keras.Sequential([Dense(2, kernel_initializer="orthogonal"), keras.layers.LeakyReLU(0.5)])
    flow = Flow([InvertibleResidual(net, coeff=0.5, lipschitz=1.0)], event_shape=(2,))
    x = data(2, 5)
    np.testing.assert_allclose(flow.encode(x), x + 0.5 * numbers(net(x)), rtol=1e-5)
    np.testing.assert_allclose(flow.inverse(flow.encode(x)), x, atol=1e-4)
    assert flow.lipschitz == 0.5
    jacobian = np.eye(2) + 0.5 * np.where(numbers(net(x))[:, :, None] > 0, 1, 0.5) * numbers(net.layers[0].kernel).T
    np.testing.assert_allclose(flow.encode(x, logdet=True)[1], np.linalg.slogdet(jacobian)[1], rtol=1e-4, atol=1e-5)


def test_weights_of_samples_weight_their_gradients():
    keras.utils.set_random_seed(0)
    flow = Flow([ActNorm(), mlp(2)], event_shape=(2,)).initialize(data(2))
    x = tf.constant(data(2, 4))

    def gradients(x, weights):
        with tf.GradientTape() as tape:
            loss = flow.compute_loss(y_pred=flow(x), sample_weight=weights)
        return tape.gradient(loss, [v.value for v in flow.trainable_variables])

    weighted = gradients(x, tf.constant([0.0, 3.0, 0.0, 1.0]))
    second, last = gradients(x[1:2], None), gradients(x[3:], None)
    for found, a, b in zip(weighted, second, last, strict=True):
        np.testing.assert_allclose(found, (3 * a + b) / 4, rtol=1e-3, atol=1e-5)


def test_seed_decides_everything():
    def run():
        keras.utils.set_random_seed(7)
        flow = Flow([ActNorm(), mlp(40)], event_shape=(40,))
        flow.compile(optimizer="adam", run_eagerly=True)
        loss = flow.fit(data(40, 60), batch_size=20, epochs=1, verbose=0).history["loss"]
        return loss, flow.get_weights(), numbers(flow.sample(2)), numbers(flow.log_prob(data(40, 3)))

    first, second = run(), run()
    for a, b in zip(first, second, strict=True):
        for u, v in zip(a, b, strict=True):
            np.testing.assert_array_equal(u, v)


def test_jit_compile_gives_the_same_with_a_smaller_last_batch():
    losses = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        flow = Flow([InvertibleResidual([Dense(2, activation="tanh")])], event_shape=(2,), share=1)
        flow.compile(optimizer="adam", jit_compile=jit_compile, run_eagerly=not jit_compile)
        assert flow.jit_compile == jit_compile
        losses.append(flow.fit(data(2, 30), batch_size=20, epochs=2, verbose=0).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_fit_takes_a_part_of_the_batch():
    """The mean of what steps of `fit` return is that of all samples, with weights; files keep the share."""
    keras.utils.set_random_seed(0)
    flow = Flow([InvertibleResidual([Dense(6, activation="tanh"), Dense(2)])], event_shape=(2,), share=0.5)
    assert Flow.from_config(flow.get_config()).share == 0.5
    x, weights = data(2, 6), np.arange(6.0, dtype="float32")
    flow.fill_caps().compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    found = []
    for _ in range(60):
        flow.reset_metrics()
        found.append(float(flow.train_on_batch(x, sample_weight=weights)))
    exact = -np.mean(weights * numbers(flow.log_prob(x, method="exact", training=True)))
    assert np.std(found) > 1e-3
    assert abs(np.mean(found) - exact) < 5 * np.std(found) / np.sqrt(60)
    with pytest.raises(InvalidArgumentError, match="share"):
        Flow([ActNorm()], event_shape=(2,), share=0)


# --- files ---


def test_loads_in_a_fresh_process(trained, tmp_path):
    flow, x = trained
    if flow.event_shape != (2,):
        pytest.skip("one size is enough")
    flow.save(tmp_path / "flow.keras")
    np.save(tmp_path / "x.npy", x[:5])
    found = [float(word) for word in in_a_process("load", tmp_path)]
    np.testing.assert_allclose(found, [flow.lipschitz, *numbers(flow.log_prob(x[:5]))], rtol=1e-6)


def test_image_models_load(tmp_path):
    keras.utils.set_random_seed(0)
    flow = image_flow()
    x = np.random.default_rng(0).uniform(size=(12, 4, 4, 1)).astype("float32")
    flow.initialize(x)
    flow.save(tmp_path / "flow.keras")
    loaded = keras.saving.load_model(tmp_path / "flow.keras")
    assert loaded.initialized
    assert loaded.lipschitz == pytest.approx(flow.lipschitz, rel=1e-6)
    np.testing.assert_allclose(loaded.initialize(x**2).encode(x), flow.encode(x), rtol=1e-5, atol=1e-6)


# --- training ---


def test_classifier(tmp_path):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 64)
    images = (rng.standard_normal((64, 4, 4, 1)) + 2 * labels[:, None, None, None]).astype("float32")
    model = Classifier((4, 4, 1), 2, padding=1, widths=(4, 4), blocks=(1, 1))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=loss, metrics=["accuracy"])
    model.fit(images, labels, batch_size=32, epochs=8, verbose=0)
    logits = numbers(model(images))
    assert (logits.argmax(axis=1) == labels).mean() > 0.9
    np.testing.assert_allclose(model.predict(images, verbose=0), logits, atol=1e-4)
    for capped in capped_weights(model.features):
        assert largest(capped.certified().matrix()) <= capped.cap * (1 + 1e-6)
    assert model.lipschitz <= 0.9
    np.testing.assert_allclose(model.features.inverse(model.features.encode(images)), images, atol=1e-3)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "model.keras")(images), logits, atol=1e-5)
    assert np.abs(numbers(model.batch_norm.moving_mean)).max() > 0
    np.testing.assert_allclose(model(images[:3]), logits[:3], atol=1e-5)
    old = {name: value for name, value in model.get_config().items() if name != "batch_norm"}
    assert Classifier.from_config(old).batch_norm is None
    with pytest.raises(InvalidArgumentError, match="stage"):
        Classifier((4, 4, 1), 2, widths=(4,), blocks=(1, 1))


@pytest.mark.parametrize("kind", ["dataset", "sequence"])
def test_initialises_from_what_fit_is_given(kind):
    x = data(2, 64)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return (x[32 * index : 32 * (index + 1)],)

    flow = Flow([ActNorm()], event_shape=(2,))
    flow.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    flow.fit(
        tf.data.Dataset.from_tensor_slices(x).batch(32) if kind == "dataset" else Batches(), verbose=0, shuffle=False
    )
    z = numbers(flow.encode(x[:32]))
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-4)


def test_mixed_precision_computes_in_float32():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        flow = Flow([ActNorm(), mlp(2)], event_shape=(2,)).initialize(data(2))
    finally:
        keras.config.set_dtype_policy(before)
    assert flow.log_prob(data(2)).dtype == flow(data(2)).dtype == tf.float32
    assert flow.flow_layers[1](data(2)).dtype == tf.float32


def test_replicas_agree(tmp_path):
    assert in_a_process("replicas", tmp_path)[-1] == "agreed"


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_other_backends_of_keras(tmp_path, name):
    if not importlib.util.find_spec(name):
        pytest.skip(f"{name} is not installed")
    environment = {"KERAS_BACKEND": name, "JAX_ENABLE_X64": "0"}
    assert in_a_process("other_backend", tmp_path, **environment)[-1] == "trained"
    expected = [float(word) for word in in_a_process("load", tmp_path, **environment)]
    np.testing.assert_allclose(expected, np.load(tmp_path / "expected.npy"), rtol=1e-5)


def test_activations_are_those_of_keras():
    x = np.linspace(-3, 3, 8, dtype="float32").reshape(2, 4)
    layers = [keras.layers.Activation(function) for function in keras_branch._FUNCTIONS]
    for layer in (*layers, keras.layers.LeakyReLU(), keras.layers.ELU(0.5)):
        net = [Dense(4), layer]
        block = InvertibleResidual(net, 0.9)
        z = block(x)
        step = block.core_layer(training=False).branch.layers[0]
        np.testing.assert_allclose(z - x, layer(step(keras.ops.convert_to_tensor(x))), atol=1e-5)
