"""The mean-Jacobian method: the identity, its certificate for any preconditioner, deep chains, references."""

import math

import numpy as np
import pytest
from branches_for_tests import KINDS, array, dense_chain, host, linear_chain
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import logm
from strategies import sides

from iresnet_core import (
    Activation,
    Chain,
    Dense,
    example_data,
    logdet,
    mean_jacobian,
    normalize,
    reference,
)
from iresnet_core.branches.dense_traces import slope_plan
from iresnet_core.determinant.arnoldi import ARNOLDI
from iresnet_core.determinant.forms import JacobianProducts, Steps
from iresnet_core.determinant.preconditioned_arnoldi import PreconditionedProducts
from iresnet_core.determinant.preconditioning import MeanJacobian
from iresnet_core.determinant.quadrature import preconditioned_rule
from iresnet_core.errors import (
    DerivativeError,
    DtypeError,
    InvalidArgumentError,
    MixedBackendsError,
    ShapeError,
)

COEFFS = (0.1, 0.5, 0.9, 0.97, 0.99)
METHOD = {"method": "mean-jacobian"}


def untruncated(g, x, v, B, remainder=0.0):
    """-log det B + tr E + v^T (log(I + E) - E) v with logm, averaged over the probes v (probes, batch, d)."""
    J = reference.jacobian(g, x)
    identity = np.eye(J.shape[-1])
    E = B @ (identity + J) - identity
    forms = np.stack([logm(e).real for e in identity + E]) - E
    value = np.einsum("pbi,bij,pbj->pb", v, forms, v) + np.trace(E, axis1=1, axis2=2) - np.linalg.slogdet(B)[1]
    return value.mean(axis=0) + remainder


@given(
    d=sides(9),
    widths=st.lists(sides(12), min_size=0, max_size=2),
    coeff=st.sampled_from(COEFFS),
    seed=st.integers(0, 2**16),
    activation=st.sampled_from(("lipswish", "elu", "tanh", "relu", "sin")),
    terms=st.one_of(st.none(), st.integers(1, 9)),
    dtype=st.sampled_from(("float64", "float32")),
    own=st.booleans(),
    orthogonal=st.booleans(),
)
def test_bias_bound(backend, d, widths, coeff, seed, activation, terms, dtype, own, orthogonal):
    """With the mean of the batch itself, and with that of other inputs."""
    g = dense_chain(backend, d, widths, coeff, seed, activation, dtype, orthogonal, bias=3.0)
    rng = np.random.default_rng(seed + 1)
    x = array(backend, 2 * rng.standard_normal((3, d)), dtype)
    v = rng.choice([-1.0, 1.0], (2, 3, d))
    mean = mean_jacobian(g, x if own else array(backend, 2 * rng.standard_normal((4, d)), dtype))
    options = {} if own else {"reference": mean}
    result = logdet(g, x, **METHOD, terms=terms, noise=array(backend, v, dtype), **options)
    answer = untruncated(g, x, v, host(backend, mean.inverse))
    error, bound = np.abs(host(backend, result.value) - answer), host(backend, result.bias_bound)
    assert np.all(error <= bound + np.finfo(dtype).eps * (np.abs(answer) + d) + 1e-10 * d / (1 - coeff))
    if terms is None:
        assert np.all(bound <= 1e-3 + np.finfo(dtype).eps * 1e4 * d / (1 - coeff) ** 2)


@given(
    kind=st.sampled_from(KINDS),
    other=st.sampled_from(KINDS),
    n=sides(8),
    coeff=st.sampled_from(COEFFS),
    seed=st.integers(0, 2**16),
    terms=st.integers(1, 8),
)
def test_any_preconditioner_is_certified(backend, kind, other, n, coeff, seed, terms):
    """J and J0 that have nothing to do with each other: ||E|| may be far above 1."""
    g, stranger = linear_chain(backend, kind, n, coeff, seed), linear_chain(backend, other, n, coeff, seed + 1)
    x = array(backend, np.zeros((2, n)))
    v = np.random.default_rng(seed).standard_normal((2, 2, n))
    mean = mean_jacobian(stranger, x)
    result = logdet(g, x, **METHOD, terms=terms, noise=array(backend, v), reference=mean, probe_kind="gaussian")
    answer = untruncated(g, x, v, host(backend, mean.inverse))
    error, bound = np.abs(host(backend, result.value) - answer), host(backend, result.bias_bound)
    size = np.mean(np.sum(v**2, axis=-1), axis=0)
    assert np.isfinite(bound).all()
    assert np.all(error <= bound + 1e-9 * size / (1 - coeff) ** 2)


