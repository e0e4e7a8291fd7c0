"""Chains: their hand-written derivatives against the product of explicit matrices, and their certified constant."""

import itertools

import numpy as np
import pytest
from branches_for_tests import of_another
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, ENTRYWISE, SEEDS, SMOOTH, convolution_matrix, convolutions, layouts, norm_from_below

from iresnet_core import Activation, Chain, Convolution, Dense, reference
from iresnet_core.branches.chain import Branch
from iresnet_core.errors import (
    DtypeError,
    InvalidArgumentError,
    MixedBackendsError,
    ShapeError,
)


def parameters_of(d, layout, seed, scale=1.0):
    """Weight and bias (float64) of each dense layer, None for an activation."""
    rng = np.random.default_rng(seed)
    parameters, width = [], d
    for entry in layout:
        if isinstance(entry, str):
            parameters.append(None)
        else:
            parameters.append((rng.standard_normal((entry, width)) * scale, rng.standard_normal(entry)))
            width = entry
    return parameters


def build(backend, layout, parameters, dtype=np.float64):
    return Chain(
        [
            Activation(entry)
            if weights is None
            else Dense(*(backend.from_numpy(array.astype(dtype)) for array in weights))
            for entry, weights in zip(layout, parameters, strict=True)
        ]
    )


def by_hand(layout, parameters, x):
    """Value (batch, d) and Jacobian (batch, d, d) from explicit matrices, in the dtype of x."""
    J = np.broadcast_to(np.eye(x.shape[1], dtype=x.dtype), (len(x), x.shape[1], x.shape[1]))
    for entry, weights in zip(layout, parameters, strict=True):
        if weights is None:
            x, slope = reference._activate(Activation(entry), x)
            J = slope[:, :, None] * J
        else:
            J = weights[0] @ J
            x = x @ weights[0].T + weights[1]
    return x, J


def slope_groups(layout):
    """Number of groups of slopes that dense layers separate, once around; what the exact trace depends on."""
    kinds = ["D" if not isinstance(entry, str) else "A" for entry in layout if entry != "identity"]
    first = kinds.index("D")
    around = kinds[first:] + kinds[:first]
    return sum(1 for kind, _ in itertools.groupby(around) if kind == "A")


def close(backend, actual, expected, scale=1.0):
    __tracebackhide__ = True
    size = float(np.max(abs(expected), initial=1.0))
    np.testing.assert_allclose(backend.to_numpy(actual), expected, rtol=0, atol=1e-11 * size * scale)


# --- derivatives ---


@given(case=layouts(activations=ENTRYWISE), seed=SEEDS, batch=st.integers(1, 3))
def test_products_are_those_of_the_jacobian_by_hand(backend, case, seed, batch):
    d, layout = case
    parameters = parameters_of(d, layout, seed)
    g = build(backend, layout, parameters)
    rng = np.random.default_rng(seed)
    x, u, v = rng.standard_normal((3, batch, d))
    value, J = by_hand(layout, parameters, x)
    at = g.linearize(backend.from_numpy(x))
    close(backend, at.value, value)
    close(backend, g(backend.from_numpy(x)), value)
    close(backend, at.matrix(), J)
    close(backend, at.jvp(backend.from_numpy(v)), np.einsum("bij,bj->bi", J, v), 1 + abs(J).sum())
    close(backend, at.vjp(backend.from_numpy(u)), np.einsum("bij,bi->bj", J, u), 1 + abs(J).sum())


