"""Exact traces of convolutional Jacobians, next to the explicit matrices."""

import contextlib
import itertools
import math

import numpy as np
import pytest
from branches_for_tests import array, host
from frameworks_for_tests import gradients
from hypothesis import given
from hypothesis import strategies as st

from iresnet_core import Activation, Chain, Convolution, Dense, logdet, normalize, reference
from iresnet_core.branches import closed_walks


def convolution(backend, rng, out, channels, spatial, window, padding, mode, dilation=1, last=False, dtype="float64"):
    kernel = rng.standard_normal((out, channels, *window))
    if last:
        kernel = np.moveaxis(kernel, (0, 1), (-1, -2))
    return Convolution(
        array(backend, kernel, dtype),
        array(backend, rng.standard_normal(out), dtype),
        input_shape=(*spatial, channels) if last else (channels, *spatial),
        padding=padding,
        padding_mode=mode,
        dilation=dilation,
        data_format="channels_last" if last else "channels_first",
    )


def image_chain(
    backend, rng, channels, hidden, spatial, windows, mode, ends=(False, False), last=False, dilations=None
):
    """Convolutions that keep the extent, tanh between them, other activations at the ends where `ends` says so."""
    dilations = dilations or [1] * len(windows)
    sizes = [channels, *hidden, channels]
    layers = [Activation("sin")] * ends[0]
    for i, (window, dilation) in enumerate(zip(windows, dilations, strict=True)):
        if i:
            layers.append(Activation("tanh"))
        layers.append(
            convolution(backend, rng, sizes[i + 1], sizes[i], spatial, window, "same", mode, dilation, last=last)
        )
    return Chain([*layers, *[Activation("elu")] * ends[1]])


