"""A constant that is declared below the product of the layers' norms: rounding grows by that product."""

import numpy as np
import pytest
from branches_for_tests import array, host

from iresnet_core import Activation, Chain, Dense, logdet

D, NARROW, C = 8, 4, 0.9


def unbalanced(backend, condition, seed, dtype="float64"):
    """A chain of norm below 0.9, whose first layer expands by what its second contracts, and its Jacobian."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((D, D)))[0][:, :NARROW] for _ in range(2))
    R, P = (np.linalg.qr(rng.standard_normal((NARROW, NARROW)))[0] for _ in range(2))
    s = np.logspace(0, np.log10(condition), NARROW)
    first, second = P @ np.diag(s) @ R @ U.T, 0.89 * V @ R.T @ np.diag(1 / s) @ P.T
    first, second = (a.astype(dtype) for a in (first, second))
    chain = Chain([Dense(array(backend, a, dtype)) for a in (first, second)])
    return chain, (second.astype(np.longdouble) @ first.astype(np.longdouble)).astype(np.float64)


@pytest.mark.parametrize("method", ["exact", "arnoldi", "mean-jacobian", "series"])
@pytest.mark.parametrize("condition", [3, 1e2, 1e4, 1e8, 1e10])
def test_errors_count_what_rounding_grows_by(backend, method, condition):
    for seed in range(4):
        g, J = unbalanced(backend, condition, seed)
        x = array(backend, np.random.default_rng(seed).standard_normal((1, D)))
        exact = np.linalg.slogdet(np.eye(D) + J)[1]
        # Eight probes are a full set of Hadamard rows, and have no noise.
        result = logdet(g, x, method=method, lipschitz=C, probes=D, rng=0)
        gap = abs(float(host(backend, result.value)[0]) - exact)
        assert gap <= float(host(backend, result.bias_bound)[0]) + 1e-13
        assert float(host(backend, result.std_error)[0]) == 0.0


def test_a_narrow_layer_is_cut_where_the_layers_are_balanced(backend):
    x = array(backend, np.ones((1, D)))
    for condition, order in ((3, NARROW), (1e4, D)):
        g, _ = unbalanced(backend, condition, 0)
        result = logdet(g, x, method="exact", lipschitz=C)
        assert int(host(backend, result.products)[0]) == order
    balanced = Chain([Dense(array(backend, 0.5 * np.eye(D)[:2])), Activation("tanh")])
    balanced = Chain([balanced, Dense(array(backend, np.eye(D)[:, :2]))])
    for lipschitz in (None, 0.5):
        result = logdet(balanced, x, method="exact", lipschitz=lipschitz)
        assert int(host(backend, result.products)[0]) == 2
