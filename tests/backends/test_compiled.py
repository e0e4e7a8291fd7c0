"""The core inside compiled functions: no fallback to the interpreter, the same answers as eager, nothing recompiled."""

import numpy as np
import pytest
from branches_for_tests import array, host
from frameworks_for_tests import COMPILERS, compiled, compiled_once, gradients

from iresnet_core import (
    Activation,
    ActNorm,
    Chain,
    Convolution,
    Dense,
    Flow,
    ResidualBlock,
    invert,
    lipschitz_bound,
    logdet,
    normalize,
    spectral_norm,
)
from iresnet_core.errors import InvalidArgumentError, UnknownLipschitzError

pytestmark = pytest.mark.needs("compile")

RNG = np.random.default_rng(3)
D = 36
WEIGHTS = [RNG.standard_normal(shape) for shape in [(40, D), (40,), (D, 40), (D,)]]
X = RNG.standard_normal((3, D))
NOISE = np.where(RNG.random((2, *X.shape)) < 0.5, -1.0, 1.0)
A = RNG.standard_normal((9, 6))


def chain_of(weights, coeff=0.8):
    W1, b1, W2, b2 = weights
    return normalize(Chain([Dense(W1, b1), Activation("lipswish"), Dense(W2, b2)]), coeff)


def chain(backend, coeff=0.8):
    return chain_of([array(backend, w) for w in WEIGHTS], coeff)


def arrays(result):
    return tuple(v for v in result if not isinstance(v, str))


# name -> (function of the backend that returns the function to compile, its arguments)
FUNCTIONS = {
    "spectral_norm power": (lambda e: lambda A: arrays(spectral_norm(A, method="power")), [A]),
    "spectral_norm fixed steps": (
        # Two turns of the compiled loop, and three steps more.
        lambda e: lambda A: arrays(spectral_norm(A, method="power", rtol=0, max_iter=19)),
        [A],
    ),
    "spectral_norm svd": (lambda e: lambda A: spectral_norm(A, method="svd").value, [A]),
    "lipschitz_bound gram": (lambda e: lambda A: lipschitz_bound(A, method="gram").value, [A]),
    "normalize": (lambda e: lambda A: normalize(A, 0.5), [A]),
    "chain": (lambda e: chain(e), [X]),
    "invert picard": (lambda e: _inverse(chain(e), "picard"), [X]),
    "invert anderson": (lambda e: _inverse(chain(e), "anderson"), [X]),
    "invert newton": (lambda e: _inverse(chain(e), "newton"), [X]),
    "logdet exact": (lambda e: _logdet(chain(e), method="exact"), [X]),
    "logdet arnoldi": (lambda e: _logdet(chain(e), method="arnoldi", terms=6), [X, NOISE]),
    "logdet mean-jacobian": (lambda e: _logdet(chain(e), method="mean-jacobian", terms=3), [X, NOISE]),
    "logdet series": (lambda e: _logdet(chain(e), method="series", terms=6), [X, NOISE]),
    "logdet roulette": (lambda e: _unbiased(chain(e), method="roulette", terms=3), [X, NOISE]),
    "logdet unbiased arnoldi": (lambda e: _unbiased(chain(e), method="arnoldi", terms=3), [X, NOISE]),
    "logdet unbiased mean-jacobian": (lambda e: _unbiased(chain(e), method="mean-jacobian", terms=2), [X, NOISE]),
    "flow": (lambda e: _log_prob(e), [X]),
}


def _inverse(g, solver):
    # An eager solver may change its method on the way, and so take another number of steps.
    def solution(y):
        result = invert(g, y, solver=solver, rtol=1e-12)
        return result.value, result.converged

    return solution


def _logdet(g, **options):
    def value(x, noise=None):
        return arrays(logdet(g, x, noise=noise, **options))

    return value


def _unbiased(g, **options):
    """The lengths of the roulette are part of the program."""

    def value(x, noise):
        return arrays(logdet(g, x, noise=(noise, [3, 0]), unbiased=True, **options))

    return value


def _log_prob(backend):
    zeros = array(backend, np.zeros(D))
    flow = Flow([ActNorm(zeros + 0.1, zeros), ResidualBlock(chain(backend))], event_shape=(D,))
    return lambda x: arrays(flow.log_prob(x, method="arnoldi", rng=1, terms=4))