@contextlib.contextmanager
def more_walks():
    """Let all chains be taken that can be, also where it costs too much to be of use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closed_walks, "MOST", 2**13)
        yield


def check(backend, g, rng, batch=3):
    x = array(backend, rng.standard_normal((batch, *g.input_shape)))
    trace = g.linearize(x).trace
    assert trace is not None
    exact = np.trace(reference.jacobian(g, x), axis1=1, axis2=2)
    np.testing.assert_allclose(host(backend, trace()), exact, rtol=1e-11, atol=1e-11 * (1 + np.abs(exact).max()))


def check_expanded(backend, g, rng, batch=3):
    """What is known and the remainder make the trace, and the remainder is that of the deviations."""
    x = array(backend, rng.standard_normal((batch, *g.input_shape)))
    at, J = g.linearize(x), reference.jacobian(g, x)
    assert at.trace is None
    d = J.shape[-1]
    units = array(backend, np.broadcast_to(np.eye(d)[:, None, :], (d, batch, d)))
    sizes = [mean.shape[0] for mean in at.structure.channel_means()]
    others = [array(backend, rng.standard_normal(size)) for size in sizes]
    for means in (None, others):
        value, remainder = at.structure.expanded_trace(means)
        rest = np.trace(host(backend, remainder(units)), axis1=0, axis2=2)
        exact = np.trace(J, axis1=1, axis2=2)
        np.testing.assert_allclose(
            host(backend, value) + rest, exact, rtol=1e-10, atol=1e-10 * (1 + np.abs(rest).max())
        )


@given(
    count=st.integers(1, 4),
    axes=st.integers(1, 2),
    mode=st.sampled_from(("zeros", "circular")),
    ends=st.tuples(st.booleans(), st.booleans()),
    last=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_traces(backend, count, axes, mode, ends, last, seed):
    with more_walks():
        check_traces(backend, count, axes, mode, ends, last, seed)


def check_traces(backend, count, axes, mode, ends, last, seed):
    rng = np.random.default_rng(seed)
    groups = count - 1 + sum(ends) - (sum(ends) == 2)
    spatial = tuple(int(n) for n in rng.integers(1, 6, axes))
    sides = [[int(k) for k in rng.integers(1, 5, axes)] for _ in range(count)]
    if mode == "circular":
        sides = [[min(k, n + 1) for k, n in zip(window, spatial, strict=True)] for window in sides]
    hidden = [int(h) for h in rng.integers(1, 4, count - 1)]
    g = image_chain(backend, rng, 2, hidden, spatial, [tuple(w) for w in sides], mode, ends, last)
    if groups > 2:
        check_expanded(backend, g, rng)
    elif groups:
        check(backend, g, rng)
    else:
        assert g.linearize(array(backend, np.zeros((1, *g.input_shape)))).trace is None


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("ends", [(True, False), (False, True), (True, True)])
def test_published_architectures(backend, ends, last):
    """An activation first, or last, or both: slopes that are their means at all positions leave nothing."""
    rng = np.random.default_rng(0)
    for mode in ("zeros", "circular"):
        g = image_chain(backend, rng, 2, [3, 4], (4, 5), [(3, 3), (1, 1), (3, 3)], mode, ends, last)
        check_expanded(backend, g, rng)
    x = np.broadcast_to(rng.standard_normal(2) if last else rng.standard_normal((2, 1, 1)), (1, *g.input_shape))
    value, remainder = g.linearize(array(backend, x.copy())).structure.expanded_trace()
    exact = np.trace(reference.jacobian(g, array(backend, x.copy())), axis1=1, axis2=2)
    np.testing.assert_allclose(host(backend, value), exact, rtol=1e-11)
    u = array(backend, rng.standard_normal((2, 1, x.size)))
    np.testing.assert_allclose(host(backend, remainder(u)), 0, atol=1e-12)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_architecture_of_the_papers(backend, mode):
    """3 x 3, 1 x 1, 3 x 3; also dilated, and in three dimensions."""
    rng = np.random.default_rng(0)
    check(backend, image_chain(backend, rng, 3, [4, 5], (6, 5), [(3, 3), (1, 1), (3, 3)], mode), rng)
    check(backend, image_chain(backend, rng, 2, [3, 2], (7, 6), [(3, 3)] * 3, mode, dilations=[1, 2, 1]), rng)
    check(backend, image_chain(backend, rng, 2, [2, 2], (3, 3, 2), [(3, 1, 1), (3, 3, 1), (1, 3, 2)], mode), rng)


def test_uneven_padding(backend):
    rng = np.random.default_rng(0)
    first = convolution(backend, rng, 3, 2, (5, 4), (3, 3), [(2, 0), (0, 2)], "zeros")
    middle = convolution(backend, rng, 2, 3, (5, 4), (3, 1), [(0, 2), (0, 0)], "zeros")
    last = convolution(backend, rng, 2, 2, (5, 4), (3, 3), [(1, 1), (2, 0)], "zeros")
    check(backend, Chain([first, Activation("tanh"), middle, Activation("sin"), last]), rng)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_four_convolutions_of_images_in_float32(backend, shape):
    """At the size of the work: what is known and the remainder make the trace, one product for every entry."""
    if backend.name == "jax":  # which the smaller images are enough for
        return
    rng, layers = np.random.default_rng(0), []
    for n, m, k in ((shape[0], 4, 3), (4, 4, 1), (4, 4, 1), (4, shape[0], 3)):
        kernel = rng.standard_normal((m, n, k, k)) / (n * k * k) ** 0.5
        kernel = array(backend, kernel, "float32")
        layers += [Activation("lipswish"), Convolution(kernel, input_shape=(n, *shape[1:]), padding="same")]
    at = Chain(layers).linearize(array(backend, rng.standard_normal((1, *shape)), "float32"))
    d = math.prod(shape)
    units = array(backend, np.eye(d)[:, None, :], "float32")
    image = host(backend, at.vjp(backend.xp.reshape(units, (d, 1, *shape)))).reshape(d, d)
    value, remainder = at.structure.expanded_trace()
    rest = host(backend, remainder(units)).reshape(d, d)
    found = float(host(backend, value)[0]) + float(np.trace(rest, dtype=np.float64))
    exact = float(np.trace(image, dtype=np.float64))
    assert abs(found - exact) <= 8 * np.finfo(np.float32).eps * np.abs(np.diag(image)).sum()
    assert abs(np.trace(rest, dtype=np.float64)) > 0


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_many_groups(backend, mode):
    """More convolutions, also in a row, of several windows, dilated and with uneven padding."""
    with more_walks():
        check_many_groups(backend, mode, np.random.default_rng(0))


def check_many_groups(backend, mode, rng):
    first = convolution(backend, rng, 3, 2, (5, 4), (3, 3), [(2, 0), (0, 2)], mode)
    second = convolution(backend, rng, 2, 3, (5, 4), (3, 1), [(0, 2), (0, 0)], mode)
    tanh, elu = Activation("tanh"), Activation("elu")
    check_expanded(backend, Chain([elu, first, tanh, second, elu, first, second, tanh, first, elu, second]), rng)
    check(backend, Chain([first, second, tanh, first, elu, second, first, second]), rng)
    if backend.name == "jax":  # which compiles every operation of every shape
        return
    windows = [(3, 3), (1, 1), (1, 1), (3, 3)]
    for ends in ((False, False), (True, False), (True, True)):
        check_expanded(backend, image_chain(backend, rng, 2, [4, 3, 2], (4, 5), windows, mode, ends), rng)
    check_expanded(
        backend, image_chain(backend, rng, 1, [2] * 5, (5,), [(3,), (1,), (2,), (1,), (1,), (3,)], mode), rng
    )
    g = image_chain(backend, rng, 2, [3, 3, 2], (5, 6), [(3, 3), (2, 1), (1, 3), (3, 2)], mode, dilations=[1, 2, 2, 1])
    check_expanded(backend, g, rng)


def test_a_chain_lists_no_walks_before_it_is_asked(backend):
    """That takes seconds for large windows, which answers that need no trace do not pay."""
    rng = np.random.default_rng(0)
    kernel = convolution(backend, rng, 2, 2, (9, 9), (9, 9), "same", "zeros")
    closed_walks._listed.cache_clear()
    for layers in (3, 5):
        Chain([kernel, Activation("tanh")] * layers)
    assert closed_walks._listed.cache_info().currsize == 0


def test_dense_layers(backend):
    """The same control for deep dense chains, with the means of every unit over the batch."""
    rng = np.random.default_rng(0)
    for ends in (0, 1, 2):
        widths, layers = [4, 5, 3, 6, 4], [Activation("sin")] * (ends > 0)
        for n, m in itertools.pairwise(widths):
            layers += [Dense(array(backend, rng.standard_normal((m, n)))), Activation("tanh")]
        check_expanded(backend, Chain(layers if ends > 1 else layers[:-1]), rng)
    g = Chain([Dense(array(backend, np.eye(2))), Activation("tanh")] * 5)
    assert g.linearize(array(backend, np.zeros((1, 2)))).structure.expanded_trace is None


@pytest.mark.parametrize("what", ["maxmin", "mixed", "stride", "groups", "many walks", "deep"])
def test_what_has_no_cheap_trace(backend, what):
    rng = np.random.default_rng(0)
    same, point = (convolution(backend, rng, 2, 2, (4, 4), (k, k), "same", "zeros") for k in (3, 1))
    grouped = Convolution(array(backend, np.ones((2, 1, 3, 3))), input_shape=(2, 4, 4), padding=1, groups=2)
    tanh = Activation("tanh")
    layers = {
        "maxmin": [same, Activation("maxmin"), same],
        "mixed": [same, tanh, convolution(backend, rng, 2, 2, (4, 4), (3, 3), "same", "circular")],
        "stride": [convolution(backend, rng, 8, 2, (4, 4), (2, 2), 0, "zeros"), tanh],
        "groups": [grouped, tanh],
        "many walks": [same, tanh] * 4,
        "deep": [point, tanh] * 7,
    }[what]
    g = Chain(layers)
    if what == "stride":
        assert g._walk_plan is None
        return
    at = g.linearize(array(backend, np.zeros((1, 2, 4, 4))))
    assert at.trace is None
    assert at.structure.expanded_trace is None


def test_the_trace_is_the_control_variate(backend):
    """Most of a probe's noise on a convolutional branch is that of the trace."""
    rng = np.random.default_rng(0)
    for ends in ((False, False), (True, False)):
        windows = [(3, 3), (1, 1), (3, 3)]
        g = normalize(image_chain(backend, rng, 3, [8, 8], (4, 4), windows, "zeros", ends), 0.9)
        x = array(backend, 0.5 * rng.standard_normal((30, 3, 4, 4)))
        exact = reference.logdet(g, x)
        spread = {}
        for variate in ("trace", "none"):
            result = logdet(g, x, method="arnoldi", rng=0, control_variate=variate)
            error, stated = host(backend, result.value) - exact, host(backend, result.std_error)
            spread[variate] = np.sqrt(np.mean(error**2))
            assert abs(error.mean()) <= 5 * np.sqrt(np.mean(stated**2) / error.size) + 1e-3
            assert 0.4 < spread[variate] / np.sqrt(np.mean(stated**2)) < 1.2
        assert spread["trace"] < 0.5 * spread["none"]


