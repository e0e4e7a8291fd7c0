"""unbiased=True: the mean over the roulette is the untruncated form, the variance is what the proof says."""

import math

import numpy as np
import pytest
from branches_for_tests import array, dense_chain, host, linear_chain
from frameworks_for_tests import gradients
from hypothesis import example, given, settings
from hypothesis import strategies as st

from iresnet_core import example_data, logdet, mean_jacobian, reference
from iresnet_core.determinant import METHODS as ROWS
from iresnet_core.determinant.estimator import FIRST_CHANCE
from iresnet_core.determinant.forms import Roulette
from iresnet_core.errors import InvalidArgumentError

METHODS = tuple(name for name, row in ROWS.items() if not (row.is_exact or row.always_unbiased))
JACOBIANS = ("gaussian", "orthogonal", "nilpotent", "defective", "rotation")
D = 5


def skip_slow_backends(backend, slow=("tensorflow", "jax")):
    """Skip where hundreds of calls would take long; `test_backends_agree` compares those backends with NumPy."""
    if backend.name in slow:
        pytest.skip("hundreds of calls; the same answers as NumPy's by test_backends_agree")


def rate(method, c, d):
    """What `logdet` documents: P(N >= j) = first keep^(j-1)."""
    return ROWS[method].roulette(c, d, True)


def problem(backend, method, kind, coeff, d=D, seed=3):
    """A branch whose Jacobian is of a kind, one sample, and the options; another branch makes the preconditioner."""
    g, x = linear_chain(backend, kind, d, coeff, seed), array(backend, np.zeros((1, d)))
    options = {"method": method, "unbiased": True, "terms": 1}
    if method == "mean-jacobian":
        stranger = linear_chain(backend, "gaussian", d, coeff, seed + 1)
        return g, x, options | {"reference": mean_jacobian(stranger, x)}
    return g, x, options | {"control_variate": "none"}


def enumerated(method, c, d, most):
    """The lengths and their chances, all beyond the last in one."""
    chances = rate(method, c, d)
    reached = [chances.chance(n) for n in range(most + 1)] + [0.0]
    return [(n, reached[n] - reached[n + 1]) for n in range(most + 1)]


@pytest.mark.parametrize("method", [*METHODS, "roulette"])
@given(
    kind=st.sampled_from(JACOBIANS),
    coeff=st.sampled_from((0.1, 0.5, 0.9)),
    seed=st.integers(0, 2**16),
    terms=st.integers(1, 3),
)
@settings(max_examples=8)
@example(kind="orthogonal", coeff=0.9, seed=0, terms=1)
@example(kind="nilpotent", coeff=0.9, seed=0, terms=1)
@example(kind="gaussian", coeff=0.9, seed=0, terms=2)
def test_mean_and_variance_by_enumeration(backend, method, kind, coeff, seed, terms):
    """Over all lengths: the mean is the form itself, the variance that of the proof, and the stated one no less."""
    endless = method in ("series", "roulette")
    skip_slow_backends(backend, ("tensorflow", "jax", *["array_api_strict"] * endless))
    g, x, options = problem(backend, method, kind, min(coeff, 0.6) if endless else coeff, seed=seed)
    options["terms"] = terms
    c, v = g.lipschitz, np.random.default_rng(seed).standard_normal((1, 1, D))
    most = math.ceil(math.log(1e-12) / math.log(c)) if endless else D
    lengths, chances = zip(*enumerated(method, c, D, most), strict=True)
    results = [logdet(g, x, noise=(array(backend, v), [n]), probe_kind="gaussian", **options) for n in lengths]
    values, stated, bias = (
        np.array([host(backend, getattr(result, field))[0] for result in results])
        for field in ("value", "std_error", "bias_bound")
    )
    mean = np.dot(chances, values)
    answer = untruncated(backend, g, x, v, options)
    size = np.sum(v**2)
    assert abs(mean - answer) <= 1e-9 * size / (1 - c) ** 2
    assert bias.max() <= 2e-10 * size / (1 - c) ** 2  # rounding and the quadrature, but no truncation
    variance = np.dot(chances, (values - mean) ** 2)
    # The remainders behind the draws are within the certificates of the truncated answers, and give that variance.
    reached = np.array([rate(method, c, D).chance(n) for n in range(most + 2)])
    left = answer - np.cumsum(np.diff(values, prepend=0.0) * reached[:-1])
    biased = {name: value for name, value in options.items() if name not in ("unbiased", "terms")}
    if method == "roulette":
        biased["method"] = "series"
    certificates = np.array(
        [host(backend, logdet(g, x, noise=array(backend, v), terms=terms + n, **biased).bias_bound)[0] for n in lengths]
    )
    if not endless:  # of two estimates the one with the smaller certificate counts
        certificates = np.minimum.accumulate(certificates)
    assert np.all(np.abs(left) <= certificates + 1e-10 * size / (1 - c) ** 2)
    proof = np.sum((1 / reached[1:-1] - 1 / reached[:-2]) * left[:-1] ** 2)
    assert variance == pytest.approx(proof, rel=1e-3, abs=1e-10 * size**2)
    assert np.isfinite(stated).all()


