"""Branches that are no chain: what they may return, and what is refused."""

import numpy as np
import pytest

from iresnet_core.branches.chain import Branch
from iresnet_core.branches.linearization import Linearization, evaluate, linearize, stated_lipschitz
from iresnet_core.errors import (
    DerivativeError,
    DtypeError,
    InvalidArgumentError,
    NonFiniteError,
    ShapeError,
    UnknownLipschitzError,
)


class HomeMade:
    """The branch x -> x / 2, with whatever derivative is asked for."""

    lipschitz = 0.5

    def __init__(self, answer=None):
        self.answer = answer

    def __call__(self, x):
        return x / 2

    def linearize(self, x):
        return Linearization(value=x / 2, vjp=lambda u: u / 2) if self.answer is None else self.answer


def test_home_made_branch(backend):
    x = backend.from_numpy(np.array([[2.0, 4.0], [6.0, 8.0]]))
    branch = HomeMade()
    assert isinstance(branch, Branch)
    at = linearize(backend, branch, x)
    u = backend.xp.stack([x, 3 * x])
    assert not at.leading_axes
    np.testing.assert_array_equal(backend.to_numpy(at.transposed_products(u)), backend.to_numpy(u) / 2)
    assert stated_lipschitz(branch, None) == (0.5, "HomeMade.lipschitz")
    assert stated_lipschitz(branch, 0.7) == (0.7, "the argument lipschitz")


def test_branch_without_a_constant():
    with pytest.raises(UnknownLipschitzError, match=r"sin is unknown.*Pass lipschitz="):
        stated_lipschitz(np.sin, None)


def test_plain_function_needs_automatic_differentiation(backend):
    if backend.differentiates:
        pytest.skip(f"{backend.name} differentiates plain functions")
    with pytest.raises(DerivativeError, match=f"{backend.name} has no automatic differentiation"):
        linearize(backend, lambda x: x / 2, backend.from_numpy(np.ones((1, 2))))


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (3.0, DerivativeError, r"HomeMade\.linearize\(x\) must return a Linearization, got float"),
        (Linearization(value=np.ones((1, 3)), vjp=None), ShapeError, r"HomeMade returned \(1, 3\) for \(1, 2\)"),
        (Linearization(value=np.ones((1, 2), np.float32), vjp=None), DtypeError, "HomeMade.*float32"),
        (Linearization(value=np.array([[np.nan, 1]]), vjp=None), NonFiniteError, "output of HomeMade.*NaN"),
    ],
)
def test_bad_linearizations(backend, answer, error, message):
    if isinstance(answer, Linearization):
        answer = Linearization(value=backend.from_numpy(answer.value), vjp=None)
    with pytest.raises(error, match=message):
        linearize(backend, HomeMade(answer), backend.from_numpy(np.ones((1, 2))))


@pytest.mark.parametrize(
    ("g", "error"),
    [
        (lambda xp, x: x[:, :1], ShapeError),
        (lambda xp, x: xp.astype(x, xp.float32), DtypeError),
        (lambda xp, x: xp.astype(x, xp.complex128), DtypeError),
    ],
    ids=["shape", "dtype", "complex"],
)
def test_what_a_branch_returns_has_to_fit(backend, g, error):
    with pytest.raises(error):
        evaluate(backend, lambda x: g(backend.xp, x), backend.from_numpy(np.ones((1, 2))))


def test_a_branch_is_callable(backend):
    with pytest.raises(InvalidArgumentError, match="must be callable, got int"):
        linearize(backend, 3, backend.from_numpy(np.ones((1, 2))))
