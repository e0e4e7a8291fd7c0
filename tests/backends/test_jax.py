"""The JAX backend under grad, jit and vmap, with keys, and without 64-bit types."""

import os
import subprocess
import sys

import numpy as np
import pytest

from iresnet_core.backends import backend as find_backend
from iresnet_core.backends import device_of, get_backend
from iresnet_core.errors import DerivativeError, DtypeError, InvalidArgumentError

jax = pytest.importorskip("jax", reason="JAX is not installed")
import jax.numpy as jnp  # noqa: E402
from jax import lax  # noqa: E402


@pytest.fixture(scope="module")
def backend():
    return find_backend("jax")


def close(actual, expected, tolerance=1e-12):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=tolerance, atol=tolerance)


X = np.array([0.3, -0.7, 1.1])
W = np.array([[0.2, -0.1, 0.3], [0.1, 0.4, -0.2], [-0.3, 0.2, 0.1]])

WAYS = {
    "eager": lambda f: f,
    "jit": lambda f: jax.jit(f),
    "vmap": lambda f: lambda *args: jax.vmap(f)(*(jnp.stack([a, a]) for a in args))[0],
    "jit of vmap": lambda f: lambda *args: jax.jit(jax.vmap(f))(*(jnp.stack([a, a]) for a in args))[1],
}


@pytest.fixture(params=WAYS)
def way(request):
    """How a function of arrays is run: as it is, or transformed."""
    return WAYS[request.param]


# --- what is known when ---


def test_what_is_traced(backend):
    seen = {}

    def look(name):
        def f(x):
            seen[name] = (backend.is_tracing(x), backend.is_tracing(), backend.may_differentiate(x))
            assert get_backend(x) is backend
            return jnp.sum(x)

        return f

    x = jnp.asarray(X)
    look("eager")(x)
    jax.grad(look("grad"))(x)
    jax.hessian(look("hessian"))(x)
    jax.jit(look("jit"))(x)
    jax.jit(jax.grad(look("jit of grad")))(x)
    jax.vmap(look("vmap"))(x[None])
    assert seen == {
        "eager": (False, False, False),
        "grad": (False, False, True),
        "hessian": (False, False, True),
        "jit": (True, True, True),
        "jit of grad": (True, True, True),
        "vmap": (True, False, True),
    }


def test_values_within_grad_reach_the_host(backend):
    def f(x):
        np.testing.assert_array_equal(backend.to_numpy(2 * x), 2 * X)
        return jnp.sum(x)

    close(jax.grad(f)(jnp.asarray(X)), np.ones(3))


def test_constants_are_computed_while_tracing(backend):
    w = jnp.asarray(W)

    @jax.jit
    def f(x):
        assert backend.is_tracing(w)
        assert backend.is_constant(w)
        assert not backend.is_constant(w, x)
        norm = backend.concretely(lambda: float(jnp.linalg.norm(w)))
        return x / norm

    close(f(jnp.asarray(X)), X / np.linalg.norm(W))


def test_products_are_taken_in_full_precision(backend):
    x = jnp.asarray(W, dtype=jnp.float32)
    for product in (backend.xp.matmul, backend.xp.linalg.matmul, backend.xp.linalg.vecdot, backend.xp.tensordot):
        assert "HIGHEST" in str(jax.make_jaxpr(lambda a, f=product: f(a, a))(x))


# --- derivatives ---


def test_vjp(backend, way):
    def f(x, u):
        value, pullback = backend.vjp(lambda x: jnp.tanh(jnp.asarray(W) @ x), x)
        return pullback(u) + pullback(value) - pullback(value)

    u = np.arange(3.0)
    close(way(f)(jnp.asarray(X), jnp.asarray(u)), W.T @ ((1 - np.tanh(W @ X) ** 2) * u))


def fixed_point(backend, w, y):
    """Solve x + tanh(w x) = y, native loop included."""

    def step(k, x):
        return k + 1, y - jnp.tanh(w @ x)

    def native(x):
        return lax.while_loop(lambda s: s[0] < 5, lambda s: step(*s), (0, x))[1]

    return backend.while_loop(lambda k, x: k < 200, step, (jnp.asarray(0), native(y)), 200)[1]


