"""Densities of latents against SciPy's, on every backend; what they draw, and what they refuse."""

import math

import numpy as np
import pytest
from flow_examples import array, dense_block, host
from frameworks_for_tests import DIFFERENTIATING, gradients
from scipy import stats

from iresnet_core import (
    ActNorm,
    DiagonalNormal,
    FactorOut,
    Flow,
    FullNormal,
    Inverted,
    NormalMixture,
    Pointwise,
    ProductBase,
    StudentT,
    Uniform,
    VonMises,
    reverse_kl,
)
from iresnet_core.errors import InvalidArgumentError, NonFiniteError, ShapeError

MEAN, SCALE = np.array([0.5, -1.0]), np.array([0.3, 2.0])
CONCENTRATION = np.array([0.0, 7.0])
TRIANGLE = np.array([[0.5, 0.0], [1.5, 2.0]])
LOGS, MEANS, SCALES = (
    np.array([0.3, -0.7, 0.0]),
    np.array([[-2.0, 0], [1, 1], [0, 3]]),
    np.array([[0.5, 1], [1, 1], [2, 0.1]]),
)


def mixture(z):
    weights = np.exp(LOGS) / np.exp(LOGS).sum()
    parts = [w * np.exp(stats.norm(m, s).logpdf(z).sum(1)) for w, m, s in zip(weights, MEANS, SCALES, strict=True)]
    return np.log(sum(parts))


CASES = {
    "diagonal": (lambda a: DiagonalNormal(a(MEAN), a(SCALE)), lambda z: stats.norm(MEAN, SCALE).logpdf(z).sum(1)),
    "full": (
        lambda a: FullNormal(a(MEAN), a(TRIANGLE)),
        stats.multivariate_normal(MEAN, TRIANGLE @ TRIANGLE.T).logpdf,
    ),
    "mixture": (lambda a: NormalMixture(a(LOGS), a(MEANS), a(SCALES)), mixture),
    "student": (lambda a: StudentT(2.5, a(MEAN), a(SCALE)), lambda z: stats.t(2.5, MEAN, SCALE).logpdf(z).sum(1)),
    "von mises": (
        lambda a: VonMises(a(MEAN), a(CONCENTRATION)),
        lambda z: stats.vonmises(CONCENTRATION, MEAN).logpdf(z).sum(1),
    ),
    "cylinder": (
        lambda a: ProductBase(
            [StudentT(2.5, a(MEAN[:1]), a(SCALE[:1])), VonMises(a(MEAN[1:]), a(CONCENTRATION[1:]))], [[1], [0]]
        ),
        lambda z: stats.t(2.5, MEAN[0], SCALE[0]).logpdf(z[:, 1]) + stats.vonmises(7.0, MEAN[1]).logpdf(z[:, 0]),
    ),
    "box": (
        lambda a: Uniform([-1.0, 0.0], [1.0, 3.0]),
        lambda z: stats.uniform([-1, 0], [2, 3]).logpdf(z).sum(1),
    ),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", CASES)
def test_densities_are_scipys_within_the_bound(backend, name):
    make, reference = CASES[name]
    base = make(lambda values: array(backend, values))
    z = np.random.default_rng(0).normal(0, 2, (50, 2))
    value, bound = base.density(backend, array(backend, z))
    expected = reference(z)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(host(value)), finite)
    gap = np.abs(host(value)[finite] - expected[finite])
    assert (gap <= host(bound)[finite] + 1e-14 * np.abs(expected[finite])).all()
    assert (host(bound)[finite] > 1e-17 * np.abs(expected[finite])).all()
    assert (host(bound)[finite] < 1e-11 * (1 + np.abs(expected[finite]))).all()
    np.testing.assert_array_equal(host(base.log_prob(array(backend, z))), host(value))


@pytest.mark.parametrize("name", CASES)
def test_what_is_drawn_has_the_density(backend, name):
    """By a Kolmogorov-Smirnov test of one entry against SciPy's marginal."""
    make, _ = CASES[name]
    base = make(lambda values: array(backend, values, "float32"))
    like = array(backend, np.zeros(1), "float32")
    z = host(base.sample(4000, 7, like))
    assert z.dtype == np.float32
    assert z.shape == (4000, 2)
    weights = np.exp(LOGS) / np.exp(LOGS).sum()
    marginal = {
        "diagonal": stats.norm(MEAN[1], SCALE[1]).cdf,
        "full": stats.norm(MEAN[1], np.hypot(1.5, 2.0)).cdf,
        "mixture": lambda x: sum(
            w * stats.norm(m[1], s[1]).cdf(x) for w, m, s in zip(weights, MEANS, SCALES, strict=True)
        ),
        "student": stats.t(2.5, MEAN[1], SCALE[1]).cdf,
        "von mises": stats.vonmises(CONCENTRATION[1], MEAN[1]).cdf,
        "cylinder": stats.t(2.5, MEAN[0], SCALE[0]).cdf,
        "box": stats.uniform(0, 3).cdf,
    }[name]
    assert stats.kstest(z[:, 1], marginal).pvalue > 1e-4
    np.testing.assert_array_equal(host(base.sample(5, 7, like)), host(base.sample(5, 7, like)))


