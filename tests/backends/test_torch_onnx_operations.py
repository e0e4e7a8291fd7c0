"""PyTorch: what stands in ONNX programs for operators that ONNX lacks."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from iresnet_core.backends import backend  # noqa: E402
from iresnet_core.backends.torch.elimination import (  # noqa: E402
    calculated_bits,
    eigenvalues_and_vectors,
    eliminated,
    log_determinant,
    summed_words,
)

ORDERS = (1, 2, 5, 8, 9, 40)  # beyond 8 the steps are a loop


def matrices(n, seed=0):
    """One of them a permutation, which needs other pivots than those on the diagonal."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(4, n, n, generator=generator, dtype=torch.float64)
    found[0] = torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=generator)]
    return found


@pytest.mark.parametrize("n", ORDERS)
def test_systems_and_determinants(n):
    A, right = matrices(n), matrices(n, seed=1)[..., :1]
    torch.testing.assert_close(eliminated(A, right), torch.linalg.solve(A, right), rtol=1e-9, atol=1e-9)
    sign, size = log_determinant(A)
    expected = torch.linalg.slogdet(A)
    torch.testing.assert_close(sign, expected[0])
    torch.testing.assert_close(size, expected[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", [2, 3, 5, 16])
def test_eigenvalues_of_symmetric_matrices(n):
    A = matrices(n)
    A = A + A.mT
    A[1], A[2], A[3] = 0.0, 1.0, torch.diag(torch.arange(n, dtype=torch.float64))
    values, vectors = eigenvalues_and_vectors(A)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(A), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, A, rtol=1e-12, atol=1e-12)
    identity = torch.eye(n, dtype=torch.float64).expand_as(A)
    torch.testing.assert_close(vectors.mT @ vectors, identity, rtol=1e-12, atol=1e-12)


def test_bits_of_numbers():
    """All exponents, the neighbours of the powers of two, subnormal numbers, and both zeros."""
    words = torch.randint(-(2**31), 2**31, (100_000,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    powers = torch.pow(2.0, torch.arange(-149, 128))
    x = torch.cat([words.view(torch.float32), powers, torch.nextafter(powers, torch.tensor(0.0)), torch.tensor([-0.0])])
    x = x[torch.isfinite(x)]
    assert torch.equal(calculated_bits(x), x.view(torch.int32))


def test_sums_of_words_go_round():
    words = torch.randint(-(2**31), 2**31, (50, 1000), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    with np.errstate(over="ignore"):
        expected = words.numpy().sum(axis=1, dtype=np.int32)
    np.testing.assert_array_equal(summed_words(words, 1).numpy(), expected)


@pytest.mark.parametrize(("columns", "k"), [(None, 0), (5, 0), (3, 1), (4, -2)])
def test_ones_on_a_diagonal(columns, k):
    found = backend("torch").xp.eye(4, columns, k=k, dtype=torch.float64)
    np.testing.assert_array_equal(found.numpy(), np.eye(4, columns, k=k))
