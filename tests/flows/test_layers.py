"""The layers of a flow, one by one, against their formulas in NumPy and SciPy."""

import itertools
import math
from decimal import Decimal

import numpy as np
import pytest
import scipy.special
from flow_examples import actnorm, array, distances, host, vectors
from hypothesis import example, given
from hypothesis import strategies as st

from iresnet_core.branches.chain import Chain
from iresnet_core.errors import (
    DtypeError,
    InvalidArgumentError,
    NonFiniteError,
    NotContractiveError,
    ShapeError,
    UnknownLipschitzError,
)
from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.flow import Flow
from iresnet_core.flows.logit import Logit
from iresnet_core.flows.reshaping import InjectivePad, Squeeze
from iresnet_core.flows.residual_block import ResidualBlock
from iresnet_core.operators.dense import Dense

SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from(["float32", "float64"])


# --- ActNorm ---


@given(seed=SEEDS, shape=st.sampled_from([(3,), (3, 4), (3, 2, 2)]), batch=st.integers(0, 4))
def test_actnorm_is_its_formula(backend, seed, shape, batch):
    rng = np.random.default_rng(seed)
    layer = actnorm(backend, rng, 3)
    x = rng.normal(0, 3, (batch, *shape))
    column = (1, 3) + (1,) * (len(shape) - 1)
    log_scale, bias = host(layer.log_scale), host(layer.bias)
    value, logdet = layer.forward(array(backend, x))
    expected = (x + bias.reshape(column)) * np.exp(log_scale.reshape(column))
    np.testing.assert_allclose(host(value), expected, rtol=1e-14)
    exact = math.prod(shape[1:]) * log_scale.sum()
    assert host(logdet.value).shape == (batch,)
    assert (abs(host(logdet.value) - exact) <= host(logdet.bias_bound)).all()
    assert not host(logdet.std_error).any()
    assert not host(logdet.products).any()


def test_actnorm_finds_its_channels_last(backend):
    layer = ActNorm(array(backend, [0.0, 1.0]), array(backend, [0.0, 0.0]), axis=-1)
    x = np.ones((1, 3, 2))
    np.testing.assert_allclose(host(layer(array(backend, x)))[0, :, 1], np.e)
    assert float(layer.forward(array(backend, x)).logdet.value[0]) == pytest.approx(3.0)


@given(seed=SEEDS, exponent=st.integers(-30, 30), offset=st.sampled_from([0.0, 1.0, -100.0]), dtype=DTYPES)
@example(seed=0, exponent=-30, offset=0.0, dtype="float32")
@example(seed=0, exponent=30, offset=0.0, dtype="float32")
def test_actnorm_initialises_to_mean_zero_and_variance_one(backend, seed, exponent, offset, dtype):
    rng = np.random.default_rng(seed)
    x = (rng.normal(0, 1, (20, 3, 2)) * np.array([1.0, 3.0, 0.2])[:, None] + offset) * 10.0**exponent
    x = array(backend, x, dtype)
    z = host(ActNorm.initialize(x)(x)).astype(np.float64)
    tolerance = 2000 * np.finfo(dtype).eps  # offsets of 100 over spreads of 0.2 cost a factor of 500
    np.testing.assert_allclose(z.mean(axis=(0, 2)), 0, atol=tolerance)
    np.testing.assert_allclose(z.std(axis=(0, 2)), 1, atol=tolerance)


@given(seed=SEEDS, scale=st.sampled_from([1e-30, 0.1, 1.0, 1e30]), dtype=DTYPES)
def test_actnorm_leaves_the_scale_of_constant_channels(backend, seed, scale, dtype):
    rng = np.random.default_rng(seed)
    constants = rng.normal(0, 1, 3) * scale
    x = array(backend, np.broadcast_to(constants, (7, 3)), dtype)
    layer = ActNorm.initialize(x)
    assert not host(layer.log_scale).any()
    assert (abs(host(layer(x))) <= 8 * np.finfo(dtype).eps * abs(constants)).all()


