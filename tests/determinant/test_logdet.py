"""The log-determinant: bias bounds hold for each draw, error bars are true, exact is exact, bad input is refused."""

import math

import numpy as np
import pytest
from branches_for_tests import KINDS, array, dense_chain, host, linear_chain
from hypothesis import given
from hypothesis import strategies as st
from strategies import sides

from iresnet_core import Activation, Chain, Dense, Linearization, example_data, logdet, reference
from iresnet_core.backends import get_backend
from iresnet_core.determinant import METHODS
from iresnet_core.determinant import exact as exact_determinant
from iresnet_core.determinant.tails import series_tail
from iresnet_core.errors import NotConvergedError

COEFFS = (0.1, 0.5, 0.9, 0.97, 0.99)
# Every method with probes that works for any branch.
STOCHASTIC = tuple(name for name, row in METHODS.items() if not (row.is_exact or row.is_control_variate))


def _exact(g, x):
    return reference.logdet(g.astype(np.float64) if get_backend(x).name == "numpy" else g, x)


def _probe_answer(g, x, v, subtract):
    """theta tr J + v^T (log(I + J) - theta J) v, or v^T log(I + J) v, averaged over the probes v (probes, batch, d)."""
    J = reference.jacobian(g, x)
    values = reference.probe_value(J, v)
    if subtract:
        trace = np.trace(J, axis1=1, axis2=2)
        values = values + (trace - np.einsum("pbi,bij,pbj->pb", v, J, v)) / (1 + 0.6 * trace / J.shape[-1])
    return values.mean(axis=0)


@pytest.mark.parametrize("method", ["series", "arnoldi"])
@given(
    kind=st.sampled_from(KINDS),
    n=sides(10),
    coeff=st.sampled_from(COEFFS[:4]),
    seed=st.integers(0, 2**16),
    terms=st.one_of(st.none(), st.integers(1, 14)),
    control_variate=st.sampled_from(("none", "trace")),
    dtype=st.sampled_from(("float64", "float32")),
)
def test_bias_bound_of_linear_branches(backend, method, kind, n, coeff, seed, terms, control_variate, dtype):
    g = linear_chain(backend, kind, n, coeff, seed, dtype)
    v = np.random.default_rng(seed).standard_normal((2, 3, n)).astype(dtype)
    x = array(backend, np.zeros((3, n)), dtype)
    result = logdet(
        g,
        x,
        method=method,
        terms=terms,
        noise=array(backend, v, dtype),
        control_variate=control_variate,
        probe_kind="gaussian",
    )
    answer = _probe_answer(g, x, v.astype(float), control_variate == "trace")
    error, bound = np.abs(host(backend, result.value) - answer), host(backend, result.bias_bound)
    size = np.mean(np.sum(v.astype(float) ** 2, axis=-1), axis=0)
    output = np.finfo(dtype).eps * (np.abs(answer) + size)
    # logm of a nearly singular, defective matrix is itself good to 1e-10 or so.
    assert np.all(error <= bound + output + 1e-10 * size / (1 - coeff))
    if terms is None:  # the series is content with as much for each dimension from its 64th term on
        accuracy = 1e-3 * (n if method == "series" else 1)
        assert np.all(bound <= accuracy + np.finfo(dtype).eps * 5e3 * size / (1 - coeff))


@given(
    d=sides(9),
    widths=st.lists(sides(12), min_size=1, max_size=3),
    coeff=st.sampled_from(COEFFS),
    seed=st.integers(0, 2**16),
    activation=st.sampled_from(("lipswish", "elu", "celu", "tanh", "relu", "sin", "softplus", "sigmoid")),
    dtype=st.sampled_from(("float64", "float32")),
)
def test_exact_is_exact(backend, d, widths, coeff, seed, activation, dtype):
    g = dense_chain(backend, d, widths, coeff, seed, activation, dtype, orthogonal=True)
    x = array(backend, np.random.default_rng(seed + 1).standard_normal((3, d)), dtype)
    result = logdet(g, x, method="exact")
    assert result.value.dtype == x.dtype
    assert np.all(np.abs(host(backend, result.value) - reference.logdet(g, x)) <= host(backend, result.bias_bound))
    assert host(backend, result.products).tolist() == [min(d, *widths)] * 3
    assert np.all(host(backend, result.std_error) == 0)