def untruncated(backend, g, x, v, options):
    """The estimate of logdet for these probes, if nothing were left out."""
    J = reference.jacobian(g, x)
    if options["method"] != "mean-jacobian":
        return reference.probe_value(J, v).mean()
    B = host(backend, options["reference"].inverse)
    E = B @ (np.eye(D) + J) - np.eye(D)
    forms = reference.probe_value(E, v) - np.einsum("pbi,bij,pbj->pb", v, E, v)
    return float(forms[0, 0] + np.trace(E[0]) - np.linalg.slogdet(B)[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", JACOBIANS)
def test_stated_variance(backend, method, kind):
    """The variance of the roulette that std_error states is, over probes, not below the true one."""
    skip_slow_backends(backend, ("tensorflow", "jax", "array_api_strict"))
    g, x, options = problem(backend, method, kind, 0.7)
    c, rng = g.lipschitz, np.random.default_rng(0)
    most = D if method != "series" else 30
    table = enumerated(method, c, D, most)
    probes = rng.choice([-1.0, 1.0], (len(table), 1, 1, D))
    true = stated = 0.0
    chances = np.array([chance for _, chance in table])
    truncated = {name: value for name, value in options.items() if name != "unbiased"}
    for v in probes[:6]:
        results = [logdet(g, x, noise=(array(backend, v), [n]), **options) for n, _ in table]
        values, bars = (np.array([host(backend, getattr(r, f))[0] for r in results]) for f in ("value", "std_error"))
        true += np.dot(chances, (values - np.dot(chances, values)) ** 2)
        # What the error bar holds beside the noise of the probe.
        of_probe = host(backend, logdet(g, x, noise=array(backend, v), **truncated).std_error)[0]
        stated += np.dot(chances, bars**2) - of_probe**2
    assert stated >= true


@pytest.mark.parametrize(("kind", "most"), [("gaussian", 12), ("symmetric", 4), ("orthogonal", 16)])
def test_stated_variance_after_one_step(backend, kind, most):
    """One certain step says little of what it leaves: what is stated covers the variance, and not many times over."""
    d, samples = 12, 100
    g, x = linear_chain(backend, kind, d, 0.9, 3), array(backend, np.zeros((samples, d)))
    v = np.random.default_rng(0).choice([-1.0, 1.0], (1, samples, d))
    options = {"method": "arnoldi", "control_variate": "none", "terms": 1}
    of_probe = host(backend, logdet(g, x, noise=array(backend, v), **options).std_error) ** 2
    lengths, chances = zip(*enumerated("arnoldi", g.lipschitz, d, d), strict=True)
    results = [logdet(g, x, noise=(array(backend, v), [n]), unbiased=True, **options) for n in lengths]
    values, bars = (np.array([host(backend, getattr(r, f)) for r in results]) for f in ("value", "std_error"))
    true = np.dot(chances, (values - np.dot(chances, values)) ** 2).mean()
    stated = (np.dot(chances, bars**2) - of_probe).mean()
    assert true <= stated <= most**2 * true


@pytest.mark.parametrize("method", ["series", "arnoldi", "mean-jacobian"])
def test_many_probes_tell_the_variance_themselves(backend, method):
    """However wide the estimate for a single probe is."""
    g, x, options = problem(backend, method, "gaussian", 0.9, d=6)
    calls = 3 if backend.name in ("tensorflow", "jax") else 12
    results = [logdet(g, x, probes=400, probe_kind="gaussian", rng=call, **options) for call in range(calls)]
    bars = np.array([host(backend, r.std_error)[0] for r in results])
    many = array(backend, np.zeros((100, 6)))
    of_one = host(backend, logdet(g, many, probe_kind="gaussian", rng=0, **options).std_error)
    exact = reference.logdet(g, x)[0]
    errors = np.array([host(backend, r.value)[0] for r in results]) - exact
    assert np.all(np.abs(errors) <= 5 * bars)
    assert bars.mean() < 0.5 * math.sqrt(np.mean(of_one**2) / 400)


@pytest.mark.needs("autodiff")
@pytest.mark.parametrize("method", METHODS)
def test_gradient_by_enumeration(backend, method):
    """The mean of the gradient over all lengths is that of the untruncated form."""
    if method == "series":
        skip_slow_backends(backend)
    d = 4
    rng = np.random.default_rng(0)
    g = dense_chain(backend, d, [5, 6], 0.7, 0, "tanh", orthogonal=True, bias=2.0)
    x, v = array(backend, rng.standard_normal((2, d))), array(backend, rng.choice([-1.0, 1.0], (1, 2, d)))
    options = {"reference": mean_jacobian(g, array(backend, rng.standard_normal((3, d))))}
    options = options if method == "mean-jacobian" else {"control_variate": "none"}

    def gradient(**more):
        (found,) = gradients(
            backend, lambda x: backend.xp.sum(logdet(g, x, method=method, **more, **options).value), [x]
        )
        return found

    exact = gradient(terms=d if method != "series" else 90, noise=v)
    total, drift = 0.0, []
    for n, chance in enumerated(method, g.lipschitz, d, d if method != "series" else 60):
        drift.append(gradient(terms=1, unbiased=True, noise=(v, [n])) - exact)
        total = total + chance * drift[-1]
    np.testing.assert_allclose(total, 0 * exact, atol=1e-8)
    assert np.abs(drift[0]).max() > 1e-4  # without the roulette it would be biased


class TestStatistics:
    """Fixed seeds, tolerances from the standard error (z < 5)."""

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("kind", JACOBIANS)
    def test_mean(self, backend, method, kind):
        if method == "series":
            skip_slow_backends(backend)
        probes = 1000
        g, x, options = problem(backend, method, kind, 0.9, d=6)
        result = logdet(g, x, probes=probes, probe_kind="gaussian", rng=5, **options)
        error = host(backend, result.value)[0] - reference.logdet(g, x)[0]
        assert abs(error) <= 5 * host(backend, result.std_error)[0]
        assert host(backend, result.bias_bound)[0] <= 1e-6

    @pytest.mark.parametrize("method", METHODS)
    def test_trained(self, backend, method):
        """As good as the truncated answer, for some products more."""
        g, x = example_data.load_case("d64_c0.9", backend=backend.name)
        exact = reference.logdet(g, x)
        results = [logdet(g, x, method=method, probes=16, rng=1, unbiased=unbiased) for unbiased in (False, True)]
        fields = ("value", "std_error", "bias_bound", "products")
        biased, unbiased = ({name: host(backend, getattr(r, name)) for name in fields} for r in results)
        error = unbiased["value"] - exact
        assert abs(error.mean()) <= 5 * math.sqrt(np.mean(unbiased["std_error"] ** 2) / 16)
        assert np.sqrt(np.mean(error**2)) <= 1.3 * np.sqrt(np.mean(unbiased["std_error"] ** 2))
        assert np.mean(unbiased["std_error"]) <= 1.5 * np.mean(biased["std_error"])
        assert unbiased["bias_bound"].max() <= 1e-7
        assert unbiased["products"].max() <= 2 * biased["products"].max()

    @pytest.mark.strict_suite
    @pytest.mark.parametrize("method", [*METHODS, "roulette"])
    @pytest.mark.parametrize("kind", [*JACOBIANS, "d64_c0.5", "d64_c0.97"])
    def test_a_hundred_thousand_draws(self, backend, method, kind):
        """The mean within four standard errors of the exact value, and those from the draws themselves."""
        calls, draws = 100, 1000
        if kind in JACOBIANS:
            g, x, options = problem(backend, method, kind, 0.9, d=6)
        else:
            g, x = example_data.load_case(kind, backend=backend.name)
            options = {"method": method, "unbiased": True}
            if method == "mean-jacobian":
                options["reference"] = mean_jacobian(g, x)
            x = x[:1, :]
        values = np.array(
            [
                host(backend, logdet(g, x, probes=draws, probe_kind="gaussian", rng=call, **options).value)[0]
                for call in range(calls)
            ]
        )
        error = values.mean() - reference.logdet(g, x)[0]
        assert abs(error) <= 4 * values.std(ddof=1) / math.sqrt(calls)


def test_tolerance(backend):
    g, x = example_data.load_case("d64_c0.7", backend=backend.name)
    result = logdet(g, x, tol=3e-3, rng=0, unbiased=True, method="mean-jacobian")
    assert np.all(host(backend, result.std_error) <= 3e-3)
    assert np.all(host(backend, result.bias_bound) <= 1e-7)


def test_choice(backend):
    """The best method the branch allows."""
    g = dense_chain(backend, 70, [80], 0.5, 0)
    x = array(backend, np.zeros((2, 70)))
    assert logdet(g, x, rng=0, unbiased=True).method == "mean-jacobian"
    assert logdet(g, x, rng=0, unbiased=True, control_variate="none").method == "arnoldi"
    assert logdet(dense_chain(backend, 70, [8], 0.5, 0), x, unbiased=True).method == "exact"


def test_the_tail_is_shared_by_few_probes(backend):
    """Probes whose roulette has ended take no further products."""
    g, x, options = problem(backend, "arnoldi", "gaussian", 0.9, d=6)
    v = np.random.default_rng(1).standard_normal((3, 1, 6))
    options["terms"] = 2
    joint = logdet(g, x, noise=(array(backend, v), [0, 3, 1]), **options)
    single = [logdet(g, x, noise=(array(backend, v[[i]]), [n]), **options) for i, n in enumerate([0, 3, 1])]
    assert host(backend, joint.products).tolist() == [3 * 2 + 4]
    mean = np.mean([host(backend, r.value) for r in single])
    np.testing.assert_allclose(host(backend, joint.value), mean, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_noise_is_a_pair(backend, method):
    g, x = example_data.load_case("d64_c0.5", backend=backend.name)
    with pytest.raises(InvalidArgumentError, match="pair"):
        logdet(g, x, method=method, unbiased=True, noise=x)
    with pytest.raises(InvalidArgumentError, match="pair is for unbiased=True"):
        logdet(g, x, method=method, noise=(x, [1]))


def test_backends_agree(backend):
    numpys = example_data.load_case("d64_c0.9")
    ours = example_data.load_case("d64_c0.9", backend=backend.name)
    v = np.random.default_rng(0).choice([-1.0, 1.0], (2, *numpys[1].shape))
    for method in METHODS:
        options = {"method": method, "unbiased": True, "terms": 2}
        here = logdet(*ours, noise=(array(backend, v), [2, 0]), **options)
        there = logdet(*numpys, noise=(v, [2, 0]), **options)
        for field in ("value", "std_error", "products"):
            np.testing.assert_allclose(host(backend, getattr(here, field)), getattr(there, field), rtol=1e-8)


def test_chances():
    for method in ("series", "arnoldi"):
        roulette = rate(method, 0.9, 64)
        assert roulette == Roulette(FIRST_CHANCE, 0.9)
        assert [roulette.chance(j) for j in range(3)] == [1.0, FIRST_CHANCE, FIRST_CHANCE * 0.9]
        assert rate(method, 0.01, 64).first == 0.01
        assert ROWS[method].roulette(0.9, 64, False) is None
    assert rate("mean-jacobian", 0.5, 64) == Roulette(FIRST_CHANCE, 1 - 1 / 64)
    assert rate("mean-jacobian", 0.99, 64) == Roulette(FIRST_CHANCE, 0.99)
    assert ROWS["roulette"].roulette(0.9, 64, False) == Roulette(0.9, 0.9)