@given(case=layouts(activations=ENTRYWISE), seed=SEEDS)
def test_adjoint_identity_and_stacks_of_vectors(backend, case, seed):
    d, layout = case
    rng = np.random.default_rng(seed)
    at = build(backend, layout, parameters_of(d, layout, seed)).linearize(
        backend.from_numpy(rng.standard_normal((2, d)))
    )
    u, v = rng.standard_normal((2, 3, 2, d))  # three probes for each of two samples
    Jv, Ju = backend.to_numpy(at.jvp(backend.from_numpy(v))), backend.to_numpy(at.vjp(backend.from_numpy(u)))
    np.testing.assert_allclose((u * Jv).sum(-1), (Ju * v).sum(-1), rtol=0, atol=1e-11 * (1 + abs(u * Jv).sum()))
    assert at.leading_axes
    close(backend, at.transposed_products(backend.from_numpy(u)), Ju)
    for i in range(3):
        close(backend, at.jvp(backend.from_numpy(v[i])), Jv[i])
        close(backend, at.vjp(backend.from_numpy(u[i])), Ju[i])


@given(case=layouts(activations=SMOOTH, max_dense=3), seed=SEEDS)
def test_products_against_finite_differences(backend, case, seed):
    d, layout = case
    g = build(backend, layout, parameters_of(d, layout, seed, scale=0.7))
    x, v = np.random.default_rng(seed).standard_normal((2, 2, d))
    if {"elu", "celu"} & set(layout):
        v = v * 0.1  # their second derivatives jump
    h = 1e-5
    moved = [backend.to_numpy(g(backend.from_numpy(x + s * h * v))) for s in (1, -1)]
    difference = (moved[0] - moved[1]) / (2 * h)
    product = backend.to_numpy(g.linearize(backend.from_numpy(x)).jvp(backend.from_numpy(v)))
    np.testing.assert_allclose(product, difference, rtol=1e-4, atol=1e-4 * (1 + abs(difference).max()))


@given(case=layouts(), seed=SEEDS)
def test_narrow_matrix_has_the_same_determinant(backend, case, seed):
    d, layout = case
    g = build(backend, layout, parameters_of(d, layout, seed, scale=0.3))
    at = g.linearize(backend.from_numpy(np.random.default_rng(seed).standard_normal((2, d))))
    narrow, J = backend.to_numpy(at.sylvester_matrix()), backend.to_numpy(at.matrix())
    width = min([d, *(entry for entry in layout if not isinstance(entry, str))])
    assert at.width == width
    assert narrow.shape == (2, width, width)
    full = np.linalg.det(np.eye(d) + J)
    size = np.prod(1 + np.linalg.norm(J, axis=(1, 2)))
    np.testing.assert_allclose(np.linalg.det(np.eye(width) + narrow), full, rtol=1e-9, atol=1e-12 * size)


def test_narrow_cut_is_really_narrow(backend):
    rng = np.random.default_rng(0)
    down, up = backend.from_numpy(rng.standard_normal((2, 50))), backend.from_numpy(rng.standard_normal((50, 2)))
    at = Chain([Activation("tanh"), Dense(down), Activation("sin"), Dense(up)]).linearize(
        backend.from_numpy(np.ones((3, 50)))
    )
    assert at.sylvester_matrix().shape == (3, 2, 2)
    assert at.depth == 2


@given(case=layouts(), seed=SEEDS)
def test_trace_is_offered_where_it_is_cheap_and_is_exact(backend, case, seed):
    d, layout = case
    parameters = parameters_of(d, layout, seed)
    x = np.random.default_rng(seed).standard_normal((3, d))
    at = build(backend, layout, parameters).linearize(backend.from_numpy(x))
    assert (at.trace is not None) == (slope_groups(layout) <= 2)
    if at.trace is not None:
        J = by_hand(layout, parameters, x)[1]
        trace = backend.to_numpy(at.trace())
        assert trace.shape == (3,)
        np.testing.assert_allclose(trace, np.trace(J, axis1=1, axis2=2), rtol=0, atol=1e-11 * (1 + abs(J).max()) * d)


