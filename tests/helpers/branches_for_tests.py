"""Branches with every kind of Jacobian, built from a seed, and backends' arrays out of NumPy's."""

import itertools

import numpy as np

from iresnet_core import Activation, Chain, Dense, normalize
from iresnet_core.backends import backend as find_backend

__all__ = ["KINDS", "HomeMadeOperator", "array", "dense_chain", "host", "linear_chain", "matrix_of_kind", "of_another"]

KINDS = ("gaussian", "orthogonal", "symmetric", "nilpotent", "defective", "rank_one", "rotation", "diagonal", "zero")


def array(backend, x, dtype="float64"):
    """An array of the backend."""
    return backend.from_numpy(np.asarray(x).astype(dtype))


def host(backend, x):
    """A float64 NumPy copy."""
    return np.asarray(backend.to_numpy(x), dtype=np.float64)


def of_another(backend, x):
    """An array of another framework than the backend's."""
    return array(find_backend("array_api_strict" if backend.name == "numpy" else "numpy"), x)


class HomeMadeOperator:
    """The least an operator needs: a shape and two products of single vectors, here of a backend's arrays."""

    def __init__(self, backend, A):
        self.backend, self.A, self.shape = backend, backend.from_numpy(A), A.shape

    def matvec(self, v):
        return self.backend.xp.matmul(self.A, v)

    def rmatvec(self, u):
        return self.backend.xp.matmul(self.backend.xp.matrix_transpose(self.A), u)


def matrix_of_kind(kind, n, rng):
    """A matrix of spectral norm 1 (0 for "zero")."""
    A = rng.standard_normal((n, n))
    if kind == "orthogonal":
        A = np.linalg.qr(A)[0]
    elif kind == "symmetric":
        A = A + A.T
    elif kind == "nilpotent":
        A = np.diag(np.ones(n - 1), 1) if n > 1 else np.zeros((1, 1))
    elif kind == "defective":
        A = 0.5 * np.eye(n) + np.diag(np.ones(n - 1), 1)
    elif kind == "rank_one":
        A = np.outer(A[0], A[:, -1])
    elif kind == "rotation":
        A = -np.eye(n)
        for i in range(0, n - 1, 2):
            A[i : i + 2, i : i + 2] = [[0, 1], [-1, 0]]
    elif kind == "diagonal":
        A = np.diag(np.logspace(0, -12, n) * rng.choice([-1.0, 1.0], n))
    elif kind == "zero":
        A = np.zeros((n, n))
    norm = np.linalg.norm(A, 2)
    return A / norm if norm > 0 else A


def linear_chain(backend, kind, n, coeff, seed, dtype="float64"):
    """The branch x -> c A x."""
    A = matrix_of_kind(kind, n, np.random.default_rng(seed))
    return normalize(Chain([Dense(array(backend, A, dtype))]), coeff)


def dense_chain(backend, d, widths, coeff, seed, activation="lipswish", dtype="float64", orthogonal=False, bias=1.0):
    """A chain of dense layers with one activation between them, its constant capped at `coeff`."""
    rng = np.random.default_rng(seed)
    sizes = [d, *widths, d]
    layers = []
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        W = rng.standard_normal((m, n))
        if orthogonal:
            U, _, Vt = np.linalg.svd(W, full_matrices=False)
            W = U @ Vt
        if i:
            layers.append(Activation(activation))
        layers.append(Dense(array(backend, W, dtype), array(backend, bias * rng.standard_normal(m), dtype)))
    return normalize(Chain(layers), coeff)