@given(kind=st.sampled_from(KINDS), n=sides(8), coeff=st.sampled_from(COEFFS), seed=st.integers(0, 2**16))
def test_bounds_on_the_preconditioner(backend, kind, n, coeff, seed):
    for dtype in ("float64", "float32"):
        g = linear_chain(backend, kind, n, coeff, seed, dtype)
        mean = mean_jacobian(g, array(backend, np.zeros((1, n)), dtype))
        A = np.linalg.inv(host(backend, mean.inverse))
        slack = 1e-13 / (1 - coeff) ** 2
        assert np.linalg.norm(A - np.eye(n), 2) <= float(mean.norm) + slack
        assert np.linalg.norm(A, 2) <= float(mean.growth) + slack
        assert float(mean.norm) <= coeff * (1 + 1e-9)
        assert float(mean.log_determinant) == pytest.approx(np.linalg.slogdet(A)[1], abs=1e-11 / (1 - coeff))


@pytest.mark.parametrize("c", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_bounds_at_the_nodes_of_the_rule(backend, c, share):
    """For J of norm c and J0 of norm c times `share`: ||(I + t E)^-1||, and between orthogonal vectors."""
    d, count = 3, 4000
    rng = np.random.default_rng(0)
    bases = [np.linalg.qr(rng.standard_normal((count, d, d)))[0] for _ in range(2)]
    # Symmetric ones with eigenvalues near both ends, and turned ones.
    signs = np.array([-1.0, 1.0, -1.0])
    turned = np.einsum("nij,j,nkj->nik", bases[0], signs, bases[0])
    J, J0 = c * turned, c * share * np.where(np.arange(count)[:, None, None] % 2, turned, bases[1])
    A = np.eye(d) + J0
    with backend.full_precision():
        norm = backend.from_numpy(np.asarray(c * share))
        rule = preconditioned_rule(backend, array(backend, np.ones(1)), c, c, norm, 1 + norm)
        t, weight, damping, crossing = (host(backend, a).ravel() for a in rule[:4])
    angle = rng.uniform(0, 2 * np.pi, count)
    # In the plane of an eigenvector of each sign the resolvent turns vectors most.
    frame = np.where(np.arange(count)[:, None, None] % 4 < 2, bases[0], np.linalg.qr(rng.standard_normal((d, d)))[0])
    u = np.cos(angle)[:, None] * frame[..., 0] + np.sin(angle)[:, None] * frame[..., 1]
    v = -np.sin(angle)[:, None] * frame[..., 0] + np.cos(angle)[:, None] * frame[..., 1]
    reached = []
    for i in range(len(t)):
        R = np.linalg.solve(np.eye(d) + (1 - t[i]) * J0 + t[i] * J, A)
        assert np.linalg.norm(R, 2, axis=(1, 2)).max() <= damping[i] / weight[i] * (1 + 1e-12)
        between = np.abs(np.einsum("ni,nij,nj->n", u, R, v)).max()
        assert between <= crossing[i] / weight[i] * (1 + 1e-12)
        reached.append(between * weight[i] / crossing[i])
    assert max(reached) >= 0.5  # the bound is not idle


@pytest.mark.parametrize(
    ("depth", "ends"),
    [(0, "none"), (0, "both"), (1, "first"), (1, "last"), (2, "none"), (2, "both"), (3, "first"), (5, "none")],
)
def test_traces_of_deep_chains(backend, depth, ends):
    """tr(B (J - T)) and the products with T, against the explicit Jacobian."""
    d, batch = 6, 4
    rng = np.random.default_rng(depth)
    g = dense_chain(backend, d, [7, 5, 8, 6, 9][:depth], 0.9, depth, "tanh")
    layers = list(g.layers)
    layers = (
        [Activation("sin")] * (ends in ("first", "both")) + layers + [Activation("elu")] * (ends in ("last", "both"))
    )
    g = Chain(layers)
    x = array(backend, rng.standard_normal((batch, d)))
    at = g.linearize(x)
    B = rng.standard_normal((d, d))
    value, remainder = at.preconditioned_trace(array(backend, B))
    J = reference.jacobian(g, x)
    groups = len(slope_plan(g.layers).groups)
    T = np.zeros_like(J)
    if groups > 2:
        units = np.broadcast_to(np.eye(d)[:, None, :], (d, batch, d))
        T = host(backend, remainder(array(backend, units))).transpose(1, 0, 2)
        assert 0 < np.abs(T).max() < 0.5 * np.abs(J).max()
    else:
        assert remainder is None
    np.testing.assert_allclose(host(backend, value), np.trace(B @ (J - T), axis1=1, axis2=2), atol=1e-12)


def test_remainder_is_of_third_order(backend):
    """Inputs drawn together: the remainder falls with the third power of their distance."""
    g = dense_chain(backend, 5, [8, 8, 8], 0.9, 0, "tanh")
    rng = np.random.default_rng(0)
    centre, step = rng.standard_normal((1, 5)), rng.standard_normal((4, 5))
    u = array(backend, np.broadcast_to(np.ones(5), (1, 4, 5)).copy())
    sizes = []
    for h in (1e-1, 1e-2):
        at = g.linearize(array(backend, centre + h * step))
        _, remainder = at.preconditioned_trace(array(backend, np.eye(5)))
        sizes.append(np.abs(host(backend, remainder(u))).max())
    assert 300 < sizes[0] / sizes[1] < 3000


class TestStatistics:
    """Fixed seeds, tolerances from the standard error (z < 5)."""

    CALLS, BATCH = 10, 200

    @pytest.mark.parametrize("depth", [1, 2, 4])
    def test_mean_and_error_bar(self, backend, depth):
        d = 12
        g = dense_chain(backend, d, [14, 13, 15, 12][:depth], 0.9, 1, "sin", orthogonal=True, bias=2.0)
        rng = np.random.default_rng(5)
        mean = mean_jacobian(g, array(backend, rng.standard_normal((20, d))))
        # Two inputs, so that the slopes of the batch are not all their own mean.
        two = np.concatenate([np.repeat(rng.standard_normal((1, d)), self.BATCH // 2, axis=0) for _ in range(2)])
        x = array(backend, two)
        results = [logdet(g, x, rng=call, terms=8, reference=mean, **METHOD) for call in range(self.CALLS)]
        value, error_bar, bias = (
            np.stack([host(backend, getattr(result, field)) for result in results])
            for field in ("value", "std_error", "bias_bound")
        )
        for half in (slice(None, self.BATCH // 2), slice(self.BATCH // 2, None)):
            error = (value - reference.logdet(g, x))[:, half].ravel()
            draws = error.size
            assert abs(error.mean()) <= 5 * error.std() / math.sqrt(draws) + bias[:, half].max()
            ratio = math.sqrt(np.mean(error_bar[:, half] ** 2)) / error.std()
            kurtosis = np.mean((error - error.mean()) ** 4) / error.var() ** 2
            assert 1 - 5 * math.sqrt((kurtosis - 1) / (4 * draws)) <= ratio <= 2.5

    def test_trained(self, backend):
        for case in ("d64_c0.5", "d64_c0.97"):
            g, x = example_data.load_case(case, backend=backend.name)
            result = logdet(g, x, rng=0, **METHOD)
            error = host(backend, result.value) - reference.logdet(g, x)
            bars = host(backend, result.std_error)
            assert math.sqrt(np.mean(error**2)) < 0.015
            assert abs(error.mean()) <= 5 * math.sqrt(np.mean(bars**2) / error.size) + 1e-3
            assert host(backend, result.products).max() <= 7
            assert result.method == "mean-jacobian"


def test_deep_trained_like_chain_beats_plain_arnoldi(backend):
    d = 32
    g = dense_chain(backend, d, [40, 40, 40], 0.9, 0, "lipswish", orthogonal=True)
    x = array(backend, np.random.default_rng(0).standard_normal((40, d)))
    exact = reference.logdet(g, x)
    errors = [
        math.sqrt(np.mean((host(backend, logdet(g, x, rng=0, **options).value) - exact) ** 2))
        for options in ({"method": "mean-jacobian"}, {"method": "arnoldi", "control_variate": "none"})
    ]
    assert errors[0] < 0.1 * errors[1]


def test_one_sample_and_linear_chains_are_exact(backend):
    """Then J0 is J, but for the room that it leaves below the constant."""
    g = dense_chain(backend, 10, [12, 12], 0.9, 0)
    for branch, batch in ((g, 1), (linear_chain(backend, "gaussian", 10, 0.9, 0), 3)):
        x = array(backend, np.random.default_rng(0).standard_normal((batch, 10)))
        result = logdet(branch, x, rng=0, **METHOD)
        np.testing.assert_allclose(host(backend, result.value), reference.logdet(branch, x), atol=1e-6)


def test_an_understated_mean_is_scaled(backend):
    """A stated constant below that of the mean slopes: any J0 is valid, and is kept below it."""
    g = linear_chain(backend, "orthogonal", 6, 0.8, 0)
    mean = mean_jacobian(g, array(backend, np.zeros((1, 6))), lipschitz=0.3)
    assert float(mean.norm) <= 0.3


def test_small_and_empty_batches(backend):
    for shape in ((0, 3), (1, 1), (4, 1), (2, 40)):
        g = dense_chain(backend, shape[1], [3 * shape[1]], 0.5, 0)
        result = logdet(g, array(backend, np.ones(shape)), rng=0, **METHOD)
        for field in result[:4]:
            assert tuple(field.shape) == shape[:1]


def test_tolerance(backend):
    g, x = example_data.load_case("d64_c0.7", backend=backend.name)
    exact = reference.logdet(g, x)
    for tol in (1e-2, 1e-3):
        result = logdet(g, x, tol=tol, rng=1, **METHOD)
        assert np.all(host(backend, result.std_error) <= tol)
        assert np.all(host(backend, result.bias_bound) <= tol)
        assert np.all(np.abs(host(backend, result.value) - exact) <= 6 * tol)


class TestBadInput:
    def test_no_mean(self, backend):
        g = Chain([Dense(array(backend, 0.5 * np.eye(4))), Activation("maxmin"), Dense(array(backend, np.eye(4)))])
        x = array(backend, np.ones((2, 4)))
        with pytest.raises(DerivativeError, match="mean slopes"):
            logdet(g, x, **METHOD)
        with pytest.raises(DerivativeError, match="mean slopes"):
            mean_jacobian(g, x)

    def test_reference(self, backend):
        g = dense_chain(backend, 4, [5], 0.5, 0)
        x = array(backend, np.ones((2, 4)))
        mean = mean_jacobian(g, x)
        with pytest.raises(InvalidArgumentError, match="MeanJacobian"):
            logdet(g, x, reference=np.eye(4), **METHOD)
        with pytest.raises(InvalidArgumentError, match="reference"):
            logdet(g, x, reference=mean, method="arnoldi")
        other = dense_chain(backend, 3, [5], 0.5, 0)
        with pytest.raises(ShapeError, match="4 entries, x has 3"):
            logdet(other, array(backend, np.ones((2, 3))), reference=mean, **METHOD)
        with pytest.raises(DtypeError, match="reference"):
            logdet(g.astype(backend.xp.float32), array(backend, np.ones((2, 4)), "float32"), reference=mean, **METHOD)
        with pytest.raises(ShapeError, match="empty"):
            mean_jacobian(g, x[:0, :])
        if backend.name != "numpy":
            foreign = MeanJacobian(np.eye(4), np.zeros(()), np.zeros(()), np.ones(()), 0.5)
            with pytest.raises(MixedBackendsError):
                logdet(g, x, reference=foreign, **METHOD)

    def test_the_trace_is_part_of_it(self, backend):
        g = dense_chain(backend, 4, [5], 0.5, 0)
        with pytest.raises(InvalidArgumentError, match="control_variate"):
            logdet(g, array(backend, np.ones((2, 4))), control_variate="none", **METHOD)


@pytest.mark.needs("float16")
def test_half_precision(backend):
    g = normalize(dense_chain(backend, 8, [8], 0.5, 0, dtype="float16"), 0.5)
    x = array(backend, np.random.default_rng(0).standard_normal((6, 8)), "float16")
    result = logdet(g, x, rng=0, **METHOD)
    assert result.value.dtype == backend.xp.float32
    error = np.abs(host(backend, result.value) - reference.logdet(g, x))
    assert np.all(error <= host(backend, result.bias_bound) + 6 * host(backend, result.std_error))
    assert np.all(error < 0.05)


@pytest.mark.needs("autodiff")
@given(
    kind=st.sampled_from(KINDS),
    n=sides(8),
    coeff=st.sampled_from(COEFFS),
    seed=st.integers(0, 2**16),
    terms=st.integers(1, 8),
)
def test_the_solve_of_the_gradient_is_certified(backend, kind, n, coeff, seed, terms):
    """||w - (I + J)^-T v|| is within its bound, with a preconditioner and without."""
    found = backend
    g = linear_chain(found, kind, n, coeff, seed)
    x = array(found, np.zeros((2, n)))
    v = np.random.default_rng(seed).standard_normal((2, 2, n))
    mean = mean_jacobian(linear_chain(found, "gaussian", n, coeff, seed + 1), x)
    at = g.linearize(x)
    exact = np.linalg.solve(np.eye(n) + reference.jacobian(g, x)[0].T, v[..., None])[..., 0]
    for products in (
        JacobianProducts(found, at, (n,), g.lipschitz, needs_gradient=True),
        PreconditionedProducts(found, at, (n,), g.lipschitz, mean, needs_gradient=True),
    ):
        form = ARNOLDI.form(products, array(found, v), None, Steps(min(n, terms)))
        w = host(found, products.pulled_back(form.resolvent))
        error, bound = np.linalg.norm(w - exact, axis=-1), host(found, form.resolvent_error)
        assert np.all(error <= bound + 1e-9 * np.linalg.norm(v, axis=-1) / (1 - coeff) ** 2)


def test_a_reference_is_checked_and_used_by_auto(backend):
    g, rng = dense_chain(backend, 40, (40,), 0.8, 0), np.random.default_rng(0)
    x, v = array(backend, rng.standard_normal((6, 40))), array(backend, np.sign(rng.standard_normal((2, 6, 40))))
    mean = mean_jacobian(g, x)
    for errors in (True, False):
        assert logdet(g, x, noise=v, reference=mean, errors=errors).method == "mean-jacobian"
    with pytest.raises(InvalidArgumentError, match="control variate itself"):
        logdet(g, x, reference=mean, control_variate="none")
    with pytest.raises(ShapeError, match="the reference is for samples of 40"):
        logdet(linear_chain(backend, "gaussian", 3, 0.5, 0), array(backend, np.ones((1, 3))), reference=mean)
    with pytest.raises(InvalidArgumentError, match="compiled function"):
        logdet(g, x, reference=mean._replace(constant=array(backend, np.ones(()))))


def test_noise_is_checked_without_errors_as_with_them(backend):
    g, x = dense_chain(backend, 40, (40,), 0.8, 0), array(backend, np.ones((3, 40)))
    v = array(backend, np.ones((2, 3, 40)))
    for errors in (True, False):
        with pytest.raises(InvalidArgumentError, match="noise holds 2"):
            logdet(g, x, method="mean-jacobian", noise=v, probes=5, errors=errors)
        with pytest.raises(InvalidArgumentError, match="got a tuple"):
            logdet(g, x, method="mean-jacobian", noise=(v, [1, 1]), errors=errors)
