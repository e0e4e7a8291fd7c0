"""The exact answers, on cases that can be worked out by hand."""

import numpy as np
import pytest
from activation_cases import other_parameters
from branches_for_tests import array, host
from scipy.sparse.linalg import LinearOperator

from iresnet_core import Activation, Chain, Convolution, Dense, reference
from iresnet_core.branches import ACTIVATIONS
from iresnet_core.errors import NotConvergedError, ShapeError
from iresnet_core.example_data import load_case


def diagonal_chain(backend, *entries):
    return Chain([Dense(array(backend, np.diag(entries)))])


def test_spectral_norm_by_hand(backend):
    assert reference.spectral_norm(array(backend, np.diag([3.0, -5.0, 1.0]))) == pytest.approx(5, rel=1e-15)
    assert reference.spectral_norm(array(backend, [[0.0, 7.0], [0.0, 0.0]])) == pytest.approx(7, rel=1e-15)
    angle = 0.3
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stack = array(backend, np.stack([rotation, 2 * rotation]))
    np.testing.assert_allclose(reference.spectral_norm(stack), [1, 2], rtol=1e-15)
    assert reference.spectral_norm(array(backend, [[0.0, 0.0]])) == 0


def test_matrix_of_a_foreign_operator():
    shift = LinearOperator((3, 3), matvec=lambda v: np.roll(v, 1), rmatvec=lambda v: np.roll(v, -1), dtype=float)
    np.testing.assert_array_equal(reference.matrix(shift), np.roll(np.eye(3), 1, axis=0))


