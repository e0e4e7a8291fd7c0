"""Flows of every kind inside compiled functions: conditions, turned layers, angles, point sets, and every base."""

import math

import numpy as np
import pytest
from flow_examples import array, conditional_flow, dense_block, host
from frameworks_for_tests import COMPILERS, compiled

from iresnet_core import (
    Activation,
    Chain,
    Dense,
    DiagonalNormal,
    Flow,
    FourierFeatures,
    FullNormal,
    Inverted,
    NormalMixture,
    Pointwise,
    ProductBase,
    ResidualBlock,
    StudentT,
    Uniform,
    VonMises,
    Wrap,
)
from iresnet_core.flows import training_log_prob

pytestmark = pytest.mark.needs("compile")
RNG = np.random.default_rng(0)


def a_block(backend):
    return dense_block(backend, np.random.default_rng(1), 2)


def on_a_cylinder(backend):
    """An angle and a number, the first seen by its cosine and sine only."""
    embedding = FourierFeatures.of_angles(array(backend, np.zeros(1)), 2, [0])
    weights = [0.3 * RNG.normal(size=(5, 3)), 0.3 * RNG.normal(size=(2, 5))]
    dense = [Dense(array(backend, weight)) for weight in weights]
    block = ResidualBlock(Chain([embedding, dense[0], Activation("sin"), dense[1]]))
    zero = array(backend, np.zeros(1))
    base = ProductBase([VonMises(zero, zero + 2), StudentT(3.0, zero, zero + 1)])
    return Flow([Wrap(entries=[0]), block], (2,), base=base)


def with_base(make):
    return lambda e: Flow([a_block(e)], (2,), base=make(lambda values: array(e, values)))


FLOWS = {
    "conditional": lambda e: conditional_flow(e, 1),
    "inverted": lambda e: Flow([Inverted(a_block(e))], (2,)),
    "cylinder": on_a_cylinder,
    "points": lambda e: Flow([Pointwise(a_block(e))], (4, 2)),
    "diagonal": with_base(lambda a: DiagonalNormal(a([0.0, 1.0]), a([1.0, 2.0]))),
    "full": with_base(lambda a: FullNormal(a([0.0, 1.0]), a([[1.0, 0.0], [0.5, 2.0]]))),
    "mixture": with_base(lambda a: NormalMixture(a([0.0, 1.0]), a([[0.0, 1.0], [2.0, 2.0]]), a(np.ones((2, 2))))),
    "student": with_base(lambda a: StudentT(3.0, a([0.0, 1.0]), a([1.0, 2.0]))),
    "box": with_base(lambda a: Uniform([-9, -9], [9, 9])),
}


def arguments(backend, flow):
    x = array(backend, np.random.default_rng(2).normal(size=(3, *flow.event_shape)))
    width = flow.context_features
    return (x,) if width is None else (x, array(backend, np.random.default_rng(3).normal(size=(3, width))))


def some(*names):
    """Return all flows, of which these alone are tried in every run: each compiles for seconds."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.strict_suite) for name in FLOWS]


@pytest.mark.parametrize("name", some("conditional", "cylinder", "mixture", "box"))
def test_densities(backend, name):
    flow = FLOWS[name](backend)
    x, *context = arguments(backend, flow)

    def nats(x, *context):
        found = flow.log_prob(x, *context, method="exact")
        return found.value, found.bias_bound

    expected = nats(x, *context)[0]  # certifies the weights too
    value, bound = compiled(backend, COMPILERS[backend.name][0], nats)(x, *context)
    np.testing.assert_allclose(host(value), host(expected), rtol=1e-10, atol=1e-10)
    assert (host(bound) < 1e-6).all()


@pytest.mark.parametrize("name", some("inverted"))
def test_samples(backend, name):
    flow = FLOWS[name](backend)
    x, *context = arguments(backend, flow)

    def draw(like, *context):
        drawn = flow.sample(3, *context, rng=7, like=like, log_prob=True, method="exact")
        return drawn.samples.value, drawn.log_prob.value

    expected = draw(x, *context)
    found = compiled(backend, COMPILERS[backend.name][0], draw)(x, *context)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(host(one), host(other), rtol=1e-8, atol=1e-8)
    if name == "cylinder":
        assert (np.abs(host(found[0])[:, 0] - math.pi) <= math.pi).all()


@pytest.mark.strict_suite
@pytest.mark.parametrize("name", ["conditional", "inverted", "cylinder", "points"])
def test_preimages(backend, name):
    flow = FLOWS[name](backend)
    x, *context = arguments(backend, flow)
    back = compiled(backend, COMPILERS[backend.name][0], lambda *a: flow.inverse(*a, rtol=1e-12).value)(x, *context)
    np.testing.assert_allclose(host(back), host(flow.inverse(x, *context, rtol=1e-12).value), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FLOWS)
def test_programs_of_tensorflow_for_batches_of_any_size(backend, name):
    """Which Keras compiles as soon as the last batch is smaller; a step of training, too."""
    if backend.name != "tensorflow":
        pytest.skip("other compilers know the size")
    import tensorflow as tf

    flow = FLOWS[name](backend)
    inputs = arguments(backend, flow)
    specs = [tf.TensorSpec([None, *a.shape[1:]], a.dtype) for a in inputs]

    def nats(x, context=None):
        trained = training_log_prob(flow, x, context=context, method="exact", errors=False).value
        return flow.log_prob(x, context, method="exact").value, trained

    expected = host(nats(*inputs)[0])
    program = tf.function(nats, autograph=False, input_signature=specs)
    for size in (3, 2):
        for found in program(*(a[:size] for a in inputs)):
            np.testing.assert_allclose(host(found), expected[:size], rtol=1e-9, atol=1e-9)