class TestBiasBound:
    """For given probes the deterministic error is within bias_bound, whatever the Jacobian."""

    @pytest.mark.parametrize("method", ["series", "arnoldi"])
    @pytest.mark.parametrize("case", example_data.cases())
    def test_trained(self, backend, method, case):
        g, x = example_data.load_case(case, backend=backend.name)
        x = x[:6, :]
        v = np.random.default_rng(0).choice([-1.0, 1.0], (2, *x.shape))
        for terms in (1, 2, 5, None):
            for subtract in (True, False):
                result = logdet(
                    g,
                    x,
                    method=method,
                    terms=terms,
                    noise=array(backend, v),
                    control_variate="trace" if subtract else "none",
                )
                error = np.abs(host(backend, result.value) - _probe_answer(g, x, v, subtract))
                assert np.all(error <= host(backend, result.bias_bound) + 1e-11)

    def test_series_tail_is_the_remainder_of_the_logarithm(self):
        for c in (0.1, 0.5, 0.9, 0.99):
            for n in (0, 1, 2, 10, 60):
                partial = math.fsum(c**k / k for k in range(1, n + 1))
                tau = -math.log1p(-c) - partial
                if tau > 1e-8:
                    assert c**n * series_tail(c, n) == pytest.approx(tau, rel=1e-7)
                assert c**n * series_tail(c, n) >= tau - 1e-15 * n - 1e-15
        assert series_tail(0.0, 3) == 0.0


