"""Blocks that keep only their input: the same values, gradients and random numbers, and memory that does not grow."""

import numpy as np
import pytest
from branches_for_tests import array, host
from frameworks_for_tests import compiled, gradients

from iresnet_core import Activation, Chain, Convolution, Dense, Flow, ResidualBlock, logdet
from iresnet_core.branches import conditioned

pytestmark = pytest.mark.needs("autodiff")

# Below and above the limit of the exact answer, convolutions with the activation first, and a condition.
SHAPES = {"exact": (3,), "dense": (40,), "convolutional": (2, 6, 5), "conditional": (34,)}
TRAINING = {"errors": False, "probes": 2, "rng": 5}
UNBIASED = {"errors": False, "unbiased": True, "rng": 5}


def problem(backend, kind, *, hidden=7):
    """Samples and weights of a flow, and a function of them that makes it."""
    rng, shape, blocks = np.random.default_rng(3), SHAPES[kind], 1 if kind == "convolutional" else 2
    window = (3, 3) if len(shape) > 1 else ()
    arguments = [rng.standard_normal((5, *shape))]
    for _ in range(blocks):
        sizes = ((hidden, shape[0], *window), (shape[0], hidden, *window))
        arguments += [0.5 * rng.standard_normal(size) / np.prod(size[1:]) ** 0.5 for size in sizes]
        arguments.append(rng.standard_normal(hidden))
    if kind == "conditional":
        arguments.append(rng.standard_normal((5, hidden)))

    def branch(A, B, bias, condition):
        if window:
            layers = [
                *(Activation("lipswish"), Convolution(A, bias, input_shape=shape, padding="same")),
                *(Activation("lipswish"), Convolution(B, input_shape=(hidden, *shape[1:]), padding="same")),
            ]
        else:
            layers = [Dense(A, bias), Activation("lipswish"), Dense(B)]
        return Chain(layers if condition is None else conditioned(layers, condition))

    def flow(*weights):
        condition = weights[-1] if kind == "conditional" else None
        parts = (weights[k : k + 3] for k in range(0, 3 * blocks, 3))
        return Flow([ResidualBlock(branch(*part, condition), lipschitz=0.95) for part in parts], event_shape=shape)

    return flow, [array(backend, a) for a in arguments]


def values_and_gradients(backend, flow, arguments, *, compiler=None, **options):
    """Log-densities, and the gradients of their mean by samples and weights."""
    said = set()

    def loss(x, *weights):
        found = flow(*weights).log_prob(x, **options)
        said.add(found.method)
        return backend.xp.mean(found.value)

    if backend.name == "jax":  # eager JAX would compile every operation by itself
        import jax

        value, found = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(arguments)))))(*arguments)
        found = [backend.to_numpy(g) for g in found]
    else:
        program = loss if compiler is None else compiled(backend, compiler, loss)
        value, found = loss(*arguments), gradients(backend, program, arguments)
    return said, [host(backend, value), *found]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("exact", TRAINING), ("dense", TRAINING), ("convolutional", TRAINING), ("conditional", TRAINING)),
        ("dense", UNBIASED),
        # JAX compiles these for half a minute.
        *(
            pytest.param(kind, options, marks=pytest.mark.strict_suite)
            for kind, options in (("convolutional", {}), ("dense", {"method": "mean-jacobian", "probes": 3}))
        ),
    ],
)
def test_values_and_gradients_are_those_without(backend, kind, options):
    flow, arguments = problem(backend, kind)
    said, expected = values_and_gradients(backend, flow, arguments, **options)
    found = values_and_gradients(backend, flow, arguments, checkpoint=True, **options)
    assert found[0] == said
    for one, other in zip(found[1], expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11 * np.max(np.abs(other)))


@pytest.mark.parametrize("kind", [pytest.param("convolutional", marks=pytest.mark.strict_suite), "dense"])
@pytest.mark.parametrize("compiler", ["aot_eager", "graph", "xla"])
def test_compiled(backend, compiler, kind):
    if compiler not in {"torch": ["aot_eager"], "tensorflow": ["graph", "xla"]}.get(backend.name, []):
        pytest.skip("no compiler of this backend")
    flow, arguments = problem(backend, kind)
    _, expected = values_and_gradients(backend, flow, arguments, **TRAINING)
    _, found = values_and_gradients(backend, flow, arguments, compiler=compiler, checkpoint=True, **TRAINING)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10 * np.max(np.abs(other)))


@pytest.mark.parametrize("method", ["exact", "series"])
def test_a_function_is_evaluated_again_on_the_way_back(backend, method):
    if backend.name == "jax":
        pytest.skip("JAX evaluates a function when it is traced; see the next test")
    xp, evaluations = backend.xp, []
    matrix = array(backend, 0.1 * np.random.default_rng(1).standard_normal((6, 6)))

    def g(x):
        evaluations.append(1)
        return xp.sin(xp.matmul(x, matrix))

    def loss(x, checkpoint):
        options = {"terms": 9, "rng": 2} if method == "series" else {}
        return xp.sum(logdet(g, x, lipschitz=0.5, method=method, checkpoint=checkpoint, **options).value)

    x = array(backend, np.random.default_rng(0).standard_normal((4, 6)))
    (expected,), (found,) = (gradients(backend, lambda x, again=again: loss(x, again), [x]) for again in (False, True))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert len(evaluations) >= 3
    evaluations.clear()
    logdet(g, x, lipschitz=0.5, method="series", terms=9, rng=2, checkpoint=True)
    assert len(evaluations) <= 3  # not one for every product


def test_memory_of_deep_flows_on_jax(backend):
    if backend.name != "jax":
        pytest.skip("only JAX says what a compiled program takes")
    import jax

    rng = np.random.default_rng(0)
    x = backend.from_numpy(rng.standard_normal((100, 40)))

    def temporary(blocks):
        weights = [backend.from_numpy(0.4 * rng.standard_normal(s) / 9) for s in [(80, 40), (40, 80)]]

        def loss(x, *weights):
            block = ResidualBlock(Chain([Dense(weights[0]), Activation("lipswish"), Dense(weights[1])]), lipschitz=0.9)
            flow = Flow([block] * blocks, event_shape=(40,))
            return flow.log_prob(x, checkpoint=True, **TRAINING).value.mean()

        program = jax.jit(jax.grad(loss, argnums=(1, 2))).lower(x, *weights).compile()
        return program.memory_analysis().temp_size_in_bytes / x.nbytes

    few, many = temporary(2), temporary(5)
    # A block: its input, two probes, its weights and what they are scaled by; 17 without.
    assert many - few < 3 * 7


def test_the_trace_of_convolutions_compiles(backend):
    """What is kept of the geometry is a constant of the program; no derivative, to be quick."""
    if backend.name != "torch":
        pytest.skip("other compilers take any function for a constant")
    flow, (x, *weights) = problem(backend, "convolutional")

    def trace(x, *weights):
        return flow(*weights).layers[0].branch.linearize(x).trace()

    def expanded_trace(x, *weights):
        layers = flow(*weights).layers[0].branch.layers
        point = Convolution(layers[3].weight[:, :2, :1, :1], input_shape=layers[1].input_shape)
        known = Chain([*layers, layers[0], point, layers[0], point]).linearize(x).structure.expanded_trace()
        return known.value, known.remainder(backend.xp.reshape(x, (1, x.shape[0], -1)))

    for function in (trace, expanded_trace):
        found, expected = compiled(backend, "eager", function)(x, *weights), function(x, *weights)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(host(backend, one), host(backend, other), rtol=1e-12, atol=1e-14)
