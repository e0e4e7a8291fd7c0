"""The core under vmap, grad and jvp: batches of problems, of weights and of noise, and what forward mode may ask."""

import numpy as np
import pytest
from branches_for_tests import array, host
from frameworks_for_tests import gradients, transforms

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
from iresnet_core.errors import DerivativeError, InvalidArgumentError, UnknownLipschitzError

pytestmark = pytest.mark.needs("transforms")

RNG = np.random.default_rng(5)
D = 4
X = RNG.standard_normal((2, D))
WEIGHTS = [RNG.standard_normal(shape) for shape in [(5, D), (5,), (D, 5), (D,)]]
A = RNG.standard_normal((6, 4))
NOISE = np.where(RNG.random((2, *X.shape)) < 0.5, -1.0, 1.0)


def chain(weights, coeff=0.8):
    W1, b1, W2, b2 = weights
    return normalize(Chain([Dense(W1, b1), Activation("tanh"), Dense(W2, b2)]), coeff)


def plain(xp, a):
    return lambda z: 0.5 * xp.sin(z) * xp.tanh(a)


def _layer(backend, a):
    kernel = backend.xp.reshape(a, (2, 3, 2, 2))
    return normalize(Convolution(kernel, input_shape=(3, 3, 3), padding="same"), 0.5).weight


def _inverse(solver="anderson"):
    return lambda e, x: lambda *w: invert(chain(w), x, solver=solver, rtol=1e-11).value


def _logdet(**options):
    return lambda e, x: lambda *w: logdet(chain(w), x, **options).value


# name -> (function of backend and x that returns the function to transform, its arguments)
FUNCTIONS = {
    "spectral_norm svd": (lambda e, x: lambda a: spectral_norm(a).value, [A]),
    "spectral_norm power": (
        lambda e, x: lambda a: spectral_norm(a, method="power", rtol=1e-9, max_iter=400).value,
        [A],
    ),
    "spectral_norm lanczos": (lambda e, x: lambda a: spectral_norm(a, method="lanczos", rtol=0).value, [A]),
    "lipschitz_bound": (lambda e, x: lambda a: lipschitz_bound(a, method="gram").value, [A]),
    "normalize": (lambda e, x: lambda a: normalize(a, 0.5), [A]),
    "convolution": (lambda e, x: lambda a: _layer(e, a), [A]),
    "chain": (lambda e, x: lambda *w: chain(w)(x), WEIGHTS),
    "invert, inputs": (lambda e, x: lambda y: _inverse()(e, y)(*(array(e, w) for w in WEIGHTS)), [X]),
    "invert, weights": (_inverse(), WEIGHTS),
    "invert picard, weights": (_inverse("picard"), WEIGHTS),
    "invert, a function": (lambda e, x: lambda a: invert(plain(e.xp, a), x, lipschitz=0.5, rtol=1e-11).value, [X]),
    "logdet exact": (_logdet(), WEIGHTS),
    "logdet arnoldi": (_logdet(method="arnoldi", rng=0), WEIGHTS),
    "logdet series": (_logdet(method="series", rng=0, terms=3), WEIGHTS),
    "logdet roulette": (_logdet(method="roulette", rng=0), WEIGHTS),
    "logdet, inputs": (
        lambda e, x: lambda y: _logdet(method="arnoldi", rng=0, terms=2)(e, y)(*(array(e, w) for w in WEIGHTS)),
        [X],
    ),
    "logdet exact, a function": (lambda e, x: lambda a: logdet(plain(e.xp, a), x, lipschitz=0.5).value, [X]),
    "logdet arnoldi, a function": (
        lambda e, x: lambda a: logdet(plain(e.xp, a), x, lipschitz=0.5, method="arnoldi", rng=0).value,
        [X],
    ),
}
# JAX compiles every operation for every shape, which takes minutes for all of them.
ON_JAX = {
    "vmap": ("spectral_norm power", "normalize", "invert, weights", "logdet exact, a function", "logdet series"),
    "grad": ("chain", "invert, a function", "logdet exact, a function"),
    "jvp": ("spectral_norm svd", "normalize", "logdet exact, a function"),
    "refused": ("invert, a function", "logdet series"),
}
REVERSE_ONLY = [name for name in FUNCTIONS if "invert" in name or ("logdet" in name and "exact" not in name)]


def function(backend, name):
    make, arguments = FUNCTIONS[name]
    return make(backend, array(backend, X)), [array(backend, a) for a in arguments]


def skip_slow(backend, test, name):
    if backend.name == "jax" and name not in ON_JAX[test]:
        pytest.skip("one function of a kind is enough on JAX, which compiles every operation")


