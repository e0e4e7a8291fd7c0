"""The contraction inverse: its bound holds, its solvers arrive, its failures are loud."""

import numpy as np
import pytest
from branches_for_tests import KINDS, array, dense_chain, host, linear_chain
from hypothesis import given
from hypothesis import strategies as st
from strategies import sides

from iresnet_core import Activation, Chain, Dense, example_data, invert, reference
from iresnet_core.errors import (
    DtypeError,
    InvalidArgumentError,
    MixedBackendsError,
    NonFiniteError,
    NotContractiveError,
    NotConvergedError,
    NotConvergedWarning,
    ShapeError,
    UnknownArrayError,
    UnknownLipschitzError,
)
from iresnet_core.inverse.solvers import SOLVERS

COEFFS = (0.1, 0.5, 0.9, 0.97, 0.99)


def _forward_error(x, y, c, eps):
    """How far the rounding of y = x + g(x) may move the solution; the norm of g(x) is at most |y| + |x|."""
    norm = np.linalg.norm
    return 200 * eps * (norm(x, axis=1) + norm(y, axis=1)) / (1 - c)


@pytest.mark.parametrize("solver", SOLVERS)
@given(
    kind=st.sampled_from(KINDS),
    n=sides(12),
    coeff=st.sampled_from(COEFFS),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from((1e-200, 1e-8, 1.0, 1e8, 1e200)),
)
def test_bound_holds_for_linear_branches(backend, solver, kind, n, coeff, seed, scale):
    # The exact solution of x + A x = y is known for any y, so that no rounding of a forward pass blurs the bound.
    g = linear_chain(backend, kind, n, coeff, seed)
    y = np.random.default_rng(seed + 1).standard_normal((3, n)) * scale
    result = invert(g, array(backend, y), solver=solver, rtol=1e-9, atol=0.0)
    A = host(backend, g.operators[0].weight)
    unit = max(np.abs(y).max(), 1e-300)
    exact = np.linalg.solve(np.eye(n) + A, (y / unit).T).T * unit
    error = np.linalg.norm((host(backend, result.value) - exact) / unit, axis=1)
    bound = host(backend, result.error_bound) / unit
    reference_error = 1e-14 * n / (1 - coeff)
    assert np.all(error <= bound + reference_error)
    assert np.all(host(backend, result.converged))
    assert np.all(bound <= 1e-9 * np.linalg.norm(exact / unit, axis=1) * 1.01 + 1e-10)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(
    d=sides(9),
    widths=st.lists(sides(17), min_size=1, max_size=3),
    coeff=st.sampled_from(COEFFS),
    seed=st.integers(0, 2**16),
    activation=st.sampled_from(("lipswish", "elu", "tanh", "relu", "sin", "softplus")),
    orthogonal=st.booleans(),
    bias=st.sampled_from((0.0, 1.0, 1e6)),
    solver=st.sampled_from(tuple(SOLVERS)),
)
def test_inverse_of_forward(backend, dtype, d, widths, coeff, seed, activation, orthogonal, bias, solver):
    g = dense_chain(backend, d, widths, coeff, seed, activation, dtype, orthogonal, bias)
    x = array(backend, np.random.default_rng(seed + 1).standard_normal((4, d)), dtype)
    y = x + g(x)
    result = invert(g, y, solver=solver)
    assert result.value.dtype == y.dtype
    assert np.all(host(backend, result.converged))
    # The image may be much larger than x and y (bias 1e6): its rounding moved y.
    rounding = host(backend, g.with_rounding(x)[1]) / (1 - coeff)
    slack = rounding + _forward_error(host(backend, x), host(backend, y), coeff, np.finfo(dtype).eps)
    error = np.linalg.norm(host(backend, result.value) - host(backend, x), axis=1)
    assert np.all(error <= host(backend, result.error_bound) + slack)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", ["d2_c0.97", "d64_c0.9"])
def test_bound_against_the_exact_root(backend, case, solver):
    g, x = example_data.load_case(case, backend=backend.name)
    x = x[:8, :]
    y = x + g(x)
    exact = reference.inverse(g, y)
    for rtol in (1e-2, 1e-5, 1e-9):
        result = invert(g, y, solver=solver, rtol=rtol, atol=0.0)
        error = np.linalg.norm(host(backend, result.value) - exact, axis=1)
        bound, residual = host(backend, result.error_bound), host(backend, result.residual)
        assert np.all(error <= bound)
        assert np.all(bound <= rtol * np.linalg.norm(exact, axis=1) * (1 + rtol) + 1e-12)
        assert np.all(residual / (1 + g.lipschitz) <= error + 1e-13)  # the bound from below


