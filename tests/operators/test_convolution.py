"""Convolution layers: against `scipy.signal`, their transposes exactly, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, SEEDS, convolution_matrix, convolutions, convolve

from iresnet_core import Convolution
from iresnet_core.errors import DtypeError, InvalidArgumentError, NonFiniteError, ShapeError


def layer_of(backend, case, bias=None):
    kernel, input_shape, options = case
    return Convolution(
        backend.from_numpy(kernel),
        None if bias is None else backend.from_numpy(bias.astype(kernel.dtype)),
        input_shape=input_shape,
        **options,
    )


def channels_last(x, event_axes):
    """Move the channel axis behind the `event_axes` - 1 spatial ones."""
    return np.moveaxis(x, -event_axes, -1)


@given(case=convolutions(), last=st.booleans())
def test_matrices_of_the_groups_are_the_blocks_of_the_matrix(backend, case, last):
    kernel, input_shape, options = case
    groups = options["groups"]
    A = convolution_matrix(kernel, input_shape, options)
    A = A.reshape(groups, len(A) // groups, groups, -1)
    assert not any(A[i, :, j].any() for i in range(groups) for j in range(groups) if i != j)
    if last:
        kernel, input_shape = np.moveaxis(kernel, (0, 1), (-1, -2)).copy(), (*input_shape[1:], input_shape[0])
        options = {**options, "data_format": "channels_last"}
    layer = Convolution(backend.from_numpy(kernel), input_shape=input_shape, **options)
    found = backend.to_numpy(layer.group_matrices())
    expected = np.stack([A[i, :, i] for i in range(groups)])
    if last:  # of the same entries, whose order differs
        found, expected = (np.sort(a.reshape(groups, -1), axis=-1) for a in (found, expected))
        whole = backend.to_numpy(layer.matrix())
        blocks = backend.to_numpy(layer.group_matrices())
        norms = [np.linalg.norm(a, 2, axis=(-2, -1)).max() for a in (whole, blocks)]
        np.testing.assert_allclose(*norms, rtol=1e-12)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * abs(kernel).max())


@given(case=convolutions(dtypes=DTYPES), seed=SEEDS)
def test_samples_against_scipy(backend, case, seed):
    kernel, input_shape, options = case
    rng = np.random.default_rng(seed)
    x, bias = rng.standard_normal((2, *input_shape)).astype(kernel.dtype), rng.standard_normal(len(kernel))
    expected = convolve(x, kernel, **options)
    layer = layer_of(backend, case, bias)
    assert layer.output_shape == expected.shape[1:]
    assert layer.shape == (expected[0].size, x[0].size)
    tolerance = 100 * np.finfo(kernel.dtype).eps * abs(kernel).sum()
    out = layer.apply(backend.from_numpy(x))
    assert out.dtype == layer.weight.dtype
    np.testing.assert_allclose(backend.to_numpy(out), expected, rtol=0, atol=tolerance)
    shift = bias.astype(kernel.dtype).reshape(-1, *(1,) * (len(input_shape) - 1))
    np.testing.assert_allclose(
        backend.to_numpy(layer(backend.from_numpy(x))),
        expected + shift,
        rtol=0,
        atol=tolerance + 1e-6 * abs(bias).max(),
    )


@given(case=convolutions())
def test_products_are_those_of_the_matrix_and_its_transpose(backend, case):
    kernel, input_shape, options = case
    kernel = np.rint(kernel / abs(kernel).max() * 8)  # whole numbers, so that nothing is rounded in any order
    A = convolution_matrix(kernel, input_shape, options)
    layer = layer_of(backend, (kernel, input_shape, options))
    m, n = layer.shape
    np.testing.assert_array_equal(backend.to_numpy(layer.matvec(backend.from_numpy(np.eye(n)))).T, A)
    np.testing.assert_array_equal(backend.to_numpy(layer.rmatvec(backend.from_numpy(np.eye(m)))), A)
    np.testing.assert_array_equal(backend.to_numpy(layer.matrix()), A)


@given(case=convolutions(), seed=SEEDS)
def test_channels_last_is_the_same_map_transposed(backend, case, seed):
    kernel, input_shape, options = case
    rng = np.random.default_rng(seed)
    bias = rng.standard_normal(len(kernel))
    first = layer_of(backend, case, bias)
    axes = len(input_shape)
    last = Convolution(
        backend.from_numpy(np.moveaxis(kernel, (0, 1), (-1, -2))),
        backend.from_numpy(bias),
        input_shape=(*input_shape[1:], input_shape[0]),
        data_format="channels_last",
        **options,
    )
    assert last.output_shape == (*first.output_shape[1:], first.output_shape[0])
    x, u = rng.standard_normal((2, *input_shape)), rng.standard_normal((2, *first.output_shape))
    for product, transposed, argument in ((first, last, x), (first.adjoint, last.adjoint, u)):
        np.testing.assert_allclose(
            backend.to_numpy(transposed(backend.from_numpy(channels_last(argument, axes)))),
            channels_last(backend.to_numpy(product(backend.from_numpy(argument))), axes),
            rtol=1e-12,
            atol=1e-12 * abs(kernel).max(),
        )


@given(case=convolutions(), seed=SEEDS, leading=st.lists(st.integers(0, 2), max_size=3))
def test_leading_axes(backend, case, seed, leading):
    layer = layer_of(backend, case)
    rng = np.random.default_rng(seed)
    x, u = rng.standard_normal((*leading, *layer.input_shape)), rng.standard_normal((*leading, *layer.output_shape))
    for product, argument, shape in (
        (layer.apply, x, layer.output_shape),
        (layer.adjoint, u, layer.input_shape),
    ):
        out = backend.to_numpy(product(backend.from_numpy(argument)))
        assert out.shape == (*leading, *shape)
        for index in np.ndindex(*leading):
            one = backend.to_numpy(product(backend.from_numpy(argument[index])))
            np.testing.assert_allclose(out[index], one, rtol=1e-12, atol=1e-12 * abs(case[0]).max())
    flat = backend.from_numpy(x.reshape(*leading, layer.shape[1]))
    assert layer.matvec(flat).shape == (*leading, layer.shape[0])


@pytest.mark.parametrize(
    ("padding", "pairs", "out"),
    [
        ("valid", ((0, 0), (0, 0)), (4, 2)),
        ("same", ((1, 1), (1, 2)), (6, 5)),
        (0, ((0, 0), (0, 0)), (4, 2)),
        (2, ((2, 2), (2, 2)), (8, 6)),
        (np.int64(1), ((1, 1), (1, 1)), (6, 4)),
        ((0, 1), ((0, 0), (1, 1)), (4, 4)),
        (((2, 0), (0, 3)), ((2, 0), (0, 3)), (6, 5)),
        (np.array([[2, 0], [0, 3]]), ((2, 0), (0, 3)), (6, 5)),
    ],
)
def test_ways_to_say_padding(backend, padding, pairs, out):
    layer = Convolution(backend.from_numpy(np.ones((1, 1, 3, 4))), input_shape=(1, 6, 5), padding=padding)
    assert layer.padding == pairs
    assert all(type(n) is int for pair in layer.padding for n in pair)
    assert layer.out_spatial == out
    assert repr(layer) == f"Convolution((1, 6, 5) -> {(1, *out)}, window (3, 4))"


def test_same_padding_keeps_the_extent_and_centres_the_window(backend):
    tap = backend.from_numpy(np.array([[[0.0, 1.0, 0.0]]]))
    x = backend.from_numpy(np.arange(1.0, 6.0).reshape(1, 1, 5))
    for mode in ("zeros", "circular"):
        for dilation in (1, 2):
            layer = Convolution(tap, input_shape=(1, 5), padding="same", dilation=dilation, padding_mode=mode)
            np.testing.assert_array_equal(backend.to_numpy(layer(x)), backend.to_numpy(x))
    shift = backend.from_numpy(np.array([[[1.0, 0.0, 0.0]]]))
    circular = Convolution(shift, input_shape=(1, 5), padding="same", padding_mode="circular")
    np.testing.assert_array_equal(backend.to_numpy(circular(x)).ravel(), [5, 1, 2, 3, 4])


def test_numbers_for_stride_and_dilation(backend):
    kernel = backend.from_numpy(np.ones((1, 1, 2, 2)))
    for one, both in ((2, (2, 2)), (np.int64(3), (3, 3)), ([1, 2], (1, 2))):
        layer = Convolution(kernel, input_shape=(1, 9, 9), stride=one, dilation=one)
        assert layer.stride == layer.dilation == both


def test_same_layer_at_another_size(backend):
    kernel = backend.from_numpy(np.array([[[1.0, 1.0]]]))
    small = Convolution(kernel, input_shape=(1, 2))
    large = small.at_size((1, 50))
    assert large.input_shape == (1, 50)
    np.testing.assert_allclose(small.lipschitz, 2**0.5, rtol=1e-12)
    np.testing.assert_allclose(large.lipschitz, 2 * np.cos(np.pi / 100), rtol=1e-12)  # a path graph's incidence matrix
    doubled = small.with_parameters(2 * kernel, None)
    np.testing.assert_allclose(doubled.lipschitz, 8**0.5, rtol=1e-12)


KERNEL = np.ones((2, 1, 3))
FITTING = {"input_shape": (2, 5), "groups": 2}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel": np.ones((2, 1))}, ShapeError, r"1, 2 or 3 window axes.*\(2, 1\)"),
        ({"kernel": np.ones((1,) * 6)}, ShapeError, "1, 2 or 3 window axes"),
        ({"kernel": np.ones((2, 1, 0))}, ShapeError, r"\(2, 1, 0\)"),
        ({"kernel": np.ones((2, 1, 3), int)}, DtypeError, "weight.*int64"),
        ({"kernel": np.full((2, 1, 3), np.nan)}, NonFiniteError, "weight.*6 non-finite.*NaN"),
        ({"bias": np.ones(3)}, ShapeError, r"bias must have shape \(2,\), got \(3,\)"),
        ({"bias": np.array([np.inf, 0])}, NonFiniteError, "bias.*infinity"),
        ({"bias": np.ones(2, np.float32)}, DtypeError, "bias.*float32"),
        ({"input_shape": (2, 5, 5)}, ShapeError, r"\(2, 5, 5\).*1 window axes.*\(channels, \*spatial\)"),
        ({"input_shape": (3, 5)}, ShapeError, "2 groups.*3 input channels"),
        ({"input_shape": (2, 0)}, InvalidArgumentError, "input_shape.*0"),
        ({"input_shape": (2, 5.0)}, InvalidArgumentError, r"input_shape.*5\.0"),
        ({"input_shape": (2, 2)}, ShapeError, r"window \(3,\).*larger.*\(2,\)"),
        ({"dilation": 3}, ShapeError, r"window \(3,\) \(dilation \(3,\)\) is larger"),
        ({"groups": 0}, InvalidArgumentError, "groups.*0"),
        ({"groups": True}, InvalidArgumentError, "groups.*True"),
        ({"groups": 3, "input_shape": (3, 5)}, ShapeError, "3 groups"),
        ({"stride": 0}, InvalidArgumentError, "stride.*0"),
        ({"stride": 1.5}, InvalidArgumentError, r"stride.*1\.5"),
        ({"stride": None}, InvalidArgumentError, "stride.*None"),
        ({"stride": (1, 1)}, InvalidArgumentError, r"stride must be one number or 1, got \(1, 1\)"),
        ({"dilation": -1}, InvalidArgumentError, "dilation.*-1"),
        ({"padding": -1}, InvalidArgumentError, "padding.*-1"),
        ({"padding": 1.5}, InvalidArgumentError, r"padding.*1\.5"),
        ({"padding": None}, InvalidArgumentError, "padding.*None"),
        ({"padding": ((1, -1),)}, InvalidArgumentError, "padding.*-1"),
        ({"padding": ((1.0, 1.0),)}, InvalidArgumentError, r"padding.*1\.0"),
        ({"padding": ((1, 1, 1),)}, InvalidArgumentError, r"padding.*\(1, 1, 1\)"),
        ({"padding": (1, 1)}, InvalidArgumentError, r"1 axes, got \(1, 1\)"),
        ({"padding": "full"}, InvalidArgumentError, "'full'"),
        ({"padding": "same", "stride": 2}, InvalidArgumentError, "stride 1"),
        ({"padding_mode": "reflect"}, InvalidArgumentError, "'reflect'"),
        ({"padding_mode": "circular", "padding": 2}, InvalidArgumentError, "repeat rows"),
        (
            {"padding_mode": "circular", "padding": ((4, 0),), "dilation": 2, "input_shape": (2, 3)},
            InvalidArgumentError,
            "repeat rows",
        ),
        ({"data_format": "NCHW"}, InvalidArgumentError, "'NCHW'"),
    ],
)
def test_bad_convolutions(backend, change, error, message):
    options = {"kernel": KERNEL, **FITTING, **change}
    kernel, bias = options.pop("kernel"), options.pop("bias", None)
    Convolution(backend.from_numpy(KERNEL), **FITTING)
    with pytest.raises(error, match=message):
        Convolution(backend.from_numpy(kernel), None if bias is None else backend.from_numpy(bias), **options)


def test_samples_of_another_size_are_refused(backend):
    layer = Convolution(backend.from_numpy(KERNEL), **FITTING)
    with pytest.raises(ShapeError, match=r"Convolution\(\(2, 5\) -> \(2, 3\), window \(3,\)\).*\(1, 2, 6\)"):
        layer(backend.from_numpy(np.ones((1, 2, 6))))
