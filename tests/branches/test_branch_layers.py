"""Layers of a branch beside dense layers, convolutions and activations: every one in a chain that keeps the shape."""

import copy
import pickle

import numpy as np
import pytest
from branches_for_tests import array, host
from frameworks_for_tests import COMPILERS, compiled_once, gradients

from iresnet_core import (
    Activation,
    Chain,
    Convolution,
    ConvolutionTranspose,
    Dense,
    DenseConcatenation,
    Fixed,
    FourierFeatures,
    PReLU,
    Reshape,
    ResidualBlock,
    ScaledActivation,
    average_pooling,
    invert,
    lipschitz_bound,
    logdet,
    normalize,
    reference,
)
from iresnet_core.backends import backend as find_backend
from iresnet_core.errors import DtypeError, InvalidArgumentError, NonFiniteError, ShapeError


def strided(e, rng, t):
    geometry = {"stride": 2, "padding": 1}
    down, up = rng.standard_normal((4, 1, 3, 3)), rng.standard_normal((4, 1, 3, 3))
    return [
        Convolution(array(e, down, t), array(e, rng.standard_normal(4), t), input_shape=(1, 4, 4), **geometry),
        Activation("silu"),
        ConvolutionTranspose(array(e, up, t), array(e, np.ones(1), t), output_shape=(1, 4, 4), **geometry),
    ]


def pooled(e, rng, t):
    like = array(e, np.zeros(1), t)
    return [
        average_pooling(like, 2, input_shape=(4, 4, 1), data_format="channels_last"),
        Activation("mish"),
        ConvolutionTranspose(
            array(e, rng.standard_normal((2, 2, 1, 1)), t),
            output_shape=(4, 4, 1),
            stride=2,
            data_format="channels_last",
        ),
    ]


def flattened(e, rng, t):
    return [
        Activation("gelu"),
        Reshape((1, 2, 3), (6,)),
        Dense(array(e, rng.standard_normal((4, 6)), t), array(e, rng.standard_normal(4), t)),
        Activation("tanh"),
        Dense(array(e, rng.standard_normal((6, 4)), t)),
        Reshape((6,), (1, 2, 3)),
    ]


def angles(e, rng, t):
    like = array(e, np.zeros(1), t)
    return [
        FourierFeatures.of_angles(like, 3, angles=(0, 2), frequencies=(1, 2)),
        Dense(array(e, rng.standard_normal((5, 9)), t)),
        Activation("softplus"),
        Dense(array(e, rng.standard_normal((3, 5)), t)),
    ]


def waves(e, rng, t):
    return [
        FourierFeatures(array(e, rng.standard_normal((4, 2)), t)),
        Dense(array(e, rng.standard_normal((2, 8)), t)),
    ]


def fixed(e, rng, t):
    return [
        Fixed(Dense(array(e, 3 * np.eye(2), t))),
        Activation("sin"),
        Dense(array(e, rng.standard_normal((2, 2)), t)),
    ]


def learned(e, rng, t):
    return [
        PReLU(array(e, np.array([0.5, -0.25]), t)),
        Dense(array(e, rng.standard_normal((4, 2)), t), array(e, rng.standard_normal(4), t)),
        ScaledActivation("lipswish", array(e, 0.5 * rng.standard_normal(4), t)),
        Dense(array(e, rng.standard_normal((2, 4)), t)),
    ]


def dense_block(e, rng, t):
    return [
        DenseConcatenation(
            [Dense(array(e, rng.standard_normal((3, 2)), t), array(e, rng.standard_normal(3), t)), Activation("elu")],
            array(e, np.array([0.6]), t),
        ),
        DenseConcatenation(
            [Dense(array(e, rng.standard_normal((2, 5)), t)), ScaledActivation("softplus", array(e, np.ones(1), t))],
            array(e, np.array([-0.9]), t),
        ),
        Dense(array(e, rng.standard_normal((2, 7)), t)),
    ]


def dense_image_block(e, rng, t):
    kernels = array(e, rng.standard_normal((3, 3, 1, 2)), t), array(e, rng.standard_normal((1, 1, 3, 1)), t)
    last = {"data_format": "channels_last"}
    return [
        DenseConcatenation(
            [Convolution(kernels[0], input_shape=(3, 3, 1), padding=1, **last), Activation("lipswish")],
            array(e, np.array([0.7]), t),
            axis=-1,
        ),
        PReLU(array(e, np.array([0.1, 0.2, -0.9]), t), axis=-1),
        Convolution(kernels[1], input_shape=(3, 3, 3), **last),
    ]