class TestStatistics:
    """Fixed seeds, tolerances from the standard error (z < 5)."""

    CALLS, BATCH = 60, 50

    @pytest.mark.parametrize("control_variate", ["none", "auto"])
    @pytest.mark.parametrize("probe_kind", ["rademacher", "gaussian"])
    @pytest.mark.parametrize("method", ["series", "arnoldi"])
    @pytest.mark.parametrize("probes", [1, 3])
    def test_mean_and_error_bar(self, backend, method, probe_kind, control_variate, probes):
        """One input, many draws: each sample of a batch has signs of its own, each call Hadamard rows of its own."""
        d, draws = 12, self.CALLS * self.BATCH
        g = dense_chain(backend, d, [10, 14], 0.9, 1, "tanh", orthogonal=True)
        one = np.random.default_rng(5).standard_normal((1, d))
        x = array(backend, np.repeat(one, self.BATCH, axis=0))
        options = {"method": method, "probe_kind": probe_kind, "control_variate": control_variate, "probes": probes}
        results = [logdet(g, x, rng=call, **options) for call in range(self.CALLS)]
        value, error_bar, bias = (
            np.concatenate([host(backend, getattr(result, field)) for result in results])
            for field in ("value", "std_error", "bias_bound")
        )
        exact = _exact(g, x)[0]
        assert abs(value.mean() - exact) <= 5 * value.std() / math.sqrt(draws) + bias.max()
        ratio = math.sqrt(np.mean(error_bar**2)) / value.std()
        # True or too wide, as documented; never too narrow. The tolerance is five standard errors of value.std().
        kurtosis = np.mean((value - value.mean()) ** 4) / value.var() ** 2
        tolerance = 5 * math.sqrt((kurtosis - 1) / (4 * draws))
        assert 1 - tolerance <= ratio <= 2.5

    @pytest.mark.parametrize("coeff", [0.5, 0.9])
    @pytest.mark.parametrize("kind", ["gaussian", "orthogonal", "nilpotent", "defective"])
    def test_roulette_is_unbiased(self, backend, kind, coeff):
        # JAX compiles every operation for every number of probes whose series goes on: fewer of them there.
        d, probes = 6, 200 if backend.name == "jax" else 2000
        g = linear_chain(backend, kind, d, coeff, 3)
        x = array(backend, np.zeros((2, d)))
        result = logdet(g, x, method="roulette", probes=probes, rng=11, terms=1, control_variate="none")
        exact = _exact(g, x)
        error, error_bar = host(backend, result.value) - exact, host(backend, result.std_error)
        assert np.all(np.abs(error) <= 5 * error_bar)
        assert np.all(error_bar > 0)

    def test_roulette_expectation_by_enumeration(self, backend):
        """Sum over all lengths of chance times value: the logarithm itself, to the last digit."""
        d, coeff = 5, 0.7
        g = linear_chain(backend, "defective", d, coeff, 0)
        x = array(backend, np.zeros((1, d)))
        v = np.random.default_rng(1).standard_normal((1, 1, d))
        c = g.lipschitz
        total = second = spread = 0.0
        for n in range(90):
            noise = (array(backend, v), [n])
            result = logdet(g, x, method="roulette", noise=noise, terms=2, control_variate="none")
            chance = c**n * (1 - c)
            value = float(host(backend, result.value)[0])
            total, second = total + chance * value, second + chance * value**2
            spread += chance * float(host(backend, result.std_error)[0]) ** 2
        answer = _probe_answer(g, x, v, False)[0]
        assert total == pytest.approx(answer, abs=1e-9)
        # The stated variance holds the roulette's own, besides that of the probes.
        assert spread >= second - total**2

    def test_roulette_spends_what_it_says(self, backend):
        g = linear_chain(backend, "gaussian", 5, 0.7, 0)
        x = array(backend, np.zeros((2, 5)))
        v = array(backend, np.random.default_rng(1).standard_normal((3, 2, 5)))
        calls = []

        class Counting:
            lipschitz = g.lipschitz

            def __call__(self, x):
                return g(x)

            def linearize(self, x):
                inner = g.linearize(x)

                def vjp(u):
                    calls.append(u.shape)
                    return inner.vjp(u)

                return Linearization(value=inner.value, vjp=vjp)

        result = logdet(Counting(), x, method="roulette", noise=(v, [0, 5, 2]), terms=2)
        assert host(backend, result.products).tolist() == [3 * 2 + 7] * 2
        assert len(calls) == 13
        same = logdet(g, x, method="roulette", noise=(v, [0, 5, 2]), terms=2, control_variate="none")
        np.testing.assert_allclose(host(backend, result.value), host(backend, same.value), rtol=1e-12)

    @pytest.mark.parametrize("d", [1, 2, 3, 5, 8, 12])
    def test_a_full_set_of_hadamard_rows_is_exact(self, backend, d):
        g = dense_chain(backend, d, [7, 9], 0.9, 2, orthogonal=True)
        x = array(backend, np.random.default_rng(0).standard_normal((4, d)))
        full = 1 << (d - 1).bit_length()
        for probes in (full, 2 * full):
            for control_variate in ("none", "auto"):
                result = logdet(g, x, method="arnoldi", probes=probes, terms=d, rng=0, control_variate=control_variate)
                np.testing.assert_allclose(host(backend, result.value), _exact(g, x), atol=1e-10)
                assert np.all(host(backend, result.std_error) < 1e-7)

    def test_every_method_on_every_trained_branch(self, backend):
        for case in example_data.cases():
            g, x = example_data.load_case(case, backend=backend.name)
            exact = _exact(g, x)
            for method in STOCHASTIC:
                result = logdet(g, x, method=method, rng=4, probes=2)
                error = host(backend, result.value) - exact
                error_bar, bias = host(backend, result.std_error), host(backend, result.bias_bound)
                # The lengths of the roulette are shared by the batch, hence no independence is assumed over it.
                assert abs(error.mean()) <= 5 * math.sqrt(np.mean(error_bar**2)) + bias.max()
                assert math.sqrt(np.mean(error**2)) <= 2 * math.sqrt(np.mean(error_bar**2)) + bias.max()

    def test_all_shared_branches(self, shared_data):
        from trained_branches import blocks

        for case in ("d2_c0.9", "d64_c0.5", "d64_c0.97"):
            errors, bars = [], []
            for g, x in blocks(shared_data, case):
                result = logdet(g, x, method="arnoldi", rng=1, probes=4)
                errors.append(result.value - reference.logdet(g, x))
                bars.append(result.std_error + 1e-14)
                assert result.products.max() <= 40
            errors, bars = np.concatenate(errors), np.concatenate(bars)
            assert abs(errors.mean()) <= 5 * math.sqrt(np.mean(bars**2) / errors.size) + 1e-3
            assert math.sqrt(np.mean(errors**2)) <= 1.2 * math.sqrt(np.mean(bars**2)) + 1e-3


def test_arnoldi_certifies_in_seven_products(backend):
    for case, products in {"d64_c0.5": 5, "d64_c0.7": 6, "d64_c0.9": 7, "d64_c0.97": 7}.items():
        g, x = example_data.load_case(case, backend=backend.name)
        result = logdet(g, x, method="arnoldi", rng=0)
        assert np.all(host(backend, result.bias_bound) <= 1e-3)
        assert np.all(host(backend, result.products) <= products)