def slow_chain(backend, coeff, d=24):
    """Orthogonal weights near the origin, where no combination of steps helps."""
    Q = [np.linalg.qr(np.random.default_rng(i).standard_normal((d, d)))[0] * coeff ** (1 / 3) for i in range(3)]
    first, second, third = (Dense(array(backend, q)) for q in Q)
    return Chain([first, Activation("sin"), second, Activation("sin"), third])


def test_where_anderson_stays_slow_newton_takes_over(backend):
    g = slow_chain(backend, 0.97)
    y = array(backend, 0.05 * np.random.default_rng(5).standard_normal((8, 24)))
    results = {s: invert(g, y, solver=s, rtol=1e-8, atol=0.0, max_iter=2000) for s in SOLVERS}
    counts = {s: int(np.max(host(backend, r.iterations))) for s, r in results.items()}
    assert counts["anderson"] < 200
    assert counts["newton"] < 300 < counts["picard"]
    for result in results.values():
        np.testing.assert_allclose(host(backend, result.value), host(backend, results["picard"].value), atol=1e-8)


def test_where_anderson_gains_nothing_the_plain_iteration_takes_over(backend, monkeypatch):
    from iresnet_core.inverse import solvers

    taken = []

    def noted(*arguments, **options):
        taken.append("begun" in options)
        return picard(*arguments, **options)

    picard = solvers.picard
    monkeypatch.setattr(solvers, "picard", noted)
    g = dense_chain(backend, 24, [24, 24], 0.9, 0, "tanh", orthogonal=True, bias=0.1)
    y = array(backend, np.random.default_rng(5).standard_normal((8, 24)))
    result = invert(lambda x: g(x), y, lipschitz=g.lipschitz, rtol=1e-8)
    assert taken
    assert np.all(host(backend, result.converged))


def test_newton_without_products(backend):
    """A plain function is differentiated by differences."""
    g = slow_chain(backend, 0.9)
    y = array(backend, np.random.default_rng(5).standard_normal((4, 24)))
    result = invert(lambda x: g(x), y, lipschitz=g.lipschitz, solver="newton", rtol=1e-10)
    np.testing.assert_allclose(host(backend, result.value), host(backend, invert(g, y, rtol=1e-12).value), atol=1e-8)
    assert np.all(host(backend, result.converged))


def loop_that_looks_late(cond, body, state, max_iter):
    """As on an accelerator, where each look at the condition waits for the device."""
    for done in range(max_iter):
        if done % 8 == 0 and not bool(cond(*state)):
            break
        state = body(*state)
    return state


@pytest.mark.parametrize("late", [False, True])
def test_newton_respects_its_limit(backend, late, monkeypatch):
    g = slow_chain(backend, 0.97)
    if late:
        monkeypatch.setattr(backend, "while_loop", loop_that_looks_late)
    y = array(backend, np.random.default_rng(5).standard_normal((4, 24)))
    for limit in (1, 2, 7, 40):
        result = invert(g, y, solver="newton", rtol=1e-12, max_iter=limit, on_failure="return")
        assert np.max(host(backend, result.iterations)) <= limit
        assert not np.any(host(backend, result.converged))


def test_anderson_needs_a_third_of_the_evaluations(backend):
    g, x = example_data.load_case("d64_c0.9", backend=backend.name)
    y = x + g(x)
    counts = {s: int(np.max(host(backend, invert(g, y, solver=s, rtol=1e-6, atol=0.0).iterations))) for s in SOLVERS}
    assert counts["anderson"] <= 9
    assert counts["picard"] >= 31
    alone = invert(lambda x: g(x), y, lipschitz=g.lipschitz, rtol=1e-6, atol=0.0)  # without a mean Jacobian
    assert 9 < int(np.max(host(backend, alone.iterations))) <= 13


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_mean_jacobian_that_misleads(backend, dtype):
    """Slopes of all signs, whose mean stands for no sample."""
    g = dense_chain(backend, 12, [20], 0.95, 1, "sin", dtype, orthogonal=True, bias=2.0)
    x = array(backend, 20 * np.random.default_rng(2).standard_normal((16, 12)), dtype)
    y = x + g(x)
    result = invert(g, y)
    assert np.all(host(backend, result.converged))
    assert int(np.max(host(backend, result.iterations))) < 60
    error = np.linalg.norm(host(backend, result.value) - reference.inverse(g, y), axis=1)
    assert np.all(error <= host(backend, result.error_bound))


