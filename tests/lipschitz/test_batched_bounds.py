"""Bounds of many layers at once: they hold, are tight, come in order, and are those of each layer alone."""

import numpy as np
import pytest
from branches_for_tests import array, host, matrix_of_kind
from hypothesis import given
from hypothesis import strategies as st
from strategies import sides

from iresnet_core import Convolution, Dense, lipschitz_bounds, reference
from iresnet_core.errors import MixedBackendsError, NonFiniteError
from iresnet_core.lipschitz import batched_bounds

KINDS = ("gaussian", "orthogonal", "nilpotent", "rank_one", "diagonal", "zero")


@given(
    shapes=st.lists(st.tuples(sides(40), sides(40), st.sampled_from(KINDS)), max_size=7),
    scale=st.sampled_from((1.0, 1e-150, 1e150)),
    seed=st.integers(0, 2**16),
)
def test_bounds_hold_and_are_tight(backend, shapes, scale, seed):
    rng = np.random.default_rng(seed)
    matrices = [scale * matrix_of_kind(kind, max(m, n), rng)[:m, :n] for m, n, kind in shapes]
    bounds = lipschitz_bounds([array(backend, A) for A in matrices])
    assert len(bounds) == len(matrices)
    for A, bound in zip(matrices, bounds, strict=True):
        exact, value = np.linalg.norm(A, 2), float(bound.value)
        assert exact * (1 - 1e-12) <= value <= 1.0051 * exact + 1e-12 * scale * (A.size > 0) * np.abs(A).max()
        assert bound.certificate == "certified"


def test_a_small_matrix_that_is_exhausted_early_beside_a_larger_one(backend):
    rng = np.random.default_rng(0)
    matrices = [matrix_of_kind("gaussian", n, rng) for n in (8, 10)]
    for A, bound in zip(matrices, lipschitz_bounds([array(backend, A) for A in matrices]), strict=True):
        assert 1 - 1e-12 <= float(bound.value) / np.linalg.norm(A, 2) <= 1.0051


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_layers_of_all_sorts(backend, dtype):
    rng = np.random.default_rng(0)
    layers = [
        Dense(array(backend, rng.standard_normal((50, 20)), dtype)),
        Convolution(array(backend, rng.standard_normal((2, 3, 3, 3)), dtype), input_shape=(3, 4, 4), padding="same"),
        Dense(array(backend, np.zeros((7, 3)), dtype)),
        Dense(array(backend, 1e-3 * rng.standard_normal((130, 140)), dtype)),
        Dense(array(backend, 1e3 * rng.standard_normal((128, 128)), dtype)),
    ]
    for layer, bound in zip(layers, lipschitz_bounds(layers), strict=True):
        exact = float(reference.spectral_norm(layer))
        assert exact <= float(bound.value) <= (1.2 if isinstance(layer, Convolution) else 1.0051) * exact
        assert host(backend, bound.value).shape == ()
        assert bound.value.dtype == layer.weight.dtype


def test_estimates_that_never_pass(backend, monkeypatch):
    """Each matrix then takes as long as it needs, alone."""
    monkeypatch.setattr(batched_bounds, "STACK_TRIED_AFTER", (1,))
    rng = np.random.default_rng(0)
    matrices = [rng.standard_normal((30, 30)) for _ in range(3)]
    for A, bound in zip(matrices, lipschitz_bounds([array(backend, A) for A in matrices]), strict=True):
        assert np.linalg.norm(A, 2) <= float(bound.value) <= 1.0051 * np.linalg.norm(A, 2)


def test_by_products_alone(backend, monkeypatch):
    """What an accelerator does."""
    monkeypatch.setattr(type(backend), "is_accelerated", lambda self, x: True)
    rng = np.random.default_rng(0)
    matrices = [rng.standard_normal(shape) for shape in ((30, 20), (20, 20), (30, 20), (5, 2))]
    for A, bound in zip(matrices, lipschitz_bounds([array(backend, A) for A in matrices]), strict=True):
        assert np.linalg.norm(A, 2) <= float(bound.value) <= 1.0011 * np.linalg.norm(A, 2)
        assert bound.method == "gram"


def test_bad_input(backend):
    good = array(backend, np.eye(3))
    with pytest.raises(NonFiniteError):
        lipschitz_bounds([good, good * float("nan")])
    other = np.eye(3) if backend.name != "numpy" else __import__("array_api_strict").eye(3)
    with pytest.raises(MixedBackendsError):
        lipschitz_bounds([good, other])
    assert lipschitz_bounds([]) == []
