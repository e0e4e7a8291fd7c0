"""One sample, one score: in any batch, order and program, on every backend; independent noise between samples."""

import numpy as np
import pytest
from flow_examples import actnorm, array, conv_block, dense_block, host
from frameworks_for_tests import COMPILERS, compiled

from iresnet_core import FactorOut, Flow, Squeeze, logdet
from iresnet_core.backends import backend as find_backend
from iresnet_core.determinant import SampleSeed
from iresnet_core.errors import InvalidArgumentError

NUMPY = find_backend("numpy")
SHAPES = [(70,), (1, 28, 28)]


def flow_of(backend, shape):
    rng = np.random.default_rng(7)
    blocks = [
        (dense_block(backend, rng, *shape, coeff=0.9, width=80, dtype="float32"))
        if len(shape) == 1
        else conv_block(backend, rng, shape, coeff=0.9, dtype="float32")
        for _ in range(2)
    ]
    return Flow([actnorm(backend, rng, shape[0], dtype="float32", spread=0.1), *blocks], shape)


def samples(shape, batch):
    return np.random.default_rng(8).standard_normal((batch, *shape)).astype(np.float32)


def scores(backend, flow, x, **options):
    return host(flow.log_prob(array(backend, x, "float32"), **options).value)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_has_one_score(backend, shape):
    flow, x = flow_of(backend, shape), samples(shape, 5)
    result = flow.log_prob(array(backend, x, "float32"))
    assert "exact" not in result.method
    assert host(result.std_error).min() > 0
    value = host(result.value)
    np.testing.assert_allclose(value, scores(NUMPY, flow_of(NUMPY, shape), x), rtol=3e-6)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(scores(backend, flow, x[order]), value[order], rtol=1e-6)
    np.testing.assert_allclose(scores(backend, flow, x[1:2]), value[1:2], rtol=1e-6)
    if backend.name != "jax" or len(shape) == 1:  # which compiles for every size
        np.testing.assert_allclose(scores(backend, flow, np.repeat(x, 3, axis=0))[::3], value, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        {"probes": 3},
        {"method": "arnoldi"},
        {"method": "series"},
        {"tol": 0.1},
        {"probe_kind": "gaussian"},
        {"terms": 3},
    ],
    ids=str,
)
def test_no_option_makes_a_score_depend_on_the_batch(shape, options):
    flow, x = flow_of(NUMPY, shape), samples(shape, 40 if len(shape) == 1 else 6)
    # Half of the samples lie where the slopes are others, and take other numbers of products.
    x[::2] *= 30
    value = scores(NUMPY, flow, x, **options)
    for k in (0, 1, 5):
        np.testing.assert_allclose(scores(NUMPY, flow, x[k : k + 1], **options), value[k : k + 1], rtol=1e-6)


@pytest.mark.needs("compile")
def test_a_compiled_program_scores_alike(backend):
    flow, x = flow_of(backend, (70,)), array(backend, samples((70,), 4), "float32")
    flow = Flow(flow.layers[:2], (70,))
    expected = host(flow.log_prob(x).value)
    program = compiled(backend, COMPILERS[backend.name][0], lambda x: flow.log_prob(x).value)
    np.testing.assert_allclose(host(program(x)), expected, rtol=3e-6)


def test_signs_are_fair_and_independent():
    x = np.random.default_rng(3).standard_normal((20_000, 40))
    seed = SampleSeed(x)
    first, second = (seed.child(k).signs(NUMPY, 40, x) for k in range(2))
    near = SampleSeed(np.nextafter(x.astype(np.float32), np.float32(9))).child(0).signs(NUMPY, 40, x)
    fair = first.sum(axis=0)
    coordinates = (first.T @ first)[np.triu_indices(40, 1)]
    for name, sums, most in (
        ("fair", fair, 4.5),
        ("coordinates", coordinates, 5.0),
        ("blocks", first.T @ second, 5.0),
        ("samples", first[1:].T @ first[:-1], 5.0),
        ("neighbours", first.T @ near, 5.0),
    ):
        z = sums / np.sqrt(len(x))
        assert np.abs(z).max() < most, name
        assert abs(z.std() - 1) < 0.25, name