class TestExact:
    def test_convolution(self, backend):
        from iresnet_core import Convolution, normalize

        kernel = array(backend, np.random.default_rng(0).standard_normal((2, 2, 3, 3)))
        layer = Convolution(kernel, input_shape=(2, 3, 4), padding="same")
        g = normalize(Chain([layer, Activation("maxmin"), layer]), 0.8)
        x = array(backend, np.random.default_rng(1).standard_normal((3, 2, 3, 4)))
        exact = reference.logdet(g, x)
        np.testing.assert_allclose(host(backend, logdet(g, x).value), exact, atol=1e-11)
        result = logdet(g, x, method="arnoldi", probes=32, rng=0, terms=24)
        np.testing.assert_allclose(host(backend, result.value), exact, atol=1e-9)

    def test_from_products_alone(self, backend):
        g = dense_chain(backend, 5, [8], 0.9, 0)
        x = array(backend, np.random.default_rng(1).standard_normal((3, 5)))

        class Bare:
            lipschitz = g.lipschitz

            def __call__(self, x):
                return g(x)

            def linearize(self, x):
                inner = g.linearize(x)
                return Linearization(value=inner.value, vjp=inner.vjp)

        np.testing.assert_allclose(host(backend, logdet(Bare(), x).value), reference.logdet(g, x), atol=1e-12)

    def test_in_chunks(self, backend, monkeypatch):
        g = dense_chain(backend, 6, [9, 9], 0.9, 0)
        x = array(backend, np.random.default_rng(1).standard_normal((7, 6)))
        whole = logdet(g, x, method="exact")
        monkeypatch.setattr(exact_determinant, "ENTRIES_AT_A_TIME", 72)
        np.testing.assert_allclose(host(backend, logdet(g, x, method="exact").value), host(backend, whole.value))


class TestChoice:
    def test_auto(self, backend):
        wide = dense_chain(backend, 70, [80], 0.5, 0)
        narrow = dense_chain(backend, 70, [80, 8], 0.5, 0)
        for g, unbiased, method in (
            (wide, False, "mean-jacobian"),
            (wide, True, "mean-jacobian"),
            (narrow, True, "exact"),
        ):
            x = array(backend, np.zeros((2, 70)))
            assert logdet(g, x, rng=0, unbiased=unbiased).method == method

    @pytest.mark.parametrize("method", ["arnoldi", "series"])
    def test_tol(self, backend, method):
        g, x = example_data.load_case("d64_c0.7", backend=backend.name)
        x = x[:16, :]
        exact = _exact(g, x)
        for tol in (0.3, 0.1, 0.03):
            result = logdet(g, x, method=method, tol=tol, rng=3)
            assert np.all(host(backend, result.std_error) <= tol)
            assert np.all(host(backend, result.bias_bound) <= tol)
            assert np.all(np.abs(host(backend, result.value) - exact) <= 6 * tol)

    def test_tol_makes_auto_exact(self, backend):
        g, x = example_data.load_case("d64_c0.9", backend=backend.name)
        assert logdet(g, x, tol=0.05, rng=0, exact_up_to=32).method == "mean-jacobian"
        assert logdet(g, x, tol=1e-7, rng=0, exact_up_to=32).method == "exact"

    def test_tol_out_of_reach(self, backend):
        g, x = example_data.load_case("d2_c0.9", backend=backend.name)
        with pytest.raises(NotConvergedError, match=r"tol=1e-06 nats would take \d+ probes"):
            logdet(g, x, method="roulette", tol=1e-6, rng=0, control_variate="none", probe_kind="gaussian")


class TestNoise:
    def test_backends_agree(self, backend):
        """On the same noise: to rounding."""
        reference_case = example_data.load_case("d64_c0.9")
        g, x = example_data.load_case("d64_c0.9", backend=backend.name)
        v = np.random.default_rng(0).choice([-1.0, 1.0], (2, *reference_case[1].shape))
        for method, here, there in (
            ("series", array(backend, v), v),
            ("arnoldi", array(backend, v), v),
            ("roulette", (array(backend, v), [3, 1]), (v, [3, 1])),
        ):
            ours = logdet(g, x, method=method, noise=here)
            numpys = logdet(*reference_case, method=method, noise=there)
            for field in ("value", "std_error", "products"):
                np.testing.assert_allclose(host(backend, getattr(ours, field)), getattr(numpys, field), rtol=1e-10)

    @pytest.mark.needs("numpy_rng")
    @pytest.mark.parametrize("method", STOCHASTIC)
    def test_seeds(self, backend, method):
        g, x = example_data.load_case("d64_c0.5", backend=backend.name)
        x = x[:4, :]

        def value(rng):
            return host(backend, logdet(g, x, method=method, probes=3, rng=rng).value)

        assert np.array_equal(value(1), value(1))
        assert not np.array_equal(value(1), value(2))
        generator = np.random.default_rng(1)
        assert not np.array_equal(value(generator), value(generator))
        state = np.random.get_state()
        try:
            np.random.seed(5)
            first = value(None)
            np.random.seed(5)
            assert np.array_equal(first, value(None))
        finally:
            np.random.set_state(state)

    def test_seed_leaves_the_global_generator_alone(self, backend):
        g, x = example_data.load_case("d64_c0.5", backend=backend.name)
        before = np.random.get_state()[1].copy()
        logdet(g, x[:2, :], method="roulette", rng=1)
        assert np.array_equal(before, np.random.get_state()[1])

    def test_one_probe_without_its_axis(self, backend):
        g, x = example_data.load_case("d2_c0.5", backend=backend.name)
        v = array(backend, np.ones(x.shape))
        first, second = (logdet(g, x, method="arnoldi", noise=a) for a in (v, v[None, ...]))
        assert np.array_equal(host(backend, first.value), host(backend, second.value))