def compilers(backend):
    return COMPILERS[backend.name]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_gives_what_eager_gives(backend, name):
    make, arguments = FUNCTIONS[name]
    fn = make(backend)
    arguments = [array(backend, a) for a in arguments]
    eager = fn(*arguments)
    eager = eager if isinstance(eager, tuple) else (eager,)
    for compiler in compilers(backend):
        if compiler == "xla" and "svd" in name:
            continue  # good to 1e-7 only there, see docs/engines.md
        with compiled_once(backend, compiler, fn) as program:
            values = program(*arguments)
            program(*(0.5 * a for a in arguments))
        values = values if isinstance(values, tuple) else (values,)
        for value, expected in zip(values, eager, strict=True):
            expected = host(backend, expected)
            if name in ("normalize", "lipschitz_bound gram"):
                np.testing.assert_allclose(
                    host(backend, value), expected, rtol=2e-3
                )  # after more squarings, or by another bound
            else:
                np.testing.assert_allclose(host(backend, value), expected, rtol=1e-9, atol=1e-12)


def test_weights_may_be_arguments(backend):
    """Normalised inside: the cap is then the constant, since the bound has no value yet."""
    arguments = [array(backend, a) for a in (X, NOISE, *WEIGHTS)]

    def value(x, noise, *weights):
        g = chain_of(weights)
        return logdet(g, x, method="arnoldi", terms=5, noise=noise).value

    eager = host(backend, value(*arguments))
    for compiler in compilers(backend):
        np.testing.assert_allclose(
            host(backend, compiled(backend, compiler, value)(*arguments)), eager, rtol=1e-2, atol=1e-3
        )


