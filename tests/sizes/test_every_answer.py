"""Every public answer at the size of the work: products and evaluations have a bound, and the error holds.

The few cases of CI are a sample of the grid, which ``--strict-suite`` runs as a whole.
"""

import math
import tracemalloc

import numpy as np
import pytest
from branches_for_tests import array, host
from branches_of_size import FEW, GRID, SIZES, Case, Counting, branch, exact_logdet, form, in_float64, samples

from iresnet_core import ActNorm, Dense, Flow, ResidualBlock, invert, lipschitz_bound, logdet, normalize, spectral_norm

# No probe takes more products than this, but for those of a roulette, whose number is drawn.
MOST_PRODUCTS = 64
# An inverse to the 1e-10 of float64 takes no more evaluations than this; one to the 1e-5 of float32 half of them.
MOST_EVALUATIONS = 128
# Nats for each dimension, the default of every estimate.
BIAS = 1e-3
# The methods whose probes may be given, so that what they truncate can be told from their noise.
PROBED = ("arnoldi", "series")


def pytest_generate_tests(metafunc):
    """Run the whole grid with the flag, and the few cases of CI without."""
    if "given_case" in metafunc.fixturenames:
        cases = GRID if metafunc.config.getoption("--strict-suite") else FEW
        metafunc.parametrize("given_case", cases, ids=str)


@pytest.fixture
def case(given_case, backend, request):
    """A case of the grid; the backends that compile every operation for every shape take one in CI, or none."""
    few = {"jax": (), "tensorflow": FEW[:1], "array_api_strict": FEW[:1]}.get(backend.name, FEW)
    if given_case not in few and not request.config.getoption("--strict-suite"):
        pytest.skip("this backend takes the whole grid with --strict-suite")
    return given_case


def distances(backend, x, y):
    """Euclidean distances of the samples of two batches, in float64."""
    return np.linalg.norm((host(backend, x) - host(backend, y)).reshape(x.shape[0], -1), axis=1)


def probes(backend, case, count, n):
    signs = np.random.default_rng(3).choice([-1.0, 1.0], (count, n, *case.shape))
    return array(backend, signs, case.dtype)


def flow_of(backend, case, blocks):
    """The block of the case, several times over, with an ActNorm before each."""
    channels = case.shape[0]
    ones = array(backend, np.full(channels, 0.1), case.dtype)
    return Flow([ActNorm(ones, ones), ResidualBlock(branch(backend, case))] * blocks, case.shape)


def most_evaluations(case):
    return MOST_EVALUATIONS if case.dtype == "float64" else MOST_EVALUATIONS // 2


def test_norms(backend, case):
    g = branch(backend, case)
    assert g.lipschitz <= case.c
    if case.weights == "at their caps":
        assert g.lipschitz >= case.c * (1 - 1e-3)
    for operator in g.operators:
        bound = lipschitz_bound(operator)
        assert bound.certificate in ("exact", "certified")
        below = spectral_norm(operator)
        assert bool(below.converged)
        assert 2 * int(below.iterations) <= 1000
        value = float(host(backend, below.value))
        rounding = 32 * np.finfo(case.dtype).eps
        assert value <= float(host(backend, bound.value)) * (1 + rounding)
        # A circulant that contains the convolution exceeds it by what happens at the border.
        assert value >= float(host(backend, bound.value)) * (0.98 if isinstance(operator, Dense) else 0.8)


def test_normalising_again_changes_nothing_beyond_rounding(backend, case):
    g = branch(backend, case)
    again = normalize(g, case.c)
    for one, other in zip(g.operators, again.operators, strict=True):
        np.testing.assert_allclose(
            host(backend, one.weight), host(backend, other.weight), rtol=8 * np.finfo(case.dtype).eps
        )