def test_actnorm_of_one_vector_only_centres(backend):
    x = vectors(backend, 1, batch=1)
    layer = ActNorm.initialize(x)
    assert not host(layer.log_scale).any()
    assert not host(layer(x)).any()


def test_actnorm_without_parameters_says_what_to_do(backend):
    x = vectors(backend, 0)
    for attempt in (ActNorm(), Flow([ActNorm()], (3,))):
        for method in (attempt.forward, attempt.inverse, attempt):
            with pytest.raises(InvalidArgumentError, match=r"no parameters yet.*initialize"):
                method(x)
    assert "not initialised" in repr(ActNorm())


@pytest.mark.parametrize(
    ("log_scale", "bias", "error"),
    [
        ([0.0], None, InvalidArgumentError),
        ([[0.0]], [[0.0]], ShapeError),
        ([0.0], [0.0, 0.0], ShapeError),
        ([], [], ShapeError),
        ([np.nan], [0.0], NonFiniteError),
        ([0.0], [np.inf], NonFiniteError),
        ([800.0], [0.0], InvalidArgumentError),
        ([-800.0], [0.0], InvalidArgumentError),
    ],
)
def test_actnorm_refuses_bad_parameters(backend, log_scale, bias, error):
    with pytest.raises(error):
        ActNorm(array(backend, log_scale), None if bias is None else array(backend, bias))


