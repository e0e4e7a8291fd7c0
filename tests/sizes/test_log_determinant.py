"""Log-determinants at the size of images, in float32 and near c = 1: few products, and an honest bound."""

import numpy as np
import pytest
from branches_for_tests import array, dense_chain, host

from iresnet_core import Activation, Chain, Convolution, logdet, normalize
from iresnet_core.determinant.dispatch import value_and_logdet

IMAGES = {"1x28x28": ((1, 28, 28), 16), "3x32x32": ((3, 32, 32), 16)}
# In float32 the quadrature of these constants was once coarser than any target: all d products were taken.
CONSTANTS = (0.8965, 0.9, 0.95, 0.98)


def image_branch(backend, shape, hidden, c, dtype):
    """A block of three convolutions, 3 x 3, 1 x 1 and 3 x 3, whose constant is c."""
    rng = np.random.default_rng(0)
    widths, kernels = (shape[0], hidden, hidden, shape[0]), (3, 1, 3)
    layers = []
    for before, after, k in zip(widths[:-1], widths[1:], kernels, strict=True):
        kernel = rng.standard_normal((after, before, k, k)) / np.sqrt(before * k * k)
        kernel = array(backend, kernel, dtype)
        layers += [
            Activation("lipswish"),
            Convolution(kernel, input_shape=(before, *shape[1:]), padding="same"),
        ]
    return normalize(Chain(layers), c)


@pytest.mark.parametrize("c", CONSTANTS)
@pytest.mark.parametrize("image", IMAGES)
def test_few_products_at_image_size(backend, image, c):
    shape, hidden = IMAGES[image]
    x = np.random.default_rng(1).standard_normal((2, *shape))
    found = {}
    for dtype in ("float32", "float64"):
        g = image_branch(backend, shape, hidden, c, dtype)
        found[dtype] = logdet(g, array(backend, x, dtype), method="arnoldi", rng=0)
        assert int(host(backend, found[dtype].products).max()) <= 16
        assert host(backend, found[dtype].bias_bound).max() <= 1e-3 * x[0].size
    gap = np.abs(host(backend, found["float32"].value) - host(backend, found["float64"].value))
    assert (gap <= host(backend, found["float32"].bias_bound) + host(backend, found["float64"].bias_bound)).all()


@pytest.mark.parametrize("d", [200, 300])
@pytest.mark.parametrize("c", [0.9, 0.95])
def test_few_products_for_dense_chains(backend, d, c):
    g = dense_chain(backend, d, [d], c, 0, dtype="float32")
    x = array(backend, np.random.default_rng(1).standard_normal((2, d)), "float32")
    result = logdet(g, x, method="arnoldi", rng=0)
    assert int(host(backend, result.products).max()) <= 16
    assert host(backend, result.bias_bound).max() <= 1e-3 * d


@pytest.mark.parametrize("c", [0.9, 0.98])
def test_rounding_of_the_mean_jacobian_near_an_isometry(backend, c):
    """There the certificate counts a rounding of float32 thousands of times; products in float64 have none to count."""
    d = 200
    g = dense_chain(backend, d, [d], c, 0, dtype="float32", orthogonal=True)
    x = array(backend, 0.1 * np.random.default_rng(1).standard_normal((3, d)), "float32")
    value, result = value_and_logdet(g, x, method="mean-jacobian", rng="sample")
    np.testing.assert_array_equal(host(backend, value), host(backend, g(x)))
    assert result.value.dtype == result.std_error.dtype == result.bias_bound.dtype == x.dtype
    bias = host(backend, result.bias_bound)
    assert bias.max() <= 2e-3
    wide = logdet(g.astype(backend.xp.float64), backend.xp.astype(x, backend.xp.float64), method="exact")
    gap = np.abs(host(backend, result.value) - host(backend, wide.value))
    assert (gap <= 5 * host(backend, result.std_error) + bias).all()
    alone = logdet(g, x[1:2, ...], method="mean-jacobian", rng="sample")
    np.testing.assert_allclose(host(backend, alone.value), host(backend, result.value)[1:2], rtol=1e-6)


def test_a_long_series_is_content_with_less(backend):
    """From 64 products on, a thousandth of a nat a dimension will do, but not where a tolerance is given."""
    d = 200
    g = dense_chain(backend, d, [d], 0.98, 0, orthogonal=True, activation="identity")
    x = array(backend, np.random.default_rng(1).standard_normal((1, d)))
    result = logdet(g, x, method="series", control_variate="none", rng=0)
    assert 64 <= int(host(backend, result.products)[0]) <= 200
    assert 1e-3 < float(host(backend, result.bias_bound)[0]) <= 1e-3 * d
    noise = array(backend, np.random.default_rng(2).choice([-1.0, 1.0], (1, 1, d)))
    short, long = (
        logdet(g, x, method="series", control_variate="none", noise=noise, **options)
        for options in ({}, {"terms": 600})
    )
    gap = abs(float(host(backend, short.value)[0]) - float(host(backend, long.value)[0]))
    assert gap <= float(host(backend, short.bias_bound)[0]) + float(host(backend, long.bias_bound)[0])
