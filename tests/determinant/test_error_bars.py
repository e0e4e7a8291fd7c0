"""Two standard errors cover what they should: one dominating direction, few dimensions, flat spectra, images."""

import numpy as np
import pytest
from branches_for_tests import array, host

from iresnet_core import Activation, Chain, Dense, logdet, normalize

DRAWS = 2000


def jacobian(kind, d):
    """A matrix of norm 0.9."""
    rng = np.random.default_rng(d)
    q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    if kind == "rank one":
        return -0.9 * np.outer(q[0], q[0])
    if kind == "one dominates":
        return q.T @ np.diag([-0.9, *[0.05] * (d - 1)]) @ q
    if kind == "orthogonal":
        return 0.9 * q
    A = rng.standard_normal((d, d))
    return 0.9 * A / np.linalg.norm(A, 2)


def draws(backend, J, **options):
    """Errors less bias bounds, errors, and standard errors of independent draws."""
    d = J.shape[0]
    g = Chain([Dense(array(backend, J))])
    x = array(backend, np.zeros((DRAWS, d)))
    result = logdet(g, x, lipschitz=0.95, rng=3, control_variate="none", **options)
    error = host(backend, result.value) - np.linalg.slogdet(np.eye(d) + J)[1]
    return np.abs(error) - host(backend, result.bias_bound), error, host(backend, result.std_error)


@pytest.mark.parametrize("method", ["arnoldi", "series"])
@pytest.mark.parametrize("probes", [1, 2, 8])
@pytest.mark.parametrize("kind", ["rank one", "one dominates"])
def test_a_dominating_direction_is_not_missed(backend, kind, probes, method):
    left, error, std = draws(backend, jacobian(kind, 64), method=method, probes=probes)
    assert np.mean(left <= 2 * std) >= 0.93
    assert np.sqrt(np.mean(std**2)) <= 1.5 * np.sqrt(np.mean(error**2))
    assert abs(np.mean(error)) <= 5 * np.std(error) / np.sqrt(DRAWS)


@pytest.mark.parametrize("probe_kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("kind", ["orthogonal", "random", "one dominates"])
@pytest.mark.parametrize("d", [5, 6, 8])
def test_few_dimensions(backend, d, kind, probe_kind):
    left, _, std = draws(backend, jacobian(kind, d), method="arnoldi", probe_kind=probe_kind)
    assert np.mean(left <= 2 * std) >= 0.93


@pytest.mark.parametrize("probes", [1, 2])
@pytest.mark.parametrize("kind", [pytest.param("orthogonal", marks=pytest.mark.strict_suite), "random"])
def test_flat_spectra(backend, kind, probes):
    left, _, std = draws(backend, jacobian(kind, 64), method="arnoldi", probes=probes)
    assert 0.93 <= np.mean(left <= 2 * std) <= 0.97


@pytest.mark.parametrize("kind", ["minus one", "orthogonal"])
@pytest.mark.parametrize("c", [0.9, 0.99])
def test_a_linear_branch_is_its_own_mean_jacobian(backend, c, kind):
    d = 40
    J = -np.eye(d) if kind == "minus one" else jacobian(kind, d)
    g = normalize(Chain([Dense(array(backend, J)), Activation("identity")]), c)
    x = array(backend, np.random.default_rng(0).standard_normal((4, d)))
    result, exact = logdet(g, x, method="mean-jacobian", rng=0), logdet(g, x, method="exact")
    error = np.abs(host(backend, result.value) - host(backend, exact.value))
    std = host(backend, result.std_error)
    assert std.max() <= (1e-5 if c == 0.9 else 1e-3)
    assert (error <= 5 * std + host(backend, result.bias_bound)).all()
    within = logdet(g, x, method="mean-jacobian", tol=1e-3, rng=0)
    assert int(host(backend, within.products).max()) <= 8 * 2