@pytest.mark.parametrize("method", ["auto", *METHODS])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (1, 40), (6, 1)])
def test_small_batches(backend, method, shape):
    g = dense_chain(backend, shape[1], [3 * shape[1]], 0.5, 0)
    result = logdet(g, array(backend, np.ones(shape)), method=method, rng=0)
    for field in result[:4]:
        assert tuple(field.shape) == shape[:1]
    if shape[1] == 1 and shape[0]:
        np.testing.assert_allclose(
            host(backend, result.value), reference.logdet(g, array(backend, np.ones(shape))), atol=2e-3, rtol=0.5
        )


@pytest.mark.needs("float16")
@pytest.mark.parametrize("method", ["exact", *STOCHASTIC])
def test_half_precision(backend, method):
    g = dense_chain(backend, 8, [8], 0.5, 0, dtype="float16")
    x = array(backend, np.ones((2, 8)), "float16")
    result = logdet(g, x, method=method, probes=8, rng=0, terms=None if method == "exact" else 8)
    assert result.value.dtype == backend.xp.float32  # half precision would lose most of the digits of a sum
    error = np.abs(host(backend, result.value) - reference.logdet(g, x))
    assert np.all(error <= host(backend, result.bias_bound) + 5 * host(backend, result.std_error))
    assert np.all(error < 0.1)


def test_a_tolerance_is_not_met_by_an_unlucky_probe(backend):
    """A probe orthogonal to the one direction of J sees neither the value nor its variance."""
    g = Chain(
        [Dense(array(backend, 0.9 * np.ones((64, 64)) / 64)), Activation("tanh"), Dense(array(backend, np.eye(64)))]
    )
    x = array(backend, np.zeros((1, 64)))
    exact = float(host(backend, logdet(g, x, method="exact").value)[0])
    errors = [abs(float(host(backend, logdet(g, x, rng=seed, tol=0.02).value)[0]) - exact) for seed in range(60)]
    assert max(errors) < 0.1


def test_exact_takes_a_branch_at_its_stated_constant_in_float32(backend):
    class Branch:
        lipschitz = 0.999

        def __call__(self, x):
            return -0.999 * x

        def linearize(self, x):
            return Linearization(value=-0.999 * x, vjp=lambda u: -0.999 * u)

    for d in (2, 64, 300):
        x = array(backend, np.ones((1, d)), "float32")
        value = float(host(backend, logdet(Branch(), x, method="exact").value)[0])
        assert value == pytest.approx(d * math.log(0.001), rel=1e-3)


def test_slow_series_near_one(backend):
    g = linear_chain(backend, "rotation", 8, 0.995, 0)
    x = array(backend, np.ones((2, 8)))
    result = logdet(g, x, method="series", rng=0)
    assert np.all(host(backend, result.bias_bound) <= 8e-3 * 1.01)


@pytest.mark.parametrize("c", [0.99, 0.9999, 1 - 1e-8])
@pytest.mark.parametrize("angle", [0.0, 0.3, 2.0])
def test_exact_of_two_dimensions_close_to_singular(backend, c, angle):
    """-c Q, whose determinant with I is 1 - 2 c cos(angle) + c^2: what is left of 1 must not be rounding."""
    Q = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    g = Chain([Dense(array(backend, -c * Q))])
    result = logdet(g, array(backend, np.ones((1, 2))), method="exact")
    expected = math.log((1 - c) ** 2 + 4 * c * math.sin(angle / 2) ** 2)
    # c * cos(angle) is rounded itself, which the condition of I + J inflates.
    rounding = 4 * 2.0**-53 / math.exp(expected / 2)
    assert abs(host(backend, result.value)[0] - expected) <= host(backend, result.bias_bound)[0] + rounding
