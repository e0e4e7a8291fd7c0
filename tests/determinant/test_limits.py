"""Every loop of the log-determinant ends at a limit that is known beforehand, and says what it left."""

import math

import numpy as np
import pytest
from branches_for_tests import array, dense_chain, host, linear_chain

from iresnet_core import Activation, Chain, Dense, logdet, normalize
from iresnet_core.determinant import estimator, krylov, roulette, series
from iresnet_core.determinant.quadrature import segment_rule
from iresnet_core.determinant.tails import series_tail
from iresnet_core.errors import NotConvergedError

NEAR_ONE = (0.999, 0.9999, 0.99999)


@pytest.mark.parametrize("c", NEAR_ONE)
@pytest.mark.parametrize("d", [2, 64])
def test_series_near_one_stops_at_its_limit(backend, d, c, monkeypatch):
    monkeypatch.setattr(series, "MOST_TERMS", 100)
    g = normalize(Chain([Dense(array(backend, -np.eye(d))), Activation("identity")]), c)
    result = logdet(g, array(backend, np.ones((2, d))), method="series", control_variate="none", rng=0)
    gap = np.abs(host(backend, result.value) - d * math.log1p(-c))
    bound = host(backend, result.bias_bound)
    assert int(host(backend, result.products).max()) == 100
    assert gap == pytest.approx(bound, rel=1e-3)  # the bound is met: this branch is the worst case
    assert (gap <= bound * (1 + 1e-6)).all()
    assert "the most that are taken" in result.reason


def test_roulette_near_one_stops_at_its_limit(backend, monkeypatch):
    monkeypatch.setattr(roulette, "MOST_PRODUCTS", 100)
    d, c = 3, 0.999
    g = normalize(Chain([Dense(array(backend, -np.eye(d))), Activation("identity")]), c)
    x = array(backend, np.ones((2, d)))
    result = logdet(g, x, method="roulette", control_variate="none", noise=(x[None, ...], [5000]))
    left = d * c**100 * series_tail(c, 100)
    assert int(host(backend, result.products).max()) == 100
    assert host(backend, result.bias_bound) == pytest.approx(left, rel=1e-6)


def test_roulette_ends_where_rounding_is_all_that_is_left(backend):
    g = linear_chain(backend, "rotation", 4, 0.5, 0)
    c = g.lipschitz
    x = array(backend, np.ones((2, 4)))
    found = [logdet(g, x, method="roulette", noise=(x[None, ...], [n])) for n in (100, 500)]
    assert int(host(backend, found[1].products).max()) < 80
    assert host(backend, found[0].value) == pytest.approx(host(backend, found[1].value), abs=1e-13)
    assert host(backend, found[1].bias_bound).max() < 1e-12
    assert c < 0.51


@pytest.mark.parametrize("method", ["arnoldi", "mean-jacobian"])
def test_arnoldi_stops_at_its_limit(backend, method, monkeypatch):
    monkeypatch.setattr(krylov, "MOST_PRODUCTS", 3)
    g = dense_chain(backend, 40, [40], 0.99, 0)
    x = array(backend, np.random.default_rng(0).standard_normal((2, 40)))
    probes = array(backend, np.random.default_rng(1).choice([-1.0, 1.0], (1, 2, 40)))
    result = logdet(g, x, method=method, noise=probes)
    at_most = logdet(g, x, method=method, noise=probes, terms=40)
    assert int(host(backend, result.products).max()) <= 3
    gap = np.abs(host(backend, result.value) - host(backend, at_most.value))
    assert (gap <= host(backend, result.bias_bound) + host(backend, at_most.bias_bound)).all()
    assert method == "mean-jacobian" or "not 0.001, after 3 products per probe" in result.reason


def test_no_more_than_64_products_near_one(backend):
    g = linear_chain(backend, "rotation", 200, 0.9999, 0)
    x = array(backend, np.random.default_rng(0).standard_normal((2, 200)))
    result = logdet(g, x, method="arnoldi", control_variate="none", rng=0)
    products = int(host(backend, result.products).max())
    assert products <= krylov.MOST_PRODUCTS
    assert products < krylov.MOST_PRODUCTS or "the most that are taken" in result.reason


def test_a_tolerance_that_no_product_meets(backend, monkeypatch):
    monkeypatch.setattr(krylov, "MOST_PRODUCTS", 3)
    g = dense_chain(backend, 40, [40], 0.99, 0)
    x = array(backend, np.random.default_rng(0).standard_normal((2, 40)))
    with pytest.raises(NotConvergedError, match="after 3 products per probe"):
        logdet(g, x, method="arnoldi", tol=1e-6, rng=0)
    monkeypatch.setattr(estimator, "MOST_PROBES", 8)
    with pytest.raises(NotConvergedError, match="would take"):
        logdet(g, x, method="series", tol=1e-6, rng=0)


def test_noise_is_not_brought_below_the_rounding(backend):
    g = dense_chain(backend, 40, [40], 0.5, 0, activation="tanh", dtype="float32")
    x = array(backend, np.random.default_rng(0).standard_normal((2, 40)), "float32")
    result = logdet(g, x, method="mean-jacobian", probe_kind="gaussian", tol=1e-7, rng=0)
    # Without that, some hundred million Gaussian probes would be wanted.
    assert "is above tol=1e-07" in result.reason
    assert host(backend, result.std_error).max() <= host(backend, result.bias_bound).max()


def test_nodes_of_many_point_rules():
    t, weight, error = segment_rule(0.9999)
    assert t.size > 1000
    assert error <= 1e-10
    for power in (0, 1, 7, 500):
        assert np.sum(weight * t**power) == pytest.approx(1 / (power + 1), rel=1e-13)


def test_tails_at_every_constant():
    for c in (0.3, 0.9, 0.9998, 0.9999, 0.9999999):
        for n in (0, 1, 100, 1023, 1024, 5000):
            assert series_tail(c, n) == pytest.approx(c * (1 / (n + 1) + series_tail(c, n + 1)), rel=1e-11)
        assert c * series_tail(c, 1) + c == pytest.approx(-math.log1p(-c), rel=1e-11)