def test_normal_numbers_and_rows_in_random_order():
    x = np.random.default_rng(4).standard_normal((4000, 16))
    normal = SampleSeed(x).normal(NUMPY, 0, 16, x)
    assert abs(normal.mean()) < 5 / normal.size**0.5
    assert abs(normal.var() - 1) < 5 * (2 / normal.size) ** 0.5
    order = SampleSeed(x).order(NUMPY, 7)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(7), (4000, 1)))
    assert np.abs(order.mean(axis=0) - 3).max() < 5 * (4 / 4000) ** 0.5


def test_equal_values_have_equal_seeds():
    x = samples((5,), 3)
    x[0, 2] = 0.0
    other = x.astype(np.float64)
    other[0, 2] = -0.0
    words = [SampleSeed(a).signs(NUMPY, 9, x) for a in (x, other, x[[0, 0, 0]])]
    np.testing.assert_array_equal(words[0], words[1])
    np.testing.assert_array_equal(words[2], words[0][[0, 0, 0]])
    assert (words[0][0] != words[0][1]).any()


@pytest.mark.parametrize("probes", [1, 4])
def test_errors_are_those_of_independent_samples(probes):
    flow, x = flow_of(NUMPY, (70,)).astype(np.float64), samples((70,), 2000).astype(np.float64)
    exact = flow.log_prob(x, method="exact").value
    for method in ("arnoldi", "mean-jacobian"):
        found = flow.log_prob(x, method=method, probes=probes)
        error = found.value - exact
        assert abs(error.mean()) < 5 * error.std() / len(x) ** 0.5 + found.bias_bound.mean()
        covered = np.mean(np.abs(error) <= 2 * found.std_error + found.bias_bound)
        assert covered > 0.93
        ratio = np.sqrt(np.mean(error**2) / np.mean(found.std_error**2))
        assert 0.3 < ratio < 1.15, (method, ratio)


def test_blocks_and_inner_flows_have_noise_of_their_own(monkeypatch):
    rng, paths = np.random.default_rng(0), []
    shape, inner = (1, 12, 12), (2, 6, 6)
    layers = [
        conv_block(NUMPY, rng, shape),
        Squeeze(2),
        FactorOut(2, [conv_block(NUMPY, rng, inner) for _ in range(2)]),
    ]
    signs = SampleSeed.signs
    monkeypatch.setattr(SampleSeed, "signs", lambda self, *a: paths.append(self.path) or signs(self, *a))
    flow = Flow([*layers, Flow([dense_block(NUMPY, rng, 144)], (144,))], shape)
    flow.log_prob(rng.standard_normal((2, *shape)), exact_up_to=0)
    assert len(paths) == len(set(paths)) == 4


def test_what_is_asked_for_is_kept():
    flow, x = flow_of(NUMPY, (70,)), samples((70,), 3)
    value = scores(NUMPY, flow, x)
    np.testing.assert_array_equal(scores(NUMPY, flow, x, rng="sample"), value)
    assert (scores(NUMPY, flow, x, rng=0) != value).all()
    for options in ({"rng": None}, {"errors": False}, {"unbiased": True}):
        first, second = (scores(NUMPY, flow, x, **options) for _ in range(2))
        assert (first != second).any(), options
    with pytest.raises(InvalidArgumentError, match="'sampel'"):
        flow.log_prob(x, rng="sampel")
    with pytest.raises(InvalidArgumentError, match="unbiased"):
        flow.log_prob(x, rng="sample", unbiased=True)
    block = flow.layers[1].branch
    one, other = (logdet(block, x[:2], rng="sample", exact_up_to=0).value for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert flow.log_prob(x[:2], exact_up_to=100).method == "exact"
    assert flow.log_prob(x).method == "mean-jacobian"  # and not that of the ActNorm beside it
