"""What is stated of an operator of one's own: refuted where it is wrong, refused where it makes no sense."""

import numpy as np
import pytest
import scipy.sparse

from iresnet_core import as_operator, invert, logdet
from iresnet_core.errors import InvalidArgumentError, NotContractiveError


def laplacian(d):
    return scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(d, d)).tocsr()


def by_products(A):
    return as_operator((lambda v: A @ v, lambda u: A.T @ u), shape=A.shape)


HIDDEN = scipy.sparse.block_diag([np.array([[3.0, 6.0], [6.0, 3.0]]), 4.0 * laplacian(1500)]).tocsr()  # -3 is in it
FEW = -3.0 * scipy.sparse.eye_array(4)  # an even number of eigenvalues below -1


@pytest.mark.parametrize("A", [FEW.tocsr(), -12.5 * laplacian(301), -12.5 * laplacian(5001), HIDDEN])
@pytest.mark.parametrize(
    "stated",
    [{"spectrum": (0, None)}, {"spectrum": (0, 70)}, {"half_plane": 0.0}, {"disc": (30, 30)}, {"lipschitz": 0.9}],
    ids=lambda stated: next(iter(stated)),
)
def test_a_wrong_statement_of_a_sparse_matrix_is_refuted(A, stated):
    with pytest.raises(NotContractiveError):
        logdet(A, rng=0, **stated)


@pytest.mark.parametrize("low", [-0.9, 0.0, 2.0])
def test_a_statement_that_holds_with_equality_is_not_refuted(low):
    """Periodic differences have the eigenvalue 0, in every dtype and at every scale."""
    d = 300
    for scale in (1e-3, 1.0, 1e4):
        A = laplacian(d).tolil()
        A[0, -1] = A[-1, 0] = -1
        K = scipy.sparse.diags_array([-1.0, 1.0], offsets=[-1, 1], shape=(d, d))
        A = (scale * A + low * scipy.sparse.eye_array(d)).tocsr()
        for dtype in ("float64", "float32"):
            for matrix, stated in (
                (A, {"spectrum": (low, None)}),
                (A, {"half_plane": low}),
                (A + K, {"half_plane": low}),
                (A, {"disc": (low + 2 * scale, 2 * scale)}),
            ):
                result = logdet(matrix.astype(dtype), **stated)
                truth = np.linalg.slogdet(np.eye(d) + matrix.astype(dtype).toarray().astype(float))[1]
                assert "sparse factors" in result.reason
                assert abs(float(result.value) - truth) <= float(result.bias_bound) + 1e-9


@pytest.mark.parametrize("stated", ["half_plane", "spectrum", "disc"])
def test_products_refute_a_wrong_statement_by_its_name(stated):
    A = -2.5 * scipy.sparse.eye_array(2001).tocsr()
    known = {"half_plane": 0.0, "spectrum": (0, None), "disc": (5, 5)}[stated]
    with pytest.raises(NotContractiveError, match=f"^{stated}= is wrong.*-2.5"):
        logdet(by_products(A), rng=0, **{stated: known})
    if stated != "half_plane":
        with pytest.raises(NotContractiveError, match=f"{stated}= is wrong"):
            invert(by_products(A), np.ones(2001), **{stated: known})


def test_lanczos_names_what_was_stated():
    A = scipy.sparse.diags_array(np.linspace(0, 50, 2000)).tocsr()
    with pytest.raises(NotContractiveError, match=r"^spectrum= is wrong.*outside of the interval"):
        logdet(by_products(A), spectrum=(0, 20), rng=0)


def test_norms_that_drown_the_identity():
    A = 1e8 * scipy.sparse.csr_array([[0.0, 1.0], [-1.0, 0.0]])
    result = logdet(A)
    assert abs(float(result.value) - np.log1p(1e16)) <= float(result.bias_bound) < 1e-6
    for operator in (A, 1e200 * A, by_products(A)):
        with pytest.raises(NotContractiveError, match="too large beside"):
            logdet(operator, half_plane=0.0, exact_up_to=0, rng=0)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"spectrum": (5, 0)}, "low <= high"),
        ({"spectrum": (0, np.inf)}, "finite"),
        ({"spectrum": 3}, "pair"),
        ({"disc": (3, -1)}, "not negative"),
        ({"lipschitz": -0.5}, "not negative"),
        ({"half_plane": "0+"}, "numbers"),
        ({"spectrum": (0, 1), "disc": (0, 1)}, "one of"),
        ({"spectrum": (0, 5)}, "transpose|symmetric"),
    ],
)
def test_what_makes_no_sense_is_refused_on_every_path(stated, message):
    A = 0.1 * np.random.default_rng(0).standard_normal((6, 6))
    for operator in (A, scipy.sparse.csr_array(A), by_products(A)):
        for options in ({}, {"exact_up_to": 0}):
            with pytest.raises(InvalidArgumentError, match=message):
                logdet(operator, **stated, **options)


@pytest.mark.filterwarnings("error")
def test_a_bound_that_overflows_is_infinite():
    A = np.diag(np.full(30, -1 + 1e-10)) + np.diag(np.full(29, 100.0), 1)
    result = logdet(A)
    assert float(result.bias_bound) == np.inf
    assert abs(float(result.value) - 30 * np.log(1e-10)) < 1e-3