def test_all_trained_branches(shared_data):
    from trained_branches import blocks

    for case in ("d2_c0.5", "d2_c0.97", "d64_c0.7", "d64_c0.9", "d64_c0.97"):
        for g, x in blocks(shared_data, case):
            y = x + g(x)
            for solver in SOLVERS:
                result = invert(g, y, solver=solver, rtol=1e-8, atol=0.0)
                error = np.linalg.norm(result.value - x, axis=1)
                assert np.all(error <= result.error_bound + _forward_error(x, y, g.lipschitz, 2e-16))


def test_a_sample_does_not_depend_on_its_batch(backend):
    g = dense_chain(backend, 6, [16], 0.9, 3, orthogonal=True)
    y = array(backend, np.random.default_rng(0).standard_normal((5, 6)) * np.array([[1e-3], [1], [10], [1e3], [0.0]]))
    for known in ({"solver": "picard"}, {"solver": "anderson"}):
        # A Chain is preconditioned by the mean Jacobian of the batch, a plain function is not.
        together = invert(lambda x: g(x), y, lipschitz=g.lipschitz, rtol=1e-7, **known)
        preconditioned = invert(g, y, rtol=1e-7, **known)
        for i in range(5):
            alone = invert(lambda x: g(x), y[i : i + 1, :], lipschitz=g.lipschitz, rtol=1e-7, **known)
            assert int(alone.iterations[0]) == int(together.iterations[i])
            value = host(backend, alone.value)[0]
            np.testing.assert_allclose(value, host(backend, together.value)[i], rtol=1e-12)
            difference = np.linalg.norm(value - host(backend, preconditioned.value)[i])
            assert difference <= float(alone.error_bound[0]) + float(preconditioned.error_bound[i])


def test_start_at_the_solution(backend):
    g = dense_chain(backend, 4, [8], 0.9, 0)
    x = array(backend, np.random.default_rng(0).standard_normal((3, 4)))
    result = invert(g, x + g(x), start=x)
    assert np.all(host(backend, result.iterations) == 1)


def test_images_keep_their_shape(backend):
    from iresnet_core import Activation, Chain, Convolution, normalize

    kernel = array(backend, np.random.default_rng(0).standard_normal((2, 2, 3, 3)))
    layer = Convolution(kernel, input_shape=(2, 5, 4), padding="same")
    g = normalize(Chain([layer, Activation("elu"), layer]), 0.8)
    x = array(backend, np.random.default_rng(1).standard_normal((3, 2, 5, 4)))
    result = invert(g, x + g(x))
    assert tuple(result.value.shape) == (3, 2, 5, 4)
    np.testing.assert_allclose(host(backend, result.value), host(backend, x), atol=1e-8)


def test_float32_stops_at_its_floor(backend):
    g = dense_chain(backend, 16, [32, 32], 0.97, 0, dtype="float32", orthogonal=True)
    x = array(backend, np.random.default_rng(0).standard_normal((8, 16)), "float32")
    y = x + g(x)
    result = invert(g, y, rtol=1e-12, atol=0.0)
    bound = host(backend, result.error_bound)
    assert np.all(host(backend, result.converged))
    assert np.all(bound > 1e-10)  # it says that 1e-12 was not reached,
    assert np.all(bound < 1e-3)  # and that it came close to what float32 can do
    assert np.all(np.linalg.norm(host(backend, result.value) - reference.inverse(g, y), axis=1) <= bound)


@pytest.mark.needs("float16")
def test_half_precision(backend):
    g = dense_chain(backend, 4, [8], 0.5, 0, dtype="float16")
    x = array(backend, np.random.default_rng(0).standard_normal((3, 4)), "float16")
    y = x + g(x)
    for branch, constant in ((g, None), (lambda a: g(a), g.lipschitz)):
        result = invert(branch, y, lipschitz=constant)
        assert result.value.dtype == x.dtype
        error = np.linalg.norm(host(backend, result.value) - reference.inverse(g.astype(backend.xp.float64), y), axis=1)
        assert np.all(error <= host(backend, result.error_bound))
        assert np.all(host(backend, result.error_bound) < (0.05 if branch is g else 0.2))


