"""Derivatives on every backend that has them, next to central differences of the exact float64 answers."""

import numpy as np
import pytest
from branches_for_tests import array, host
from frameworks_for_tests import directional_derivatives, gradients
from strategies import torus_norm

from iresnet_core import (
    Activation,
    Chain,
    Convolution,
    Dense,
    invert,
    lipschitz_bound,
    logdet,
    normalize,
    spectral_norm,
)
from iresnet_core.backends import backend as find_backend
from iresnet_core.errors import DerivativeError

pytestmark = pytest.mark.needs("autodiff")

NUMPY = find_backend("numpy")
RNG = np.random.default_rng(7)
D = 5
WEIGHTS = [RNG.standard_normal(shape) for shape in [(7, D), (7,), (6, 7), (6,), (D, 6), (D,)]]
X = RNG.standard_normal((3, D))
CT = RNG.standard_normal(X.shape)
CT_SAMPLES = RNG.standard_normal(X.shape[0])


def chain(weights, coeff=0.8):
    W1, b1, W2, b2, W3, b3 = weights
    layers = [Dense(W1, b1), Activation("tanh"), Dense(W2, b2), Activation("lipswish"), Dense(W3, b3)]
    return normalize(Chain(layers), coeff)


def check(backend, fn, exact, arguments, rtol=1e-6):
    """Compare the backend's gradient of `fn` with the slopes of `exact`, a function on NumPy arrays."""
    found = gradients(backend, fn, [array(backend, a) for a in arguments])
    for gradient, (direction, slope) in zip(found, directional_derivatives(exact, arguments), strict=True):
        assert np.isfinite(gradient).all()
        assert abs(np.sum(gradient * direction) - slope) <= rtol * (1 + abs(slope) + np.linalg.norm(gradient))


def weighted(backend, values, weights):
    return backend.xp.sum(values * array(backend, weights))


@pytest.mark.parametrize("method", ["power", "lanczos", "svd"])
def test_spectral_norm(backend, method):
    A = RNG.standard_normal((6, 4))
    (gradient,) = gradients(
        backend, lambda A: spectral_norm(A, method=method, rtol=1e-10, max_iter=2000).value, [array(backend, A)]
    )
    U, _, Vt = np.linalg.svd(A)
    np.testing.assert_allclose(gradient, np.outer(U[:, 0], Vt[0]), atol=1e-8)


@pytest.mark.parametrize("method", ["svd", "cholesky", "gram", "frobenius"])
def test_bounds_have_the_derivative_of_the_norm(backend, method):
    A = RNG.standard_normal((6, 4))
    (gradient,) = gradients(backend, lambda A: lipschitz_bound(A, method=method).value, [array(backend, A)])
    U, S, Vt = np.linalg.svd(A)
    bound = float(lipschitz_bound(A, method=method).value)
    np.testing.assert_allclose(gradient, bound / S[0] * np.outer(U[:, 0], Vt[0]), atol=1e-7)