def inverse(backend, w, y):
    """The same with the implicit gradient."""
    x = backend.stop_gradient(fixed_point(backend, w, y))
    x = y - jnp.tanh(w @ x)
    _, pullback = backend.vjp(lambda x: jnp.tanh(w @ x), backend.stop_gradient(x))

    def solve(cotangent):
        def step(k, v):
            return k + 1, cotangent - pullback(v)

        return backend.while_loop(lambda k, v: k < 200, step, (jnp.asarray(0), cotangent), 200)[1]

    return backend.map_cotangent(x, solve)


def exact_gradients(w, y):
    """Gradients of sum(x^2) for x + tanh(w x) = y with respect to w and y."""
    x = y
    for _ in range(300):
        x = y - np.tanh(w @ x)
    slope = 1 - np.tanh(w @ x) ** 2
    v = np.linalg.solve(np.eye(3) + (slope[:, None] * w).T, 2 * x)
    return -np.outer(slope * v, x), v


def test_implicit_gradient(backend, way):
    def loss(w, y):
        return jnp.sum(inverse(backend, w, y) ** 2)

    for argument, expected in enumerate(exact_gradients(W, X)):
        close(way(jax.grad(loss, argument))(jnp.asarray(W), jnp.asarray(X)), expected)


def test_gradient_with_respect_to_what_is_closed_over(backend):
    def loss(w):
        return jnp.mean(jax.vmap(lambda y: jnp.sum(inverse(backend, w, y) ** 2))(jnp.asarray([X, X])))

    expected = exact_gradients(W, X)[0]
    close(jax.grad(loss)(jnp.asarray(W)), expected)
    close(jax.jit(jax.grad(loss))(jnp.asarray(W)), expected)


def test_loops_have_no_derivative(backend, way):
    def loss(w, y):
        return jnp.sum(fixed_point(backend, w, y) * y)  # w and y are closed over by the step

    x = fixed_point(backend, jnp.asarray(W), jnp.asarray(X))
    close(way(jax.grad(loss, 0))(jnp.asarray(W), jnp.asarray(X)), np.zeros((3, 3)))
    close(way(jax.grad(loss, 1))(jnp.asarray(W), jnp.asarray(X)), x)


def test_cotangent_is_mapped(backend, way):
    def loss(x, scale):
        return jnp.sum(jnp.sin(backend.map_cotangent(x, lambda ct: scale * ct)))

    x, scale = jnp.asarray(X), jnp.asarray(5.0)
    close(way(jax.grad(loss))(x, scale), 5 * np.cos(X))
    close(way(jax.grad(loss, 1))(x, scale), 0.0)


def test_cotangent_map_closes_over_whole_numbers(backend):
    def loss(x, k):
        return jnp.sum(backend.map_cotangent(x, lambda ct: k * ct))

    close(jax.grad(jax.jit(loss))(jnp.asarray(X), jnp.asarray(3)), np.full(3, 3.0))
    close(jax.vmap(jax.grad(loss))(jnp.asarray([X]), jnp.asarray([3]))[0], np.full(3, 3.0))


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("compiled", [False, True])
def test_second_derivatives_are_refused(backend, outer, compiled):
    def loss(y):
        return jnp.sum(inverse(backend, jnp.asarray(W), y) ** 2)

    second = outer(jax.grad(loss))
    with pytest.raises(DerivativeError, match="second derivative"):
        (jax.jit(second) if compiled else second)(jnp.asarray(X))


def test_loops_stop_early_and_at_the_limit(backend, way):
    def run(x, limit=50):
        def step(k, x):
            return k + 1, x / 2

        return backend.while_loop(lambda k, x: jnp.max(jnp.abs(x)) > 0.1, step, (jnp.asarray(0), x), limit)[1]

    close(way(run)(jnp.asarray(X)), X / 16)
    close(way(lambda x: run(x, 2))(jnp.asarray(X)), X / 4)
    close(way(lambda x: run(x, 0))(jnp.asarray(X)), X)


def test_loop_over_closed_over_batch(backend):
    # The state is concrete, the condition and the step are not.
    def run(x):
        def step(total):
            return (total + x,)

        return backend.while_loop(lambda total: total < 10 * x, step, (jnp.asarray(0.0),), 100)[0]

    close(jax.vmap(run)(jnp.asarray([1.0, 2.0])), [10.0, 20.0])