@pytest.mark.parametrize(
    ("layout", "groups"),
    [
        ((3,), 0),
        ((5, 3), 0),
        (("identity", 5, "identity", 3, "identity"), 0),
        (("tanh", 3), 1),
        ((3, "tanh"), 1),
        (("tanh", 3, "sin"), 1),
        ((5, "tanh", "sin", 3), 1),
        ((5, "tanh", 4, 3), 1),
        ((5, 4, "tanh", "identity", "sin", 3), 1),
        (("tanh", 5, "sin", 3), 2),
        ((5, "tanh", 3, "sin"), 2),
        ((5, "tanh", 4, "sin", 3), 2),
        (("tanh", 5, "sin", 4, 3, "lipswish"), 2),
        ((2, 5, "tanh", "identity", 4, 6, "sin", 2, 3), 2),
        ((5, "tanh", 4, "sin", 3, "tanh"), 3),
        (("tanh", 5, "tanh", 4, "sin", 3), 3),
        ((5, "tanh", 4, "sin", 6, "tanh", 3), 3),
    ],
)
def test_trace_of_every_layout(backend, layout, groups):
    parameters = parameters_of(3, layout, seed=len(layout))
    x = np.random.default_rng(1).standard_normal((4, 3))
    at = build(backend, layout, parameters).linearize(backend.from_numpy(x))
    assert slope_groups(layout) == groups
    assert (at.trace is None) == (groups == 3)
    if groups < 3:
        close(backend, at.trace(), np.trace(by_hand(layout, parameters, x)[1], axis1=1, axis2=2))


def test_what_has_no_cheap_trace(backend):
    rng = np.random.default_rng(0)
    x = backend.from_numpy(rng.standard_normal((2, 4)))
    square = Dense(backend.from_numpy(rng.standard_normal((4, 4))))
    assert Chain([square, Activation("maxmin")]).linearize(x).trace is None
    kernel = backend.from_numpy(rng.standard_normal((1, 1, 3)))
    image = Chain([Convolution(kernel, input_shape=(1, 4), padding="same")])
    assert image.linearize(backend.from_numpy(rng.standard_normal((2, 1, 4)))).trace is None
    encoder = Chain([Dense(backend.from_numpy(rng.standard_normal((2, 4))))]).linearize(x)
    assert encoder.trace is encoder.matrix is encoder.sylvester_matrix is encoder.width is None
    assert encoder.jvp(x).shape == (2, 2)


@given(case=convolutions(max_extent=4, max_channels=2), seed=SEEDS, activation=st.sampled_from(["maxmin", *ENTRYWISE]))
def test_jacobian_of_a_convolutional_chain(backend, case, seed, activation):
    kernel, input_shape, options = case
    rng = np.random.default_rng(seed)
    kernel = kernel / abs(kernel).max()
    first = Convolution(
        backend.from_numpy(kernel),
        backend.from_numpy(rng.standard_normal(len(kernel))),
        input_shape=input_shape,
        **options,
    )
    if activation == "maxmin" and len(kernel) % 2:
        activation = "sin"
    pixels = first.shape[0] // len(kernel)
    mixing = rng.standard_normal((2, len(kernel)))
    second = Convolution(
        backend.from_numpy(mixing.reshape(2, len(kernel), *(1,) * (len(input_shape) - 1))),
        input_shape=first.output_shape,
    )
    g = Chain([first, Activation(activation), second])
    x = rng.standard_normal((2, *input_shape))
    A, B = convolution_matrix(kernel, input_shape, options), np.kron(mixing, np.eye(pixels))
    at = g.linearize(backend.from_numpy(x))
    hidden = backend.to_numpy(first(backend.from_numpy(x)))
    for i in range(2):
        if activation == "maxmin":
            pairs = np.arange(hidden[i].size).reshape(-1, 2, pixels)
            swap = hidden[i].ravel()[pairs[:, :1]] < hidden[i].ravel()[pairs[:, 1:]]
            D = np.eye(hidden[i].size)[np.where(swap, pairs[:, ::-1], pairs).ravel()]
        else:
            D = np.diag(reference._activate(Activation(activation), hidden[i].ravel())[1])
        J = B @ D @ A
        v, u = rng.standard_normal((2, *input_shape)), rng.standard_normal((2, *g.output_shape))
        product = backend.to_numpy(at.jvp(backend.from_numpy(v)))[i].ravel()
        np.testing.assert_allclose(product, J @ v[i].ravel(), rtol=0, atol=1e-11 * (1 + abs(J).max()) * J.shape[1])
        product = backend.to_numpy(at.vjp(backend.from_numpy(u)))[i].ravel()
        np.testing.assert_allclose(product, u[i].ravel() @ J, rtol=0, atol=1e-11 * (1 + abs(J).max()) * J.shape[0])


