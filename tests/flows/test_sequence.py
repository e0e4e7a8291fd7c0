"""Flows of the core as sequences of layers, the shape that layers know, and shapes of samples."""

import numpy as np
import pytest

from iresnet_core import Activation, ActNorm, Chain, Dense, Flow, Logit, ResidualBlock, Squeeze
from iresnet_core.errors import InvalidArgumentError, ShapeError


def block(d, seed=0):
    weight = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]
    return ResidualBlock(Chain([Dense(0.5 * weight), Activation("tanh")]))


def flow(**options):
    data = np.random.default_rng(1).standard_normal((20, 3))
    return Flow([ActNorm(), block(3), block(3, 1)], **options).initialize(data)


def test_layers_by_their_numbers():
    whole = flow()
    assert len(whole) == 3
    assert list(whole) == [whole[0], whole[1], whole[-1]] == list(whole.layers)
    x = np.random.default_rng(2).standard_normal((4, 3))
    np.testing.assert_array_equal(whole[1:](whole[:1](x)), whole(x))
    assert whole[1:].event_shape == (3,)


def test_parts_that_are_none():
    whole = flow()
    with pytest.raises(IndexError, match="3 layers"):
        whole[3]
    for key in ("a", True, slice(None, None, 2), slice(2, 1)):
        with pytest.raises(InvalidArgumentError, match="flow"):
            whole[key]


def test_the_last_part_has_the_base():
    whole = flow(base="normal")
    assert Flow(whole.layers, 3, base=flow().base)[:2].base == "normal"
    assert whole[1:].base is whole.base


def test_shape_of_one_sample():
    assert flow().event_shape == flow(event_shape=3).event_shape == (3,)
    assert Flow([Flow([block(3)])]).event_shape == (3,)
    for layers in ([Logit()], [Squeeze(), ActNorm()]):
        with pytest.raises(ShapeError, match="event_shape="):
            Flow(layers)
    with pytest.raises(InvalidArgumentError, match="event_shape"):
        flow(event_shape=0)


def test_shapes_of_samples():
    whole = flow()
    assert whole.sample(rng=0).value.shape == (3,)
    assert whole.sample((), rng=0).error_bound.shape == ()
    np.testing.assert_array_equal(whole.sample((2, 3), rng=0).value.reshape(6, 3), whole.sample(6, rng=0).value)
    assert whole.sample((0,), rng=0).value.shape == (0, 3)
    drawn = whole.sample_and_log_prob((2, 2), rng=0)
    assert drawn.samples.value.shape == (2, 2, 3)
    assert drawn.log_prob.value.shape == drawn.samples.error_bound.shape == (2, 2)
    with pytest.raises(InvalidArgumentError, match="n"):
        whole.sample((2, -1))