def test_inverse(backend, case):
    g, x = branch(backend, case), samples(backend, case, 2)
    y = x + g(x)
    counting = Counting(g)
    result = invert(counting, y)
    assert int(host(backend, result.iterations).max()) <= most_evaluations(case)
    # The certificate and the linearisations of Newton steps are evaluations as well.
    assert counting.evaluations <= int(host(backend, result.iterations).max()) + 4
    result = invert(g, y)
    assert bool(host(backend, result.converged).all())
    assert int(host(backend, result.iterations).max()) <= most_evaluations(case)
    wide, target = in_float64(backend, g, y)
    exact = invert(wide, target, rtol=1e-14, atol=0.0, on_failure="return")
    error = distances(backend, result.value, array(backend, exact.value))
    bound = host(backend, result.error_bound)
    assert (error <= bound + exact.error_bound).all()
    tolerance = 1e-5 if case.dtype == "float32" else 1e-10
    floor = 100 * np.finfo(case.dtype).eps / (1 - case.c) ** 2
    assert (bound <= (tolerance + floor) * np.linalg.norm(target.reshape(2, -1), axis=1)).all()


def test_flow_inverse(backend, case):
    flow = flow_of(backend, case, 3)
    x = samples(backend, case, 2)
    z, _ = flow.forward(x, method="arnoldi", errors=False, terms=1)
    result = flow.inverse(z)
    assert bool(host(backend, result.converged).all())
    assert int(host(backend, result.iterations).max()) <= 3 * most_evaluations(case)
    # z is rounded, and the inverse expands what that did by its own constant at most.
    rounding = 64 * np.finfo(case.dtype).eps * np.linalg.norm(host(backend, z).reshape(2, -1), axis=1)
    allowed = host(backend, result.error_bound) + rounding * float(flow.inverse_lipschitz)
    assert (distances(backend, result.value, x) <= allowed).all()
    # What the worst case allows is not what happens.
    assert (distances(backend, result.value, x) <= 1e-3 * np.linalg.norm(host(backend, x).reshape(2, -1), axis=1)).all()


@pytest.mark.parametrize("method", PROBED)
def test_truncation_of_given_probes(backend, case, method):
    g, x, v = branch(backend, case), samples(backend, case, 2), probes(backend, case, 2, 2)
    counting = Counting(g)
    result = logdet(counting, x, method=method, noise=v, control_variate="none")
    assert counting.products == int(host(backend, result.products).max()) <= 2 * MOST_PRODUCTS
    bias = host(backend, result.bias_bound)
    assert bias.max() <= BIAS * case.d
    # The error bound of the reference is its own last term.
    assert (np.abs(host(backend, result.value) - form(backend, g, x, v)) <= bias + 1e-8).all()


@pytest.mark.parametrize("method", ["auto", "arnoldi", "series", "unbiased", "roulette", "mean-jacobian"])
def test_work_of_every_estimate(backend, case, method):
    dense = len(case.shape) == 1
    if method == "mean-jacobian" and (not dense or case.d > 1024):
        pytest.skip("the mean Jacobian of such samples is too large")
    g, x = branch(backend, case), samples(backend, case, 2)
    options = {"method": "arnoldi", "unbiased": True} if method == "unbiased" else {"method": method}
    measured = backend.name == "numpy"
    logdet(g, x, rng=0, **options)  # what is kept with the weights is not counted
    if measured:
        tracemalloc.start()
    try:
        result = logdet(g, x, rng=0, **options)
        most = tracemalloc.get_traced_memory()[1] if measured else 0
    finally:
        tracemalloc.stop()
    assert host(backend, result.products).max() <= (2000 if method == "roulette" else MOST_PRODUCTS)
    assert host(backend, result.bias_bound).max() <= BIAS * case.d
    assert np.isfinite(host(backend, result.std_error)).all()
    widest = max(math.prod(operator.output_shape) for operator in g.operators)
    preconditioner = 10 * case.d**2 if result.method == "mean-jacobian" else 0
    numbers = 2 * (MOST_PRODUCTS * case.d + 16 * widest) + preconditioner
    assert most <= 8 * numbers + 2**20


