"""Log-determinants without errors, as training takes them: true in the mean, with less noise, refused when wrong."""

import numpy as np
import pytest
from branches_for_tests import array, host
from frameworks_for_tests import directional_derivatives, gradients

from iresnet_core import Activation, Chain, Dense, LogDet, logdet, mean_jacobian, normalize
from iresnet_core.errors import DerivativeError, InvalidArgumentError, NonFiniteError, NotContractiveError
from iresnet_core.example_data import load_case

RNG = np.random.default_rng(3)
D = 5
WEIGHTS = [RNG.standard_normal(shape) for shape in [(7, D), (7,), (6, 7), (6,), (D, 6), (D,)]]
X = RNG.standard_normal((4, D))
WEIGHT_OF_SAMPLES = np.array([0.0, 2.0, -1.0, 0.5])


def chain(weights, coeff=0.5):
    W1, b1, W2, b2, W3, b3 = weights
    layers = [Dense(W1, b1), Activation("tanh"), Dense(W2, b2), Activation("lipswish"), Dense(W3, b3)]
    return normalize(Chain([*layers, Activation("elu")]), coeff)


def exact(x, *weights):
    return float(np.sum(logdet(chain(weights), x, method="exact").value * WEIGHT_OF_SAMPLES))


def test_all_hadamard_rows_and_many_products_give_the_exact_value(backend):
    g, x = chain([array(backend, w) for w in WEIGHTS]), array(backend, X)
    found = logdet(g, x, method="mean-jacobian", errors=False, probes=8, rng=0, terms=16)
    assert isinstance(found, LogDet)
    assert np.isnan(host(backend, found.std_error)).all()
    assert np.isnan(host(backend, found.bias_bound)).all()
    np.testing.assert_allclose(host(backend, found.value), host(backend, logdet(g, x, method="exact").value), atol=1e-7)


@pytest.mark.needs("autodiff")
@pytest.mark.parametrize("reference", [False, True])
def test_all_hadamard_rows_and_many_products_give_the_exact_gradient(backend, reference):
    """With weights of the samples, with respect to samples, weights and biases; for any preconditioner."""
    before = mean_jacobian(chain([0.3 * w for w in WEIGHTS]), X + 1) if reference else None
    if before is not None:
        before = before._replace(inverse=array(backend, before.inverse))
        before = before._replace(log_determinant=array(backend, np.asarray(before.log_determinant)))
    options = {"method": "mean-jacobian", "errors": False, "probes": 8, "rng": 0, "terms": 16, "reference": before}

    def loss(x, *weights):
        value = logdet(chain(weights), x, **options).value
        return backend.xp.sum(value * array(backend, WEIGHT_OF_SAMPLES))

    arguments = [X, *WEIGHTS]
    found = gradients(backend, loss, [array(backend, a) for a in arguments])
    for gradient, (direction, slope) in zip(found, directional_derivatives(exact, arguments), strict=True):
        assert abs(np.sum(gradient * direction) - slope) <= 1e-5 * (1 + abs(slope) + np.linalg.norm(gradient))


def test_a_second_derivative_of_the_surrogate_is_refused(backend):
    if backend.name != "torch":
        pytest.skip("one backend is enough")
    import torch

    x = array(backend, X).requires_grad_()
    value = logdet(chain([array(backend, w) for w in WEIGHTS]), x, method="mean-jacobian", errors=False, rng=0).value
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    with pytest.raises(DerivativeError):
        torch.autograd.grad(gradient.sum(), x)


@pytest.mark.parametrize("case", ["d64_c0.5", "d64_c0.9", "d64_c0.97"])
def test_one_product_is_enough_on_trained_branches(case):
    """The bias is a small part of the noise of a probe, and the noise a small part of that of Arnoldi's method."""
    g, x = load_case(case)
    truth = logdet(g, x, method="exact").value
    whole = logdet(g, x, errors=False, method="mean-jacobian", probes=64, rng=0).value  # no noise of the probes
    bias = np.abs(whole - truth).max()
    deviations = [logdet(g, x, errors=False, rng=seed).value - truth for seed in range(20)]
    options = {"errors": False, "method": "arnoldi", "control_variate": "none"}
    plain = [logdet(g, x, rng=seed, **options).value - truth for seed in range(20)]
    assert logdet(g, x, errors=False, rng=0).method == "mean-jacobian"
    assert bias < 0.2 * np.std(deviations)
    assert np.std(deviations) < 0.2 * np.std(plain)


def test_answers_to_given_probes_are_those_of_the_sample_alone(backend):
    g, x = load_case("d64_c0.9", backend=backend.name)
    noise = array(backend, np.sign(RNG.standard_normal(tuple(x.shape))))
    together = logdet(g, x, noise=noise, errors=False)
    alone = logdet(g, x[:1, ...], noise=noise[:1, ...], errors=False)
    assert together.method == "arnoldi"
    np.testing.assert_allclose(host(backend, together.value)[:1], host(backend, alone.value), rtol=1e-12)
    own = logdet(g, x, noise=noise, errors=False, method="mean-jacobian").value
    stacked = logdet(g, x, noise=noise[None, ...], errors=False, method="mean-jacobian").value
    np.testing.assert_allclose(host(backend, own), host(backend, stacked))


def test_what_is_refused(backend):
    weights = [array(backend, w) for w in WEIGHTS]
    x = array(backend, X)
    options = {"method": "mean-jacobian", "errors": False, "rng": 0}
    with pytest.raises(NotContractiveError, match="expanded"):
        logdet(chain(weights), x, lipschitz=0.01, **options)
    with pytest.raises(InvalidArgumentError, match="control variate"):
        logdet(chain(weights), x, control_variate="none", **options)
    with pytest.raises(NonFiniteError):
        logdet(chain(weights), x * float("nan"), **options)
    maxmin = Chain([Dense(0.1 * np.ones((4, 4))), Activation("maxmin")])
    with pytest.raises(DerivativeError, match="mean slopes"):
        logdet(maxmin, np.ones((2, 4)), **options)
