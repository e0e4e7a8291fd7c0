"""Input that a log-determinant refuses, and what the errors say."""

import math

import numpy as np
import pytest
from branches_for_tests import array, dense_chain, host

from iresnet_core import Chain, Dense, Linearization, logdet
from iresnet_core.determinant import METHODS
from iresnet_core.errors import (
    DerivativeError,
    DtypeError,
    InvalidArgumentError,
    MixedBackendsError,
    NonFiniteError,
    NotContractiveError,
    ShapeError,
    UnknownLipschitzError,
)

# Every method with probes that works for any branch.
STOCHASTIC = tuple(name for name, row in METHODS.items() if not (row.is_exact or row.is_control_variate))


class TestBadInput:
    @pytest.fixture
    def g(self, backend):
        return dense_chain(backend, 3, [4], 0.5, 0)

    @pytest.fixture
    def x(self, backend):
        return array(backend, np.ones((2, 3)))

    def _linear(self, backend, factor, lipschitz):
        class Branch:
            def __init__(self):
                self.lipschitz = lipschitz

            def __call__(self, x):
                return factor * x

            def linearize(self, x):
                return Linearization(value=factor * x, vjp=lambda u: factor * u, jvp=lambda u: factor * u)

        return Branch()

    @pytest.mark.parametrize("method", ["exact", *STOCHASTIC])
    @pytest.mark.parametrize("factor", [1.5, -0.99, -1.0, -3.0])
    def test_a_broken_constant_is_seen(self, backend, x, method, factor):
        with pytest.raises(NotContractiveError):
            logdet(self._linear(backend, factor, 0.5), x, method=method, rng=0)

    def test_constant(self, backend, g, x):
        with pytest.raises(NotContractiveError, match=r"is 1\.2"):
            logdet(g, x, lipschitz=1.2)
        with pytest.raises(UnknownLipschitzError):
            logdet(self._linear(backend, 0.5, None), x)
        with pytest.raises(InvalidArgumentError):
            logdet(g, x, lipschitz=float("nan"))

    @pytest.mark.parametrize("method", ["exact", *STOCHASTIC])
    def test_non_finite_products(self, backend, x, method):
        class Branch:
            lipschitz = 0.5

            def __call__(self, x):
                return 0.5 * x

            def linearize(self, x):
                return Linearization(value=0.5 * x, vjp=lambda u: u * float("nan"))

        with pytest.raises((NonFiniteError, NotContractiveError), match=r"nan|NaN"):
            logdet(Branch(), x, method=method, rng=0)

    def test_non_finite_values(self, backend, g, x):
        with pytest.raises(NonFiniteError, match="x of shape"):
            logdet(g, x * float("inf"))
        with pytest.raises(NonFiniteError, match="the output of Branch"):
            logdet(self._linear(backend, float("nan"), 0.5), x)
        with pytest.raises(NonFiniteError, match="noise"):
            logdet(g, x, method="arnoldi", noise=x * float("nan"))

    @pytest.mark.parametrize("method", ["series", "arnoldi", "mean-jacobian", "roulette"])
    def test_noise_whose_powers_overflow_is_refused(self, backend, g, x, method):
        """At half of what is refused every error is finite."""
        fits = 2.0**256 / 16 / math.sqrt(math.prod(x.shape[1:])) / 2
        for size, refused in ((fits, False), (3 * fits, True), (1e160, True)):
            noise = array(backend, np.full((2, *x.shape), size))
            noise = (noise, [2, 1]) if method == "roulette" else noise
            if refused:
                with pytest.raises(InvalidArgumentError, match="noise has an entry of size"):
                    logdet(g, x, method=method, noise=noise)
            else:
                result = logdet(g, x, method=method, noise=noise)
                for part in (result.value, result.std_error, result.bias_bound):
                    assert np.isfinite(host(backend, part)).all()

    @pytest.mark.needs("frozen")
    def test_plain_callable_without_derivative(self, backend, x):
        if backend.differentiates:
            pytest.skip(f"{backend.name} differentiates plain functions")
        with pytest.raises(DerivativeError, match="no automatic differentiation"):
            logdet(lambda x: 0.5 * x, x, lipschitz=0.5)

    def test_linearize_returns_something_else(self, x):
        class Branch:
            lipschitz = 0.5

            def linearize(self, x):
                return x

        with pytest.raises(DerivativeError, match="must return a Linearization"):
            logdet(Branch(), x)

    def test_no_trace(self, backend, x):
        with pytest.raises(DerivativeError, match="control_variate='trace'"):
            logdet(self._linear(backend, 0.5, 0.5), x, method="arnoldi", control_variate="trace")

    def test_shapes(self, backend, g, x):
        with pytest.raises(ShapeError, match=r"\(batch, \.\.\.\)"):
            logdet(g, x[0, :])
        with pytest.raises(ShapeError, match="takes samples of shape"):
            logdet(g, x[:, :2])
        rectangular = Chain([Dense(array(backend, np.ones((2, 3)) / 9))])
        with pytest.raises(ShapeError, match="keeps the shape"):
            logdet(rectangular, x)
        for noise in (x[:1, :], array(backend, np.ones((2, 2, 4))), array(backend, np.ones((0, 2, 3)))):
            with pytest.raises(ShapeError, match="noise must have shape"):
                logdet(g, x, method="arnoldi", noise=noise)

    def test_dtypes(self, backend, g, x):
        xp = backend.xp
        for dtype in (xp.int64, xp.complex128):
            with pytest.raises(DtypeError):
                logdet(g, xp.astype(x, dtype))
        with pytest.raises(DtypeError, match="float32"):
            logdet(g, xp.astype(x, xp.float32))
        with pytest.raises(DtypeError, match="noise"):
            logdet(g, x, method="arnoldi", noise=xp.astype(x, xp.float32))

    def test_mixed_backends(self, backend, g, x):
        other = np.ones((2, 3)) if backend.name != "numpy" else __import__("array_api_strict").ones((2, 3))
        with pytest.raises(MixedBackendsError):
            logdet(g, other)
        with pytest.raises(MixedBackendsError):
            logdet(g, x, method="arnoldi", noise=other)

    @pytest.mark.parametrize(
        "options",
        [
            {"method": "hutchinson"},
            {"method": None},
            {"tolerance": 0.1},
            {"tol": 0.1, "errors": False},
            {"probes": 0},
            {"probes": -1},
            {"probes": 1.5},
            {"tol": -1.0},
            {"tol": 0.0},
            {"tol": float("nan")},
            {"method": "arnoldi", "terms": 0},
            {"method": "arnoldi", "terms": 3, "tol": 0.1},
            {"probe_kind": "sobol"},
            {"control_variate": "always"},
            {"method": "arnoldi", "rng": -1},
            {"method": "arnoldi", "rng": "seed"},
        ],
        ids=str,
    )
    def test_options(self, g, x, options):
        with pytest.raises(InvalidArgumentError):
            logdet(g, x, **options)

    def test_noise_of_another_method(self, g, x):
        for method, noise in (
            ("roulette", x),
            ("arnoldi", (x, [1])),
            ("roulette", (x, [1, 2])),
            ("roulette", (x, [-1])),
        ):
            with pytest.raises(InvalidArgumentError):
                logdet(g, x, method=method, noise=noise)
        with pytest.raises(InvalidArgumentError, match="probes=3"):
            logdet(g, x, method="arnoldi", noise=x, probes=3)
        with pytest.raises(InvalidArgumentError, match="both"):
            logdet(g, x, method="arnoldi", noise=x, tol=0.1)


def test_a_length_without_a_chance(backend):
    g = Chain([Dense(array(backend, [[1e-3]]))])
    x = array(backend, np.ones((1, 1)))
    with pytest.raises(InvalidArgumentError, match="no chance"):
        logdet(g, x, method="roulette", noise=(x[None, ...], [400]))
    for lengths in (None, "a", [1.7], 3):
        with pytest.raises(InvalidArgumentError, match="lengths"):
            logdet(g, x, method="roulette", noise=(x[None, ...], lengths))