CASES = {make.__name__: make for make in (strided, pooled, flattened, angles, waves, fixed)}
CASES |= {make.__name__: make for make in (learned, dense_block, dense_image_block)}
every_case = pytest.mark.parametrize("case", CASES)


def made(backend, case, dtype="float64", batch=3):
    rng = np.random.default_rng(3)
    g = normalize(Chain(CASES[case](backend, rng, dtype)), 0.8)
    return g, array(backend, 2 * rng.standard_normal((batch, *g.input_shape)), dtype)


@every_case
def test_products_are_those_of_the_differences_and_adjoint(backend, case):
    g, x = made(backend, case)
    rng = np.random.default_rng(0)
    at, J = g.linearize(x), reference.jacobian(lambda x: g(x), x)
    d = J.shape[1]
    u, v = rng.standard_normal((2, 2, 3, *g.input_shape))  # stacks of two
    forward = host(backend, at.jvp(array(backend, v))).reshape(2, 3, d)
    back = host(backend, at.vjp(array(backend, u))).reshape(2, 3, d)
    np.testing.assert_allclose(forward, np.einsum("bij,pbj->pbi", J, v.reshape(2, 3, d)), atol=1e-9)
    np.testing.assert_allclose(back, np.einsum("bji,pbj->pbi", J, u.reshape(2, 3, d)), atol=1e-9)
    np.testing.assert_allclose((forward * u.reshape(2, 3, d)).sum(), (back * v.reshape(2, 3, d)).sum(), atol=1e-12)
    np.testing.assert_allclose(host(backend, at.value), host(backend, g(x)), atol=1e-14)
    np.testing.assert_allclose(host(backend, at.matrix()), J, atol=1e-9)
    assert np.linalg.norm(J, 2, axis=(1, 2)).max() <= g.lipschitz <= 0.8
    assert g.certificate == "certified"


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, "float64") for case in CASES), ("strided", "float32"), ("angles", "float32")]
)
def test_log_determinant_and_inverse(backend, case, dtype):
    g, x = made(backend, case, dtype)
    J = reference.jacobian(lambda x: g.astype(backend.xp.float64)(x), array(backend, host(backend, x).astype(float)))
    expected = np.linalg.slogdet(np.eye(J.shape[1]) + J)[1]
    exact = logdet(g, x, method="exact")
    assert (abs(host(backend, exact.value) - expected) <= host(backend, exact.bias_bound) + 1e-8).all()
    z = x + g(x)
    found = invert(g, z)
    assert found.value.dtype == x.dtype
    distance = np.linalg.norm((host(backend, found.value) - host(backend, x)).reshape(3, -1).astype(float), axis=1)
    rounding = 4 * np.finfo(dtype).eps * np.linalg.norm(host(backend, z).reshape(3, -1), axis=1)
    assert (distance <= host(backend, found.error_bound) + 5 * rounding).all()


NUMPY = find_backend("numpy")


@pytest.mark.parametrize("method", ["series", "arnoldi", "auto"])
def test_estimates_are_within_their_errors(method):
    for case in CASES:
        g, x = made(NUMPY, case)
        J = reference.jacobian(g, x)
        expected = np.linalg.slogdet(np.eye(J.shape[1]) + J)[1]
        found = logdet(g, x, method=method, probes=64, rng=1) if method != "auto" else logdet(g, x)
        assert (abs(found.value - expected) <= 5 * found.std_error + found.bias_bound + 1e-8).all()


# The others where there is time: JAX compiles every one for half a minute.
@pytest.mark.parametrize(
    "case",
    [
        case if case in ("strided", "angles", "dense_block") else pytest.param(case, marks=pytest.mark.strict_suite)
        for case in CASES
    ],
)
@pytest.mark.needs("autodiff")
def test_gradients_are_those_of_differences(backend, case):
    g, x = made(backend, case)
    xp = backend.xp
    weights = [host(backend, a) for a in g.arrays]
    turn = np.random.default_rng(1).standard_normal((3, *g.input_shape))

    def loss(x, *arrays):
        g_here = g.with_arrays(arrays)
        return xp.sum(g_here(x) * array(backend, turn)) + xp.sum(logdet(g_here, x, method="exact", errors=False).value)

    given = [array(backend, a) for a in (host(backend, x), *weights)]
    found = [np.asarray(a) for a in gradients(backend, loss, given)]
    rng = np.random.default_rng(2)
    direction = [rng.standard_normal(a.shape) for a in (host(backend, x), *weights)]

    def at(step):
        moved = [array(backend, host(backend, a) + step * b) for a, b in zip(given, direction, strict=True)]
        return float(loss(*moved))

    expected = (at(1e-5) - at(-1e-5)) / 2e-5
    along = sum(float((a * b).sum()) for a, b in zip(found, direction, strict=True))
    assert along == pytest.approx(expected, rel=1e-6, abs=1e-6)


