"""Flows: log-densities against numerical Jacobians, certified inverses, samples, initialisation, arguments."""

import math

import numpy as np
import pytest
import scipy.stats
from flow_examples import (
    actnorm,
    array,
    conv_block,
    dense_block,
    distances,
    host,
    image_flow,
    images,
    vector_flow,
    vectors,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from iresnet_core.branches.chain import Chain
from iresnet_core.errors import (
    DtypeError,
    InvalidArgumentError,
    NonFiniteError,
    NotConvergedError,
    ShapeError,
    UnknownArrayError,
)
from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.factor_out import FactorOut
from iresnet_core.flows.flow import Flow
from iresnet_core.flows.reshaping import InjectivePad, Squeeze
from iresnet_core.flows.residual_block import ResidualBlock
from iresnet_core.operators.dense import Dense

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=max(2, settings.default.max_examples // 5))  # each example runs whole flows


# --- the log-determinant ---


def numerical_logdet(flow, backend, x):
    """log|det| of central differences of fourth order, and a bound on its error from two step lengths."""
    d = x[0].size

    def jacobian(step):
        moves = step * np.eye(d).reshape(d, *x.shape[1:])

        def at(factor):
            moved = (x[:, None] + factor * moves).reshape(-1, *x.shape[1:])
            return host(flow(array(backend, moved))).reshape(len(x), d, -1)

        return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)

    coarse, fine = jacobian(2e-3), jacobian(1e-3)
    inverse = np.linalg.inv(fine)
    # The finer difference is closer to the truth than the two are to each other, but for its rounding: 1.5 / step times
    # that of the map, taken as 32 units. Then d log|det J| = tr(J^-1 dJ).
    size = 1 + abs(host(flow(array(backend, x)))).max()
    error = np.linalg.norm(coarse - fine, axis=(1, 2)) + d * 1.5 / 1e-3 * 32 * np.finfo(np.float64).eps * size
    return np.linalg.slogdet(fine)[1], error * np.linalg.norm(inverse, axis=(1, 2))


def assert_logdet_is_that_of_the_map(flow, backend, x):
    exact, error = numerical_logdet(flow, backend, host(x))
    assert (error < 1e-4).all()  # else the comparison says nothing
    z, determinant = flow.forward(x, method="exact")
    np.testing.assert_allclose(host(z), host(flow(x)), rtol=1e-13, atol=1e-13)
    assert (abs(host(determinant.value) - exact) <= error + host(determinant.bias_bound)).all()
    assert not host(determinant.std_error).any()
    return host(z), host(determinant.value)


@FEW
@given(seed=SEEDS, d=st.integers(1, 5), blocks=st.integers(1, 3), coeff=st.floats(0.1, 0.95))
def test_logdet_of_a_vector_flow_is_that_of_its_numerical_jacobian(backend, seed, d, blocks, coeff):
    flow = vector_flow(backend, seed, d, blocks, coeff)
    assert_logdet_is_that_of_the_map(flow, backend, vectors(backend, seed, d=d))


@FEW
@given(seed=SEEDS, coeff=st.floats(0.1, 0.95))
def test_logdet_of_a_multiscale_flow_is_that_of_its_numerical_jacobian(backend, seed, coeff):
    flow = image_flow(backend, seed, coeff)
    x = 0.1 + 0.8 * images(backend, seed, batch=2)  # the differences stay within [0, 1]
    assert flow.latent_shape == (16,)
    z, determinant = assert_logdet_is_that_of_the_map(flow, backend, x)
    density = scipy.stats.norm.logpdf(z).sum(axis=1) + determinant
    result = flow.log_prob(x, method="exact")
    np.testing.assert_allclose(host(result.value), density, rtol=1e-12, atol=1e-11)
    bits = flow.bits_per_dim(x, method="exact")
    np.testing.assert_allclose(host(bits.value), 8 - density / (16 * math.log(2)), rtol=1e-12)


@FEW
@given(seed=SEEDS, coeff=st.floats(0.1, 0.95))
def test_the_density_of_a_flow_integrates_to_one(backend, seed, coeff):
    flow = vector_flow(backend, seed, d=1, coeff=coeff)
    ends = flow.inverse(array(backend, [[-12.0], [12.0]])).value
    grid = np.linspace(*np.sort(host(ends)[:, 0]), 4001)
    density = np.exp(host(flow.log_prob(array(backend, grid[:, None])).value))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-5)