def test_a_constant_without_a_value_is_refused(backend):
    arguments = [array(backend, a) for a in (X, *WEIGHTS)]

    def value(x, W1, b1, W2, b2):
        g = Chain([Dense(W1, b1), Activation("tanh"), Dense(W2, b2)])
        return logdet(g, x, method="series", terms=2, rng=0).value

    with pytest.raises(Exception, match="Normalise") as refusal:
        compiled(backend, compilers(backend)[0], value)(*arguments)
    assert isinstance(refusal.value, UnknownLipschitzError) or "UnknownLipschitz" in repr(refusal.value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_without_a_constant_of_their_own(backend, dtype):
    """The constant of the chain is the caller's; the certificate needs norms of the layers, which have no value."""
    arguments = [array(backend, 0.05 * a, dtype) for a in WEIGHTS]
    y = array(backend, X, dtype)

    def solution(y, W1, b1, W2, b2):
        g = Chain([Dense(W1, b1), Activation("tanh"), Dense(W2, b2)])
        return arrays(invert(g, y, lipschitz=0.7, solver="picard"))[:2]

    value, bound = solution(y, *arguments)
    for compiler in compilers(backend):
        found, found_bound = compiled(backend, compiler, solution)(y, *arguments)
        bounds = host(backend, found_bound)
        distance = np.linalg.norm(host(backend, found) - host(backend, value), axis=1)
        assert (distance <= bounds + host(backend, bound)).all()
        assert (bounds < 1.5 * host(backend, bound) + 1e-12).all()


def test_a_tolerance_is_refused(backend):
    g = chain(backend)
    with pytest.raises(Exception, match="terms and probes") as refusal:
        compiled(backend, compilers(backend)[0], lambda x: logdet(g, x, method="arnoldi", tol=0.1).value)(
            array(backend, X)
        )
    assert isinstance(refusal.value, InvalidArgumentError) or "InvalidArgument" in repr(refusal.value)


def test_a_traced_roulette_is_refused_with_advice_that_helps(backend):
    g, x = chain(backend), array(backend, X)
    generators = []
    if backend.name == "jax":
        import jax

        generators.append(jax.random.key(0))

    def drawn(x, *generators):
        rng = generators[0] if generators else None
        return logdet(g, x, method="roulette", terms=2, rng=rng).value

    def given(x, probes):
        return logdet(g, x, method="roulette", terms=2, noise=(probes, [3, 0])).value

    expected = host(backend, given(x, array(backend, NOISE)))
    for compiler in compilers(backend):
        with pytest.raises(Exception, match=r"pass noise=\(probes, lengths\)") as refusal:
            compiled(backend, compiler, drawn)(x, *generators)
        assert "InvalidArgument" in repr(refusal.value)
        found = compiled(backend, compiler, given)(x, array(backend, NOISE))
        np.testing.assert_allclose(host(backend, found), expected, rtol=1e-9)


def test_other_values_do_not_compile_again(backend):
    g = chain(backend)

    def value(x, noise):
        return logdet(g, x, method="series", terms=3, noise=noise).value

    noise, inputs = array(backend, NOISE), [array(backend, scale * X) for scale in (1.0, 2.0, -0.5)]
    expected = [host(backend, value(x, noise)) for x in inputs]
    for compiler in compilers(backend):
        with compiled_once(backend, compiler, value) as program:
            found = [host(backend, program(x, noise)) for x in inputs]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_other_shapes_do_compile_again(backend):
    """Or the test above would see nothing."""

    def twice():
        with compiled_once(backend, compilers(backend)[0], lambda x: x + x) as program:
            program(array(backend, X))
            program(array(backend, X[:2, :3, None]))

    with pytest.raises(Exception, match=r"[Rr]ecompil|compiled 2 times"):
        twice()


@pytest.mark.parametrize("unbiased", [False, True])
def test_gradient_of_a_compiled_logdet(backend, unbiased):
    arguments = [array(backend, a) for a in (X, *WEIGHTS)]
    noise = (array(backend, NOISE), [2, 0]) if unbiased else array(backend, NOISE)
    options = {"method": "arnoldi", "terms": 6, "noise": noise, "unbiased": unbiased}

    def loss(x, *weights):
        return backend.xp.sum(logdet(chain_of(weights), x, **options).value)

    eager = gradients(backend, loss, arguments)
    for compiler in compilers(backend):
        found = gradients(backend, compiled(backend, compiler, loss), arguments)
        for gradient, expected in zip(found, eager, strict=True):
            np.testing.assert_allclose(gradient, expected, atol=2e-2 * (1e-2 + abs(expected).max()))


def test_gradient_of_a_compiled_inverse(backend):
    g = chain(backend)

    def loss(y):
        return backend.xp.sum(invert(g, y, rtol=1e-10).value)

    (eager,) = gradients(backend, loss, [array(backend, X)])
    for compiler in compilers(backend):
        (found,) = gradients(backend, compiled(backend, compiler, loss), [array(backend, X)])
        np.testing.assert_allclose(found, eager, atol=1e-8)


def test_convolutions(backend):
    layer = Convolution(array(backend, RNG.standard_normal((2, 2, 3, 3))), input_shape=(2, 4, 4), padding="same")
    g = normalize(Chain([layer, Activation("tanh")]), 0.7)
    x = array(backend, RNG.standard_normal((2, 2, 4, 4)))
    eager = logdet(g, x, method="series", terms=4, rng=0).value
    for compiler in compilers(backend):
        value = compiled(backend, compiler, lambda x: logdet(g, x, method="series", terms=4, rng=0).value)(x)
        np.testing.assert_allclose(host(backend, value), host(backend, eager), rtol=1e-9, atol=1e-12)


def test_default_compiler_of_the_backend(backend):
    g = chain(backend)
    x = array(backend, X)
    value = backend.jit(lambda x: g(x))(x)
    np.testing.assert_allclose(host(backend, value), host(backend, g(x)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("solver", ["picard", "anderson", "newton"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_inverses_in_few_dimensions(backend, d, solver):
    """Few steps are remembered there: of two, TensorFlow's graph optimizer once made a wrong program."""
    rng = np.random.default_rng(d)
    weights = [array(backend, rng.standard_normal(shape)) for shape in [(8, d), (8,), (d, 8), (d,)]]
    g = chain_of(weights)
    y = array(backend, rng.standard_normal((9, d)))
    expected = host(backend, invert(g, y, solver=solver).value)
    for compiler in compilers(backend):
        program = compiled(backend, compiler, lambda y: invert(g, y, solver=solver).value)
        np.testing.assert_allclose(host(backend, program(y)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["exact", "series", "arnoldi", "mean-jacobian"])
@pytest.mark.parametrize("d", [1, 2])
def test_log_determinants_in_few_dimensions(backend, d, method):
    rng = np.random.default_rng(d)
    g = chain_of([array(backend, rng.standard_normal(shape)) for shape in [(8, d), (8,), (d, 8), (d,)]])
    x, noise = array(backend, rng.standard_normal((5, d))), array(backend, np.ones((2, 5, d)))
    options = {} if method == "exact" else {"noise": noise, "terms": 1}

    def value(x):
        return logdet(g, x, method=method, **options).value

    expected = host(backend, value(x))
    for compiler in compilers(backend):
        np.testing.assert_allclose(host(backend, compiled(backend, compiler, value)(x)), expected, rtol=1e-9)