def test_flows_take_them(backend):
    """log p(x) is that of the base at the latent plus the log-determinant, in value and bound, in both dtypes."""
    if backend.name == "jax":
        pytest.skip("compiles for minutes; the densities themselves run on it, and so does one of them in a flow")
    block = dense_block(backend, np.random.default_rng(1), 2)
    x = array(backend, np.random.default_rng(2).standard_normal((4, 2)))
    z, logdet = Flow([block], (2,)).forward(x, method="exact")
    for name, (make, reference) in CASES.items():
        flow = Flow([block], (2,), base=make(lambda values: array(backend, values)))
        if name == "box":
            continue
        nats = flow.log_prob(x, method="exact")
        expected = reference(host(z)) + host(logdet.value)
        assert (np.abs(host(nats.value) - expected) <= host(nats.bias_bound) + 1e-12).all()
        assert len(flow.arrays) == len(block.arrays) + len(flow.base.arrays)
        single = flow.astype(backend.xp.float32).sample(3, rng=1, log_prob=True, method="exact")
        np.testing.assert_array_equal(np.isfinite(host(single.log_prob.value)), True)


def test_outside_of_a_bounded_support_there_is_no_density(backend):
    block = dense_block(backend, np.random.default_rng(1), 2)
    far = array(backend, [[50.0, 0.0], [0.0, 0.0]])
    nats = Flow([block], (2,), base=Uniform([-5, -5], [5, 5])).log_prob(far, method="exact")
    assert host(nats.value)[0] == -np.inf
    assert np.isfinite(host(nats.value)[1])
    assert np.isfinite(host(nats.bias_bound)).all()
    torus = Flow([block], (2,), base=Uniform([-5, -5], [5, 5], periodic=True)).log_prob(far, method="exact")
    assert np.isfinite(host(torus.value)).all()


def test_parameters_of_a_base_are_learned(backend):
    if backend.name not in DIFFERENTIATING:
        pytest.skip("takes no derivatives")
    block = dense_block(backend, np.random.default_rng(1), 2)
    x = array(backend, np.random.default_rng(2).standard_normal((4, 2)))

    def loss(mean, scale):
        flow = Flow([block], (2,), base=DiagonalNormal(mean, scale))
        return backend.xp.sum(flow.log_prob(x, method="exact", errors=False).value)

    z = host(block(x))
    for_mean, for_scale = gradients(backend, loss, [array(backend, MEAN), array(backend, SCALE)])
    np.testing.assert_allclose(for_mean, ((z - MEAN) / SCALE**2).sum(0), rtol=1e-6)
    np.testing.assert_allclose(for_scale, (((z - MEAN) / SCALE) ** 2 - 1).sum(0) / SCALE, rtol=1e-6)


def learnable(name, a):
    """The cases, with a concentration above 0 where it is one that is learned."""
    return VonMises(a(MEAN), a(CONCENTRATION + 0.25)) if name == "von mises" else CASES[name][0](a)


@pytest.mark.parametrize("name", CASES)
def test_parameters_have_a_form_of_any_numbers(backend, name):
    """The form leads back to the density, and whatever an optimiser makes of it is one."""
    base = learnable(name, lambda values: array(backend, values))
    free = base.free
    assert tuple(free) == base.free_names
    again = base.with_free(free)
    assert type(again) is type(base)
    for one, other in zip(again.arrays, base.arrays, strict=True):
        expected = np.tril(host(other)) if other.shape == (2, 2) and name == "full" else host(other)
        np.testing.assert_allclose(host(one), expected, rtol=1e-12)
    z = array(backend, np.random.default_rng(0).uniform(0, 1, (5, 2)))
    for shift in (-30.0, 30.0):
        moved = base.with_free({key: a + shift for key, a in free.items()})
        assert np.isfinite(host(moved.log_prob(z))).all()


def test_a_concentration_that_is_learned_is_not_zero(backend):
    with pytest.raises(InvalidArgumentError, match="above 0"):
        _ = VonMises(array(backend, MEAN), array(backend, CONCENTRATION)).free


