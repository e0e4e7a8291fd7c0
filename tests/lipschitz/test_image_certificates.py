"""Certificates of convolutions at the sizes of images, next to estimates from below by other means."""

import itertools
import math

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, svds

from iresnet_core import Convolution, lipschitz_bound
from iresnet_core.lipschitz import certificate

IMAGES = ((1, 28, 28), (3, 32, 32), (12, 16, 16), (48, 8, 8))
KINDS = ("random", "peaked", "smooth", "grouped", "strided")
LAYERS = ("in", "hidden", "pixel", "out")
SEEDS = 4


def case(image, kind, layer, seed):
    """A kernel (out, in / groups, k, k), the size of its image, groups and stride, as in a block of width 16 to 48."""
    rng = np.random.default_rng([seed, *image, KINDS.index(kind), LAYERS.index(layer)])
    hidden = int(rng.choice([16, 24])) * (2 if image[0] == 48 else 1)
    channels = {"in": (image[0], hidden), "out": (hidden, image[0])}.get(layer, (hidden, hidden))
    groups = math.gcd(*channels, int(rng.choice([2, 4, 48]))) if kind == "grouped" else 1
    k = 1 if layer == "pixel" else int(rng.choice([3, 5]))
    kernel = rng.standard_normal((channels[1], channels[0] // groups, k, k)) / k
    bell = np.exp(-((np.arange(k) - k // 2) ** 2) / 2)
    if kind == "smooth":
        kernel = kernel[:, :, :1, :1] * np.multiply.outer(bell, bell)
    if kind == "peaked":  # One pair of channels and one wave stand out, as in trained layers.
        wave = np.cos(rng.uniform(0, np.pi) * np.arange(k) + rng.uniform(0, np.pi))
        pair = np.multiply.outer(rng.standard_normal(channels[1]), rng.standard_normal(channels[0]))
        kernel = 0.3 * kernel + np.multiply.outer(pair / 4, np.multiply.outer(wave, bell))
    return kernel * 10.0 ** rng.uniform(-3, 3), (channels[0], *image[1:]), groups, 2 if kind == "strided" else 1


def symbol(kernel, groups, sizes):
    """The matrices (groups, *frequencies, out / groups, in / groups) on a torus."""
    parts = np.stack(np.split(kernel, groups))
    return np.moveaxis(np.fft.fft2(parts, sizes), (1, 2), (-2, -1))


def norm_from_below(kernel, shape, groups, stride):
    """Length of the image of a unit vector, found by ARPACK from products by the fast Fourier transform."""
    reach, spatial = kernel.shape[-1] - 1, shape[1:]
    sizes = tuple(n + reach for n in spatial)
    matrices = symbol(kernel, groups, sizes)
    image = tuple(slice(reach // 2, reach // 2 + n) for n in spatial)
    kept = tuple(slice(0, n, stride) for n in spatial)

    def multiplied(x, place, matrices):
        torus = np.zeros((*x.shape[:2], *sizes))
        torus[(..., *place)] = x
        return np.fft.ifft2(np.einsum("gxyoi,gixy->goxy", matrices, np.fft.fft2(torus))).real

    def forward(v):
        v = v.reshape(groups, -1, *spatial)
        return multiplied(v, image, np.conj(matrices))[(..., *kept)].ravel()

    def backward(u):
        u = u.reshape(groups, -1, *(len(range(*place.indices(n))) for place, n in zip(kept, spatial, strict=True)))
        return multiplied(u, kept, np.swapaxes(matrices, -1, -2))[(..., *image)].ravel()

    columns = math.prod(shape)
    rows = forward(np.zeros(columns)).size
    operator = LinearOperator((rows, columns), matvec=forward, rmatvec=backward, dtype=float)
    start = np.random.default_rng(0).standard_normal(min(rows, columns))
    right = svds(operator, k=1, tol=1e-3, v0=start, ncv=24, maxiter=2000)[2][0]
    return np.linalg.norm(forward(right)) / np.linalg.norm(right)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (2, 2)])
def test_the_estimate_from_below_is_that_of_the_layer(groups, stride):
    kernel = np.random.default_rng(1).standard_normal((4, 4 // groups, 3, 3))
    layer = Convolution(kernel, input_shape=(4, 6, 5), padding=1, groups=groups, stride=stride)
    norm = np.linalg.norm(layer.matrix(), 2)
    assert norm * (1 - 1e-4) <= norm_from_below(kernel, (4, 6, 5), groups, stride) <= norm * (1 + 1e-13)


def torus_norm(kernel, shape, groups):
    sizes = tuple(n + kernel.shape[-1] - 1 for n in shape[1:])
    return np.linalg.norm(symbol(kernel, groups, sizes), 2, axis=(-2, -1)).max()


def violations(backend, cases):
    """Check both certificates of every case in both dtypes; returns how many there were and which were wrong."""
    count, wrong = 0, []
    for number, dtype in itertools.product(cases, (np.float64, np.float32)):
        kernel, shape, groups, stride = case(*number)
        kernel = kernel.astype(dtype)
        padding = [(kernel.shape[-1] // 2,) * 2] * 2
        options = {"padding": padding, "groups": groups, "stride": stride}
        layer = Convolution(backend.from_numpy(kernel), input_shape=shape, **options)
        below = norm_from_below(kernel.astype(float), shape, groups, stride)
        torus = torus_norm(kernel.astype(float), shape, groups)
        # The border takes more from the norm on the torus where the image is small beside the window.
        tight = stride == 1 and 5 * (kernel.shape[-1] - 1) < min(shape[1:])
        for bound in (lipschitz_bound(layer, method="fft").value, certificate(layer).bound):
            count += 1
            value = float(bound)
            assert below <= torus * (1 + 1e-12)
            if not torus * (1 - 1e-12) <= value <= torus * 1.0045 or (tight and value > 1.05 * below):
                wrong.append((*number, dtype.__name__, below, torus, value))
    return count, wrong


@pytest.mark.parametrize("image", IMAGES[::3])
def test_certificates_at_the_size_of_images(backend, image):
    count, wrong = violations(backend, [(image, KINDS[IMAGES.index(image)], "in", 0)])
    assert not wrong
    assert count == 4


@pytest.mark.strict_suite
@pytest.mark.parametrize("seed", range(SEEDS))
def test_five_hundred_certificates_at_the_size_of_images(backend, seed, capsys):
    count, wrong = violations(backend, itertools.product(IMAGES, KINDS, LAYERS, [seed]))
    with capsys.disabled():
        print(f"\n{backend.name}, part {seed + 1} of {SEEDS}: {count} certificates of images, {len(wrong)} wrong")
    assert not wrong
    assert count * SEEDS >= 500