OPTIONS = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2), "groups": 2}


def test_convolution_and_its_adjoint_are_differentiated(backend, way):
    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(rng.standard_normal((2, 4, 7, 6))), jnp.asarray(rng.standard_normal((6, 2, 3, 2)))

    def inner(x, kernel):
        y = backend.conv(x, kernel, **OPTIONS)
        back = backend.conv_transpose(y, kernel, spatial=x.shape[2:], **OPTIONS)
        return jnp.sum(back * x) - jnp.sum(y * y)  # <A^T A x, x> = |A x|^2 for every x and kernel

    for argument in (0, 1):
        close(way(jax.grad(inner, argument))(x, kernel), np.zeros((x, kernel)[argument].shape), 1e-10)


# --- noise ---


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_keys(backend, make, kind):
    like = jnp.zeros(1)

    def two(key):
        source = backend.generator(key)
        return jnp.stack([backend.sample(kind, (5,), like, source) for _ in range(2)])

    drawn = two(make(3))
    assert (drawn[0] != drawn[1]).any()
    np.testing.assert_array_equal(drawn, two(make(3)))
    np.testing.assert_array_equal(drawn, jax.jit(two)(make(3)))
    assert (drawn != two(make(4))).any()
    batch = jax.vmap(two)(jnp.stack([make(3), make(4)]))
    np.testing.assert_array_equal(batch[0], drawn)
    assert np.unique(np.abs(drawn)).size == (1 if kind == "rademacher" else 10)


def test_uniform_numbers_from_keys(backend):
    key = jax.random.key(0)
    u = backend.uniform((1000,), key)
    assert type(u) is np.ndarray
    assert u.dtype == np.float64
    assert abs(u.mean() - 0.5) < 0.05

    def in_a_program():
        source = backend.generator(key)
        backend.sample("gaussian", (3,), jnp.zeros(1), source)
        return jnp.asarray(backend.uniform((1000,), source))

    np.testing.assert_array_equal(jax.jit(in_a_program)(), in_a_program())
    with pytest.raises(InvalidArgumentError, match="draws how many products"):
        jax.jit(lambda key: backend.uniform((3,), key))(jax.random.key(0))


def test_a_key_has_to_be_one_key(backend):
    for wrong in (jnp.zeros(2), jax.random.split(jax.random.key(0), 3), jnp.zeros((2, 2), jnp.uint32)):
        with pytest.raises(InvalidArgumentError, match="key"):
            backend.generator(wrong)


def test_noise_without_rng_is_not_baked_into_a_program(backend):
    like = jnp.zeros(1)
    with pytest.raises(InvalidArgumentError, match="every"):
        jax.jit(lambda: backend.sample("gaussian", (3,), like, None))()
    seeded = jax.jit(lambda: backend.sample("gaussian", (3,), like, 7))()
    np.testing.assert_array_equal(seeded, backend.sample("gaussian", (3,), like, 7))


# --- without 64-bit types ---

NARROW = """
import numpy as np, jax, jax.numpy as jnp
from iresnet_core.backends import backend
from iresnet_core.errors import DtypeError
backend = backend("jax")
assert not jax.config.jax_enable_x64
host = np.arange(3.0)
for wide in (host, host + 0j):
    try:
        backend.from_numpy(wide)
    except DtypeError as error:
        assert "JAX_ENABLE_X64" in str(error)
    else:
        raise SystemExit("float64 was rounded silently")
assert backend.from_numpy(np.arange(3)).dtype == jnp.int32
x = backend.from_numpy(host.astype(np.float32))
with backend.full_precision():
    wide = backend.from_numpy(host, x)
    assert wide.dtype == jnp.float64 and (wide + backend.xp.astype(x, backend.xp.float64)).dtype == jnp.float64
    assert backend.is_positive_definite(backend.xp.eye(3, dtype=backend.xp.float64))
assert jnp.ones(1).dtype == jnp.float32
assert backend.to_numpy(wide).dtype == np.float64
expected = np.random.default_rng(3).standard_normal(4).astype(np.float32)
assert (backend.to_numpy(backend.sample("gaussian", (4,), x, 3)) == expected).all()
assert backend.sample("gaussian", (4,), x, jax.random.key(0)).dtype == jnp.float32
assert backend.uniform((4,), jax.random.key(0)).dtype == np.float64

def loss(x):
    with backend.full_precision():
        def half(ct):
            scale = backend.xp.asarray(0.5, dtype=backend.xp.float64)
            return backend.xp.astype(backend.xp.astype(ct, backend.xp.float64) * scale, ct.dtype)
        y = backend.map_cotangent(x * x, half)
        bound = backend.xp.sum(backend.xp.astype(backend.stop_gradient(y), backend.xp.float64))
        return jnp.sum(y) + backend.xp.astype(bound, y.dtype)

for gradient in (jax.grad(loss), jax.jit(jax.grad(loss))):
    assert (np.asarray(gradient(x)) == host).all() and gradient(x).dtype == jnp.float32
"""


