"""The choice of "auto": exact up to a fixed order, the same on every run and in every program, with its reason."""

import time

import numpy as np
import pytest
from branches_for_tests import array, dense_chain, host
from frameworks_for_tests import COMPILERS, compiled

from iresnet_core import Activation, Chain, Convolution, Flow, ResidualBlock, logdet, normalize
from iresnet_core.backends import get_backend
from iresnet_core.branches import has_large_images
from iresnet_core.determinant import exact as exact_determinant
from iresnet_core.determinant.choice import EVALUATION_LIMIT, TRAINING_LIMIT
from iresnet_core.errors import InvalidArgumentError

D = 40
NUMPY = get_backend(np.zeros(1))


@pytest.fixture
def g(backend):
    return dense_chain(backend, D, [50], 0.5, 0)


@pytest.fixture
def x(backend):
    return array(backend, np.random.default_rng(0).standard_normal((3, D)))


@pytest.mark.parametrize(("errors", "limit"), [(True, EVALUATION_LIMIT), (False, TRAINING_LIMIT)])
def test_the_limit(backend, errors, limit):
    assert EVALUATION_LIMIT >= 64  # a score of 64 dimensions has no noise
    for d, method in ((limit, "exact"), (limit + 1, "mean-jacobian")):
        g, x = dense_chain(backend, d, [d + 1], 0.5, 0), array(backend, np.zeros((2, d)))
        result = logdet(g, x, rng=0, errors=errors)
        assert result.method == method
        assert result.reason.startswith(f"order {d} is {'at most' if d == limit else 'above'} {limit}, the limit of")


def test_the_order_counts_and_not_the_dimension(backend):
    d = 2 * EVALUATION_LIMIT
    result = logdet(dense_chain(backend, d, [8], 0.5, 0), array(backend, np.zeros((2, d))), rng=0)
    assert result.method == "exact"
    assert result.reason == f"order 8 is at most {EVALUATION_LIMIT}, the limit of evaluation"


def test_argument(g, x):
    for limit, method in ((D, "exact"), (D - 1, "mean-jacobian"), (0, "mean-jacobian")):
        result = logdet(g, x, rng=0, exact_up_to=limit)
        assert result.method == method
        assert result.reason == f"order 40 is {'at most' if limit == D else 'above'} {limit}, exact_up_to"


def test_one_seed_one_answer(backend, monkeypatch):
    """Whatever clock and environment say, and whatever was computed before: the same bits."""
    d = EVALUATION_LIMIT + 1
    g, x = dense_chain(backend, d, [d], 0.5, 0), array(backend, np.random.default_rng(0).standard_normal((6, d)))
    for errors in (True, False):
        first = logdet(g, x, rng=3, errors=errors)
        logdet(g, x[:1, :], rng=1)
        with monkeypatch.context() as patch:
            patch.setenv("IRESNET_EXACT_UP_TO", "1000")
            for clock in ("time", "perf_counter", "process_time", "monotonic"):
                patch.setattr(time, clock, lambda: 0.0)
            second = logdet(g, x, rng=3, errors=errors)
        assert (first.method, first.reason) == (second.method, second.reason)
        assert np.array_equal(host(backend, first.value), host(backend, second.value))


def test_the_size_of_the_batch_changes_nothing(backend, g):
    x = array(backend, np.random.default_rng(0).standard_normal((50, D)))
    together = logdet(g, x, rng=0)
    alone = logdet(g, x[:1, :], rng=0)
    assert together.method == alone.method == "exact"
    np.testing.assert_allclose(host(backend, together.value)[:1], host(backend, alone.value), rtol=1e-12)


def test_a_tolerance_is_given_up_at_the_cost_of_the_exact_answer(g, x):
    result = logdet(g, x, rng=0, tol=1e-7, exact_up_to=8)
    assert (result.method, result.reason) == ("exact", "tol=1e-07 would cost as much as the exact answer")
    assert logdet(g, x, rng=0, tol=1e-2, exact_up_to=8).method == "mean-jacobian"


def test_what_it_must_not_be(g, x):
    for wrong in (-1, 1.5, True, "32"):
        with pytest.raises(InvalidArgumentError, match="exact_up_to"):
            logdet(g, x, exact_up_to=wrong)


def test_what_was_asked_for_needs_no_reason(g, x):
    assert logdet(g, x, method="arnoldi", rng=0).reason == ""
    assert logdet(g, x, noise=x, rng=0).reason == "noise rules out the exact answer"


def test_flows_say_why(backend, g, x):
    if backend.name == "jax":
        pytest.skip("JAX compiles every operation for every shape; the choice is the same code")
    flow = Flow([ResidualBlock(g), ResidualBlock(g)], event_shape=(D,))
    result = flow.log_prob(x, exact_up_to=D)
    assert (result.method, result.reason) == ("exact", "order 40 is at most 40, exact_up_to")