def test_dense_chains_take_it_when_asked(backend):
    """Their products of weights cost much for small batches, so that "auto" does without."""
    rng, spread = np.random.default_rng(0), {}
    widths = [12, 16, 16, 16, 12]
    layers = []
    for n, m in itertools.pairwise(widths):
        layers += [Dense(array(backend, rng.standard_normal((m, n)))), Activation("tanh")]
    g = normalize(Chain(layers[:-1]), 0.9)
    x = array(backend, rng.standard_normal((40, 12)))
    exact = reference.logdet(g, x)
    for variate in ("trace", "auto", "none"):
        result = logdet(g, x, method="arnoldi", rng=0, control_variate=variate)
        error, stated = host(backend, result.value) - exact, host(backend, result.std_error)
        spread[variate] = np.sqrt(np.mean(error**2))
        assert abs(error.mean()) <= 5 * np.sqrt(np.mean(stated**2) / error.size) + 1e-3
    assert spread["trace"] < 0.5 * spread["auto"]
    assert spread["auto"] == spread["none"]


def test_samples_are_answered_alone(backend):
    """The means that the control deviates from are no part of the batch for samples with seeds and for given probes."""
    rng = np.random.default_rng(0)
    g = normalize(image_chain(backend, rng, 2, [3, 3], (3, 3), [(3, 3)] * 3, "zeros", (True, False)), 0.9)
    x, noise = rng.standard_normal((5, 2, 3, 3)), np.sign(rng.standard_normal((1, 5, 2, 3, 3)))

    def value(part, **options):
        result = logdet(g, array(backend, x[part]), method="series", terms=2, control_variate="trace", **options)
        return host(backend, result.value)

    np.testing.assert_allclose(value(slice(5), rng="sample")[1:3], value(slice(1, 3), rng="sample"), rtol=1e-12)
    given = [value(part, noise=array(backend, noise[:, part])) for part in (slice(5), slice(1, 3))]
    np.testing.assert_allclose(given[0][1:3], given[1], rtol=1e-12)


@pytest.mark.needs("autodiff")
@pytest.mark.parametrize("middle", [1, 2])
def test_gradient_with_an_activation_first(backend, middle):
    """All Hadamard rows leave no noise: the gradients of what is known and of the remainder make that of the trace."""
    rng = np.random.default_rng(0)
    kernels = [0.2 * rng.standard_normal(shape) for shape in ((3, 2, 2), *((3, 3, 1),) * middle, (2, 3, 2))]
    x = array(backend, rng.standard_normal((2, 2, 4)))

    def loss(*kernels, **options):
        layers = []
        for kernel in kernels:
            layers += [Activation("sin"), Convolution(kernel, input_shape=(kernel.shape[1], 4), padding="same")]
        return backend.xp.sum(logdet(Chain(layers), x, lipschitz=0.9, **options).value)

    given = [array(backend, kernel) for kernel in kernels]
    exact = gradients(backend, lambda *k: loss(*k, method="exact"), given)
    options = {"method": "arnoldi", "probes": 8, "rng": 1, "terms": 8, "control_variate": "trace", "errors": False}
    found = gradients(backend, lambda *k: loss(*k, **options), given)
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