@pytest.mark.parametrize(("channels", "window", "groups"), [((6, 4), (2, 3), 2), ((6, 4), (1, 1), 2)])
def test_bounds_of_convolutions_have_the_derivative_of_the_norm_on_the_torus(backend, channels, window, groups):
    kernel = RNG.standard_normal((channels[1], channels[0] // groups, *window))

    def layer(kernel):
        padding = [(k // 2, k - 1 - k // 2) for k in window]
        options = {"padding": padding, "padding_mode": "circular", "groups": groups}
        return Convolution(kernel, input_shape=(channels[0], 9, 8), **options)

    def exact(changed):
        norms = [max(torus_norm(part, (9, 8)) for part in np.split(k, groups)) for k in (changed, kernel)]
        return norms[0] / norms[1] * float(lipschitz_bound(layer(kernel), method="fft").value)

    check(backend, lambda k: lipschitz_bound(layer(k), method="fft").value, exact, [kernel], rtol=1e-5)


def test_normalized_weights(backend):
    A, C = RNG.standard_normal((2, 6, 4))

    def exact(A):
        return float(np.sum(normalize(A, 0.5) * C))

    check(backend, lambda A: weighted(backend, normalize(A, 0.5), C), exact, [A])
    # Small weights are not scaled, and have no such derivative.
    check(backend, lambda A: weighted(backend, normalize(A, 50.0), C), lambda A: float(np.sum(A * C)), [A])


def test_normalized_convolution(backend):
    kernel, C = RNG.standard_normal((2, 3, 2, 3, 3))

    def scaled(kernel):
        return normalize(Convolution(kernel, input_shape=(2, 5, 4), padding="same"), 0.5).weight

    check(
        backend,
        lambda k: weighted(backend, scaled(k), C),
        # The bound of the torus is scaled like the norm, which is what is differentiated.
        lambda k: float(np.sum(scaled_by_norm(k, kernel) * C)),
        [kernel],
        rtol=1e-4,
    )


def scaled_by_norm(kernel, base):
    """`kernel` scaled by 0.5 / norm, times the ratio of norm and bound at `base`."""

    def norm(k):
        return np.linalg.norm(Convolution(k, input_shape=(2, 5, 4), padding="same").matrix(), 2)

    bound = float(lipschitz_bound(Convolution(base, input_shape=(2, 5, 4), padding="same")).value)
    return kernel * 0.5 / (norm(kernel) * bound / norm(base))


@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_inverse_with_respect_to_inputs_and_parameters(backend, solver):
    def solution(y, *weights):
        return invert(chain(weights), y, solver=solver, rtol=1e-12).value

    check(
        backend,
        lambda *a: weighted(backend, solution(*a), CT),
        lambda *a: float(np.sum(solution(*a) * CT)),
        [X, *WEIGHTS],
    )


def test_inverse_of_a_plain_function(backend):
    xp = backend.xp

    def solution(xp, y, W):
        return invert(lambda x: 0.5 * xp.tanh(xp.matmul(x, W)), y, lipschitz=0.5, rtol=1e-12).value

    W = np.linalg.qr(RNG.standard_normal((D, D)))[0]
    check(
        backend,
        lambda y, W: weighted(backend, solution(xp, y, W), CT),
        lambda y, W: float(np.sum(solution(NUMPY.xp, y, W) * CT)),
        [X, W],
    )


def test_value_of_a_differentiable_inverse_is_the_certified_one(backend):
    kept = []

    def loss(y):
        result = invert(chain([array(backend, w) for w in WEIGHTS]), y)
        kept.append(values_of(backend, result.value))
        return backend.xp.sum(result.value)

    gradients(backend, loss, [array(backend, X)])
    expected = invert(chain(WEIGHTS), X)
    np.testing.assert_allclose(kept[0], expected.value, rtol=1e-10)


def values_of(backend, x):
    return host(backend, backend.stop_gradient(x))


def deep_chain(weights, coeff=0.8):
    """Four groups of slopes, of which the last two are on the identity's side of the weights."""
    W1, b1, W2, b2, W3, b3 = weights
    layers = [Dense(W1, b1), Activation("tanh"), Dense(W2, b2), Activation("lipswish"), Dense(W3, b3)]
    return normalize(Chain([*layers, Activation("sin"), Dense(W1), Activation("tanh"), Dense(W3 @ W2)]), coeff)


@pytest.mark.parametrize("build", [chain, deep_chain])
def test_mean_jacobian_with_all_hadamard_rows_has_the_exact_gradient(backend, build):
    """The exact trace is differentiated through the weights, and the mean is a constant."""
    options = {"method": "mean-jacobian", "probes": 8, "rng": 1, "terms": 5}

    def exact(x, *weights):
        return float(np.sum(logdet(build(weights), x, method="exact").value * CT_SAMPLES))

    check(
        backend,
        lambda x, *weights: weighted(backend, logdet(build(weights), x, **options).value, CT_SAMPLES),
        exact,
        [X, *WEIGHTS],
        rtol=1e-5,
    )


@pytest.mark.parametrize("method", ["exact", "arnoldi", "series", "roulette"])
@pytest.mark.parametrize("control_variate", ["auto", "none"])
def test_logdet_with_all_hadamard_rows_has_the_exact_gradient(backend, method, control_variate):
    """Eight rows of the Hadamard matrix of order eight leave no noise of the probes."""
    options = {} if method == "exact" else {"probes": 8, "rng": 1, "control_variate": control_variate}
    options |= {"terms": 60} if method in ("series", "roulette") else {"terms": 5} if method == "arnoldi" else {}

    def value(x, *weights):
        return logdet(chain(weights), x, method=method, **options).value

    def exact(x, *weights):
        return float(np.sum(logdet(chain(weights), x, method="exact").value * CT_SAMPLES))

    check(backend, lambda *a: weighted(backend, value(*a), CT_SAMPLES), exact, [X, *WEIGHTS], rtol=1e-5)


def test_logdet_of_a_plain_function(backend):
    def value(xp, x, W, **options):
        return logdet(lambda x: 0.5 * xp.tanh(xp.matmul(x, W)), x, lipschitz=0.5, **options).value

    W = np.linalg.qr(RNG.standard_normal((D, D)))[0]
    transposed = Chain([Dense(np.eye(D))])  # NumPy differentiates nothing, so its answers come from a Chain
    assert transposed.lipschitz == pytest.approx(1)

    def exact(x, W):
        g = Chain([Dense(W.T), Activation("tanh"), Dense(0.5 * np.eye(D))])
        return float(np.sum(logdet(g, x, method="exact", lipschitz=0.6).value * CT_SAMPLES))

    for options in ({"method": "exact"}, {"method": "arnoldi", "probes": 8, "rng": 1, "terms": 5}):
        check(
            backend,
            lambda x, W, options=options: weighted(backend, value(backend.xp, x, W, **options), CT_SAMPLES),
            exact,
            [X, W],
            rtol=1e-5,
        )


@pytest.mark.parametrize("method", ["arnoldi", "mean-jacobian"])
def test_sample_weights_reach_their_own_samples(backend, method):
    """The gradient of one sample's value is not that of the batch."""
    options = {"method": method, "rng": 3}
    total = 0
    for i in range(X.shape[0]):
        weights = np.eye(X.shape[0])[i]
        (gradient,) = gradients(
            backend,
            lambda x, weights=weights: weighted(
                backend, logdet(chain([array(backend, w) for w in WEIGHTS]), x, **options).value, weights
            ),
            [array(backend, X)],
        )
        assert np.any(gradient[i] != 0)
        assert not np.any(np.delete(gradient, i, axis=0))
        total = total + gradient
    (joint,) = gradients(
        backend,
        lambda x: backend.xp.sum(logdet(chain([array(backend, w) for w in WEIGHTS]), x, **options).value),
        [array(backend, X)],
    )
    np.testing.assert_allclose(total, joint, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"method": "arnoldi", "control_variate": "none"}, {"method": "mean-jacobian"}], ids=str
)
def test_the_gradient_from_one_probe_is_unbiased(backend, options):
    """Mean over many seeds, within five standard errors of the exact gradient."""
    weights = [array(backend, w) for w in WEIGHTS]

    def gradient(seed, **options):
        (found,) = gradients(
            backend,
            lambda x: backend.xp.sum(logdet(chain(weights), x, rng=seed, **options).value),
            [array(backend, X)],
        )
        return found.ravel()

    exact = gradient(None, method="exact")
    count = 60 if backend.name != "torch" else 200
    draws = np.array([gradient(seed, terms=5, **options) for seed in range(count)])
    error = (draws.mean(axis=0) - exact) / (draws.std(axis=0, ddof=1) / np.sqrt(count) + 1e-12)
    assert np.abs(error).max() < 5
    assert draws.std(axis=0).max() > 1e-4  # there is noise to average


@pytest.mark.parametrize("what", ["inverse", "logdet"])
def test_second_derivatives_are_refused(backend, what):
    weights = [array(backend, w) for w in WEIGHTS]

    def first(x):
        g = chain(weights)
        result = invert(g, x) if what == "inverse" else logdet(g, x, method="arnoldi", rng=0)
        return backend.xp.sum(result.value * result.value)

    with pytest.raises(Exception, match="second") as refusal:
        second_derivative(backend, first, array(backend, X))
    assert isinstance(refusal.value, DerivativeError) or "DerivativeError" in repr(refusal.value)


def second_derivative(backend, fn, x):
    if backend.name == "torch":
        import torch

        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(fn(x), x, create_graph=True)
        return torch.autograd.grad(gradient.sum(), x)
    if backend.name == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = fn(x)
            gradient = inner.gradient(value, x)
        return outer.gradient(gradient, x)
    import jax

    return jax.grad(lambda x: jax.grad(fn)(x).sum())(x)


def test_errors_have_no_derivative(backend):
    weights = [array(backend, w) for w in WEIGHTS]
    (found,) = gradients(
        backend,
        lambda x: backend.xp.sum(invert(chain(weights), x).error_bound) + 0 * backend.xp.sum(x),
        [array(backend, X)],
    )
    assert not np.any(found)


@pytest.mark.parametrize("size", [1e-200, 1e155])
def test_cotangents_of_any_size(backend, size):
    """The gradient is linear in the cotangent, also where its squares over- or underflow."""
    weights = [array(backend, w) for w in WEIGHTS]

    def gradient(factor):
        return gradients(
            backend, lambda y: backend.xp.sum(invert(chain(weights), y).value * factor), [array(backend, X)]
        )[0]

    np.testing.assert_allclose(gradient(size) / size, gradient(1.0), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_inverse_of_a_plain_function_in_half_precision(backend, dtype):
    """The function knows half precision only; the solve of the backward pass is done around it in float32."""
    xp = backend.xp
    if not hasattr(xp, dtype):
        pytest.skip(f"{backend.name} has no {dtype} under that name")
    kind = getattr(xp, dtype)

    def loss(y):
        value = invert(lambda x: 0.5 * xp.sin(x), xp.astype(y, kind), lipschitz=0.5).value
        assert value.dtype == kind
        return xp.sum(xp.astype(value, xp.float64))

    (found,) = gradients(backend, loss, [array(backend, X)])
    (expected,) = gradients(
        backend,
        lambda y: xp.sum(invert(lambda x: 0.5 * xp.sin(x), y, lipschitz=0.5).value),
        [array(backend, X)],
    )
    np.testing.assert_allclose(found, expected, rtol=0.03)
