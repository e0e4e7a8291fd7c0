"""TensorFlow: derivatives, loops and convolutions, eagerly, in tf.function and compiled by XLA."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iresnet_core import Activation, Chain, Convolution, Dense, logdet
from iresnet_core.backends import backend as find_backend
from iresnet_core.backends import get_backend
from iresnet_core.errors import DerivativeError, InvalidArgumentError

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

backend = find_backend("tensorflow")
xp = backend.xp

MODES = {
    "eager": lambda fn: fn,
    "graph": lambda fn: tf.function(fn, autograph=False),
    "xla": lambda fn: tf.function(fn, autograph=False, jit_compile=True),
}
every_mode = pytest.mark.parametrize("compiled", MODES.values(), ids=MODES)


def numbers(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(actual, expected, rtol=1e-12, atol=1e-12):
    np.testing.assert_allclose(backend.to_numpy(actual), expected, rtol=rtol, atol=atol)


# --- derivatives ---

W = numbers(3, 3, seed=2)


def curved(x):
    return xp.matmul(xp.tanh(x), tf.constant(W)) * xp.sum(x, axis=-1, keepdims=True)


def jacobian_products(x, u):
    """J^T u of `curved` by hand."""
    s, t = x.sum(-1, keepdims=True), np.tanh(x)
    return s * (u @ W.T) * (1 - t**2) + ((t @ W) * u).sum(-1, keepdims=True)


@every_mode
def test_pullback_is_reusable(compiled):
    def run(x, u, v):
        value, pullback = backend.vjp(curved, x)
        return value, pullback(u), pullback(v)

    x, u, v = (numbers(2, 3, seed=seed) for seed in (3, 4, 5))
    value, first, second = compiled(run)(*map(tf.constant, (x, u, v)))
    close(value, (np.tanh(x) @ W) * x.sum(-1, keepdims=True))
    close(first, jacobian_products(x, u))
    close(second, jacobian_products(x, v))


@every_mode
def test_pullback_is_differentiable(compiled):
    def run(x, u):
        with tf.GradientTape() as tape:
            tape.watch([x, u])
            loss = xp.sum(backend.vjp(curved, x)[1](u) ** 2)
        return tape.gradient(loss, [x, u])

    x, u = numbers(2, 3, seed=3), numbers(2, 3, seed=4)
    actual = [backend.to_numpy(g) for g in compiled(run)(tf.constant(x), tf.constant(u))]
    for which in range(2):
        direction, h = numbers(2, 3, seed=9), 1e-6
        ends = []
        for sign in (1, -1):
            arguments = [x.copy(), u.copy()]
            arguments[which] += sign * h * direction
            ends.append((jacobian_products(*arguments) ** 2).sum())
        assert abs((actual[which] * direction).sum() - (ends[0] - ends[1]) / (2 * h)) < 1e-6 * abs(ends[0])


def test_unconnected_value_has_zero_pullback():
    close(backend.vjp(lambda x: xp.ones(2), xp.ones(3))[1](xp.ones(2)), np.zeros(3))


@every_mode
def test_vjp_where_recording_is_paused(compiled):
    def run(x):
        with backend.no_grad():
            value, pullback = backend.vjp(lambda x: x**3, x)
            return pullback(xp.ones_like(value))

    close(compiled(run)(tf.constant([1.0, 2.0])), [3, 12])


def test_nothing_is_recorded_where_recording_is_paused():
    x = tf.constant([1.0, 2.0])
    assert not backend.may_differentiate(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        assert backend.may_differentiate(x)
        with backend.no_grad():
            assert not backend.may_differentiate(x)
            y = x * x
    assert tape.gradient(y, x) is None


@every_mode
def test_variables_have_gradients_through_vjp(compiled):
    weight = tf.Variable([2.0, 3.0])

    def run(x):
        with tf.GradientTape() as tape:
            value, pullback = backend.vjp(lambda x: weight * x**2, x)
            loss = xp.sum(value) + xp.sum(pullback(xp.ones_like(value)))
        return tape.gradient(loss, weight)

    close(compiled(run)(tf.constant([1.0, 5.0])), [3, 35])


@every_mode
def test_map_cotangent(compiled):
    weight = tf.Variable([2.0, 3.0])

    def run(x):
        scale = 10 * weight
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = backend.map_cotangent(x * weight, lambda cotangent: cotangent * scale)
            loss = xp.sum(y**2)
        return y, *tape.gradient(loss, [x, weight])

    y, to_x, to_weight = compiled(run)(tf.constant([1.0, 1.0]))
    close(y, [2, 3])
    close(to_x, [2 * 2 * 20 * 2, 2 * 3 * 30 * 3])
    close(to_weight, [2 * 2 * 20, 2 * 3 * 30])


@every_mode
def test_second_derivative_through_map_cotangent_is_refused(compiled):
    factor = tf.Variable(3.0)

    def run(x):
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                # The cotangent of ones is a constant, so that only what `fn` closes over depends on `factor`.
                loss = xp.sum(backend.map_cotangent(x, lambda cotangent: cotangent * factor))
            first = inner.gradient(loss, x)
        return outer.gradient(first, factor)

    with pytest.raises(DerivativeError, match="second derivative"):
        compiled(run)(tf.constant([1.0, 2.0]))


@pytest.mark.parametrize("persistent", [False, True])
def test_map_cotangent_in_a_compiled_function_under_an_eager_tape(persistent):
    fn = backend.jit(lambda x: backend.map_cotangent(x * x, lambda cotangent: 5 * cotangent))
    x = tf.constant([1.0, 2.0])
    with tf.GradientTape(persistent=persistent) as tape:
        tape.watch(x)
        y = fn(x)
    close(tape.gradient(y, x), [10, 20])


# --- programs ---


@every_mode
def test_while_loop(compiled):
    def run(x):
        def cond(k, x):
            return (k < 10) & xp.any(x < 100)

        def body(k, x):
            return k + 1, xp.where(x < 100, 2 * x, x)

        start = (xp.asarray(0, dtype=xp.int32), x)
        return backend.while_loop(cond, body, start, 20), backend.while_loop(cond, body, start, 3)

    (k, x), (few, y) = compiled(run)(tf.constant([1.0, 30.0]))
    assert (int(k), int(few)) == (7, 3)
    close(x, [128, 120])
    close(y, [8, 120])


@every_mode
def test_pullback_inside_a_loop(compiled):
    """Newton's method for x^3 = 2, whose derivative is taken at every step."""

    def run(x):
        def body(x):
            value, pullback = backend.vjp(lambda x: x**3 - 2, x)
            return (x - value / pullback(xp.ones_like(x)),)

        return backend.while_loop(lambda x: xp.any(xp.abs(x**3 - 2) > 1e-13), body, (x,), 30)[0]

    close(compiled(run)(tf.constant([1.0, 4.0], tf.float64)), np.cbrt([2, 2]))