@FEW
@given(seed=SEEDS, method=st.sampled_from(["series", "arnoldi", "roulette"]))
def test_stochastic_logdets_compose_within_their_errors(backend, seed, method):
    flow = vector_flow(backend, seed, d=6, blocks=3)
    x = vectors(backend, seed, batch=4, d=6)
    exact = host(flow.log_prob(x, method="exact").value)
    estimate = flow.log_prob(x, method=method, probes=4, rng=seed)
    allowance = 8 * host(estimate.std_error) + host(estimate.bias_bound)
    assert (abs(host(estimate.value) - exact) <= allowance + 1e-10).all()
    assert (host(estimate.products) > 0).all()
    assert method in estimate.method


def test_errors_in_single_precision_stay_within_the_bias_bound(backend):
    for flow, x in (
        (vector_flow(backend, 2, dtype="float32"), vectors(backend, 2, dtype="float32")),
        (image_flow(backend, 2, dtype="float32"), images(backend, 2, dtype="float32")),
    ):
        wide = flow.astype(backend.xp.float64)
        narrow = flow.forward(x, method="exact").logdet
        exact = wide.forward(array(backend, host(x)), method="exact").logdet
        assert "float32" in str(narrow.value.dtype)
        # Not only rounding of the sums: the intermediate samples differ by their own rounding too.
        error = abs(host(narrow.value).astype(np.float64) - host(exact.value))
        assert (error <= host(narrow.bias_bound) + 1e-5).all()


# --- the inverse ---


@FEW
@given(seed=SEEDS, coeff=st.floats(0.1, 0.95), kind=st.sampled_from(["vectors", "images"]), scale=st.floats(0.1, 10))
def test_the_inverse_holds_its_bound_in_single_precision(backend, seed, coeff, kind, scale):
    """Against the same flow in float64, whose own bound is a millionth of it."""
    make, shape = (vector_flow, (3,)) if kind == "vectors" else (image_flow, (16,))
    flow = make(backend, seed, coeff=coeff, dtype="float32")
    z = array(backend, np.random.default_rng(seed).normal(0, scale, (4, *shape)), "float32")
    narrow = flow.inverse(z)
    wide = flow.astype(backend.xp.float64).inverse(backend.xp.astype(z, backend.xp.float64))
    assert (distances(narrow.value, wide.value) <= host(narrow.error_bound) + host(wide.error_bound)).all()
    assert "float32" in str(narrow.value.dtype)
    assert host(narrow.converged).all()


@FEW
@given(seed=SEEDS, coeff=st.floats(0.1, 0.95))
def test_the_inverse_takes_the_flow_back(backend, seed, coeff):
    for flow, x in (
        (vector_flow(backend, seed, coeff=coeff), vectors(backend, seed)),
        (image_flow(backend, seed, coeff), images(backend, seed)),
    ):
        back = flow.inverse(flow(x))
        size = 1 + np.linalg.norm(host(x).reshape(3, -1), axis=1)
        forward_rounding = 1e-14 * size * math.prod(max(1.0, float(k.inverse_lipschitz)) for k in flow.layers)
        assert (distances(back.value, x) <= host(back.error_bound) + forward_rounding).all()
        assert (host(back.error_bound) < 1e-6).all()


@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_an_inverse_that_was_cut_short_still_holds_its_bound(backend, solver):
    flow = vector_flow(backend, 7, coeff=0.9)
    z = vectors(backend, 7)
    exact = flow.inverse(z)
    cut = flow.inverse(z, solver=solver, max_iter=3, on_failure="return")
    assert not host(cut.converged).all()
    assert (host(cut.iterations) == 6).all()
    error = distances(cut.value, exact.value)
    assert (error <= host(cut.error_bound) + host(exact.error_bound)).all()
    # The solver alone is off by more than a thousandth after so few steps; the certificate's corrections mend that.
    assert (error < 1e-6).all()
    with pytest.raises(NotConvergedError) as caught:
        flow.inverse(z, max_iter=2)
    assert "in layer 3 of the flow, ResidualBlock" in caught.value.__notes__[0]


# --- samples ---


