"""Flows on circles and tori: samples of one turn, densities that are periodic, errors along the circle."""

import math

import numpy as np
import pytest
from branches_for_tests import array, host

from iresnet_core import (
    Activation,
    Chain,
    Dense,
    DiagonalNormal,
    Flow,
    FourierFeatures,
    Inverted,
    ProductBase,
    ResidualBlock,
    Uniform,
    VonMises,
    Wrap,
)
from iresnet_core.errors import InvalidArgumentError, ShapeError

TURN = 2 * math.pi


def torus_flow(backend, dtype="float64", d=2, entries=None, blocks=2):
    """Blocks that see angles by their cosines and sines."""
    rng, layers = np.random.default_rng(4), [Wrap(-math.pi, entries=entries)]
    for _ in range(blocks):
        embedding = FourierFeatures.of_angles(array(backend, np.zeros(1), dtype), d, entries, frequencies=(1, 2))
        sizes = [(9, embedding.output_shape[0]), (d, 9)]
        weights = [rng.standard_normal(size) for size in sizes]
        scale = [0.9 / embedding.lipschitz, 0.9]
        dense = [
            Dense(
                array(backend, s * w / np.linalg.norm(w, 2), dtype), array(backend, rng.standard_normal(len(w)), dtype)
            )
            for s, w in zip(scale, weights, strict=True)
        ]
        layers.append(ResidualBlock(Chain([embedding, dense[0], Activation("sin"), dense[1]])))
    return Flow(layers, (d,))


