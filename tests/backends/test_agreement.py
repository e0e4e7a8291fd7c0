"""Backends next to each other: the same noise gives the same answers, and arrays do not mix."""

import numpy as np
import pytest
from branches_for_tests import array, host
from frameworks_for_tests import DIFFERENTIATING, gradients

from iresnet_core import (
    Activation,
    Chain,
    Dense,
    Flow,
    ResidualBlock,
    invert,
    lipschitz_bound,
    load,
    logdet,
    normalize,
    save,
    spectral_norm,
)
from iresnet_core.backends import backend as find_backend
from iresnet_core.errors import MixedBackendsError

NUMPY = find_backend("numpy")
LIMITS = {"float64": 1e-10, "float32": 1e-4}
RNG = np.random.default_rng(11)
D = 40
WEIGHTS = [RNG.standard_normal(shape) for shape in [(48, D), (48,), (D, 48), (D,)]]
X = RNG.standard_normal((4, D))
NOISE = np.where(RNG.random((3, *X.shape)) < 0.5, -1.0, 1.0)
A = RNG.standard_normal((30, 20))


def chain(backend, dtype, coeff=0.8):
    W1, b1, W2, b2 = (array(backend, w, dtype) for w in WEIGHTS)
    return normalize(Chain([Dense(W1, b1), Activation("lipswish"), Dense(W2, b2)]), coeff)


def answers(backend, dtype):
    """Name -> (array, whether it counts something) for every primitive and method."""
    g, x, noise, matrix = chain(backend, dtype), *(array(backend, a, dtype) for a in (X, NOISE, A))
    found = {"chain": (g(x), False), "normalize": (g.operators[0].weight, False)}
    for method in ("power", "lanczos", "svd"):
        result = spectral_norm(matrix, method=method, rtol=1e-4)
        found[f"spectral_norm {method}"] = (result.value, False)
        found[f"spectral_norm {method}, steps"] = (result.iterations, True)
    for method in ("svd", "cholesky", "gram", "frobenius", "holder"):
        found[f"lipschitz_bound {method}"] = (lipschitz_bound(matrix, method=method).value, False)
    for solver in ("picard", "anderson"):
        result = invert(g, x, solver=solver, rtol=1e-5)
        found[f"invert {solver}"] = (result.value, False)
        found[f"invert {solver}, evaluations"] = (result.iterations, True)
    for method in ("exact", "series", "arnoldi", "roulette"):
        probes = None if method == "exact" else (noise, [2, 1, 0]) if method == "roulette" else noise
        result = logdet(g, x, method=method, noise=probes)
        found[f"logdet {method}"] = (result.value, False)
        found[f"logdet {method}, std_error"] = (result.std_error, False)
        found[f"logdet {method}, products"] = (result.products, True)
    return found


@pytest.mark.parametrize("dtype", LIMITS)
def test_the_same_noise_gives_the_same_answers(backend, dtype):
    expected = answers(NUMPY, dtype)
    for name, (value, counts) in answers(backend, dtype).items():
        reference, value = host(NUMPY, expected[name][0]), host(backend, value)
        if counts:
            if dtype == "float64":
                np.testing.assert_array_equal(value, reference, err_msg=name)
            continue
        scale = max(np.abs(reference).max(), 1e-3)
        assert np.abs(value - reference).max() <= LIMITS[dtype] * scale, name


@pytest.mark.needs("autodiff")
def test_gradients_agree_with_those_of_another_backend(backend):
    others = [name for name in DIFFERENTIATING if name != backend.name]
    found = derivative(backend)
    for name in others:
        pytest.importorskip(name, reason=f"{name} is not installed")
        for gradient, expected in zip(found, derivative(find_backend(name)), strict=True):
            assert np.abs(gradient - expected).max() <= LIMITS["float64"] * max(1.0, np.abs(expected).max())


@pytest.mark.needs("autodiff")
def test_gradients_in_single_precision_are_those_in_double(backend):
    found = derivative(backend, "float32")
    for gradient, expected in zip(found, derivative(backend), strict=True):
        assert np.abs(gradient - expected).max() <= LIMITS["float32"] * max(1.0, np.abs(expected).max())


def derivative(backend, dtype="float64"):
    noise = array(backend, NOISE, dtype)

    def loss(x, W1, b1, W2, b2):
        g = normalize(Chain([Dense(W1, b1), Activation("lipswish"), Dense(W2, b2)]), 0.8)
        y = invert(g, x, rtol=1e-13).value
        return backend.xp.sum(logdet(g, x, method="arnoldi", terms=5, noise=noise).value) + backend.xp.sum(y * y)

    return gradients(backend, loss, [array(backend, a, dtype) for a in (X, *WEIGHTS)])


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_an_int_seed_means_the_same_on_every_backend(backend, kind):
    like = array(backend, np.zeros(1))
    drawn = backend.to_numpy(backend.sample(kind, (5, 3), like, 7))
    np.testing.assert_array_equal(drawn, NUMPY.sample(kind, (5, 3), np.zeros(1), 7))


def test_a_flow_goes_from_backend_to_backend_through_a_file(backend, tmp_path):
    flow = Flow([ResidualBlock(chain(backend, "float64"))], event_shape=(D,))
    save(flow, tmp_path / "flow.safetensors")
    here = flow.log_prob(array(backend, X), method="exact")
    there = load(tmp_path / "flow.safetensors").log_prob(X, method="exact")
    np.testing.assert_allclose(host(backend, here.value), there.value, rtol=1e-12)
    save(load(tmp_path / "flow.safetensors"), tmp_path / "again.safetensors")
    back = load(tmp_path / "again.safetensors", backend=backend.name)
    np.testing.assert_array_equal(
        host(backend, back.log_prob(array(backend, X), method="exact").value), host(backend, here.value)
    )


def test_arrays_of_two_backends_do_not_mix(backend):
    if backend is NUMPY:
        pytest.skip("the other backend is NumPy")
    g, x = chain(backend, "float64"), array(backend, X)
    for call in (lambda: g(X), lambda: logdet(g, X), lambda: invert(g, X), lambda: logdet(g, x, noise=NOISE)):
        with pytest.raises(MixedBackendsError, match="numpy"):
            call()