def test_actnorm_refuses_bad_data(backend):
    with pytest.raises(NonFiniteError, match="1 non-finite"):
        ActNorm.initialize(array(backend, [[0.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(ShapeError, match="empty"):
        ActNorm.initialize(array(backend, np.zeros((0, 2))))
    with pytest.raises(DtypeError):
        ActNorm.initialize(backend.from_numpy(np.zeros((2, 2), dtype=np.int64)))
    with pytest.raises(InvalidArgumentError, match="axis"):
        ActNorm(axis=0)
    with pytest.raises(ShapeError, match="axis 3"):
        ActNorm.initialize(vectors(backend, 0), axis=3)


@pytest.mark.needs("frozen")
def test_actnorm_keeps_its_parameters_when_the_callers_array_changes(backend):
    log_scale = np.zeros(2)
    layer = ActNorm(log_scale, np.zeros(2))
    log_scale[:] = 5.0
    assert not layer.log_scale.any()
    with pytest.raises(ValueError, match="read-only"):
        layer.log_scale[0] = 1.0


# --- Squeeze ---


def squeezed_by_hand(x, factor, first):
    """Entry by entry, from the definition."""
    spatial = x.shape[2:] if first else x.shape[1:-1]
    channels, n = (x.shape[1] if first else x.shape[-1]), len(spatial)
    coarse = [m // factor for m in spatial]
    block = factor**n
    z = np.empty((len(x), channels * block, *coarse) if first else (len(x), *coarse, channels * block))
    for where in itertools.product(*map(range, spatial)):
        cell, within = [w // factor for w in where], [w % factor for w in where]
        offset = sum(w * factor ** (n - 1 - a) for a, w in enumerate(within))
        for c in range(channels):
            if first:
                z[(slice(None), c * block + offset, *cell)] = x[(slice(None), c, *where)]
            else:
                z[(slice(None), *cell, offset * channels + c)] = x[(slice(None), *where, c)]
    return z


@given(
    factor=st.integers(1, 3),
    coarse=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    channels=st.integers(1, 2),
    batch=st.integers(0, 2),
    first=st.booleans(),
)
def test_squeeze_moves_every_entry_to_its_place(backend, factor, coarse, channels, batch, first):
    spatial = [factor * m for m in coarse]
    shape = (batch, channels, *spatial) if first else (batch, *spatial, channels)
    x = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
    layer = Squeeze(factor, "channels_first" if first else "channels_last")
    z, logdet = layer.forward(array(backend, x))
    np.testing.assert_array_equal(host(z), squeezed_by_hand(x, factor, first))
    assert tuple(z.shape[1:]) == layer.output_shape(shape[1:])
    assert layer.input_shape(z.shape[1:]) == shape[1:]
    back = layer.inverse(z)
    np.testing.assert_array_equal(host(back.value), x)
    assert not host(back.error_bound).any()
    assert not host(logdet.value).any()


@given(
    coarse=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    channels=st.integers(1, 2),
    first=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_squeeze_to_wavelets(backend, coarse, channels, first, seed):
    """Sums and differences of the pixels of a block, with lengths kept, and back within the stated bounds."""
    spatial = [2 * m for m in coarse]
    n, shape = len(spatial), (2, channels, *spatial) if first else (2, *spatial, channels)
    order = "channels_first" if first else "channels_last"
    x = np.random.default_rng(seed).standard_normal(shape)
    signs = np.array([[1]])
    for _ in range(n):
        signs = np.kron(signs, [[1, 1], [1, -1]])
    pixels = squeezed_by_hand(x, 2, first)
    blocks = pixels.reshape(2, channels, 2**n, -1) if first else pixels.reshape(2, -1, 2**n, channels)
    expected = (np.einsum("ij,bcjp->bcip" if first else "ij,bpjc->bpic", signs, blocks) / 2 ** (n / 2)).reshape(
        pixels.shape
    )
    for dtype in (np.float32, np.float64):
        layer, narrow = Squeeze(2, order, "haar"), x.astype(dtype)
        z, logdet = layer.forward(array(backend, narrow))
        np.testing.assert_allclose(host(z), expected, rtol=0, atol=20 * np.finfo(dtype).eps)
        assert not host(logdet.value).any()
        value, bound = layer._with_rounding(backend, array(backend, narrow))
        if dtype == np.float32:
            exact = host(layer(array(backend, narrow.astype(np.float64))))
            off = np.linalg.norm((host(value) - exact).reshape(2, -1), axis=1)
            assert (off <= host(bound) * (1 + 1e-6)).all()
        back = layer.inverse(z)
        off = np.linalg.norm((host(back.value) - narrow).reshape(2, -1), axis=1)
        assert (off <= host(bound) + host(back.error_bound)).all()
        assert (host(back.error_bound) < 20 * np.finfo(dtype).eps * np.linalg.norm(x)).all()


def test_wavelets_are_those_of_two_neighbours():
    with pytest.raises(InvalidArgumentError, match="factor must be 2, got 3"):
        Squeeze(3, basis="haar")
    with pytest.raises(InvalidArgumentError, match="'pixels' or 'haar', got 'db4'"):
        Squeeze(basis="db4")
    assert repr(Squeeze(basis="haar")) == "Squeeze(2, 'channels_first', 'haar')"


@pytest.mark.parametrize("shape", [(1, 1, 3, 4), (1, 1, 4, 3), (1, 4), (1, 1, 2, 2, 2, 2)])
def test_squeeze_refuses_what_it_cannot_divide(backend, shape):
    with pytest.raises(ShapeError, match=r"Squeeze\(2"):
        Squeeze().forward(array(backend, np.zeros(shape)))


def test_squeeze_refuses_too_few_channels_and_bad_options(backend):
    with pytest.raises(ShapeError, match="multiple of 4 channels, got 3"):
        Squeeze().inverse(array(backend, np.zeros((1, 3, 2, 2))))
    with pytest.raises(InvalidArgumentError, match="factor"):
        Squeeze(0)
    with pytest.raises(InvalidArgumentError, match="NCHW"):
        Squeeze(2, "NCHW")


# --- InjectivePad ---


@given(seed=SEEDS, padding=st.integers(1, 3), axis=st.sampled_from([1, 2, -1, -2]), batch=st.integers(0, 3))
def test_pad_appends_zeros_and_its_inverse_says_what_it_dropped(backend, seed, padding, axis, batch):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (batch, 2, 3))
    layer = InjectivePad(padding, axis=axis)
    z, logdet = layer.forward(array(backend, x))
    widths = [(0, 0)] * 3
    widths[axis] = (0, padding)
    np.testing.assert_array_equal(host(z), np.pad(x, widths))
    assert not host(logdet.value).any()
    other = rng.normal(0, 1, z.shape)
    back = layer.inverse(array(backend, other))
    kept = np.take(other, range(x.shape[axis]), axis=axis)
    np.testing.assert_array_equal(host(back.value), kept)
    np.testing.assert_allclose(host(back.residual), distances(other, np.pad(kept, widths)), rtol=1e-14)
    assert not host(back.error_bound).any()


def test_pad_refuses_latents_without_channels_left(backend):
    with pytest.raises(ShapeError, match="leaves no channel"):
        InjectivePad(2).inverse(vectors(backend, 0, d=2))
    with pytest.raises(InvalidArgumentError):
        InjectivePad(0)
    with pytest.raises(InvalidArgumentError, match="batch axis"):
        InjectivePad(1, axis=0)


# --- Logit ---


@given(seed=SEEDS, alpha=st.floats(1e-6, 0.49), dtype=DTYPES)
def test_logit_is_its_formula(backend, seed, alpha, dtype):
    rng = np.random.default_rng(seed)
    x = array(backend, np.concatenate([rng.random((4, 5)), [[0.0, 1.0, 0.5, 0.0, 1.0]]]), dtype)
    z, logdet = Logit(alpha).forward(x)
    # To 28 digits: near 1 the complement cancels in double precision.
    width = 1 - 2 * Decimal(alpha)
    p = [[Decimal(alpha) + width * Decimal(float(entry)) for entry in row] for row in host(x)]
    eps = np.finfo(dtype).eps
    exact = [[float((q / (1 - q)).ln()) for q in row] for row in p]
    np.testing.assert_allclose(host(z), exact, rtol=8 * eps, atol=8 * eps)
    determinants = [sum((width / (q * (1 - q))).ln() for q in row) for row in p]
    for value, bound, determinant in zip(host(logdet.value), host(logdet.bias_bound), determinants, strict=True):
        assert abs(Decimal(float(value)) - determinant) <= Decimal(float(bound))
    assert (host(logdet.bias_bound) < 1000 * eps * (1 - math.log(alpha))).all()
    assert logdet.value.dtype == getattr(backend.xp, dtype)


@given(seed=SEEDS, alpha=st.floats(1e-3, 0.49), scale=st.sampled_from([1e-3, 1.0, 100.0, 1e30]), dtype=DTYPES)
def test_logit_inverse_holds_its_bound_everywhere(backend, seed, alpha, scale, dtype):
    z = array(backend, np.random.default_rng(seed).normal(0, scale, (6, 3)), dtype)
    back = Logit(alpha).inverse(z)
    exact = (scipy.special.expit(host(z).astype(np.float64)) - alpha) / (1 - 2 * alpha)
    slack = 1e-15 / (1 - 2 * alpha)
    assert (distances(back.value, exact) <= host(back.error_bound) + slack).all()
    assert (host(back.error_bound) < 100 * np.finfo(dtype).eps / (1 - 2 * alpha)).all()
    overshoot = alpha / (1 - 2 * alpha) + 4 * np.finfo(dtype).eps / (1 - 2 * alpha)
    assert (abs(host(back.value).astype(np.float64) - 0.5) <= 0.5 + overshoot).all()


@given(seed=SEEDS, dtype=DTYPES)
def test_logit_takes_back_what_its_inverse_returned(backend, seed, dtype):
    x = array(backend, np.concatenate([np.random.default_rng(seed).random((5, 4)), np.eye(4)]), dtype)
    layer = Logit(0.05)
    again = layer.inverse(layer(x)).value
    np.testing.assert_allclose(host(again), host(x), atol=8 * np.finfo(dtype).eps)
    layer.forward(again)  # entries a rounding error outside [0, 1] are within the domain


@pytest.mark.parametrize("bad", [-0.06, 1.06, 255.0])
def test_logit_refuses_what_is_no_pixel(backend, bad):
    with pytest.raises(InvalidArgumentError, match=r"data in \[0, 1\].*255"):
        Logit().forward(array(backend, [[0.5, bad]]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0, math.nan])
def test_logit_refuses_alphas_without_meaning(alpha):
    with pytest.raises(InvalidArgumentError, match="alpha"):
        Logit(alpha)


# --- ResidualBlock ---


def test_residual_block_adds_its_branch(backend):
    g = Chain([Dense(array(backend, [[0.0, 0.5], [-0.25, 0.0]]), array(backend, [1.0, 2.0]))])
    x = vectors(backend, 3, d=2)
    z, logdet = ResidualBlock(g).forward(x, method="exact")
    expected = host(x) + host(x) @ np.array([[0.0, -0.25], [0.5, 0.0]]) + np.array([1.0, 2.0])
    np.testing.assert_allclose(host(z), expected, rtol=1e-14)
    np.testing.assert_allclose(host(logdet.value), math.log(1 + 0.125), rtol=1e-12)


def test_residual_block_uses_the_declared_constant(backend):
    g = Chain([Dense(array(backend, np.eye(2) * 0.5))])
    assert ResidualBlock(g).lipschitz == pytest.approx(0.5)
    assert ResidualBlock(g, lipschitz=0.6).lipschitz == 0.6
    assert ResidualBlock(g, lipschitz=0.6).inverse_lipschitz == pytest.approx(2.5)
    with pytest.raises(NotContractiveError):
        ResidualBlock(g, lipschitz=1.0)
    with pytest.raises(NotContractiveError):
        ResidualBlock(Chain([Dense(array(backend, np.eye(2) * 1.5))])).inverse(vectors(backend, 0, d=2))


def test_residual_block_refuses_branches_that_are_none(backend):
    with pytest.raises(InvalidArgumentError, match="callable"):
        ResidualBlock(3)
    with pytest.raises(ShapeError, match="keeps the shape"):
        ResidualBlock(Chain([Dense(array(backend, np.ones((3, 2))))]))
    with pytest.raises(UnknownLipschitzError):
        ResidualBlock(lambda x: 0.5 * x).inverse(vectors(backend, 0))
    with pytest.raises(ShapeError, match="takes samples of shape"):
        ResidualBlock(Chain([Dense(array(backend, np.eye(2) * 0.5))])).forward(vectors(backend, 0, d=3))


def test_residual_block_inverts_a_plain_callable(backend):
    block = ResidualBlock(lambda x: 0.5 * backend.xp.sin(x), lipschitz=0.5)
    x = vectors(backend, 4)
    back = block.inverse(block(x))
    assert (distances(back.value, x) <= host(back.error_bound) + 1e-15 * 100).all()


@pytest.mark.parametrize("far", [1e30, -1e15, 1e9])
def test_an_actnorm_is_not_made_of_one_entry(backend, far):
    x = np.random.default_rng(0).standard_normal((100, 2, 3)).astype("float32")
    x[37, 1, 2] = far
    with pytest.raises(InvalidArgumentError, match=r"channel 1 has an entry of .* in sample 37,"):
        ActNorm.initialize(array(backend, x, "float32"))
    x[:, 1] = x[:, 1] == far  # a channel of which all but one are equal
    x[0, 0, 0] = 1e4  # far, but the others are seen beside it
    assert np.isfinite(host(ActNorm.initialize(array(backend, x, "float32")).log_scale)).all()
    for few in (x[:1], x[:2], x[:3]):
        ActNorm.initialize(array(backend, few, "float32"))