def on_circle(x, y):
    """Distances of angles along the circle (batch,)."""
    return np.linalg.norm((x - y + math.pi) % TURN - math.pi, axis=1)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_whole_turns_change_nothing(backend, dtype):
    flow = torus_flow(backend, dtype)
    x = np.random.default_rng(0).uniform(-math.pi, math.pi, (20, 2))
    turned = x + TURN * np.random.default_rng(1).integers(-3, 4, x.shape)
    one, other = (flow.forward(array(backend, a, dtype)) for a in (x, turned))
    rounding = 400 * np.finfo(dtype).eps
    assert on_circle(host(backend, one.value), host(backend, other.value)).max() <= rounding
    np.testing.assert_allclose(
        host(backend, one.logdet.value), host(backend, other.logdet.value), atol=rounding, rtol=0
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_sample_leaves_the_torus(backend, dtype):
    flow = torus_flow(backend, dtype)
    z = array(backend, np.random.default_rng(2).uniform(-9, 9, (200, 2)), dtype)
    back = flow.inverse(z)
    x = host(backend, back.value)
    assert (x >= np.float64(-math.pi)).all()
    assert (x.astype(np.float64) < math.pi + (0 if dtype == "float64" else 1e-7)).all()
    again = flow.forward(back.value).value
    distance = on_circle(host(backend, again).astype(np.float64), host(backend, z).astype(np.float64))
    growth = 1.9**2  # of two blocks
    assert (distance <= growth * host(backend, back.error_bound) + 100 * np.finfo(dtype).eps).all()
    assert host(backend, back.error_bound).max() <= (1e-9 if dtype == "float64" else 1e-3)
    assert host(backend, back.converged).all()


def test_the_ends_of_a_turn(backend):
    ends = np.array([0.0, TURN, np.nextafter(TURN, 0), -1e-20, 3 * TURN, 1e6, -TURN])
    for dtype in ("float64", "float32"):
        z = host(backend, Wrap()(array(backend, ends[:, None], dtype)))
        assert (z >= 0).all()
        assert (z < z.dtype.type(TURN)).all()
    inverse = Wrap().inverse(array(backend, np.array([[1e6]]), "float32"))
    assert abs(host(backend, inverse.value)[0, 0] - 1e6 % TURN) <= host(backend, inverse.error_bound)[0]


def test_log_determinants_of_cylinders(backend):
    """One angle and one number; the exact log-determinant by central differences."""
    flow = torus_flow(backend, entries=[1])
    x = np.random.default_rng(3).uniform(-2, 2, (3, 2))
    step = 1e-5
    columns = [
        (host(backend, flow(array(backend, x + step * e))) - host(backend, flow(array(backend, x - step * e))))
        / (2 * step)
        for e in np.eye(2)
    ]
    expected = np.linalg.slogdet(np.stack(columns, axis=-1))[1]
    np.testing.assert_allclose(host(backend, flow.forward(array(backend, x)).logdet.value), expected, atol=1e-8)


def test_what_is_no_turn_is_refused(backend):
    with pytest.raises(InvalidArgumentError, match="period"):
        Wrap(0.0, -1.0)
    with pytest.raises(InvalidArgumentError, match="finite"):
        Wrap(math.nan)
    with pytest.raises(InvalidArgumentError, match="different places"):
        Wrap(entries=[0, 0])
    with pytest.raises(ShapeError, match="do not have"):
        Flow([Wrap(entries=[2])], (2,))
    with pytest.raises(ShapeError, match="twice"):
        Flow([Wrap(entries=[1, -1])], (2,))
    with pytest.raises(ShapeError, match="vectors"):
        Flow([Wrap(entries=[0])], (2, 2))


def test_the_base_has_the_period_of_the_angles(backend):
    flow = torus_flow(backend)
    x = array(backend, np.zeros((2, 2)))
    with pytest.raises(InvalidArgumentError, match="period"):
        flow.log_prob(x)
    with pytest.raises(InvalidArgumentError, match="period"):
        flow.sample(2, rng=0, log_prob=True)
    for inside in (flow, Inverted(flow)):
        with pytest.raises(InvalidArgumentError, match="period"):
            Flow([inside], (2,)).log_prob(x)
    with pytest.raises(InvalidArgumentError, match="period"):
        Flow(flow.layers, (2,), base=Uniform([0, 0], [4.0, TURN], periodic=True)).log_prob(x)
    ends = [0.0, 0.0], [TURN, TURN]
    for base in (Uniform(*ends, periodic=True), VonMises(x[0, ...], x[0, ...])):
        on_torus = Flow(flow.layers, (2,), base=base)
        nats = host(backend, on_torus.log_prob(x).value)
        expected = host(backend, flow.forward(x).logdet.value) - 2 * math.log(TURN)
        np.testing.assert_allclose(nats, expected, rtol=0, atol=1e-10)


def test_the_density_of_a_cylinder(backend):
    """An angle beside a number: samples have the angle within a turn, and only a base that is of both is taken."""
    flow = torus_flow(backend, entries=[1])
    x = array(backend, np.random.default_rng(3).uniform(-2, 2, (3, 2)))
    zero = x[0, :1] * 0
    number, angle = DiagonalNormal(zero, zero + 2), Uniform([-math.pi], [math.pi], periodic=True)
    on_cylinder = Flow(flow.layers, (2,), base=ProductBase([angle, number], [[1], [0]]))
    nats, z = on_cylinder.log_prob(x), flow.forward(x)
    numbers = host(backend, z.value)[:, 0] / 2
    expected = host(backend, z.logdet.value) - numbers**2 / 2 - math.log(2 * math.sqrt(TURN)) - math.log(TURN)
    np.testing.assert_allclose(host(backend, nats.value), expected, rtol=0, atol=1e-10)
    samples = host(backend, on_cylinder.sample(200, rng=0).value)
    assert (np.abs(samples[:, 1]) <= math.pi).all()
    assert np.abs(samples[:, 0]).max() > math.pi
    for base in (
        ProductBase([angle, number]),
        Uniform([-math.pi] * 2, [math.pi] * 2, periodic=True),
        VonMises(x[0, ...], x[0, ...] ** 2),
    ):
        with pytest.raises(InvalidArgumentError, match="period"):
            Flow(flow.layers, (2,), base=base).log_prob(x)