def test_samples_are_preimages_of_normal_latents(backend):
    for flow in (vector_flow(backend, 1), image_flow(backend, 1)):
        drawn = flow.sample(5, rng=9)
        latents = backend.sample("gaussian", (5, *flow.latent_shape), flow.arrays[0], 9)
        np.testing.assert_array_equal(host(drawn.value), host(flow.inverse(latents).value))
        again = flow.layers[-1].inverse(latents)  # a sample passes through the map to its latent
        assert again.value.shape[0] == 5
        assert flow.sample(0).value.shape == (0, *flow.event_shape)
    scaled = Flow([ActNorm(array(backend, [math.log(2.0)]), array(backend, [3.0]))], (1,))
    x = host(scaled.sample(4000, rng=1).value)
    assert x.mean() == pytest.approx(-3, abs=5 * 0.5 / math.sqrt(4000))
    assert x.std() == pytest.approx(0.5, rel=0.06)


def test_sampling_refuses_what_it_cannot_know(backend):
    flow = vector_flow(backend, 1)
    for n in (-1, 1.5, True):
        with pytest.raises(InvalidArgumentError, match="n must be"):
            flow.sample(n)
    bare = Flow([Squeeze()], (1, 2, 2))
    with pytest.raises(UnknownArrayError, match="like="):
        bare.sample(2)
    like = array(backend, [0.0], "float32")
    assert "float32" in str(bare.sample(2, like=like).value.dtype)


# --- initialisation ---


@FEW
@given(seed=SEEDS)
def test_initialisation_passes_the_data_through_the_layers(backend, seed):
    rng = np.random.default_rng(seed)
    kept = actnorm(backend, rng, 4)
    layers = [Squeeze(), kept, conv_block(backend, rng, (4, 2, 2)), ActNorm(), FactorOut(2, [ActNorm(), Squeeze()])]
    flow = Flow(layers, (1, 4, 4))
    x = images(backend, seed, batch=30)
    ready = flow.initialize(x)
    assert ready.layers[1] is kept
    assert flow.layers[3].log_scale is None
    z = x
    for layer in ready.layers[:4]:
        z = layer(z)
    z = host(z)
    np.testing.assert_allclose(z.mean(axis=(0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(z.std(axis=(0, 2, 3)), 1, atol=1e-12)
    kept_part = host(ready.layers[4](array(backend, z)))[:, :8]
    assert abs(kept_part.mean()) < 1e-12
    # Once set, parameters stay: a file that was loaded is not overwritten by the first batch.
    assert ready.initialize(2.0 * x).layers[3] is ready.layers[3]


def test_initialisation_refuses_bad_data(backend):
    flow = Flow([ActNorm()], (2,))
    with pytest.raises(NonFiniteError):
        flow.initialize(array(backend, [[np.nan, 0.0]]))
    with pytest.raises(ShapeError, match="empty"):
        flow.initialize(array(backend, np.zeros((0, 2))))
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        flow.initialize(array(backend, np.zeros((4, 3))))


# --- shapes and arguments ---


def test_factor_out_needs_its_shape_for_the_inverse(backend):
    layer = FactorOut(1, [ActNorm(array(backend, [1.0]), array(backend, [0.0]))])
    x = vectors(backend, 0)
    z = layer(x)
    np.testing.assert_allclose(host(z), host(x) * [np.e, 1, 1], rtol=1e-14)
    with pytest.raises(InvalidArgumentError, match="at_shape"):
        layer.inverse(z)
    np.testing.assert_allclose(host(layer.at_shape((3,)).inverse(z).value), host(x), rtol=1e-14)
    with pytest.raises(ShapeError, match="at least one more"):
        FactorOut(3, [Squeeze()])(x)
    with pytest.raises(ShapeError, match="keeps 2 channels"):
        FactorOut(2, Flow([ActNorm()], (1,)))


def test_factor_out_splits_channels_last(backend):
    inner = ActNorm(array(backend, [1.0, 1.0]), array(backend, [0.0, 0.0]), axis=-1)
    flow = Flow([FactorOut(2, [inner], axis=-1)], (2, 3))
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    z = host(flow(array(backend, x)))
    expected = np.concatenate([np.e * x[:, :, :2].reshape(4, -1), x[:, :, 2:].reshape(4, -1)], axis=1)
    np.testing.assert_allclose(z, expected, rtol=1e-14)
    np.testing.assert_allclose(host(flow.inverse(array(backend, z)).value), x, rtol=1e-13)


def test_a_padded_flow_reports_the_distance_to_its_range(backend):
    rng = np.random.default_rng(3)
    flow = Flow([InjectivePad(1), dense_block(backend, rng, 3)], (2,))
    x = vectors(backend, 3, d=2)
    z = flow(x)
    assert (host(flow.inverse(z).residual) < 1e-9).all()
    np.testing.assert_allclose(host(flow.inverse(z).value), host(x), atol=1e-9)
    assert (host(flow.inverse(z + 1.0).residual) > 0.1).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda e: Flow([], (2,)), InvalidArgumentError, "at least one layer"),
        (lambda e: Flow([Dense(array(e, np.eye(2)))], (2,)), InvalidArgumentError, "entry 0"),
        (lambda e: Flow([Squeeze()], ()), ShapeError, "event_shape"),
        (lambda e: Flow([Squeeze()], (0, 2, 2)), InvalidArgumentError, "event_shape"),
        (lambda e: Flow([Squeeze()], (1, 3, 3)), ShapeError, "divisible by 2"),
        (lambda e: Flow([Squeeze()], (1, 2, 2), base="laplace"), InvalidArgumentError, "laplace"),
        (lambda e: Flow([vector_flow(e, 0), vector_flow(e, 0, d=2)], (3,)), ShapeError, r"\(2,\)"),
        (
            lambda e: Flow([vector_flow(e, 0), vector_flow(e, 0, dtype="float32")], (3,)),
            DtypeError,
            "float32.*float64",
        ),
    ],
)
def test_a_flow_refuses_layers_that_do_not_fit(backend, make, error, message):
    with pytest.raises(error, match=message):
        make(backend)