def test_what_is_known_while_tracing():
    known, variable = tf.constant([1.0]), tf.Variable([1.0])
    seen = []

    def run(x):
        seen.append((backend.is_tracing(x), backend.is_constant(known), backend.is_constant(x, known)))
        seen.append(backend.concretely(lambda: float(xp.sum(known * 2))))
        pullback = backend.concretely(lambda: backend.vjp(lambda x: x**2, known)[1](known))
        seen.append((backend.is_constant(pullback), backend.is_constant(backend.frozen(known))))
        seen.append(backend.is_constant(variable))
        return x

    backend.jit(run)(known)
    assert seen == [(True, True, False), 2.0, (True, True), False]
    assert not backend.is_tracing(known)
    assert backend.is_constant(known, variable)


def test_variables_and_symbolic_tensors_belong_to_the_backend():
    assert get_backend(tf.Variable(1.0)) is backend
    backend.jit(lambda x: [x, *([] if get_backend(x) is backend else [1 / 0])])(tf.constant(1.0))


@pytest.mark.parametrize("make", [lambda W: Dense(W), lambda W: Convolution(W[:, :, None], input_shape=(3, 5))])
def test_layers_of_variables(make):
    variable = tf.Variable(0.1 * W)
    layer = make(variable)
    before = backend.to_numpy(layer.weight)
    variable.assign(5 * variable)
    np.testing.assert_array_equal(backend.to_numpy(layer.weight), before)


