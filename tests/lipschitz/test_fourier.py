"""Bounds of convolutions on a torus."""

import tracemalloc

import numpy as np
import pytest
from bounds_for_tests import CERTIFIED, is_tight
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    DTYPES,
    convolution_matrix,
    convolutions,
    holds,
    norm_from_below,
    torus_norm,
)

from iresnet_core import Convolution, lipschitz_bound, spectral_norm
from iresnet_core.lipschitz import fourier, frequencies


@given(case=convolutions(dtypes=DTYPES), other=st.sampled_from([*CERTIFIED, "auto"]), last=st.booleans())
def test_torus_bounds_the_norm_of_a_convolution(backend, case, other, last):
    kernel, input_shape, options = case
    A = convolution_matrix(kernel, input_shape, options)
    layer = Convolution(backend.from_numpy(kernel), input_shape=input_shape, **options)
    if last:
        swapped = backend.from_numpy(np.moveaxis(kernel, (0, 1), (-1, -2)).copy())
        shape = (*input_shape[1:], input_shape[0])
        layer = Convolution(swapped, input_shape=shape, **options, data_format="channels_last")
    for method in ("fft", other):
        result = lipschitz_bound(layer, method=method)
        assert result.value.dtype == layer.weight.dtype
        assert holds(backend.to_numpy(result.value), A)
        if result.method in ("svd", "gram", "cholesky"):
            assert is_tight(backend.to_numpy(result.value), A.astype(kernel.dtype), result.method)
    # It is no looser than the sum of the norms of the taps, by Young's inequality.
    taps = np.linalg.norm(np.moveaxis(kernel.reshape(*kernel.shape[:2], -1), -1, 0).astype(float), axis=(1, 2))
    assert float(lipschitz_bound(layer, method="fft").value) <= taps.sum() * (1 + 1e-6)


@given(case=convolutions(modes=("circular",)))
def test_torus_bound_is_the_norm_of_a_circular_convolution(backend, case):
    kernel, input_shape, options = case
    reach = [(k - 1) * d for k, d in zip(kernel.shape[2:], options["dilation"], strict=True)]
    if any(r - r // 2 > n for r, n in zip(reach, input_shape[1:], strict=True)):
        return  # the padding would be wider than the image
    options |= {"stride": (1,) * len(reach), "padding": tuple((r // 2, r - r // 2) for r in reach)}
    A = convolution_matrix(kernel, input_shape, options)
    bound = lipschitz_bound(
        Convolution(backend.from_numpy(kernel), input_shape=input_shape, **options), method="fft"
    ).value
    np.testing.assert_allclose(float(bound), norm_from_below(A).astype(float), rtol=1e-11)


def test_a_torus_of_the_size_of_the_input_is_no_bound(backend):
    kernel = np.array([[[2.0, -1.0, 2.0]]])
    layer = Convolution(backend.from_numpy(kernel), input_shape=(1, 3), padding="same")
    norm = float(norm_from_below(backend.to_numpy(layer.matrix())))
    assert torus_norm(kernel, (3,)) == pytest.approx(3)
    assert norm == pytest.approx(1 + 8**0.5)
    bound = float(lipschitz_bound(layer, method="fft").value)
    assert bound == pytest.approx(torus_norm(kernel, (5,)), rel=1e-12)
    assert bound > norm > 1.2 * 3


@pytest.mark.parametrize(
    ("kernel_shape", "extent"), [((2, 3, 3), 40), ((4, 4, 3, 3), 16), ((2, 3, 4), 30), ((12, 10, 3, 3), 9)]
)
def test_torus_bound_approaches_the_norm_of_large_images(backend, kernel_shape, extent):
    rng = np.random.default_rng(0)
    layer = Convolution(
        backend.from_numpy(rng.standard_normal(kernel_shape)),
        input_shape=(kernel_shape[1], *(extent,) * (len(kernel_shape) - 2)),
        padding="same",
    )
    norm = float(spectral_norm(layer, method="lanczos", rtol=1e-5, max_iter=200).value)
    bound = lipschitz_bound(layer, method="fft")
    assert norm <= float(bound.value) <= 1.06 * norm
    assert (bound.method, bound.certificate) == ("fft", "certified")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("chunk", [2**22, 300, 1])
@pytest.mark.parametrize("few", [0, 8])
def test_torus_in_pieces(backend, monkeypatch, groups, chunk, few):
    # Many channels are certified by Cholesky, a chunk of frequencies at a time.
    monkeypatch.setattr(frequencies, "ENTRIES_AT_A_TIME", chunk)
    monkeypatch.setattr(fourier, "FEW_CHANNELS", few)
    rng = np.random.default_rng(7)
    kernel = rng.standard_normal((4, 4 // groups, 3, 2))
    kernel[0] *= 3
    layer = Convolution(backend.from_numpy(kernel), input_shape=(4, 5, 4), groups=groups, padding=1)
    parts = np.split(kernel, groups)
    norm = max(torus_norm(part, (5 + 2, 4 + 1)) for part in parts)
    bound = float(lipschitz_bound(layer, method="fft").value)
    assert norm <= bound <= norm * (1.0045 if few == 0 else 1 + 1e-11)


def symbol_norms(kernel, points=128):
    """Norms of the symbol of a kernel (out, in, *window) at many frequencies, none of which is above the supremum."""
    axes = tuple(range(2, kernel.ndim))
    symbol = np.moveaxis(np.fft.fftn(kernel, (points,) * len(axes), axes), (0, 1), (-2, -1))
    return np.linalg.norm(symbol, 2, axis=(-2, -1))


@pytest.mark.parametrize(
    ("kernel_shape", "groups", "options"),
    [
        ((1, 1, 3, 3), 1, {}),
        ((4, 2, 5), 2, {"stride": 3, "dilation": 2}),
        ((12, 10, 2), 1, {"padding_mode": "circular", "padding": (0,)}),
        ((2, 1, 2, 1, 3), 2, {"padding": 1}),
    ],
)
def test_a_large_image_costs_no_more_than_its_window(kernel_shape, groups, options):
    """Nothing is made for each of 10^8 and more pixels, and 0.13 % an axis may be lost."""
    kernel = np.random.default_rng(3).standard_normal(kernel_shape)
    layer = Convolution(
        kernel, input_shape=(kernel_shape[1] * groups, *[20_000] * (len(kernel_shape) - 2)), **options, groups=groups
    )
    tracemalloc.start()
    bound = float(lipschitz_bound(layer).value)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 2**20
    norm = max(symbol_norms(part, 32 if len(kernel_shape) == 5 else 512).max() for part in np.split(kernel, groups))
    assert norm <= bound <= norm * (1.0045 + 0.002 * len(kernel_shape))


def test_torus_of_zero_kernels(backend):
    for channels in (1, 10):
        kernel = backend.from_numpy(np.zeros((channels, channels, 3)))
        assert float(lipschitz_bound(Convolution(kernel, input_shape=(channels, 4)), method="fft").value) == 0


def test_both_formats_have_the_same_bound(backend):
    kernel = np.random.default_rng(0).standard_normal((3, 2, 3, 2))
    first = Convolution(backend.from_numpy(kernel), input_shape=(2, 5, 4))
    last = Convolution(
        backend.from_numpy(np.moveaxis(kernel, (0, 1), (-1, -2))), input_shape=(5, 4, 2), data_format="channels_last"
    )
    for method in ("fft", "svd"):
        bounds = [float(lipschitz_bound(layer, method=method).value) for layer in (first, last)]
        assert bounds[0] == pytest.approx(bounds[1], rel=1e-12)
