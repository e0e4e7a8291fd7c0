"""The choice of "auto" by measured costs, with a clock that is turned by hand; limits; what the answer says of it."""

import threading

import numpy as np
import pytest
from branches_for_tests import array, dense_chain, host
from frameworks_for_tests import COMPILERS, compiled

from iresnet_core import Flow, ResidualBlock, logdet
from iresnet_core.determinant import choice as method_choice
from iresnet_core.determinant import dispatch as determinant
from iresnet_core.determinant import exact as exact_determinant
from iresnet_core.errors import InvalidArgumentError, NotContractiveError

D = 40


class Clock:
    """Seconds that pass while an answer is computed, per call of it."""

    def __init__(self, monkeypatch, exact, estimate):
        self.now, self.calls = 0.0, []
        monkeypatch.delenv(method_choice.ENVIRONMENT, raising=False)
        monkeypatch.setattr(method_choice, "clock", lambda: self.now)
        for name, seconds in (("exact_logdet", exact), ("stochastic_logdet", estimate)):
            monkeypatch.setattr(determinant, name, self._passing(name, getattr(determinant, name), seconds))
        method_choice.forget()

    def _passing(self, name, answer, seconds):
        def timed(*args, **kwargs):
            self.calls.append(name)
            self.now += seconds
            return answer(*args, **kwargs)

        return timed


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    method_choice.forget()


def skip_on_jax(backend):
    if backend.name == "jax":
        pytest.skip("JAX compiles every operation for every shape; the choice is the same code")


@pytest.fixture
def g(backend):
    return dense_chain(backend, D, [50], 0.5, 0)


@pytest.fixture
def x(backend):
    return array(backend, np.random.default_rng(0).standard_normal((3, D)))