def _scale(factor):
    def g(x):
        return factor * x

    return g


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("factor", [1.5, -0.99, -1.0, -3.0])
def test_a_broken_constant_is_seen(backend, solver, factor):
    y = array(backend, np.random.default_rng(0).standard_normal((4, 3)))
    with pytest.raises(NotContractiveError, match=f"expanded by {abs(factor):.4g}"):
        invert(_scale(factor), y, lipschitz=0.5, solver=solver)


@pytest.mark.parametrize("solver", SOLVERS)
def test_slow_but_honest(backend, solver):
    y = array(backend, np.random.default_rng(0).standard_normal((2, 3)))
    result = invert(_scale(-0.99), y, lipschitz=0.99, solver=solver)
    np.testing.assert_allclose(host(backend, result.value), host(backend, y) / 0.01, rtol=1e-8)


def test_non_convergence_is_loud(backend):
    g, x = example_data.load_case("d64_c0.97", backend=backend.name)
    y = x + g(x)
    with pytest.raises(NotConvergedError, match=r"64 of 64 samples .* in 3 evaluations of Chain"):
        invert(g, y, max_iter=3)
    with pytest.warns(NotConvergedWarning, match="Raise max_iter"):
        warned = invert(g, y, max_iter=3, on_failure="warn")
    returned = invert(g, y, max_iter=3, on_failure="return")
    for result in (warned, returned):
        assert not np.any(host(backend, result.converged))
        assert np.all(host(backend, result.iterations) == 3)
        error = np.linalg.norm(host(backend, result.value) - host(backend, x), axis=1)
        assert np.all(error <= host(backend, result.error_bound) + 1e-12)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (1, 5), (7, 1)])
def test_small_batches(backend, shape):
    y = array(backend, np.random.default_rng(0).standard_normal(shape))
    result = invert(_scale(0.5), y, lipschitz=0.5)
    assert tuple(result.value.shape) == shape
    for field in (result.error_bound, result.residual, result.iterations, result.converged):
        assert tuple(field.shape) == shape[:1]
    np.testing.assert_allclose(host(backend, result.value), host(backend, y) / 1.5, rtol=1e-9)


def test_zero_constant(backend):
    y = array(backend, np.ones((2, 2)))
    result = invert(lambda x: x * 0 + 0.25, y, lipschitz=0.0)
    np.testing.assert_allclose(host(backend, result.value), 0.75)


def test_inputs_are_not_changed(backend):
    g = dense_chain(backend, 4, [8], 0.9, 0)
    y = array(backend, np.random.default_rng(0).standard_normal((3, 4)))
    before = host(backend, y)
    invert(g, y)
    assert np.array_equal(before, host(backend, y))