def test_matrix_of_a_convolution_by_hand(backend):
    kernel = array(backend, [[[1.0, 2.0, 3.0]]])
    layer = Convolution(kernel, input_shape=(1, 4), padding="same")
    np.testing.assert_array_equal(reference.matrix(layer), [[2, 3, 0, 0], [1, 2, 3, 0], [0, 1, 2, 3], [0, 0, 1, 2]])
    layer = Convolution(kernel, input_shape=(1, 4), padding="same", padding_mode="circular")
    np.testing.assert_array_equal(reference.matrix(layer), [[2, 3, 0, 1], [1, 2, 3, 0], [0, 1, 2, 3], [3, 0, 1, 2]])


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same"},
        {"padding": "same", "padding_mode": "circular"},
        {"padding": 1, "stride": 2, "groups": 2},
        {"padding": ((2, 0), (1, 3)), "dilation": (2, 1)},
    ],
)
def test_matrix_of_a_convolution_agrees_with_its_products(data_format, options):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((4, 4 // options.get("groups", 1), 3, 2))
    sample = rng.standard_normal((2, 4, 6, 5))
    if data_format == "channels_last":
        kernel, sample = kernel.transpose(2, 3, 1, 0), sample.transpose(0, 2, 3, 1)
    layer = Convolution(
        kernel, rng.standard_normal(4), input_shape=sample.shape[1:], data_format=data_format, **options
    )
    A = reference.matrix(layer)
    np.testing.assert_allclose(sample.reshape(2, -1) @ A.T, layer.apply(sample).reshape(2, -1), atol=1e-13)
    chain = Chain([layer])
    np.testing.assert_allclose(
        reference._Written(chain)(sample), chain(sample), atol=1e-13, err_msg="the bias is out of place"
    )


# Every row of the table, so that one without a reference fails.
EVERY_ACTIVATION = [
    Activation(name, **(other_parameters(name) if function.entrywise else {})) for name, function in ACTIVATIONS.items()
]


@pytest.mark.parametrize("activation", EVERY_ACTIVATION, ids=repr)
def test_jacobian_of_a_chain_agrees_with_differences(backend, activation):
    rng = np.random.default_rng(1)
    wide = Dense(array(backend, rng.standard_normal((4, 3))), array(backend, rng.standard_normal(4)))
    g = Chain([wide, activation, Dense(array(backend, rng.standard_normal((3, 4))))])
    x = rng.standard_normal((5, 3))
    written = reference._Written(g)(x)
    x = array(backend, x)
    np.testing.assert_allclose(written, host(backend, g(x)), atol=1e-14)
    np.testing.assert_allclose(reference.jacobian(g, x), reference.jacobian(lambda x: g(x), x), atol=1e-9)


def test_jacobian_of_maxmin_on_images():
    rng = np.random.default_rng(2)
    layer = Convolution(rng.standard_normal((4, 4, 3, 3)), input_shape=(4, 3, 3), padding="same")
    g = Chain([layer, Activation("maxmin"), layer])
    x = rng.standard_normal((2, 4, 3, 3))
    np.testing.assert_allclose(reference.jacobian(g, x), reference.jacobian(lambda x: g(x), x), atol=1e-9)


def test_large_inputs_do_not_overflow():
    for activation in EVERY_ACTIVATION:
        if activation.entrywise:
            value, slope = reference._activate(activation, np.array([-1e4, 1e4]))
            assert np.isfinite(value).all()
            assert np.isfinite(slope).all()


def test_logdet_by_hand(backend):
    x = array(backend, np.zeros((1, 2)))
    assert reference.logdet(diagonal_chain(backend, 0.5, -0.25), x)[0] == pytest.approx(np.log(1.5 * 0.75), abs=1e-15)
    nilpotent = Chain([Dense(array(backend, [[0.0, 0.9], [0.0, 0.0]]))])
    assert reference.logdet(nilpotent, x)[0] == pytest.approx(0, abs=1e-15)
    quarter_turn = Chain([Dense(array(backend, [[0.0, -0.5], [0.5, 0.0]]))])
    assert reference.logdet(quarter_turn, x)[0] == pytest.approx(np.log(1.25), abs=1e-15)


def test_probe_value_by_hand():
    J = np.array([[[0.0, 0.8], [0.0, 0.0]]])  # log(I + J) = J
    v = np.array([[[1.0, 1.0]], [[1.0, -1.0]], [[3.0, 2.0]]])
    np.testing.assert_allclose(reference.probe_value(J, v)[:, 0], [0.8, -0.8, 4.8], atol=1e-15)
    J = np.array([np.diag([0.5, -0.5])])
    assert reference.probe_value(J, np.array([[1.0, 2.0]]))[0] == pytest.approx(np.log(1.5) + 4 * np.log(0.5))


def test_probe_values_over_unit_vectors_add_up_to_the_logdet():
    g, x = load_case("d64_c0.9")
    J = reference.jacobian(g, x[:2])
    total = sum(reference.probe_value(J, np.tile(e, (2, 1))) for e in np.eye(64))
    np.testing.assert_allclose(total, reference.logdet(g, x[:2]), atol=1e-11)


def test_inverse_by_hand(backend):
    y = np.array([[1.0, 2.0], [-4.0, 0.0]])
    found = reference.inverse(diagonal_chain(backend, 0.5, -0.75), array(backend, y))
    np.testing.assert_allclose(found, y / [1.5, 0.25], rtol=1e-15)
    image = array(backend, y + 0.9 * np.sin(y))
    np.testing.assert_allclose(reference.inverse(lambda x: 0.9 * backend.xp.sin(x), image), y, atol=1e-13)


@pytest.mark.parametrize("case", ["d2_c0.97", "d64_c0.97"])
def test_inverse_returns_where_it_came_from(case):
    g, x = load_case(case)
    found = reference.inverse(g, x + g(x))
    # y was rounded, and the inverse stretches that by at most 1 / (1 - c).
    assert np.abs(found - x).max() < 1e-14 / (1 - 0.97)


def test_inverse_keeps_the_shape_and_halves_steps_at_kinks():
    rng = np.random.default_rng(3)
    W = rng.standard_normal((6, 6))
    W *= 0.99 / np.linalg.norm(W, 2)
    g = Chain([Dense(W), Activation("relu"), Dense(W)])
    x = 5 * rng.standard_normal((20, 6))
    np.testing.assert_allclose(reference.inverse(g, x + g(x)), x, atol=1e-11)
    images = Chain([Convolution(0.2 * rng.standard_normal((2, 2, 3, 3)), input_shape=(2, 3, 3), padding="same")])
    x = rng.standard_normal((3, 2, 3, 3))
    assert reference.inverse(images, x + images(x)).shape == x.shape


def test_inverse_of_no_contraction_is_refused():
    with pytest.raises(NotConvergedError, match="residual"):
        reference.inverse(lambda x: np.sign(x) * 3 + 0 * x, np.array([[0.5]]))


def test_one_sample_without_a_batch_is_refused():
    with pytest.raises(ShapeError, match="batch"):
        reference.jacobian(Chain([Dense(np.eye(2))]), np.zeros(2))