@every_case
def test_rounding_is_bounded(case):
    g, x = made(NUMPY, case, "float32", 20)
    value, bound = g.with_rounding(x)
    exact = g.astype(np.float64)(x.astype(float))
    error = np.linalg.norm((value - exact).reshape(20, -1), axis=1)
    assert (error <= bound).all()
    assert (bound < 1e-3 * (1 + np.linalg.norm(x.reshape(20, -1), axis=1))).all()


@every_case
def test_copies(case):
    g, x = made(NUMPY, case)
    for other in (copy.deepcopy(g), pickle.loads(pickle.dumps(g))):
        np.testing.assert_array_equal(other(x), g(x))
        assert other.lipschitz == g.lipschitz
    assert ResidualBlock(g).arrays  # what a flow takes its framework from


@pytest.mark.needs("compile")
@pytest.mark.parametrize("case", ["strided", "angles", "dense_block"])
def test_compiled(backend, case):
    g, x = made(backend, case)

    def transformed(x):
        return x + g(x), logdet(g, x, method="exact").value

    with compiled_once(backend, COMPILERS[backend.name][0], transformed) as program:
        found = program(x)
    for a, b in zip(found, transformed(x), strict=True):
        np.testing.assert_allclose(host(backend, a), host(backend, b), atol=1e-12)


