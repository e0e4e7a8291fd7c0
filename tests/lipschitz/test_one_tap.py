"""Convolutions with a window of one tap, which are matrices, whatever the size of the images."""

import math
import time

import numpy as np
import pytest
from bounds_for_tests import CERTIFIED, TIGHTNESS
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, SEEDS, holds, norm_from_below

from iresnet_core import Convolution, lipschitz_bound, spectral_norm
from iresnet_core.errors import ShapeError

METHODS = ("power", "lanczos", "svd")


@st.composite
def one_tap(draw, dtypes=DTYPES):
    """A kernel (out, in / groups, 1, ..) and the options of its layer, in both formats; all pixels may be padding."""
    axes = draw(st.integers(1, 3))
    spatial = draw(st.lists(st.integers(1, 4 if axes < 3 else 2), min_size=axes, max_size=axes))
    groups = draw(st.sampled_from([1, 2, 5]))
    outer, inner = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(SEEDS))
    kernel = rng.standard_normal((outer * groups, inner, *[1] * axes)) * 10.0 ** rng.uniform(-20, 20)
    circular = draw(st.booleans())
    pairs = st.tuples(st.integers(0, 3), st.integers(0, 2))
    options = {
        "stride": draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes)),
        "padding": [(0, 0) if circular else draw(pairs) for _ in range(axes)],
        "dilation": draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes)),
        "groups": groups,
        "padding_mode": "circular" if circular else "zeros",
    }
    return kernel.astype(draw(dtypes)), (inner * groups, *spatial), options, draw(st.booleans())


def layer_of(backend, kernel, input_shape, options, last=False):
    """The layer, with the channels first or last."""
    if last:
        kernel = np.moveaxis(kernel, (0, 1), (-1, -2)).copy()
        input_shape, options = (*input_shape[1:], input_shape[0]), {**options, "data_format": "channels_last"}
    return Convolution(backend.from_numpy(kernel), input_shape=input_shape, **options)


@given(case=one_tap(), method=st.sampled_from([*CERTIFIED, "fft", "auto"]))
def test_bound_is_that_of_the_matrix(backend, case, method):
    kernel = case[0]
    layer = layer_of(backend, *case)
    A = backend.to_numpy(layer.matrix())
    result = lipschitz_bound(layer, method=method)
    bound = backend.to_numpy(result.value)
    assert bound.shape == ()
    assert bound.dtype == kernel.dtype
    assert holds(bound, A)
    room = TIGHTNESS.get(result.method, 5e-3)
    if room is not None and A.any():
        assert bound <= float(norm_from_below(A)) * (1 + room + 4 * np.finfo(kernel.dtype).eps)


@given(case=one_tap(), method=st.sampled_from([*METHODS, "auto"]))
def test_estimate_has_the_vectors_of_the_convolution(backend, case, method):
    kernel = case[0]
    layer = layer_of(backend, *case)
    A = backend.to_numpy(layer.matrix()).astype(np.float64)
    found = spectral_norm(layer, method=method, rtol=1e-4, max_iter=2000)
    result = type(found)(*(backend.to_numpy(part) for part in found))
    norm, eps = float(norm_from_below(A)), np.finfo(kernel.dtype).eps
    assert result.value.shape == result.residual.shape == result.iterations.shape == result.converged.shape == ()
    assert (*result.left.shape, *result.right.shape) == layer.shape
    assert result.converged
    # The largest of four singular values or fewer, unless two of them are all but equal.
    assert norm * (1 - 1e-2) <= result.value <= norm * (1 + 20 * eps)
    if not A.any():
        return
    for vector in (result.left, result.right):
        assert vector.dtype == kernel.dtype
        assert abs(np.linalg.norm(vector.astype(float)) - 1) < 50 * eps
    left, right = result.left.astype(float), result.right.astype(float)
    room = result.residual * 2**0.5 + 50 * eps * norm
    assert np.linalg.norm(A @ right - result.value * left) <= room
    assert np.linalg.norm(A.T @ left - result.value * right) <= room
    again = spectral_norm(layer, method="power", start=found, rtol=0, max_iter=1)
    assert float(again.value) >= result.value * (1 - 50 * eps)


