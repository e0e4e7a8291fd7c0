"""The exact trace takes the share of the linear term that leaves least noise, and no bias."""

import numpy as np
import pytest
from branches_for_tests import KINDS, array, dense_chain, host, linear_chain, matrix_of_kind
from frameworks_for_tests import gradients
from hypothesis import given
from hypothesis import strategies as st

from iresnet_core import Chain, Dense, example_data, logdet, reference
from iresnet_core.backends import backend as find_backend
from iresnet_core.determinant import forms
from iresnet_core.determinant.arnoldi import ARNOLDI
from iresnet_core.determinant.forms import JacobianProducts, Steps, linear_share
from iresnet_core.determinant.series import SERIES

# Variance against that of the whole linear term; most blocks of these flows have 0.3 to 0.5, that of c = 0.9 none less.
CASES = {"d64_c0.5": 0.75, "d64_c0.7": 0.4, "d64_c0.9": 1.1, "d64_c0.97": 0.4}
METHODS = {
    "series": {"method": "series"},
    "arnoldi": {"method": "arnoldi"},
    "roulette": {"method": "roulette"},
    "unbiased arnoldi": {"method": "arnoldi", "unbiased": True, "terms": 1},
    "unbiased series": {"method": "series", "unbiased": True, "terms": 1},
}


@given(trace=st.floats(-50, 50), d=st.integers(1, 100), c=st.floats(0, 0.999))
def test_it_is_tame(backend, trace, d, c):
    """Also for a trace that no contraction has."""
    share = host(backend, linear_share(backend.xp, array(backend, [trace]), d, c))[0]
    assert 1 / 1.6 <= share <= 2.5
    assert share <= 1 if trace >= 0 else share >= 1


@pytest.mark.parametrize("case", CASES)
def test_variance(backend, case):
    """Against the whole linear term, on trained branches: from the matrices, and by `logdet`."""
    g, x = example_data.load_case(case, backend=backend.name)
    x = x[:16, ...]
    J = reference.jacobian(g, x)
    d, trace = J.shape[-1], np.trace(J, axis1=1, axis2=2)
    L = reference.log_matrix(J)

    def variance(theta):
        S = L - theta[:, None, None] * J
        S = 0.5 * (S + np.swapaxes(S, 1, 2)) * (1 - np.eye(d))
        return 2 * np.sum(S * S, axis=(1, 2))

    share = host(backend, linear_share(backend.xp, array(backend, trace), d, g.lipschitz))
    np.testing.assert_allclose(share, 1 / (1 + 0.6 * trace / d), rtol=1e-12)
    ours, whole = variance(share), variance(np.ones_like(trace))
    assert ours.mean() <= CASES[case] * whole.mean()
    errors = []
    for call in range(40):
        noise = np.random.default_rng(call).choice([-1.0, 1.0], (1, *x.shape))
        result = logdet(g, x, method="arnoldi", terms=6, noise=array(backend, noise), errors=False)
        errors.append(host(backend, result.value) - reference.logdet(g, x))
    # 640 errors: the relative standard error of their variance is some 6 %.
    assert np.mean(np.square(errors)) == pytest.approx(ours.mean(), rel=0.25)


@pytest.mark.needs("autodiff")
@pytest.mark.parametrize("method", ["series", "arnoldi"])
def test_it_halves_the_variance_of_the_gradient(backend, method, monkeypatch):
    if backend.name != "torch":
        pytest.skip("hundreds of gradients; the same source on every backend")
    g, x = example_data.load_case("d64_c0.9", backend=backend.name)
    weights, x = [layer.weight for layer in g.layers if isinstance(layer, Dense)], x[:8, ...]

    def with_weights(*new):
        left = iter(new)
        return Chain([Dense(next(left), layer.bias) if isinstance(layer, Dense) else layer for layer in g.layers])

    def gradient(**options):
        def total(*new):
            return backend.xp.sum(logdet(with_weights(*new), x, lipschitz=g.lipschitz, **options).value)

        return np.concatenate([part.ravel() for part in gradients(backend, total, weights)])

    exact = gradient(method="exact")
    spread = {}
    for skew in (0.6, 0.0):
        monkeypatch.setattr(forms, "SKEW", skew)
        draws = [gradient(method=method, terms=8, rng=call) for call in range(12)]
        spread[skew] = np.mean([np.sum((draw - exact) ** 2) for draw in draws])
    assert spread[0.6] <= 0.65 * spread[0.0]


