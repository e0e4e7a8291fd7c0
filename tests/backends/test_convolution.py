"""Convolutions of the backends, against sums that are written out."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.signal
from hypothesis import example, given
from hypothesis import strategies as st

from iresnet_core.backends import get_backend


@dataclass(frozen=True)
class Geometry:
    """One convolution: everything but the numbers."""

    spatial: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    group_in: int
    group_out: int
    batch: int

    @property
    def out(self):
        """Extent of the result."""
        extents = zip(self.spatial, self.window, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + lo + hi - d * (k - 1) - 1) // s + 1 for n, k, s, (lo, hi), d in extents)

    @property
    def x_shape(self):
        return (self.batch, self.groups * self.group_in, *self.spatial)

    @property
    def y_shape(self):
        return (self.batch, self.groups * self.group_out, *self.out)

    @property
    def kernel_shape(self):
        return (self.groups * self.group_out, self.group_in, *self.window)

    @property
    def options(self):
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }


@st.composite
def geometries(draw):
    dims = draw(st.integers(1, 3))

    def each(*bounds):
        return tuple(draw(st.integers(*bounds)) for _ in range(dims))

    window, dilation, stride = each(1, 3), each(1, 3), each(1, 3)
    padding = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(dims))
    # At least one position of the window.
    least = [max(1, d * (k - 1) + 1 - sum(p)) for k, d, p in zip(window, dilation, padding, strict=True)]
    spatial = tuple(draw(st.integers(n, n + 4)) for n in least)
    groups, group_in, group_out = (draw(st.integers(1, 3)) for _ in range(3))
    return Geometry(
        spatial, window, stride, padding, dilation, groups, group_in, group_out, batch=draw(st.integers(0, 2))
    )


# Stride that leaves pixels untouched, padding on one side only, window larger than the image.
HARD = [
    Geometry((6,), (2,), (3,), ((0, 0),), (1,), 1, 1, 1, 1),
    Geometry((5, 4), (3, 2), (2, 1), ((2, 0), (0, 3)), (1, 2), 2, 1, 3, 2),
    Geometry((1, 2, 1), (3, 3, 3), (1, 2, 3), ((1, 1), (0, 2), (2, 2)), (1, 1, 2), 1, 2, 1, 1),
]


def whole_numbers(shape, seed):
    """Small whole numbers: their convolutions are exact in float32, so results are compared for equality."""
    return np.random.default_rng(seed).integers(-9, 10, shape).astype("float64")


def looped_conv(x, kernel, geometry):
    """Cross-correlation by its definition, one product at a time."""
    y = np.zeros(geometry.y_shape)
    for b, o in itertools.product(range(y.shape[0]), range(y.shape[1])):
        first = o // geometry.group_out * geometry.group_in
        for position in itertools.product(*map(range, geometry.out)):
            for c, *offset in itertools.product(range(geometry.group_in), *map(range, geometry.window)):
                pixel = tuple(
                    p * s + k * d - lo
                    for p, s, k, d, (lo, _) in zip(
                        position, geometry.stride, offset, geometry.dilation, geometry.padding, strict=True
                    )
                )
                if all(0 <= i < n for i, n in zip(pixel, geometry.spatial, strict=True)):
                    y[(b, o, *position)] += kernel[(o, c, *offset)] * x[(b, first + c, *pixel)]
    return y


def with_hard_cases(test):
    for geometry in HARD:
        test = example(geometry=geometry, seed=0)(test)
    return given(geometry=geometries(), seed=st.integers(0, 2**32 - 1))(test)


@with_hard_cases
def test_conv_is_its_definition(backend, geometry, seed):
    x, kernel = whole_numbers(geometry.x_shape, seed), whole_numbers(geometry.kernel_shape, seed + 1)
    y = backend.conv(backend.from_numpy(x), backend.from_numpy(kernel), **geometry.options)
    assert get_backend(y) is backend
    np.testing.assert_array_equal(backend.to_numpy(y), looped_conv(x, kernel, geometry))


@with_hard_cases
def test_conv_transpose_is_the_exact_adjoint(backend, geometry, seed):
    x, kernel = whole_numbers(geometry.x_shape, seed), whole_numbers(geometry.kernel_shape, seed + 1)
    y = whole_numbers(geometry.y_shape, seed + 2)
    weights = backend.from_numpy(kernel)
    image = backend.conv(backend.from_numpy(x), weights, **geometry.options)
    back = backend.conv_transpose(backend.from_numpy(y), weights, spatial=geometry.spatial, **geometry.options)
    assert get_backend(back) is backend
    assert tuple(back.shape) == geometry.x_shape
    # <conv(x), y> = <x, conv_transpose(y)>, in whole numbers
    assert (backend.to_numpy(image) * y).sum() == (x * backend.to_numpy(back)).sum()


@pytest.mark.parametrize("spatial", [(9,), (7, 8), (5, 4, 6)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("mode", ["valid", "full"])
def test_conv_is_that_of_scipy(backend, spatial, mode):
    window = (3, 2, 4)[: len(spatial)]
    x, kernel = whole_numbers((1, 1, *spatial), 1), whole_numbers((1, 1, *window), 2)
    ones = (1,) * len(spatial)
    pad = [(k - 1, k - 1) if mode == "full" else (0, 0) for k in window]
    y = backend.conv(
        backend.from_numpy(x), backend.from_numpy(kernel), stride=ones, padding=pad, dilation=ones, groups=1
    )
    expected = scipy.signal.correlate(x[0, 0], kernel[0, 0], mode=mode, method="direct")
    np.testing.assert_array_equal(backend.to_numpy(y)[0, 0], expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", pytest.param("float16", marks=pytest.mark.needs("float16"))])
def test_convolutions_keep_the_dtype_and_their_arguments(backend, dtype):
    geometry = HARD[1]
    arrays = [whole_numbers(shape, 1) for shape in (geometry.x_shape, geometry.kernel_shape, geometry.y_shape)]
    x, kernel, y = (backend.from_numpy(a.astype(dtype)) for a in arrays)
    assert backend.conv(x, kernel, **geometry.options).dtype == x.dtype
    assert backend.conv_transpose(y, kernel, spatial=geometry.spatial, **geometry.options).dtype == x.dtype
    for array, original in zip((x, kernel, y), arrays, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(array), original)