# --- each of them ---


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"groups": 2, "padding": [(1, 0)]}, {"padding": 2, "padding_mode": "circular"}]
)
def test_transposed_convolutions_are_the_transposes(backend, data_format, options):
    rng = np.random.default_rng(0)
    kernel, shape = rng.standard_normal((4, 4 // options.get("groups", 1), 5)), (4, 9)
    if data_format == "channels_last":
        kernel, shape = kernel.transpose(2, 1, 0), (9, 4)
    options = {**options, "data_format": data_format}
    convolution = Convolution(array(backend, kernel), input_shape=shape, **options)
    bias = rng.standard_normal(4)
    layer = ConvolutionTranspose(array(backend, kernel), array(backend, bias), output_shape=shape, **options)
    assert (layer.input_shape, layer.output_shape) == (convolution.output_shape, shape)
    A = reference.matrix(convolution).T
    np.testing.assert_allclose(reference.matrix(layer), A, atol=1e-12)
    x = rng.standard_normal((2, *layer.input_shape))
    value = host(backend, layer(array(backend, x))).reshape(2, -1)
    spread = np.broadcast_to(bias if data_format == "channels_last" else bias[:, None], shape).reshape(-1)
    np.testing.assert_allclose(value, x.reshape(2, -1) @ A.T + spread, atol=1e-12)
    norm = np.linalg.norm(A, 2)
    assert norm <= layer.lipschitz <= 1.03 * norm
    assert float(lipschitz_bound(layer, method="svd").value) == pytest.approx(norm)
    u = rng.standard_normal((2, *shape))
    if backend.differentiates:
        gradient = host(backend, layer.weight_gradient(array(backend, x), array(backend, u)))
        moved = rng.standard_normal(kernel.shape)
        other = layer.with_parameters(array(backend, kernel + moved), None)
        difference = (host(backend, other.apply(array(backend, x))) - host(backend, layer.apply(array(backend, x)))) * u
        assert (gradient * moved).sum() == pytest.approx(difference.sum())
    others = (0, 1) if data_format == "channels_last" else (0, 2)
    np.testing.assert_allclose(host(backend, layer.bias_gradient(array(backend, u))), u.sum(axis=others))


def test_normalized_layers_keep_their_kind():
    g, _ = made(NUMPY, "strided")
    assert [type(layer).__name__ for layer in g.layers] == ["Convolution", "Activation", "ConvolutionTranspose"]
    assert np.linalg.norm(g.layers[2].matrix(), 2) <= g.layers[2].lipschitz


def test_constant_of_waves_is_the_norm_of_the_frequencies(backend):
    frequencies = np.random.default_rng(0).standard_normal((5, 3))
    layer = FourierFeatures(array(backend, frequencies), passed=[1])
    rows = np.vstack([frequencies, np.eye(3)[1:2]])
    assert layer.lipschitz == pytest.approx(np.linalg.norm(rows, 2), rel=1e-12)
    x = array(backend, np.random.default_rng(1).standard_normal((4, 3)))
    units = array(backend, np.broadcast_to(np.eye(3)[:, None], (3, 4, 3)).copy())
    J = host(backend, layer.linearize(x)[1].apply(units)).transpose(1, 2, 0)
    # J^T J is the same everywhere, but for the passed entries that of the frequencies.
    np.testing.assert_allclose(J.transpose(0, 2, 1) @ J, np.broadcast_to(rows.T @ rows, (4, 3, 3)), atol=1e-13)
    # The Jacobian changes no faster than the constant says.
    y = array(backend, host(backend, x) + 1e-4)
    K = host(backend, layer.linearize(y)[1].apply(units)).transpose(1, 2, 0)
    change = np.linalg.norm(K - J, 2, axis=(1, 2)).max() / (1e-4 * np.sqrt(3))
    assert 0.05 * layer.slope_lipschitz < change <= layer.slope_lipschitz


def test_angles_come_round(backend):
    g, x = made(backend, "angles")
    turned = array(backend, host(backend, x) + 2 * np.pi * np.array([3.0, 0.0, -1.0]))
    np.testing.assert_allclose(host(backend, g(turned)), host(backend, g(x)), atol=1e-13)
    layer = FourierFeatures.of_angles(x, 3, frequencies=(1, 2, 3))
    assert layer.lipschitz == pytest.approx(np.sqrt(14))  # of each angle, not the largest frequency
    assert FourierFeatures.of_angles(x, 3, angles=(1,)).lipschitz == pytest.approx(1)


def test_average_pooling_is_the_mean_and_its_norm(backend):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 6))
    layer = average_pooling(array(backend, x), (2, 3), input_shape=(3, 4, 6))
    expected = x.reshape(2, 3, 2, 2, 2, 3).mean(axis=(3, 5))
    np.testing.assert_allclose(host(backend, layer(array(backend, x))), expected, atol=1e-14)
    assert layer.lipschitz == pytest.approx(6**-0.5, rel=1e-6)


@pytest.mark.parametrize("name", ["lipswish", "softplus", "elu", "hardtanh", "sin"])
def test_scaled_activations_are_those_of_another_width(backend, name):
    log_scale, x = np.array([-1.5, 0.0, 2.0]), 3 * np.random.default_rng(0).standard_normal((200, 3))
    layer, plain = ScaledActivation(name, array(backend, log_scale)), Activation(name)
    scale = np.exp(log_scale)
    value, jacobian = layer.linearize(array(backend, x))
    inner = array(backend, x * scale)
    np.testing.assert_allclose(host(backend, value), host(backend, plain(inner)) / scale, atol=1e-14)
    np.testing.assert_allclose(host(backend, jacobian.slope), host(backend, plain.slope(inner)), atol=1e-14)
    assert abs(host(backend, jacobian.slope)).max() <= layer.lipschitz == plain.lipschitz
    assert layer.slope_lipschitz == pytest.approx(plain.slope_lipschitz * scale.max(), rel=2e-6)
    known = {"lipswish": ("lipswish", "beta", 1), "softplus": ("softplus", "beta", 1), "elu": ("celu", "alpha", -1)}
    if name in known:  # one of the table with this parameter
        other, key, power = known[name]
        wide = Activation(other, **{key: float(scale[2] ** power)})(array(backend, x))
        np.testing.assert_allclose(host(backend, value)[:, 2], host(backend, wide)[:, 2], atol=1e-14)


def test_slopes_beyond_one_are_not_used(backend):
    layer = PReLU(array(backend, np.array([0.5, -1.0, 7.0, -7.0])))
    value, jacobian = layer.linearize(array(backend, np.array([[-2.0] * 4, [2.0] * 4])))
    np.testing.assert_array_equal(host(backend, value), [[-1.0, 2.0, -2.0, 2.0], [2.0] * 4])
    np.testing.assert_array_equal(host(backend, jacobian.slope), [[0.5, -1.0, 1.0, -1.0], [1.0] * 4])
    assert layer.lipschitz == 1