class TestBadInput:
    """Each gives a documented error that says what was seen."""

    @pytest.fixture
    def y(self, backend):
        return array(backend, np.ones((2, 3)))

    def test_constant(self, y):
        with pytest.raises(UnknownLipschitzError, match="Pass lipschitz="):
            invert(_scale(0.5), y)
        with pytest.raises(NotContractiveError, match=r"is 1\.5"):
            invert(_scale(0.5), y, lipschitz=1.5)
        with pytest.raises(NotContractiveError, match="is 1;"):
            invert(_scale(0.5), y, lipschitz=1.0)
        for constant in (-0.1, float("nan"), float("inf")):
            with pytest.raises(InvalidArgumentError, match="must be a number >= 0"):
                invert(_scale(0.5), y, lipschitz=constant)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_non_finite(self, backend, y, bad):
        with pytest.raises(NonFiniteError, match="y of shape"):
            invert(_scale(0.5), array(backend, [[1.0, bad]]), lipschitz=0.5)
        for solver in SOLVERS:
            with pytest.raises(NonFiniteError, match="2 of 2 samples"):
                invert(lambda x: x * 0 + float(bad), y, lipschitz=0.5, solver=solver)

    def test_one_sample_turns_nan_late(self, backend):
        y = array(backend, [[1.0, 1.0], [5.0, 5.0]])
        xp = backend.xp

        def g(x):
            return xp.where(x < 3.0, 0.5 * x, xp.full_like(x, float("nan")))

        with pytest.raises(NonFiniteError, match="1 of 2 samples"):
            invert(g, y, lipschitz=0.5, start=y * 0)

    def test_shapes(self, backend, y):
        with pytest.raises(ShapeError, match=r"x\[None\]"):
            invert(_scale(0.5), array(backend, [1.0, 2.0]), lipschitz=0.5)
        with pytest.raises(ShapeError, match="samples without entries"):
            invert(_scale(0.5), array(backend, np.ones((2, 0))), lipschitz=0.5)
        with pytest.raises(ShapeError, match=r"returned \(2, 2\) for \(2, 3\)"):
            invert(lambda x: x[:, :2], y, lipschitz=0.5)
        with pytest.raises(ShapeError, match="start must have the shape"):
            invert(_scale(0.5), y, lipschitz=0.5, start=y[:1, :])

    def test_dtypes(self, backend, y):
        xp = backend.xp
        for dtype in (xp.int64, xp.complex128):
            with pytest.raises(DtypeError, match="real floating-point"):
                invert(_scale(0.5), xp.astype(y, dtype), lipschitz=0.5)
        with pytest.raises(DtypeError, match="float32"):
            invert(lambda x: xp.astype(x, xp.float32), y, lipschitz=0.5)
        with pytest.raises(DtypeError, match="start has dtype"):
            invert(_scale(0.5), y, lipschitz=0.5, start=xp.astype(y, xp.float32))

    def test_options(self, y):
        for options in (
            {"solver": "broyden"},
            {"on_failure": "ignore"},
            {"rtol": -1e-3},
            {"atol": float("nan")},
            {"max_iter": 0},
            {"max_iter": 2.5},
        ):
            with pytest.raises(InvalidArgumentError):
                invert(_scale(0.5), y, lipschitz=0.5, **options)

    def test_kinds_of_arguments(self, backend, y):
        with pytest.raises(UnknownArrayError, match=r"builtins\.list"):
            invert(_scale(0.5), [[1.0]], lipschitz=0.5)
        with pytest.raises(InvalidArgumentError, match="must be callable"):
            invert(3.0, y, lipschitz=0.5)
        other = np.ones((2, 3)) if backend.name != "numpy" else __import__("array_api_strict").ones((2, 3))
        with pytest.raises(MixedBackendsError, match="ndarray"):
            invert(lambda x: other, y, lipschitz=0.5)


class TestExtremes:
    """What a reviewer broke once."""

    def test_constants_far_from_one(self, backend):
        from iresnet_core import Chain, Dense

        def chain(*factors):
            return Chain([Dense(array(backend, factor * np.eye(2))) for factor in factors])

        for factors, constant in (
            ((1.4 * 2.0**-537, 2.0**-537, 2.0**537, 0.9 * 2.0**537), 1.26),
            ((1e-200, 1e-200, 1e300, 3e100), 3.0),
            ((1e-200, 1e-200), 0.0),
        ):
            lipschitz = chain(*factors).lipschitz
            assert constant <= lipschitz <= constant * (1 + 1e-12) + 1e-320
        assert chain(1e-200, 1e-200).lipschitz > 0
        assert chain(1e200, 1e200).lipschitz == np.inf

    def test_scales_that_cancel(self, backend):
        from iresnet_core import Chain, Dense

        for first, second in ((1e-200, 1e199), (1e300, 1e-301)):
            g = Chain([Dense(array(backend, first * np.eye(3))), Dense(array(backend, second * np.eye(3)))])
            result = invert(g, array(backend, np.ones((1, 3))))
            np.testing.assert_allclose(host(backend, result.value), 1 / 1.1, rtol=1e-12)
            assert np.all(host(backend, result.error_bound) < 1e-10)

    def test_slow_contractions_reach_the_floor(self, backend):
        from iresnet_core import Chain, Dense

        Q = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
        for coeff in (0.995, 0.9999):
            g = Chain([Dense(array(backend, coeff * Q, "float32"))])
            y = array(backend, np.random.default_rng(0).standard_normal((10, 8)), "float32")
            result = invert(g, y)
            errors = np.linalg.norm(host(backend, result.value) - reference.inverse(g, y), axis=1)
            assert (errors <= host(backend, result.error_bound)).all()

    def test_start_of_another_magnitude(self, backend):
        y = array(backend, np.ones((1, 3)))
        with pytest.raises(InvalidArgumentError, match="begin from y"):
            invert(_scale(0.5), y, lipschitz=0.5, start=y * 1e200)


def test_a_singular_mean_jacobian_is_no_error_of_the_framework(backend):
    g = Chain([Dense(array(backend, -np.eye(4)))])
    with pytest.raises(NotContractiveError):
        invert(g, array(backend, np.ones((6, 4))), lipschitz=0.5)
