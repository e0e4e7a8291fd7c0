"""TensorFlow programs that are traced for batches of any size, as with ``tf.TensorSpec([None, 36])``."""

import numpy as np
import pytest

from iresnet_core import (
    Activation,
    ActNorm,
    Chain,
    Convolution,
    Dense,
    Flow,
    ResidualBlock,
    invert,
    logdet,
    mean_jacobian,
    normalize,
    spectral_norm,
)
from iresnet_core.backends import backend as find_backend
from iresnet_core.errors import InvalidArgumentError, ShapeError

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

D = 36
X = np.random.default_rng(2).standard_normal((3, D))
X_REFERENCE = tf.constant(X)


def any_batch():
    """A chain, samples and probes."""
    rng = np.random.default_rng(1)
    W1, W2 = (tf.constant(rng.standard_normal(shape)) for shape in ((40, D), (D, 40)))
    g = normalize(Chain([Dense(W1), Activation("lipswish"), Dense(W2)]), 0.8)
    return g, tf.constant(X), tf.constant(np.sign(rng.standard_normal((2, *X.shape))))


def half_sine(x):
    return 0.5 * tf.sin(x)


ANY_BATCH = {
    "chain": lambda g, x, v: g(x),
    "exact": lambda g, x, v: logdet(g, x, method="exact").value,
    "exact callable": lambda g, x, v: logdet(half_sine, x, lipschitz=0.5, method="exact").value,
    "series": lambda g, x, v: logdet(g, x, method="series", terms=4, noise=v).value,
    "arnoldi": lambda g, x, v: logdet(g, x, method="arnoldi", terms=4, noise=v).bias_bound,
    "mean-jacobian": lambda g, x, v: logdet(g, x, method="mean-jacobian", terms=3, noise=v).value,
    "without errors": lambda g, x, v: (
        logdet(g, x, method="mean-jacobian", errors=False, noise=v, reference=mean_jacobian(g, X_REFERENCE)).value
    ),
    "seed tensor": lambda g, x, v: logdet(g, x, method="arnoldi", terms=4, rng=tf.constant([1, 2])).value,
    "picard": lambda g, x, v: invert(g, x, solver="picard").error_bound,
    "anderson": lambda g, x, v: invert(g, x).value,
    "newton": lambda g, x, v: invert(g, x, solver="newton").value,
    "flow": lambda g, x, v: (
        Flow([ActNorm(x[0] * 0, x[0] * 0 + 1), ResidualBlock(g)], event_shape=(D,))
        .log_prob(x, method="arnoldi", terms=3, rng=tf.constant([1, 2]))
        .value
    ),
}


def of_any_batch(fn, xla=False):
    signature = [tf.TensorSpec([None, D], tf.float64), tf.TensorSpec([2, None, D], tf.float64)]
    return tf.function(fn, autograph=False, input_signature=signature, jit_compile=xla)


@pytest.mark.parametrize(
    ("name", "xla"), [*((name, False) for name in ANY_BATCH), ("exact", True), ("arnoldi", True), ("picard", True)]
)
def test_batches_of_unknown_size(name, xla):
    g, x, v = any_batch()
    fn = of_any_batch(lambda x, v: ANY_BATCH[name](g, x, v), xla)
    for count in (3, 1):
        expected = ANY_BATCH[name](g, x[:count], v[:, :count])
        np.testing.assert_allclose(fn(x[:count], v[:, :count]), expected, rtol=1e-9, atol=1e-10)


def test_gradients_of_batches_of_unknown_size():
    g, x, v = any_batch()

    def loss(x, v):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = logdet(g, x, method="arnoldi", terms=4, noise=v).value + invert(g, x).value[:, 0]
        return tape.gradient(value, x)

    np.testing.assert_allclose(of_any_batch(loss)(x, v), loss(x, v), rtol=1e-8, atol=1e-8)


def test_images_in_batches_of_unknown_size():
    rng = np.random.default_rng(3)
    layer = Convolution(tf.constant(rng.standard_normal((2, 2, 3, 3))), input_shape=(2, 4, 4), padding="same")
    g = normalize(Chain([layer, Activation("tanh")]), 0.7)
    x = tf.constant(rng.standard_normal((3, 2, 4, 4)))

    def value(x):
        return logdet(g, x, method="series", terms=3, rng=tf.constant([1, 2])).value + invert(g, x).value[:, 0, 0, 0]

    fn = tf.function(value, autograph=False, input_signature=[tf.TensorSpec([None, 2, 4, 4], tf.float64)])
    np.testing.assert_allclose(fn(x), value(x), rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "error", "remedy"),
    [
        (lambda g, x: logdet(g, x, method="arnoldi", rng=0).value, InvalidArgumentError, "seed tensor or noise="),
        (lambda g, x: spectral_norm(x).value, ShapeError, "known shape"),
        (lambda g, x: find_backend("tensorflow").xp.zeros(x.shape), ShapeError, r"tf.TensorSpec\(\[64, 4\]\)"),
    ],
)
def test_what_needs_a_known_size_says_so(call, error, remedy):
    g, x, _ = any_batch()
    with pytest.raises(error, match=remedy):
        tf.function(lambda x: call(g, x), autograph=False, input_signature=[tf.TensorSpec([None, D], tf.float64)])(x)


def test_a_seed_tensor_is_one_stream_for_all_blocks_of_a_flow():
    g, x, _ = any_batch()
    block = ResidualBlock(g)
    flow = Flow([block, block], event_shape=(D,))
    seed = tf.constant([1, 2])
    total = flow.forward(x, method="series", terms=2, rng=seed).logdet.value
    stream = find_backend("tensorflow").generator(seed)
    first = block.forward(x, method="series", terms=2, rng=stream)
    second = block.forward(first.value, method="series", terms=2, rng=stream)
    np.testing.assert_allclose(total, first.logdet.value + second.logdet.value, rtol=1e-12)