class Logistic:
    """A density of one's own."""

    def __init__(self, backend, summed=True):
        self.backend, self.summed = backend, summed

    def log_prob(self, z):
        xp = self.backend.xp
        terms = -z - 2 * xp.log1p(xp.exp(-z))
        return xp.sum(terms, axis=1) if self.summed else terms

    def sample(self, n, rng, like):
        return self.backend.sample("gaussian", (n, 2), like, rng)


def test_a_density_of_ones_own(backend):
    block = dense_block(backend, np.random.default_rng(1), 2)
    x = array(backend, np.random.default_rng(2).standard_normal((4, 2)))
    z, logdet = Flow([block], (2,)).forward(x, method="exact")
    flow = Flow([block], (2,), base=Logistic(backend))
    expected = stats.logistic.logpdf(host(z)).sum(1) + host(logdet.value)
    np.testing.assert_allclose(host(flow.log_prob(x, method="exact").value), expected, rtol=1e-12)
    assert flow.sample(3, rng=0).value.shape[0] == 3
    assert np.isfinite(float(reverse_kl(flow, lambda x: -backend.xp.sum(x**2, axis=1), 4, rng=0)))
    with pytest.raises(ShapeError, match="one entry for each"):
        Flow([block], (2,), base=Logistic(backend, summed=False)).log_prob(x)


def test_bad_bases_are_refused(backend):
    block = dense_block(backend, np.random.default_rng(1), 2)
    a = lambda values: array(backend, values)  # noqa: E731
    with pytest.raises(ShapeError, match=r"shape \(3,\)"):
        Flow([block], (2,), base=DiagonalNormal(a(np.zeros(3)), a(np.ones(3))))
    for wrong in ("cauchy", 3, Logistic):
        with pytest.raises(InvalidArgumentError, match="base density"):
            Flow([block], (2,), base=wrong)
    for scale in ([1.0, 0.0], [1.0, -1.0]):
        with pytest.raises(InvalidArgumentError, match="positive"):
            DiagonalNormal(a(MEAN), a(scale))
    with pytest.raises(NonFiniteError):
        DiagonalNormal(a([0.0, np.nan]), a(SCALE))
    with pytest.raises(ShapeError):
        FullNormal(a(MEAN), a(np.ones((2, 3))))
    with pytest.raises(InvalidArgumentError, match="positive"):
        FullNormal(a(MEAN), a(-TRIANGLE))
    with pytest.raises(ShapeError):
        NormalMixture(a(LOGS), a(MEANS[:2]), a(SCALES[:2]))
    for df in (0, -1, math.inf):
        with pytest.raises(InvalidArgumentError, match="degrees"):
            StudentT(df, a(MEAN), a(SCALE))
    with pytest.raises(InvalidArgumentError, match="below"):
        Uniform([0.0], [0.0])
    part = DiagonalNormal(a(MEAN), a(SCALE))
    for places in ([[0, 1], [2, 2]], [[0, 1], [3, 4]], [[0, 1], [2, -1]]):
        with pytest.raises(InvalidArgumentError, match="each once"):
            ProductBase([part, part], places)
    for places in ([[0, 1.5], [2, 3]], [[0, "b"], [2, 3]], [0, 1]):
        with pytest.raises(InvalidArgumentError, match="lists of whole numbers"):
            ProductBase([part, part], places)
    with pytest.raises(ShapeError, match="places"):
        ProductBase([part, part], [[0, 1], [2]])
    with pytest.raises(ShapeError, match="vectors"):
        ProductBase([DiagonalNormal(a(SCALES), a(SCALES))])
    for parts in ([], ["normal"]):
        with pytest.raises(InvalidArgumentError, match="part"):
            ProductBase(parts)


class OfAnotherLibrary(Logistic):
    def sample(self, sample_shape=()):
        raise AssertionError("never called")


def test_a_density_of_another_library_is_refused(backend):
    block = dense_block(backend, np.random.default_rng(1), 2)
    with pytest.raises(InvalidArgumentError, match="does not take"):
        Flow([block], (2,), base=OfAnotherLibrary(backend))