NARROW_CORE = """
import jax, jax.numpy as jnp, numpy as np
from iresnet_core import Activation, Chain, Dense, invert, logdet, normalize, spectral_norm
from iresnet_core.errors import NonFiniteError
rng = np.random.default_rng(0)
def random(*shape):
    return jnp.asarray(rng.standard_normal(shape).astype(np.float32))
W, x, A = [random(4, 3), random(4), random(3, 4), random(3)], random(2, 3), random(5, 4)
def chain(w):
    return normalize(Chain([Dense(w[0], w[1]), Activation("tanh"), Dense(w[2], w[3])]), 0.8)
g = chain(W)
for fn in (invert, logdet):
    try:
        fn(g, x.at[0, 0].set(jnp.nan))
    except NonFiniteError as error:
        assert "NaN" in str(error)
    else:
        raise SystemExit("NaN was let through")
assert spectral_norm(A).value.dtype == jnp.float32
jax.jit(jax.grad(lambda a: spectral_norm(a, method="power").value))(A)
def exact(w, x):
    return jnp.sum(logdet(chain(w), x).value)
def both(w, x):
    g = chain(w)
    return jnp.sum(logdet(g, x, method="arnoldi", terms=2, rng=0).value) + jnp.sum(invert(g, x).value)
def scanned(w, x):
    def step(total, key):
        return total + jnp.sum(logdet(chain(w), x, method="series", terms=2, rng=key).value), None
    return jax.lax.scan(step, 0.0, jax.random.split(jax.random.key(0), 2))[0]
for loss in (both, scanned, jax.checkpoint(lambda w, x: exact(w, x) + both(w, x))):
    gradients = jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(W, x))
    assert all(g.dtype == jnp.float32 and np.isfinite(g).all() for g in gradients)
found = jax.grad(exact, argnums=(0, 1))(W, x)
jax.config.update("jax_enable_x64", True)
wide = jax.grad(exact, argnums=(0, 1))(*jax.tree.map(lambda a: a.astype(jnp.float64), (W, x)))
for narrow, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wide), strict=True):
    assert narrow.dtype == jnp.float32 and expected.dtype == jnp.float64
    np.testing.assert_allclose(narrow, expected, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.parametrize("program", [NARROW, NARROW_CORE], ids=["backend", "core"])
def test_without_64_bit_types(tmp_path, program):
    environment = {**os.environ, "JAX_ENABLE_X64": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_switch_of_the_process_is_left_alone(backend):
    before = jax.config.jax_enable_x64
    with backend.full_precision():
        pass
    assert jax.config.jax_enable_x64 == before


def test_float64_is_kept(backend):
    assert backend.from_numpy(X).dtype == jnp.float64
    assert issubclass(DtypeError, TypeError)


def test_what_is_made_like_an_array_is_bound_to_a_device_only_where_that_is(backend):
    """Arrays that are bound bind what is computed from them, and programs are compiled once more for those."""
    free = jnp.ones(3)
    bound = jax.device_put(free, jax.devices()[0])
    for like, expected in ((free, False), (bound, True)):
        assert like.committed is expected
        assert backend.from_numpy(np.ones(2), like).committed is expected
        assert backend.xp.zeros(2, device=device_of(like)).committed is expected
    assert jax.jit(lambda x: x if device_of(x) is None else None)(bound) is not None