def stacked(backend, arguments):
    """Two sets of arguments side by side."""
    return [backend.xp.stack([a, 0.7 * a + 0.1]) for a in arguments]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap(backend, name):
    skip_slow(backend, "vmap", name)
    fn, arguments = function(backend, name)
    both = stacked(backend, arguments)
    vmap, _, _ = transforms(backend)
    values = vmap(fn)(*both)
    for i in range(2):
        # In a batch Arnoldi's method takes a fixed number of products, and the bounds more squarings.
        loose = 2e-3 if "arnoldi" in name or name == "lipschitz_bound" else 1e-9
        np.testing.assert_allclose(
            host(backend, values[i]), host(backend, fn(*(a[i] for a in both))), rtol=loose, atol=loose
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_grad(backend, name):
    skip_slow(backend, "grad", name)
    fn, arguments = function(backend, name)
    vmap, grad, _ = transforms(backend)
    places = tuple(range(len(arguments)))

    def loss(*args):
        return backend.xp.sum(fn(*args) ** 2)

    both = stacked(backend, arguments)
    expected = gradients(backend, loss, arguments)
    assert any(np.any(e) for e in expected)
    loose = 1e-2 if "arnoldi" in name or name == "lipschitz_bound" else 1e-8
    one = expected if backend.name == "jax" else grad(loss, argnums=places)(*arguments)  # there it is the same function
    batch = vmap(grad(loss, argnums=places))(*both)
    for single, batched, exact in zip(one, batch, expected, strict=True):
        np.testing.assert_allclose(
            single if backend.name == "jax" else host(backend, single), exact, rtol=1e-9, atol=1e-9
        )
        np.testing.assert_allclose(host(backend, batched[0]), exact, rtol=loose, atol=loose)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in REVERSE_ONLY])
def test_jvp(backend, name):
    skip_slow(backend, "jvp", name)
    fn, arguments = function(backend, name)
    _, _, jvp = transforms(backend)
    tangents = [RNG.standard_normal(a.shape) for a in arguments]

    def loss(*args):
        return backend.xp.sum(fn(*args) ** 2)

    _, slope = jvp(loss, tuple(arguments), tuple(array(backend, t) for t in tangents))
    expected = sum(np.sum(g * t) for g, t in zip(gradients(backend, loss, arguments), tangents, strict=True))
    np.testing.assert_allclose(host(backend, slope), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", REVERSE_ONLY)
def test_forward_mode_is_refused_where_the_derivative_is_a_backward_pass(backend, name):
    skip_slow(backend, "refused", name)
    fn, arguments = function(backend, name)
    _, _, jvp = transforms(backend)
    with pytest.raises(DerivativeError, match="reverse mode"):
        jvp(fn, tuple(arguments), tuple(arguments))


def test_vmap_over_noise(backend):
    vmap, _, _ = transforms(backend)
    g, x = chain([array(backend, w) for w in WEIGHTS]), array(backend, X)
    noise = array(backend, NOISE)
    for method in ("arnoldi",) if backend.name == "jax" else ("arnoldi", "series"):
        values = vmap(lambda v, method=method: logdet(g, x, method=method, noise=v, control_variate="none").value)(
            noise
        )
        for i in range(2):
            expected = logdet(g, x, method=method, noise=noise[i], control_variate="none").value
            np.testing.assert_allclose(host(backend, values[i]), host(backend, expected), atol=2e-3)


def test_what_needs_values_is_refused_under_vmap(backend):
    vmap, _, _ = transforms(backend)
    both = stacked(backend, [array(backend, w) for w in WEIGHTS])
    x = array(backend, X)
    with pytest.raises(InvalidArgumentError, match="terms and probes"):
        vmap(lambda *w: logdet(chain(w), x, method="arnoldi", rng=0, tol=0.1).value)(*both)
    with pytest.raises(UnknownLipschitzError, match="vmap"):
        vmap(lambda W: logdet(Chain([Dense(W)]), x, method="series", rng=0).value)(0.1 * both[0][:, :D, :])


@pytest.mark.parametrize("what", ["invert", "logdet"])
def test_a_hessian_is_refused(backend, what):
    """Also that of a function that closes over nothing: then the solution alone depends on the input."""
    _, grad, jvp = transforms(backend)
    half = plain(backend.xp, array(backend, 9.0))

    def loss(x):
        if what == "invert":
            return backend.xp.sum(invert(half, x, lipschitz=0.5).value)
        return backend.xp.sum(logdet(half, x, lipschitz=0.5, method="arnoldi", rng=0).value)

    x = array(backend, X)
    with pytest.raises(DerivativeError):
        jvp(grad(loss), (x,), (x,))
    with pytest.raises(DerivativeError):
        grad(lambda x: backend.xp.sum(grad(loss)(x)))(x)


def test_a_chain_that_was_used_under_a_transformation_is_none_the_worse(backend):
    """What a chain keeps must not be what a transformation has wrapped."""
    vmap, grad, _ = transforms(backend)
    g, x = chain([array(backend, w) for w in WEIGHTS]), array(backend, X)

    def value(x):
        return backend.xp.sum(logdet(g, x, method="series", rng=0, terms=2).value)

    batched = vmap(grad(value))(backend.xp.stack([x, 2 * x]))
    (after,) = gradients(backend, value, [x])
    np.testing.assert_allclose(host(backend, batched[0]), after, rtol=1e-9, atol=1e-12)
