"""Log-determinants at the size of images, in float32 and near c = 1: few products, and an honest bound."""

import numpy as np
import pytest
from branches_for_tests import array, dense_chain, host

from iresnet_core import Activation, Chain, Convolution, logdet, normalize

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