def test_explicit_jacobian_of_images(backend):
    rng = np.random.default_rng(3)
    first = Convolution(backend.from_numpy(rng.standard_normal((4, 2, 3))), input_shape=(2, 5), padding="same")
    second = Convolution(backend.from_numpy(rng.standard_normal((2, 4, 1))), input_shape=(4, 5))
    at = Chain([first, Activation("maxmin"), second]).linearize(backend.from_numpy(rng.standard_normal((3, 2, 5))))
    J = backend.to_numpy(at.matrix())
    assert J.shape == (3, 10, 10)
    for j in range(10):
        unit = backend.from_numpy(np.tile(np.eye(10)[j].reshape(2, 5), (3, 1, 1)))
        close(backend, at.jvp(unit), J[:, :, j].reshape(3, 2, 5))
    close(backend, at.sylvester_matrix(), J)


# --- the constant ---


@given(case=layouts(activations=ENTRYWISE), seed=SEEDS, size=st.sampled_from([1e-3, 1.0, 30.0]), dtype=DTYPES)
def test_constant_is_above_every_jacobian(backend, case, seed, size, dtype):
    d, layout = case
    parameters = parameters_of(d, layout, seed, scale=size)
    g = build(backend, layout, parameters, dtype)
    rounded = [None if p is None else tuple(a.astype(dtype).astype(float) for a in p) for p in parameters]
    x = np.random.default_rng(seed).standard_normal((5, d)) / size
    constant = np.longdouble(g.lipschitz)
    norms = norm_from_below(by_hand(layout, rounded, x)[1])
    assert (norms <= constant * (1 + 1e-15)).all()


@given(case=layouts(activations=("tanh", "relu", "identity")), seed=SEEDS)
def test_constant_is_the_product_of_the_layers(backend, case, seed):
    d, layout = case
    parameters = parameters_of(d, layout, seed)
    g = build(backend, layout, parameters)
    product = np.prod([norm_from_below(p[0]) for p in parameters if p is not None])
    assert isinstance(g.lipschitz, float)
    assert product <= np.longdouble(g.lipschitz) <= product * (1 + 1e-12)


@pytest.mark.parametrize(
    ("scales", "product"),
    [
        ((1e-200, 1e200, 1e-200, 1e200), 1.0),
        ((1e200, 1e-200, 3.0), 3.0),
        ((1e-200, 1e-200), 0.0),
        ((1e200, 1e200), np.inf),
    ],
)
def test_constant_of_badly_scaled_layers(backend, scales, product):
    g = Chain([Dense(backend.from_numpy(np.array([[scale]]))) for scale in scales])
    assert product <= g.lipschitz <= product * (1 + 1e-13) + 1e-323


def test_constant_of_a_chain_with_a_zero_layer(backend):
    assert Chain([Dense(backend.from_numpy(np.array([[scale]]))) for scale in (3.0, 0.0)]).lipschitz == 0


def test_constants_of_the_activations_count(backend):
    dense = Dense(backend.from_numpy(np.array([[2.0]])))
    for name, parameters, constant in (("sigmoid", {}, 0.5), ("elu", {"alpha": 3.0}, 6.0), ("maxmin", {}, 2.0)):
        assert Chain([dense, Activation(name, **parameters)]).lipschitz == pytest.approx(constant, rel=1e-13)