def test_no_pixel_is_kept(backend):
    # The outputs lie at -1 and 1, where there is nothing but padding.
    layer = Convolution(backend.from_numpy(np.ones((2, 2, 1))), input_shape=(2, 1), stride=2, padding=1)
    assert not backend.to_numpy(layer.matrix()).any()
    assert float(spectral_norm(layer).value) == 0
    assert float(lipschitz_bound(layer).value) == 0
    assert 0 <= float(lipschitz_bound(layer, method="fft").value) <= 2 * (1 + 1e-9)


@pytest.mark.parametrize("groups", [1, 30])
def test_no_image_is_touched(backend, monkeypatch, groups):
    """The cost is that of the matrices: an image of 10^10 pixels is neither made nor listed."""

    def refused(*_):
        raise AssertionError("a product with an image")

    monkeypatch.setattr(Convolution, "apply", refused)
    monkeypatch.setattr(Convolution, "adjoint", refused)
    kernel = np.random.default_rng(groups).standard_normal((30, 30 // groups)) / 5
    matrices = kernel.reshape(groups, 30 // groups, -1)
    norm = np.linalg.norm(matrices, 2, axis=(-2, -1)).max()
    layer = Convolution(backend.from_numpy(kernel[:, :, None, None]), input_shape=(30, 10**5, 10**5), groups=groups)
    expected = lipschitz_bound(backend.from_numpy(matrices))
    found = lipschitz_bound(layer)
    assert found.method == expected.method
    assert float(found.value) == float(backend.xp.max(expected.value))
    for method in ("svd", "fft"):
        assert norm * (1 - 1e-14) <= float(lipschitz_bound(layer, method=method).value) <= norm * 1.005
    small = layer.at_size((30, 40, 50))
    assert math.isclose(float(spectral_norm(small, method="svd").value), norm, rel_tol=1e-12)


def test_the_largest_group_counts():
    """One group converges slowly to a norm that is larger than that of a group which converges at once."""
    slow = np.diag(np.linspace(1, 0.99, 60))
    fast = np.zeros((60, 60))
    fast[0, 0] = 0.97
    kernel = np.concatenate([fast, slow])[:, :, None]
    layer = Convolution(kernel, input_shape=(120, 5), groups=2)
    early = spectral_norm(layer, method="power", rtol=1e-5, max_iter=3)
    assert not early.converged
    assert early.iterations == 3
    late = spectral_norm(layer, method="lanczos", rtol=1e-8)
    assert late.converged
    assert late.value == pytest.approx(1, rel=1e-9)
    assert not late.right.reshape(120, 5)[:60].any()


def test_a_start_is_checked_as_for_any_operator(backend):
    layer = Convolution(backend.from_numpy(np.ones((3, 2, 1))), input_shape=(2, 4))
    with pytest.raises(ShapeError, match=r"left vector of shape \(12,\), got \(3,\)"):
        spectral_norm(layer, start=backend.from_numpy(np.ones(3)))


@pytest.mark.strict_suite
def test_cost_is_that_of_the_matrix():
    """Processor time of the bound, at the width of the nets in use, next to that of the matrix."""
    kernel = np.random.default_rng(0).standard_normal((512, 512, 1, 1)) / 22
    times = []
    for operator in (kernel[:, :, 0, 0], Convolution(kernel, input_shape=(512, 32, 32))):
        for function in (lipschitz_bound, spectral_norm):
            repeats = []
            for _ in range(3):
                begin = time.process_time()
                function(operator)
                repeats.append(time.process_time() - begin)
            times.append(min(repeats))
    assert times[2] < 2 * times[0] + 0.02
    assert times[3] < 2 * times[1] + 0.02
