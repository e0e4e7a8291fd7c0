"""The bound of an operator that is known by its products alone holds with its probability."""

import numpy as np
import pytest
from bounds_for_tests import ORDINARY, bound_of, is_close
from branches_for_tests import HomeMadeOperator
from hypothesis import given
from scipy.sparse.linalg import aslinearoperator
from strategies import (
    SEEDS,
    convolution_matrix,
    convolutions,
    holds,
    make_matrix,
    matrices,
    norm_from_below,
    stacks,
)

from iresnet_core import Convolution, as_operator, lipschitz_bound, spectral_norm
from iresnet_core.errors import InvalidArgumentError


def spread_out(n, top):
    """A matrix whose norm stands a little above a spectrum without gaps: Lanczos finds it late."""
    rng = np.random.default_rng(n)
    U, V = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    return U @ np.diag([top, *np.linspace(1, 0, n - 1)]) @ V


@pytest.mark.parametrize("top", [1.0, 1.01, 1.03])
def test_probabilistic_bound_holds_for_hundreds_of_seeds(top):
    A = spread_out(120, top)
    norm = norm_from_below(A)
    bounds = np.array([lipschitz_bound(A, method="lanczos", rng=seed).value for seed in range(150)])
    assert (bounds >= norm).all()
    assert (bounds <= norm * 1.02).all()
    assert len(set(bounds)) == 150


@given(A=matrices(scales=ORDINARY), seed=SEEDS)
def test_probabilistic_bound_holds_for_adversarial_matrices(backend, A, seed):
    bound, result = bound_of(backend, A, "lanczos", rng=seed)
    assert holds(bound, A)
    assert bound.dtype == A.dtype
    assert is_close(bound, A, 0.02 + 64 * max(A.shape) * np.finfo(A.dtype).eps)
    assert (result.method, result.certificate) == ("lanczos", "probabilistic")


@given(A=stacks(max_side=5), seed=SEEDS)
def test_probabilistic_bounds_of_a_stack(backend, A, seed):
    bound, _ = bound_of(backend, A, "lanczos", rng=seed)
    assert bound.shape == A.shape[:-2]
    assert holds(bound.ravel(), A.reshape(-1, *A.shape[-2:]))


@given(case=convolutions(max_extent=4, max_channels=2), seed=SEEDS)
def test_probabilistic_bound_of_convolutions(backend, case, seed):
    kernel, input_shape, options = case
    layer = Convolution(backend.from_numpy(kernel), input_shape=input_shape, **options)
    bound = lipschitz_bound(layer, method="lanczos", rng=seed).value
    assert holds(backend.to_numpy(bound), convolution_matrix(kernel, input_shape, options))


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e-310, 1e200, 1e300])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 40), (40, 3), (30, 30)])
def test_probabilistic_bound_of_foreign_operators(scale, shape):
    A = make_matrix("gaussian", *shape, scale=scale)
    for seed in range(5):
        bound = lipschitz_bound(aslinearoperator(A), rng=seed).value
        assert holds(bound, A)
        assert bound <= norm_from_below(A) * 1.01
    assert lipschitz_bound(aslinearoperator(0 * A), rng=0).value == 0


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e300])
@pytest.mark.parametrize("shape", [(1, 9), (9, 4)])
def test_probabilistic_bound_of_home_made_operators(backend, scale, shape):
    A = make_matrix("gaussian", *shape, scale=scale)
    like = backend.from_numpy(np.ones(1))
    for seed in range(3):
        bound = float(lipschitz_bound(as_operator(HomeMadeOperator(backend, A), like=like), rng=seed).value)
        assert holds(bound, A)
        assert bound <= norm_from_below(A) * 1.01
    assert float(lipschitz_bound(as_operator(HomeMadeOperator(backend, 0 * A), like=like), rng=0).value) == 0


def test_probabilistic_bound_begins_at_random(backend):
    A = spread_out(40, 1.01)
    first, again, other = (float(bound_of(backend, A, "lanczos", rng=rng)[0]) for rng in (0, 0, 1))
    assert first == again != other
    generator = np.random.default_rng(0)
    drawn = [float(bound_of(backend, A, "lanczos", rng=generator)[0]) for _ in range(3)]
    assert len(set(drawn)) == 3
    assert drawn[0] == first


@pytest.mark.needs("numpy_rng")
def test_without_a_generator_the_global_one_is_drawn_from(backend):
    A = spread_out(40, 1.01)
    bounds = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        bounds.append(float(bound_of(backend, A, "lanczos")[0]))
    assert bounds[0] == bounds[1] != bounds[2]


@pytest.mark.parametrize("rng", ["seed", 1.5, -1, True, [1, 2], np.ones(4)], ids=repr)
def test_bad_generators(backend, rng):
    with pytest.raises(InvalidArgumentError, match="rng"):
        lipschitz_bound(backend.from_numpy(np.eye(4)), method="lanczos", rng=rng)


def test_a_warm_start_is_not_accepted(backend):
    A = backend.from_numpy(np.eye(4))
    with pytest.raises(TypeError, match="start"):
        lipschitz_bound(A, method="lanczos", start=spectral_norm(A))
    with pytest.raises(InvalidArgumentError, match=r"rng.*SpectralNorm"):
        lipschitz_bound(A, method="lanczos", rng=spectral_norm(A))
