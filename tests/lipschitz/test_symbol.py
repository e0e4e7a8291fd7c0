"""Certificates of convolutions: never below the norm on the torus, hardly above it, with its derivative."""

import math
import tracemalloc

import numpy as np
import pytest

from iresnet_core import Convolution
from iresnet_core.lipschitz import certificate
from iresnet_core.lipschitz.symbol import COARSE_RESOLUTION, MANY_RANKING_NORMS, RANKING_NORMS

# Kernel (out, in / groups, *window), image and options. The last two have so many taps that the symbol is computed.
CASES = [
    ((8, 2, 3), (10,), {}),
    ((32, 1, 3, 3), (28, 28), {}),
    ((3, 16, 3, 3), (32, 32), {}),
    ((24, 12, 3, 3), (16, 16), {"dilation": 2}),
    ((48, 48, 3, 3), (8, 8), {}),
    ((12, 3, 3, 3), (9, 7), {"groups": 4}),
    ((16, 1, 3, 3), (12, 12), {"groups": 16, "padding_mode": "circular"}),
    ((4, 4, 2, 3, 3), (3, 4, 5), {}),
    ((4, 4, 5, 4), (14, 13), {}),
    ((3, 2, 11, 11), (14, 14), {}),
    ((6, 1, 9, 9), (20, 20), {"groups": 6}),
]


def norm_on_the_torus(kernel, image, options):
    """Largest singular value of all frequencies of the circular convolution that contains the convolution."""
    window, groups = kernel.shape[2:], options.get("groups", 1)
    dilation = options.get("dilation", 1)
    grown = 0 if options.get("padding_mode") == "circular" else dilation
    sizes = [n + grown * (k - 1) for n, k in zip(image, window, strict=True)]
    placed = np.zeros((*kernel.shape[:2], *sizes))
    for tap in np.ndindex(*window):
        placed[(slice(None), slice(None), *(t * dilation for t in tap))] += kernel[(slice(None), slice(None), *tap)]
    symbol = np.moveaxis(np.fft.fftn(placed, axes=range(2, placed.ndim)), (0, 1), (-2, -1))
    out = kernel.shape[0] // groups
    blocks = [symbol[..., g * out : (g + 1) * out, :] for g in range(groups)]
    return max(np.linalg.svd(block, compute_uv=False).max() for block in blocks)


def layer_of(backend, kernel, image, options):
    channels = kernel.shape[1] * options.get("groups", 1)
    return Convolution(backend.from_numpy(kernel), input_shape=(channels, *image), padding="same", **options)


@pytest.mark.parametrize("kind", ["random", "smooth", "one frequency"])
@pytest.mark.parametrize(("shape", "image", "options"), CASES)
def test_certificate_against_the_norm_on_the_torus(backend, shape, image, options, kind):
    kernel = np.random.default_rng(0).standard_normal(shape)
    if kind == "smooth":
        kernel += 3 * kernel.mean(axis=tuple(range(2, kernel.ndim)), keepdims=True)
    if kind == "one frequency":
        kernel *= 0.05
        kernel += np.cos(sum(np.indices(shape[2:])) * 1.1)
    for dtype, above in ((np.float64, 1e-9), (np.float32, 3e-4)):
        layer = layer_of(backend, kernel.astype(dtype), image, options)
        bound = float(certificate(layer, derivative=False).bound)
        norm = norm_on_the_torus(kernel.astype(dtype).astype(np.float64), image, options)
        assert norm * (1 - 1e-14) <= bound <= norm * (1 + above)


@pytest.mark.parametrize(("n", "norms"), [(16, MANY_RANKING_NORMS), (24, RANKING_NORMS)])
def test_equal_singular_values_everywhere_are_the_worst_case(backend, n, norms):
    """The frequency that follows the candidates is bounded by the Frobenius norm of a power."""
    kernel = np.zeros((n, n, 3, 3))
    kernel[:, :, 1, 1] = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    bound = float(certificate(layer_of(backend, kernel, (12, 12), {}), derivative=False).bound)
    assert 1 <= bound <= n ** (2.0 ** -(norms + 1)) * (1 + 1e-9)


def test_many_taps_take_little_memory():
    kernel = np.random.default_rng(0).standard_normal((4, 1, 24, 24)).astype(np.float32)
    tracemalloc.start()
    try:
        certificate(Convolution(kernel, input_shape=(1, 200, 200), padding=12), derivative=True)
        assert tracemalloc.get_traced_memory()[1] < 3e8
    finally:
        tracemalloc.stop()


def test_many_channels_on_a_large_image_are_taken_on_a_coarse_grid(backend):
    kernel = np.random.default_rng(0).standard_normal((40, 40, 3, 3))
    bound = float(certificate(layer_of(backend, kernel, (40, 40), {}), derivative=False).bound)
    norm = norm_on_the_torus(kernel, (40, 40), {})
    slack = math.cos(math.pi / (2 * COARSE_RESOLUTION)) ** -2 * (1 + 1e-9)
    assert norm <= bound <= norm * slack


@pytest.mark.parametrize(("shape", "image", "options"), CASES)
def test_direction_is_the_derivative(backend, shape, image, options):
    rng = np.random.default_rng(1)
    kernel, change = rng.standard_normal(shape), rng.standard_normal(shape)
    found = certificate(layer_of(backend, kernel, image, options), derivative=True)
    direction = backend.to_numpy(found.direction)
    norm = norm_on_the_torus(kernel, image, options)
    assert np.sum(direction * kernel) == pytest.approx(norm, rel=1e-6)
    step = 1e-6
    after, before = (norm_on_the_torus(kernel + sign * step * change, image, options) for sign in (1, -1))
    assert np.sum(direction * change) == pytest.approx((after - before) / (2 * step), rel=1e-3, abs=1e-4 * norm)


def test_direction_at_a_late_frequency(backend):
    """The frequencies are ranked in two parts, and that of alternating signs is in the second."""
    signs = (-1.0) ** np.sum(np.indices((3, 3)), axis=0)
    kernel = np.abs(np.random.default_rng(3).standard_normal((24, 24, 3, 3))) * signs
    direction = backend.to_numpy(certificate(layer_of(backend, kernel, (30, 30), {}), derivative=True).direction)
    assert np.sum(direction * kernel) == pytest.approx(norm_on_the_torus(kernel, (30, 30), {}), rel=1e-6)


def test_zero_and_extreme_kernels(backend):
    kernel = np.random.default_rng(0).standard_normal((4, 3, 3, 3))
    norm = norm_on_the_torus(kernel, (8, 8), {})
    for scale in (0.0, 1e-150, 1e150):
        bound = float(certificate(layer_of(backend, kernel * scale, (8, 8), {}), derivative=True).bound)
        assert norm * scale * (1 - 1e-14) <= bound <= norm * scale * (1 + 1e-9)