# --- rounding ---


ROUNDING = st.sampled_from([1e-6, 1e-2, 1.0, 30.0])


@given(case=layouts(max_width=8), seed=SEEDS, weight=ROUNDING, bias=ROUNDING, size=ROUNDING)
def test_rounding_error_bounds_the_error_of_an_evaluation(backend, case, seed, weight, bias, size):
    d, layout = case
    parameters = parameters_of(d, layout, seed, scale=weight)
    rng = np.random.default_rng(seed)
    for dtype, exact_dtype in ((np.float32, np.float64), (np.float64, np.longdouble)):
        rounded = [None if p is None else (p[0].astype(dtype), (p[1] * bias).astype(dtype)) for p in parameters]
        g = build(backend, layout, rounded, dtype)
        x = (rng.standard_normal((4, d)) * size).astype(dtype)
        exactly = [None if p is None else tuple(a.astype(exact_dtype) for a in p) for p in rounded]
        exact = by_hand(layout, exactly, x.astype(exact_dtype))[0]
        error = np.linalg.norm((backend.to_numpy(g(backend.from_numpy(x))) - exact).astype(float), axis=1)
        bound = backend.to_numpy(g.with_rounding(backend.from_numpy(x))[1])
        assert bound.shape == (4,)
        assert bound.dtype == dtype
        assert (error <= bound.astype(float)).all()


@given(case=convolutions(dtypes=st.just(np.float32)), seed=SEEDS)
def test_rounding_error_of_convolutions(backend, case, seed):
    kernel, input_shape, options = case
    rng = np.random.default_rng(seed)
    bias = rng.standard_normal(len(kernel)).astype(np.float32)
    layer = Convolution(backend.from_numpy(kernel), backend.from_numpy(bias), input_shape=input_shape, **options)
    g = Chain([layer])
    x = rng.standard_normal((2, *input_shape)).astype(np.float32)
    exact = g.astype(backend.xp.float64)(backend.from_numpy(x.astype(float)))
    error = backend.to_numpy(g(backend.from_numpy(x))) - backend.to_numpy(exact)
    bound = backend.to_numpy(g.with_rounding(backend.from_numpy(x))[1])
    assert (np.linalg.norm(error.reshape(2, -1), axis=1) <= bound).all()


@pytest.mark.parametrize("name", ENTRYWISE)
def test_rounding_error_where_an_activation_cancels(backend, name):
    # 1 + tanh(x / 2) loses all digits on the left, where the value is far smaller than the input.
    one = backend.from_numpy(np.ones((1, 1), np.float32))
    x = np.linspace(-40, 40, 801, dtype=np.float32)[:, None]
    for layers in ([Activation(name), Dense(one)], [Dense(one), Activation(name), Activation(name)]):
        g = Chain(layers)
        exact = x.astype(float)
        for layer in layers:
            exact = reference._activate(layer, exact)[0] if isinstance(layer, Activation) else exact
        error = abs(backend.to_numpy(g(backend.from_numpy(x))) - exact)[:, 0]
        assert (error <= backend.to_numpy(g.with_rounding(backend.from_numpy(x))[1])).all()


def test_rounding_error_is_no_more_than_a_few_hundred_units(backend):
    d, layout = 8, (8, "tanh", 8, "tanh", 8)
    g = build(backend, layout, parameters_of(d, layout, 0, scale=0.3), np.float32)
    x = np.random.default_rng(0).standard_normal((4, d)).astype(np.float32)
    bound = backend.to_numpy(g.with_rounding(backend.from_numpy(x))[1])
    assert (bound < 300 * np.finfo(np.float32).eps * np.linalg.norm(x, axis=1)).all()


# --- composition ---


