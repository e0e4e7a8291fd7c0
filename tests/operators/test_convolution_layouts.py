"""Convolutions of tensors that lie in memory in another order than their axes: the values are those of NumPy."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import SEEDS, convolutions

from iresnet_core import Convolution

# What the kernels of PyTorch 2.13 and TensorFlow 2.21 on the CPU get wrong where they are given the channels last:
# (kernel shape, input shape, options).
PLAIN = {"padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"}
IMAGES = ((1, 1, 3, 3), (1, 4, 4), {**PLAIN, "stride": (1, 2)})
VOLUMES = ((4, 1, 5, 1, 2), (1, 16, 4, 3), {**PLAIN, "stride": (2, 1, 3), "padding": ((2, 2), (0, 0), (0, 0))})


def whole_numbers(shape, seed):
    """Small whole numbers, whose sums of products are exact in float32 in any order."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def in_memory(backend, a, order):
    """The same array, which lies in memory as if its axes were in another order."""
    order = [axis for axis in order if axis < a.ndim]
    moved = backend.from_numpy(np.ascontiguousarray(np.transpose(a, order)))
    return backend.xp.permute_dims(moved, tuple(int(k) for k in np.argsort(order)))


def check(backend, case, batch, orders, data_format, seed):
    """Compare a layer's products, and the derivatives of its map by input and kernel, with NumPy's."""
    kernel_shape, input_shape, options = case
    kernel = whole_numbers(kernel_shape, seed)
    if data_format == "channels_last":
        kernel = np.moveaxis(kernel, (0, 1), (-1, -2))
        input_shape = (*input_shape[1:], input_shape[0])
    options = {**options, "input_shape": input_shape, "data_format": data_format}
    expected = Convolution(kernel, **options)
    x, u = (whole_numbers((batch, *shape), seed + 1) for shape in (input_shape, expected.output_shape))
    own_kernel, own_x, own_u = (in_memory(backend, a, order) for a, order in zip((kernel, x, u), orders, strict=True))
    layer = Convolution(own_kernel, **options)
    where = f"{kernel_shape} on {batch} x {input_shape}, {options}, {orders}"
    np.testing.assert_array_equal(backend.to_numpy(layer.apply(own_x)), expected.apply(x), where)
    np.testing.assert_array_equal(backend.to_numpy(layer.adjoint(own_u)), expected.adjoint(u), where)
    if backend.differentiates:
        product = backend.vjp(layer.apply, own_x)[1]
        np.testing.assert_array_equal(backend.to_numpy(product(own_u)), expected.adjoint(u), where)
        by_kernel = backend.vjp(lambda k: Convolution(k, checked=True, **options).apply(own_x), own_kernel)[1]
        # The map is linear in the kernel too, so that one of whole numbers can be paired with the derivative.
        other = whole_numbers(kernel.shape, seed + 2)
        paired = (backend.to_numpy(by_kernel(own_u)) * other).sum()
        assert paired == (Convolution(other, **options).apply(x) * u).sum(), where


ORDERS = st.tuples(*(st.permutations(range(5)),) * 3)
CHANNELS_LAST = ((0, 2, 3, 4, 1),) * 3


@given(
    case=convolutions(),
    batch=st.integers(1, 3),
    orders=ORDERS,
    data_format=st.sampled_from(["channels_first", "channels_last"]),
    seed=SEEDS,
)
@example(case=IMAGES, batch=2, orders=CHANNELS_LAST, data_format="channels_first", seed=0)
@example(case=VOLUMES, batch=2, orders=((0, 1, 2, 3, 4),) * 3, data_format="channels_last", seed=0)
def test_values_do_not_depend_on_the_layout_in_memory(backend, case, batch, orders, data_format, seed):
    kernel, *others = case
    check(backend, (getattr(kernel, "shape", kernel), *others), batch, orders, data_format, seed)


@pytest.mark.strict_suite
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_values_on_a_grid_of_convolutions(backend, axes):
    grid = itertools.product(
        [(1, 1, 1), (1, 3, 1), (2, 2, 2), (3, 6, 3), (4, 4, 1)],  # channels in and out, groups
        itertools.product([3, 5], [4], [3, 6][: axes % 2 + 1]),
        itertools.product([1, 3], [2, 3], [1, 2]),
        [(1, 2, 1), (2, 2, 2), (2, 1, 3)],
        [(1, 1, 1), (1, 2, 1)],
        [0, 1],
        [((0, 1, 2, 3, 4),) * 3, CHANNELS_LAST],
    )
    for number, ((inner, outer, groups), spatial, window, stride, dilation, padding, orders) in enumerate(grid):
        if backend.name not in ("torch", "numpy") and number % 16:  # others compile for every shape
            continue
        extents = zip(spatial[:axes], window[:axes], dilation[:axes], strict=True)
        if any(n + 2 * padding <= d * (k - 1) for n, k, d in extents):
            continue
        options = {"stride": stride[:axes], "dilation": dilation[:axes], "groups": groups, "padding": padding}
        case = (outer, inner // groups, *window[:axes]), (inner, *spatial[:axes]), options
        check(backend, case, 1 + number % 3, orders, "channels_first", number)