@pytest.mark.needs("autodiff")
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("method", ["series", "arnoldi"])
def test_all_hadamard_rows_have_the_exact_value_and_gradient(backend, method, sign):
    """Far from a mean eigenvalue of zero, where the share is not one; its own derivative is left out and sums to 0."""
    d = 4
    rng = np.random.default_rng(0)
    weight = array(backend, sign * 0.6 * np.eye(d) + 0.08 * rng.standard_normal((d, d)))
    x = array(backend, rng.standard_normal((2, d)))

    def value(weight, **options):
        return backend.xp.sum(logdet(Chain([Dense(weight)]), x, lipschitz=0.9, **options).value)

    options = {"method": method, "terms": 80 if method == "series" else d, "control_variate": "trace"}
    (exact,) = gradients(backend, lambda w: value(w, method="exact"), [weight])
    (found,) = gradients(backend, lambda w: value(w, probes=4, rng=0, **options), [weight])
    np.testing.assert_allclose(found, exact, atol=1e-9)
    (single,) = gradients(backend, lambda w: value(w, rng=0, **options), [weight])
    assert np.abs(single - exact).max() > 1e-3  # one probe alone has noise


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_it_leaves_no_bias(backend, method, sign):
    """Mean eigenvalues of -0.6 and 0.6, shares of 1.6 and 0.7: the mean over many probes, and its error bar."""
    if backend.name in ("tensorflow", "jax") and "unbiased" not in method:
        pytest.skip("thousands of probes; the same source on every backend")
    d, probes = 6, 2000
    rng = np.random.default_rng(1)
    A = sign * 0.6 * np.eye(d) + 0.3 * matrix_of_kind("gaussian", d, rng)
    g, x = Chain([Dense(array(backend, A))]), array(backend, np.zeros((2, d)))
    options = {"lipschitz": 0.9, "control_variate": "trace", "probe_kind": "gaussian", "rng": 3}
    result = logdet(g, x, probes=probes, **options, **METHODS[method])
    error, bar = host(backend, result.value) - reference.logdet(g, x), host(backend, result.std_error)
    bias = host(backend, result.bias_bound) if method in ("series", "arnoldi") else 1e-9
    assert np.all(np.abs(error) <= 4.5 * bar + bias)
    assert np.all(bar <= 0.2)


@pytest.mark.parametrize("method", [SERIES, ARNOLDI], ids=lambda method: method.name)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**16), share=st.sampled_from((None, 0.7, 1.0, 1.6)))
def test_what_the_error_bar_is_made_of(backend, method, kind, seed, share):
    """Value, ||L v||^2, v^T L^2 v and the vector of the derivative, for L = log(I + J) - theta J."""
    d = 5
    g, x = linear_chain(backend, kind, d, 0.4, seed), array(backend, np.zeros((2, d)))
    v = np.random.default_rng(seed).standard_normal((2, 2, d))
    theta = None if share is None else np.array([share, 0.9 * share])
    J = reference.jacobian(g, x)
    L = reference.log_matrix(J) - (0 if theta is None else theta[:, None, None] * J)
    w = np.linalg.solve(np.eye(d) + np.swapaxes(J, 1, 2), np.swapaxes(v, 0, 1)[..., None].reshape(2, 2, d, 1))
    w = np.swapaxes(w[..., 0], 0, 1) - (0 if theta is None else theta[:, None] * v)
    with backend.full_precision():
        products = JacobianProducts(backend, g.linearize(x), (d,), g.lipschitz, needs_gradient=True)
        linear = None if theta is None else array(backend, theta)
        found = method.form(products, array(backend, v), linear, Steps(d if method is ARNOLDI else 40))
    expected = {
        "value": np.einsum("pbi,bij,pbj->pb", v, L, v),
        "squared_image": np.sum(np.einsum("pbi,bij->pbj", v, L) ** 2, axis=-1),
        "squared_form": np.einsum("pbi,bij,bjk,pbk->pb", v, L, L, v),
        "resolvent": w,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(host(backend, getattr(found, name)), value, atol=1e-9, err_msg=name)
    if method is SERIES and share is not None:  # too few moments: ||L v||^2 stands for v^T L^2 v
        short = method.form(products, array(backend, v), linear, Steps(3))
        np.testing.assert_allclose(host(backend, short.squared_form), host(backend, short.squared_image))


def test_single_precision(backend):
    """The share is computed in the dtype of the samples; what that changes is far below their rounding."""
    g = dense_chain(backend, 12, [10], 0.9, 0, dtype="float32")
    x = array(backend, np.random.default_rng(0).standard_normal((3, 12)), "float32")
    noise = array(backend, np.random.default_rng(1).choice([-1.0, 1.0], (2, 3, 12)), "float32")
    options = {"noise": noise, "terms": 6, "control_variate": "trace"}
    first, second = (host(backend, logdet(g, x, method=m, **options).value) for m in ("arnoldi", "series"))
    there = dense_chain(find_backend("numpy"), 12, [10], 0.9, 0)
    v = host(backend, noise)
    expected = logdet(there, host(backend, x), noise=v, method="arnoldi", terms=12, control_variate="trace").value
    np.testing.assert_allclose(first, expected, atol=1e-3)
    np.testing.assert_allclose(second, expected, atol=5e-2)