def test_nested_chains_are_flattened(backend):
    rng = np.random.default_rng(0)
    a, b = (Dense(backend.from_numpy(rng.standard_normal((3, 3)))) for _ in range(2))
    tanh = Activation("tanh")
    nested = Chain([Chain([a, tanh]), Chain([Chain([b])])])
    assert nested.layers == (a, tanh, b)
    assert nested.operators == (a, b)
    x = backend.from_numpy(rng.standard_normal((2, 3)))
    np.testing.assert_array_equal(backend.to_numpy(nested(x)), backend.to_numpy(Chain([a, tanh, b])(x)))
    assert isinstance(nested, Branch)
    assert repr(nested) == "Chain([Dense(3 -> 3), Activation('tanh'), Dense(3 -> 3)])"


def test_chain_in_another_dtype(backend):
    g = build(backend, (4, "lipswish", 3), parameters_of(3, (4, "lipswish", 3), 0), np.float32)
    wide = g.astype(backend.xp.float64)
    assert g.astype(backend.xp.float32) is g
    # A cast of weights that may be differentiated belongs to one backward pass, and is not kept.
    assert backend.differentiates or g.astype(backend.xp.float64) is wide
    assert [layer.weight.dtype for layer in wide.operators] == [backend.xp.float64] * 2
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    np.testing.assert_allclose(
        backend.to_numpy(g(backend.from_numpy(x))),
        backend.to_numpy(wide(backend.from_numpy(x.astype(float)))),
        rtol=1e-5,
    )


@pytest.mark.parametrize(("batch", "d"), [(0, 3), (1, 1), (1, 3), (5, 1)])
def test_edge_sizes(backend, batch, d):
    g = build(backend, (2, "tanh", d, "lipswish"), parameters_of(d, (2, "tanh", d, "lipswish"), 0))
    x = backend.from_numpy(np.ones((batch, d)))
    at = g.linearize(x)
    assert at.value.shape == at.vjp(x).shape == at.jvp(x).shape == (batch, d)
    assert at.matrix().shape == (batch, d, d)
    assert at.sylvester_matrix().shape == (batch, min(d, 2), min(d, 2))
    assert at.trace().shape == g.with_rounding(x)[1].shape == (batch,)


def dense(backend, m, n, dtype=float):
    return Dense(backend.from_numpy(np.ones((m, n), dtype)))


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (lambda backend: [], InvalidArgumentError, "at least one linear layer"),
        (lambda backend: [Activation("tanh")], InvalidArgumentError, "at least one linear layer"),
        (lambda backend: [dense(backend, 2, 2), np.tanh], InvalidArgumentError, "ufunc"),
        (lambda backend: [backend.from_numpy(np.eye(2))], InvalidArgumentError, "rray|Tensor"),
        (lambda backend: [dense(backend, 3, 2), dense(backend, 2, 2)], ShapeError, r"Dense\(2 -> 3\).*Dense\(2 -> 2\)"),
    ],
)
def test_bad_chains(backend, layers, error, message):
    with pytest.raises(error, match=message):
        Chain(layers(backend))


def test_chain_of_two_frameworks(backend):
    with pytest.raises(MixedBackendsError, match=rf"\({backend.name}\)"):
        Chain([Dense(backend.from_numpy(np.eye(2))), Dense(of_another(backend, np.eye(2)))])


def test_bad_samples_of_a_chain(backend):
    g = Chain([Activation("tanh"), dense(backend, 2, 2)])
    for call in (g, g.linearize):
        with pytest.raises(ShapeError, match=r"\(1, 3\)"):
            call(backend.from_numpy(np.ones((1, 3))))
        with pytest.raises(DtypeError, match="float32"):
            call(backend.from_numpy(np.ones((1, 2), np.float32)))
    with pytest.raises(DtypeError, match=r"float64.* and .*float32"):
        Chain([dense(backend, 2, 2), dense(backend, 2, 2, np.float32)])(backend.from_numpy(np.ones((1, 2))))