@pytest.mark.parametrize("own", [False, True])
def test_the_base_of_an_inner_flow_is_refused(backend, own):
    """It has no effect there, wherever the flow is."""
    block = dense_block(backend, np.random.default_rng(1), 2)
    base = Logistic(backend) if own else StudentT(2.5, array(backend, MEAN), array(backend, SCALE))
    inner = Flow([block], (2,), base=base)
    plain = Flow([block], (2,))
    for outer in (
        lambda flow: Flow([flow], (2,)),
        Inverted,
        Pointwise,
        lambda flow: FactorOut(2, flow),
        lambda flow: FactorOut(2, [flow]),
    ):
        outer(plain)
        with pytest.raises(InvalidArgumentError, match="to the outer flow"):
            outer(inner)
    nested = Flow([plain], (2,), base=base)
    x = array(backend, np.ones((1, 2)))
    np.testing.assert_allclose(
        host(nested.log_prob(x, method="exact").value), host(inner.log_prob(x, method="exact").value)
    )


class Odd(Logistic):
    """A density of one's own that returns what no density does."""

    def __init__(self, backend, value=0.0, more=0):
        super().__init__(backend)
        self.value, self.more = value, more

    def log_prob(self, z):
        return super().log_prob(z) * self.value if self.value else super().log_prob(z)

    def sample(self, n, rng, like):
        return super().sample(n + self.more, rng, like)


def test_what_a_density_of_ones_own_returns_is_looked_at(backend):
    block = dense_block(backend, np.random.default_rng(1), 2)
    x = array(backend, np.ones((3, 2)))
    for value in (math.nan, -math.inf):
        flow = Flow([block], (2,), base=Odd(backend, value))
        with pytest.raises(NonFiniteError, match="log_prob of the base density"):
            flow.log_prob(x, method="exact")
        with pytest.raises(NonFiniteError, match="log_prob of the base density"):
            flow.sample(3, rng=0, log_prob=True, method="exact")
    outside = Flow([block], (2,), base=Odd(backend, math.inf)).log_prob(x, method="exact")
    assert (host(outside.value) == -math.inf).all()
    for more in (1, -1):
        flow = Flow([block], (2,), base=Odd(backend, more=more))
        for draw in (flow.sample, lambda n, flow=flow, **options: reverse_kl(flow, lambda x: x[:, 0], n, **options)):
            with pytest.raises(ShapeError, match="the flow takes"):
                draw(3, rng=0)


@pytest.mark.filterwarnings("ignore:overflow")
def test_tails_beyond_the_range_of_squares(backend):
    """Student's t is zero nowhere; a normal density is not representable there, which is no zero either."""
    one = array(backend, [1.0])
    base = StudentT(2.5, 0 * one, one)
    far = array(backend, [[1e200], [-1e200], [3.0], [0.0]])
    value, bound = base.density(backend, far)
    expected = stats.t(2.5).logpdf([3.0, 0.0])
    np.testing.assert_allclose(host(value)[2:], expected, rtol=1e-13)
    tail = math.lgamma(1.75) - math.lgamma(1.25) - 0.5 * math.log(2.5 * math.pi)
    tail -= 1.75 * (2 * 200 * math.log(10) - math.log(2.5))
    np.testing.assert_allclose(host(value)[:2], [tail, tail], rtol=1e-13)
    assert (host(bound) < 1e-11).all()
    if backend.name in DIFFERENTIATING:
        (found,) = gradients(backend, lambda z: backend.xp.sum(base.log_prob(z)), [far])
        np.testing.assert_allclose(found[:, 0], [-3.5e-200, 3.5e-200, -3.5 * 3 / (2.5 + 9), 0.0], rtol=1e-12)
    flow = Flow([ActNorm(0 * one, 0 * one)], (1,), base=DiagonalNormal(0 * one, one))
    with pytest.raises(NonFiniteError, match="below the range"):
        flow.log_prob(far)


def test_samples_beyond_the_range_of_the_dtype_are_refused(backend):
    one = array(backend, [1.0], "float32")
    with pytest.raises(NonFiniteError, match=r"0\.02 degrees"):
        StudentT(0.02, 0 * one, one).sample(2000, 0, one)
    few = StudentT(0.3, 0 * one, one)
    assert np.isfinite(host(few.sample(2000, 0, one))).all()


def test_parts_of_a_product_have_their_places(backend):
    """With places that are no permutation of two, which would be its own inverse."""
    base = ProductBase([Uniform([0, 10], [1, 11]), Uniform([20], [21])], [[2, 0], [1]])
    drawn = base.sample(50, 0, array(backend, np.zeros(1)))
    z = host(drawn)
    assert (z >= [10, 20, 0]).all()
    assert (z <= [11, 21, 1]).all()
    np.testing.assert_array_equal(host(base.log_prob(drawn)), np.zeros(50))
    with pytest.raises(ShapeError):
        base.log_prob(array(backend, np.zeros((1, 2))))