# --- noise ---


def test_noise_of_tensorflow_itself():
    like = xp.zeros(1, dtype=xp.float64)
    for kind in ("gaussian", "rademacher"):
        draws = []
        for _ in range(2):
            tf.random.set_seed(4)
            draws.append([backend.to_numpy(backend.sample(kind, (50,), like, None)) for _ in range(2)])
        np.testing.assert_array_equal(draws[0], draws[1])
        assert (draws[0][0] != draws[0][1]).any()
        own = [backend.sample(kind, (50,), like, tf.random.Generator.from_seed(3)) for _ in range(2)]
        np.testing.assert_array_equal(*map(backend.to_numpy, own))
    u = backend.uniform((100,), tf.random.Generator.from_seed(3))
    assert u.dtype == np.float64
    assert ((u >= 0) & (u < 1)).all()


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32"])
def test_noise_of_a_seed_tensor(dtype):
    like, seed = xp.zeros(1, dtype=xp.float64), tf.constant([3, 4], dtype=dtype)

    def draws(seed):
        stream = backend.generator(seed)
        return [backend.sample(kind, (2000,), like, stream) for kind in ("gaussian", "rademacher", "rademacher")]

    found = [backend.to_numpy(a) for a in draws(seed)]
    for a, b in zip(tf.function(draws)(seed), found, strict=True):
        close(a, b)
    xla = tf.function(draws, jit_compile=True)
    for a, b in zip(xla(seed), xla(seed), strict=True):
        close(a, b)
    assert (backend.to_numpy(draws(seed + 1)[0]) != found[0]).all()
    assert (found[1] != found[2]).any()
    assert set(found[1]) == {-1.0, 1.0}
    assert max(abs(a.mean()) for a in found) < 5 / 2000**0.5
    u = backend.uniform((100,), seed)
    assert u.dtype == np.float64
    assert ((u >= 0) & (u < 1)).all()
    with pytest.raises(InvalidArgumentError, match="two whole numbers"):
        backend.generator(tf.constant([1.0, 2.0]))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_noise_in_compiled_functions(jit_compile):
    like = xp.zeros(1)
    generator = tf.random.Generator.from_seed(1)
    for rng in (None, generator):
        draw = tf.function(lambda rng=rng: backend.sample("gaussian", (50,), like, rng), jit_compile=jit_compile)
        assert bool(xp.any(draw() != draw()))
    fixed = tf.function(lambda: backend.sample("gaussian", (50,), like, 7), jit_compile=jit_compile)
    close(fixed(), backend.sample("gaussian", (50,), like, 7))
    for rng in (None, generator):
        with pytest.raises(InvalidArgumentError, match="draws how many products"):
            tf.function(lambda rng=rng: backend.uniform((3,), rng), autograph=False)()


# --- convolutions ---