def convolutions(backend, shape, width, kernels=(3, 1, 3)):
    """A chain of convolutions on small random weights, with slopes between them."""
    rng, widths = np.random.default_rng(0), [shape[0], *[width] * (len(kernels) - 1), shape[0]]
    layers = []
    for before, after, size in zip(widths[:-1], widths[1:], kernels, strict=True):
        kernel = array(backend, 0.1 * rng.standard_normal((after, before, size, size)), "float32")
        layers += [Convolution(kernel, input_shape=(before, *shape[1:]), padding="same"), Activation("tanh")]
    return Chain(layers[:-1])


@pytest.mark.parametrize(
    ("shape", "kernels", "most"),
    [
        ((1, 28, 28), (3, 1, 3), 27),
        ((4, 14, 14), (3, 1, 3), 109),
        ((16, 7, 7), (3, 1, 3), 436),
        ((1, 28, 28), (3, 3, 3), 27),
        ((4, 14, 14), (3, 3, 3), 97),
        ((16, 7, 7), (3, 3, 3), 195),
    ],
)
def test_the_limit_of_images(shape, kernels, most):
    """The channels that docs/log-determinant.md names."""
    found = [has_large_images(convolutions(NUMPY, shape, width, kernels).layers) for width in (most, most + 1)]
    assert found == [False, True]


def test_a_reference_that_is_not_used():
    """A branch that has one, and images too large for it, says so; with other seeds it is not asked for one."""
    x = np.random.default_rng(0).standard_normal((2, 1, 28, 28)).astype("float32")
    g = normalize(convolutions(NUMPY, (1, 28, 28), 28), 0.5)
    known = "order 784 is above 64, the limit of evaluation"
    assert [logdet(g, x, rng="sample").reason, logdet(g.with_reference(x), x, rng=0).reason] == [known, known]
    result = logdet(g.with_reference(x), x, rng="sample")
    assert result.method == "arnoldi"
    assert result.reason == f"{known}; the reference is not used, as the images of the branch are too large for it"
    small = normalize(convolutions(NUMPY, (2, 6, 6), 3), 0.5).with_reference(np.zeros((1, 2, 6, 6), "float32"))
    result = logdet(small, np.zeros((2, 2, 6, 6), "float32"), rng="sample")
    assert (result.method, result.reason) == ("mean-jacobian", "order 72 is above 64, the limit of evaluation")


@pytest.mark.needs("autodiff")
def test_a_plain_function_is_evaluated_once(backend, x):
    calls = []

    def g(x):
        calls.append(1)
        return 0.5 * backend.xp.tanh(x)

    for method in ("exact", "arnoldi"):
        calls.clear()
        assert logdet(g, x, lipschitz=0.5, rng=0, exact_up_to=D if method == "exact" else 0).method == method
        assert len(calls) == 1


@pytest.mark.needs("compile")
@pytest.mark.parametrize("errors", [True, False])
def test_compiled_programs_choose_alike(backend, errors):
    if backend.name == "torch":
        pytest.skip("a function that appends to a list is no whole graph")
    for d in (EVALUATION_LIMIT if errors else TRAINING_LIMIT, EVALUATION_LIMIT + 1):
        eager, in_program = _said(backend, d, errors)
        assert eager == in_program


def _said(backend, d, errors):
    """Method and reason of an eager call, and of the same in a compiled program."""
    g, x = dense_chain(backend, d, [d], 0.5, 0), array(backend, np.zeros((2, d)))
    said = []

    def value(x):
        result = logdet(g, x, rng=0, terms=2, errors=errors)
        said.append((result.method, result.reason))
        return result.value

    value(x)
    compiled(backend, COMPILERS[backend.name][0], value)(x)
    return said[0], said[1]


def test_blocks_that_are_answered_in_parts_keep_their_latents(backend, monkeypatch, g):
    monkeypatch.setattr(exact_determinant, "ENTRIES_AT_A_TIME", D * D)
    x = array(backend, np.random.default_rng(0).standard_normal((3, D)))
    out = ResidualBlock(g).forward(x, method="exact")
    np.testing.assert_array_equal(host(backend, out.value), host(backend, x + g(x)))


@pytest.mark.parametrize(("wrong", "meant"), [("lipshitz", "lipschitz"), ("refrence", "reference"), ("prob", "probes")])
def test_a_misspelt_option_is_answered_with_the_one_that_was_meant(backend, wrong, meant):
    g = dense_chain(backend, 3, [4], 0.5, 0)
    x = array(backend, np.zeros((1, 3)))
    with pytest.raises(InvalidArgumentError, match=rf"no option {wrong};.*Did you mean {meant}\?"):
        logdet(g, x, **{wrong: 1})