def test_constant_of_a_concatenation(backend):
    W, angle = 3 * np.random.default_rng(0).standard_normal((3, 2)), 0.4
    layer = DenseConcatenation([Dense(array(backend, W))], array(backend, np.array([angle])))
    whole = np.vstack([np.cos(angle) * np.eye(2), np.sin(angle) * W])
    assert layer.lipschitz == pytest.approx(np.linalg.norm(whole, 2), rel=1e-9)
    x = np.random.default_rng(1).standard_normal((4, 2))
    np.testing.assert_allclose(host(backend, layer(array(backend, x))), x @ whole.T, atol=1e-14)
    g = Chain([layer, Dense(array(backend, np.ones((2, 5))))])
    capped = normalize(g, 0.9)
    assert capped.layers[0].branch.lipschitz == pytest.approx(1)
    assert capped.lipschitz == pytest.approx(0.9)


def test_fixed_layers_are_not_scaled():
    g, _ = made(NUMPY, "fixed")
    np.testing.assert_array_equal(g.layers[0].linear.weight, 3 * np.eye(2))
    assert len(g.operators) == 1


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Chain([Reshape((2, 2), (4,)), Dense(np.eye(3))]), ShapeError, "followed by Dense"),
        (lambda: Chain([Dense(np.eye(4)), Reshape((2, 2), (4,))]), ShapeError, "followed by Reshape"),
        (lambda: ResidualBlock(Chain([FourierFeatures(np.eye(2)), Dense(np.eye(4))])), ShapeError, "keeps the shape"),
        (lambda: Reshape((2, 2), (3,)), ShapeError, "sizes differ"),
        (lambda: Reshape(4, (4,)), InvalidArgumentError, "sequence of whole numbers"),
        (lambda: Fixed(np.eye(2)), InvalidArgumentError, "Fixed takes a linear layer"),
        (lambda: FourierFeatures(np.eye(2), passed=[2]), InvalidArgumentError, "different entries from 0 to 1"),
        (lambda: FourierFeatures(np.eye(2, dtype=int)), DtypeError, "int"),
        (lambda: FourierFeatures.of_angles(np.ones(1), 2, angles=[5]), InvalidArgumentError, "from 0 to 1"),
        (lambda: FourierFeatures.of_angles(np.ones(1), 2, frequencies=[0.5]), InvalidArgumentError, "frequency"),
        (lambda: FourierFeatures(np.eye(2))(np.ones((1, 3))), ShapeError, "takes samples of shape"),
        (lambda: ConvolutionTranspose(np.ones((2, 2, 9)), output_shape=(2, 4)), ShapeError, "larger than the padded"),
        (lambda: PReLU(np.ones((2, 2))), ShapeError, "slope must have shape"),
        (lambda: PReLU(np.array([np.nan])), NonFiniteError, "slope"),
        (lambda: PReLU(np.ones(2), axis=0), InvalidArgumentError, "batch axis"),
        (lambda: PReLU(np.ones(2))(np.ones((1, 3))), ShapeError, "does not fit axis 1"),
        (lambda: PReLU(np.ones(2))(np.ones((1, 2), "float32")), DtypeError, "the input"),
        (lambda: ScaledActivation("maxmin", np.ones(1)), InvalidArgumentError, "entrywise"),
        (lambda: ScaledActivation("lipsnish", np.ones(1)), InvalidArgumentError, "no activation"),
        (lambda: DenseConcatenation([Dense(np.eye(2))], np.ones(2)), ShapeError, "angle must have shape"),
        (lambda: DenseConcatenation([Dense(np.eye(2))], np.ones(1), axis=2), ShapeError, "no channels along axis 2"),
        (lambda: DenseConcatenation([Dense(np.eye(2))], np.ones(1, "float32")), DtypeError, "angle"),
        (lambda: DenseConcatenation([Reshape((2, 2), (4,)), Dense(np.eye(4))], np.ones(1)), ShapeError, "no channels"),
        (lambda: average_pooling(np.ones(1), 0, input_shape=(1, 4)), InvalidArgumentError, "window"),
        (lambda: average_pooling(np.ones(1), 5, input_shape=(1, 4)), ShapeError, "larger than"),
    ],
)
def test_bad_layers(make, error, match):
    with pytest.raises(error, match=match):
        make()