@st.composite
def geometries(draw):
    axes = draw(st.integers(1, 3))
    window = [draw(st.integers(1, 3)) for _ in range(axes)]
    dilation = [draw(st.integers(1, 2)) for _ in range(axes)] if draw(st.booleans()) else [1] * axes
    groups = draw(st.integers(1, 4))
    options = {
        "stride": [draw(st.integers(1, 3)) for _ in range(axes)],
        "padding": [(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(axes)],
        "dilation": dilation,
        "groups": groups,
    }
    spatial = [d * (k - 1) + draw(st.integers(1, 4)) for k, d in zip(window, dilation, strict=True)]
    return (2, 2 * groups, *spatial), (groups * draw(st.integers(1, 2)), 2, *window), options


def _gradients(x, kernel, options):
    """Value, adjoint product, and derivatives of both with respect to everything."""
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x, kernel])
        y = backend.conv(x, kernel, **options)
        u = xp.sin(y)
        back = backend.conv_transpose(u, kernel, spatial=x.shape[2:], **options)
        loss = xp.sum(back * xp.cos(x))
    return y, back, tape.gradient(y, [x, kernel], u), tape.gradient(loss, [x, kernel])


@pytest.mark.parametrize("jit_compile", [None, False, True], ids=["eager", "graph", "xla"])
@settings(max_examples=8)
@given(geometry=geometries())
def test_convolutions_and_their_derivatives(jit_compile, geometry):
    x_shape, kernel_shape, options = geometry
    x, kernel = numbers(*x_shape, seed=1), numbers(*kernel_shape, seed=2)
    host = find_backend("numpy")

    def numpy_loss(x, kernel):
        u = np.sin(host.conv(x, kernel, **options))
        return (host.conv_transpose(u, kernel, spatial=x.shape[2:], **options) * np.cos(x)).sum()

    run = _gradients if jit_compile is None else tf.function(_gradients, autograph=False, jit_compile=jit_compile)
    y, back, (to_x, to_kernel), gradients = run(tf.constant(x), tf.constant(kernel), options)
    expected = host.conv(x, kernel, **options)
    close(y, expected)
    close(back, host.conv_transpose(np.sin(expected), kernel, spatial=x_shape[2:], **options))
    close(to_x, back)
    # conv is linear in the kernel too
    other = numbers(*kernel_shape, seed=3)
    inner = (host.conv(x, other, **options) * np.sin(expected)).sum()
    np.testing.assert_allclose((backend.to_numpy(to_kernel) * other).sum(), inner, rtol=1e-9, atol=1e-9)
    for which, gradient in enumerate(gradients):
        direction, h, ends = numbers(*(x_shape, kernel_shape)[which], seed=4), 1e-6, []
        for sign in (1, -1):
            arguments = [x.copy(), kernel.copy()]
            arguments[which] += sign * h * direction
            ends.append(numpy_loss(*arguments))
        slope = (backend.to_numpy(gradient) * direction).sum()
        assert abs(slope - (ends[0] - ends[1]) / (2 * h)) <= 1e-5 * (1 + abs(ends[0]) + abs(slope))


# --- the core in a traced program ---


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_determinant_and_its_gradient_in_a_compiled_function(jit_compile):
    weights = [tf.Variable(0.5 * numbers(4, 4, seed=s) / np.linalg.norm(numbers(4, 4, seed=s), 2)) for s in (1, 2)]
    x = tf.constant(numbers(6, 4, seed=3))

    def step(x):
        with tf.GradientTape() as tape:
            g = Chain([Dense(tf.identity(weights[0])), Activation("tanh"), Dense(tf.identity(weights[1]))])
            value = logdet(g, x, method="exact", lipschitz=0.25).value
            loss = xp.sum(value)
        return value, tape.gradient(loss, weights)

    value, gradients = tf.function(step, autograph=False, jit_compile=jit_compile)(x)
    expected, expected_gradients = step(x)
    close(value, expected)
    for gradient, eager in zip(gradients, expected_gradients, strict=True):
        close(gradient, eager, rtol=1e-9)
        assert bool(xp.any(gradient != 0))


def test_definite_matrices_are_told_without_noise_in_the_log():
    code = (
        "import tensorflow as tf\n"
        "from iresnet_core.backends import backend\n"
        "print(backend('tensorflow').is_positive_definite(-tf.eye(3)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert "Cholesky" not in done.stderr