class TestMeasured:
    @pytest.mark.parametrize(("exact", "method"), [(0.0019, "exact"), (0.0021, "mean-jacobian")])
    def test_exact_up_to_twice_the_cost(self, backend, monkeypatch, g, x, exact, method):
        Clock(monkeypatch, exact, 0.001)
        result = logdet(g, x, rng=0)
        assert result.method == method
        assert f"exact {1e3 * exact:.3g} ms, mean-jacobian 1 ms" in result.reason
        assert backend.name in result.reason

    def test_once_for_a_kind_of_problem(self, backend, monkeypatch, g, x):
        skip_on_jax(backend)
        clock = Clock(monkeypatch, 0.01, 0.001)
        measurement = 2 * (method_choice.REPEATS + 1)
        logdet(g, x, rng=0)
        assert len(clock.calls) == measurement + 1
        logdet(g, x[:3, :], rng=1)
        logdet(dense_chain(backend, D - 1, [50], 0.9, 1), x[:, : D - 1], rng=1)
        assert len(clock.calls) == measurement + 3
        logdet(g, array(backend, np.zeros((5, D))), rng=1)  # more than four samples
        assert len(clock.calls) == 2 * measurement + 4

    def test_the_noise_is_that_without_a_measurement(self, backend, monkeypatch, g, x):
        fixed = logdet(g, x, rng=3, exact_up_to=0)
        Clock(monkeypatch, 1.0, 0.001)
        measured = logdet(g, x, rng=3)
        assert np.array_equal(host(backend, fixed.value), host(backend, measured.value))

    def test_a_part_of_the_samples_is_timed(self, backend, monkeypatch, g, x):
        skip_on_jax(backend)
        monkeypatch.setattr(method_choice, "ENTRIES", 2 * D * D)
        monkeypatch.setattr(method_choice, "ENTRIES_ACCELERATED", 2 * D * D)
        Clock(monkeypatch, 1.0, 0.001)
        result = logdet(g, x, rng=0)
        assert "exact 1.5e+03 ms" in result.reason  # of two samples, for three
        assert tuple(result.value.shape) == (3,)
        block = ResidualBlock(g)  # whose latents come from the linearisation
        method_choice.forget()
        np.testing.assert_array_equal(host(backend, block.forward(x, rng=0).value), host(backend, x + g(x)))

    def test_a_tolerance_is_given_up_at_the_measured_cost(self, backend, monkeypatch, g, x):
        skip_on_jax(backend)
        Clock(monkeypatch, 1.0, 0.001)  # a thousand times as dear: never given up
        assert logdet(g, x, rng=0, tol=1e-4).method == "mean-jacobian"
        method_choice.forget()
        Clock(monkeypatch, 0.0025, 0.001)
        result = logdet(g, x, rng=0, tol=1e-4)
        assert (result.method, result.reason) == ("exact", "tol=0.0001 would cost as much as the exact answer")

    def test_small_and_large_orders_are_not_measured(self, backend, monkeypatch, x):
        skip_on_jax(backend)
        clock = Clock(monkeypatch, 1.0, 1.0)
        result = logdet(dense_chain(backend, D, [8], 0.5, 0), x, rng=0)
        assert (result.method, clock.calls) == ("exact", ["exact_logdet"])
        assert "order 8 is at most 8" in result.reason
        monkeypatch.setattr(method_choice, "LARGEST", 30)
        result = logdet(dense_chain(backend, D, [50], 0.5, 0), x, rng=0)
        assert result.method == "mean-jacobian"
        assert "order 40 is above 30" in result.reason

    def test_a_failed_measurement_is_not_kept(self, backend, monkeypatch, g, x):
        skip_on_jax(backend)
        clock = Clock(monkeypatch, 1.0, 0.001)
        with pytest.raises(NotContractiveError):
            logdet(g, x, rng=0, lipschitz=1e-3)
        assert "exact_logdet" in clock.calls
        assert logdet(g, x, rng=0).reason.startswith("measured")

    def test_threads_measure_once(self, backend, monkeypatch, g, x):
        skip_on_jax(backend)
        clock = Clock(monkeypatch, 1.0, 0.001)
        threads = [threading.Thread(target=logdet, args=(g, x), kwargs={"rng": 0}) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(clock.calls) == 2 * (method_choice.REPEATS + 1) + 4

    def test_the_clock_of_the_host(self, backend, monkeypatch, g, x):
        monkeypatch.delenv(method_choice.ENVIRONMENT, raising=False)
        result = logdet(g, x, rng=0)
        assert result.reason.startswith(f"measured for order 64 and 4 samples on {backend.name}")


class TestLimits:
    def test_argument(self, g, x):
        for limit, method in ((D, "exact"), (D - 1, "mean-jacobian"), (0, "mean-jacobian")):
            result = logdet(g, x, rng=0, exact_up_to=limit)
            assert result.method == method
            assert result.reason == f"order 40 is {'at most' if limit == D else 'above'} {limit}, exact_up_to"

    def test_environment(self, monkeypatch, g, x):
        for limit, method in (("40", "exact"), ("39", "mean-jacobian")):
            monkeypatch.setenv(method_choice.ENVIRONMENT, limit)
            result = logdet(g, x, rng=0)
            assert (result.method, method_choice.ENVIRONMENT in result.reason) == (method, True)
        assert logdet(g, x, rng=0, exact_up_to=40).method == "exact"  # the argument counts
        for wrong in ("-1", "many", "3.5"):
            monkeypatch.setenv(method_choice.ENVIRONMENT, wrong)
            with pytest.raises(InvalidArgumentError, match=method_choice.ENVIRONMENT):
                logdet(g, x, rng=0)

    def test_what_it_must_not_be(self, g, x):
        for wrong in (-1, 1.5, True, "32"):
            with pytest.raises(InvalidArgumentError, match="exact_up_to"):
                logdet(g, x, exact_up_to=wrong)

    def test_what_was_asked_for_needs_no_reason(self, backend, g, x):
        assert logdet(g, x, method="arnoldi", rng=0).reason == ""
        assert logdet(g, x, noise=x, rng=0).reason == "noise rules out the exact answer"

    def test_flows_say_why(self, backend, g, x):
        skip_on_jax(backend)
        flow = Flow([ResidualBlock(g), ResidualBlock(g)], event_shape=(D,))
        result = flow.log_prob(x, exact_up_to=D)
        assert (result.method, result.reason) == ("exact", "order 40 is at most 40, exact_up_to")


@pytest.mark.needs("autodiff")
def test_a_plain_function_is_not_evaluated_again(backend, monkeypatch, x):
    calls = []
    clock = Clock(monkeypatch, 1.0, 0.001)

    def g(x):
        calls.append(1)
        return 0.5 * backend.xp.tanh(x)

    result = logdet(g, x, lipschitz=0.5, rng=0)
    assert result.method == "arnoldi"
    assert len(clock.calls) == 2 * (method_choice.REPEATS + 1) + 1
    assert len(calls) == 1
    monkeypatch.setattr(method_choice, "ENTRIES", D * D)
    monkeypatch.setattr(method_choice, "ENTRIES_ACCELERATED", D * D)
    method_choice.forget()
    assert "nothing can be measured" in logdet(g, x, lipschitz=0.5, rng=0).reason


@pytest.mark.needs("compile")
def test_compiled_programs_do_not_measure(backend, monkeypatch, g, x):
    clock = Clock(monkeypatch, 1.0, 0.001)
    said = []

    def value(x):
        result = logdet(g, x, rng=0, terms=2)
        said.append(result.reason)
        return result.value

    if backend.name == "torch":
        pytest.skip("a function that appends to a list is no whole graph")
    compiled(backend, COMPILERS[backend.name][0], value)(x)
    assert said[0] == "order 40 is above 32, the default where nothing can be measured"
    assert clock.calls == ["stochastic_logdet"]


def test_blocks_that_are_answered_in_parts_keep_their_latents(backend, monkeypatch, g):
    monkeypatch.setattr(exact_determinant, "CHUNK", D * D)
    x = array(backend, np.random.default_rng(0).standard_normal((3, D)))
    out = ResidualBlock(g).forward(x, method="exact")
    np.testing.assert_array_equal(host(backend, out.value), host(backend, x + g(x)))