def test_a_flow_refuses_bad_arrays(backend):
    flow = image_flow(backend, 0)
    x = images(backend, 0)
    for method, value in ((flow.forward, x), (flow.log_prob, x), (flow.inverse, flow(x))):
        with pytest.raises(ShapeError, match="the flow takes"):
            method(array(backend, np.zeros((2, 3))))
        with pytest.raises(DtypeError):
            method(array(backend, host(value), "float32"))
        with pytest.raises(NonFiniteError):
            method(value * math.inf)
        with pytest.raises(InvalidArgumentError, match="no option"):
            method(value, tolerance=1)
    with pytest.raises(InvalidArgumentError) as caught:
        flow.forward(x + 1.0)
    assert caught.value.__notes__ == ["in layer 0 of the flow, Logit(alpha=0.05)"]


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_an_overflowing_layer_is_reported(backend):
    flow = Flow([ActNorm(array(backend, [700.0]), array(backend, [0.0]))], (1,))
    with pytest.raises(NonFiniteError, match="infinity"):
        flow.forward(array(backend, [[1e300]]))


def test_flows_take_empty_batches_and_batches_of_one(backend):
    for flow, x in ((vector_flow(backend, 1), vectors(backend, 1)), (image_flow(backend, 1), images(backend, 1))):
        for n in (0, 1):
            scores = flow.log_prob(x[:n, ...])
            back = flow.inverse(flow(x[:n, ...]))
            assert all(field.shape == (n,) for field in (*scores[:4], *back[1:]))
            assert back.value.shape == (n, *flow.event_shape)


def test_a_block_that_expands_is_refused_by_the_inverse_with_its_place(backend):
    bad = ResidualBlock(Chain([Dense(array(backend, 1.5 * np.eye(3)))]))
    flow = Flow([actnorm(backend, np.random.default_rng(0), 3), bad], (3,))
    with pytest.raises(ValueError, match="certified invertible") as caught:
        flow.inverse(vectors(backend, 0))
    assert "in layer 1 of the flow" in caught.value.__notes__[0]


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_log_density_below_the_range_of_its_dtype_is_an_error_that_names_the_samples(backend):
    flow = Flow([ActNorm(array(backend, [0.0] * 2, "float32"), array(backend, [0.0] * 2, "float32"))], (2,))
    x = np.zeros((9, 2), "float32")
    x[3, 1] = x[5, 0] = 1e30
    for method in (flow.log_prob, flow.bits_per_dim):
        with pytest.raises(NonFiniteError, match="samples 3, 5 of the batch is below the range of"):
            method(array(backend, x, "float32"))
    assert np.isfinite(host(flow.log_prob(array(backend, x / 1e12, "float32")).value)).all()
    with pytest.raises(NonFiniteError, match="in samples 0, 1, 2, 3, 4 and 4 more of the batch"):
        flow(array(backend, x * np.nan, "float32"))