@pytest.mark.parametrize("method", ["auto", "arnoldi", "unbiased"])
def test_mean_of_estimates_is_the_exact_value(backend, case, method, request):
    affordable = case.d <= 784 or (case.layers == 3 and request.config.getoption("--strict-suite"))
    if not affordable or case.dtype != "float32" or backend.name not in ("numpy", "torch"):
        pytest.skip("explicit Jacobians take long; other cases cover this one")
    g, x = branch(backend, case), samples(backend, case, 1)
    repeated = array(backend, np.repeat(host(backend, x), 16, axis=0), case.dtype)
    options = {"method": "arnoldi", "unbiased": True} if method == "unbiased" else {"method": method}
    result = logdet(g, repeated, rng=5, **options)
    exact = exact_logdet(backend, g, x)[0]
    value, std_error, bias = (host(backend, part) for part in result[:3])
    assert abs(value.mean() - exact) <= 5 * math.sqrt(np.sum(std_error**2)) / len(value) + bias.mean()
    # The lengths of a roulette are those of the batch, so that its errors are not independent there.
    if method != "unbiased":
        assert math.sqrt(np.mean((value - exact) ** 2)) <= 2.5 * math.sqrt(np.mean(std_error**2)) + bias.mean()


def test_a_tolerance(backend, case):
    g, x = branch(backend, case), samples(backend, case, 1)
    first = logdet(g, x, method="arnoldi", rng=0)
    error, bias = float(host(backend, first.std_error)[0]), float(host(backend, first.bias_bound)[0])
    tol = max(error / 1.7, 1.5 * bias)
    result = logdet(g, x, method="arnoldi", rng=0, tol=tol)
    assert host(backend, result.std_error)[0] <= tol
    assert host(backend, result.bias_bound)[0] <= tol
    assert host(backend, result.products)[0] <= 64 * MOST_PRODUCTS


def test_log_prob_and_sample(backend, case):
    flow = flow_of(backend, case, 2)
    x = samples(backend, case, 2)
    result = flow.log_prob(x, rng=0)
    assert host(backend, result.products).max() <= 2 * MOST_PRODUCTS
    assert host(backend, result.bias_bound).max() <= 2.1 * BIAS * case.d
    wide = flow.astype(backend.xp.float64)
    again = wide.log_prob(backend.xp.astype(x, backend.xp.float64), rng=0)
    # The same seed draws other probes in another dtype.
    noise = 6 * np.hypot(host(backend, result.std_error), host(backend, again.std_error))
    bias = host(backend, result.bias_bound) + host(backend, again.bias_bound)
    latents = 64 * np.finfo(case.dtype).eps * case.d / (1 - case.c)
    gap = np.abs(host(backend, result.value) - host(backend, again.value))
    assert (gap <= noise + bias + latents).all()
    drawn = flow.sample(2, rng=0)
    assert tuple(drawn.value.shape) == (2, *case.shape)
    assert int(host(backend, drawn.iterations).max()) <= 2 * most_evaluations(case)
    assert bool(host(backend, drawn.converged).all())


# The case that one probe knows least of, and all others with the flag.
COVERED = [
    pytest.param(
        size, c, weights, marks=() if (size, c, weights) == ("300", 0.9, "trained") else pytest.mark.strict_suite
    )
    for size in SIZES
    for c in (0.9, 0.98)
    for weights in ("at their caps", "trained")
]


@pytest.mark.parametrize(("size", "c", "weights"), COVERED)
def test_coverage_of_two_standard_errors(size, c, weights):
    from iresnet_core.backends import backend as find_backend

    numpy = find_backend("numpy")
    case = Case(size, c, weights=weights)
    g, x = branch(numpy, case), samples(numpy, case, 1)
    exact, errors, deviations, biases = exact_logdet(numpy, g, x)[0], [], [], []
    for seed in range(40 if case.d <= 784 else 4):  # fifty draws each
        result = logdet(g, np.repeat(x, 50, axis=0), method="arnoldi", rng=seed)
        errors.append(result.value - exact)
        deviations.append(result.std_error)
        biases.append(result.bias_bound)
    error, std_error = np.concatenate(errors).astype(float), np.concatenate(deviations).astype(float)
    assert abs(np.mean(error)) <= 5 * math.sqrt(np.sum(std_error**2)) / error.size + np.mean(biases)
    if error.size == 2000:
        # What was truncated is far below its bound, and nothing beside the noise.
        assert 0.93 <= np.mean(np.abs(error) <= 2 * std_error) <= 0.97
