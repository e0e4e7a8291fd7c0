"""Closed forms for one or two columns: those of matrix functions, and bounds of their integrals."""

import numpy as np
from branches_for_tests import array, host
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import logm

from iresnet_core.determinant.hessenberg import SmallResolvent
from iresnet_core.determinant.quadrature import contraction_rule

ENTRY = st.one_of(st.floats(-3.0, 3.0), st.sampled_from((0.0, 1e-9, -1e-9, 1e-160)))


def resolvent(backend, columns, c=0.9):
    """The integrals for one matrix, entries as (1, 1) arrays."""
    like = array(backend, np.ones(1))
    integral = SmallResolvent(backend, contraction_rule(backend, like, c), 2.0**-52)
    for column in columns:
        integral.append([array(backend, [[entry]]) for entry in column])
    return integral


@given(a=ENTRY, b=ENTRY, c=ENTRY.map(abs), d=ENTRY, last=ENTRY.map(abs), two=st.booleans())
def test_closed_forms(backend, a, b, c, d, last, two):
    H = np.array([[a, b], [c, d]]) if two else np.array([[a]])
    columns = [[a, c], [b, d, last]] if two else [[a, c]]
    t = np.linspace(0, 1, 2001)
    y = np.stack([np.ones_like(t)] if not two else [1 + t * d, -t * c]) / np.linalg.det(
        np.eye(len(H)) + t[:, None, None] * H
    )
    with backend.full_precision():
        integral = resolvent(backend, columns)
        certificate = float(host(backend, integral.certificate())[0, 0])
        positive = np.min(np.linalg.det(np.eye(len(H)) + t[:, None, None] * H)) > 1e-3
        if not positive:
            return
        value = float(host(backend, integral.logarithm())[0, 0])
        _, _, size = integral.mean_resolvent()
    expected = logm(np.eye(len(H)) + H)[0, 0]
    np.testing.assert_allclose(value, expected.real, atol=1e-7 * (1 + abs(expected)))
    weight = 1 / (1 - 0.9 * t)
    crossing = 0.9 * t / (1 - (0.9 * t) ** 2)
    below = columns[-1][-1]
    assert certificate >= below * np.mean(np.abs(y[-1]) * crossing) * (1 - 2e-3)
    norm = float(host(backend, size)[0, 0])
    assert norm >= np.mean(np.linalg.norm(y, axis=0) * weight) * (1 - 2e-3)


def test_nothing_is_certified_without_a_principal_logarithm(backend):
    for columns in ([[-1.5, 0.1]], [[-1.5, 0.1], [0.0, 0.0, 0.1]], [[-1.0, 1.0], [-0.001, -1.5, 0.1]]):
        with backend.full_precision():
            assert host(backend, resolvent(backend, columns).certificate())[0, 0] > 1e10
