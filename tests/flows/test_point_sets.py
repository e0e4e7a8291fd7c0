"""Point sets: the layer of a point for all of them, exact determinants, a code for each set."""

import numpy as np
import pytest
from branches_for_tests import array, host
from flow_examples import conditional_flow, dense_block, vector_flow

from iresnet_core import ActNorm, Flow, Inverted, Pointwise, Squeeze, training_loss
from iresnet_core.backends import backend as find_backend
from iresnet_core.errors import InvalidArgumentError, ShapeError

SETS, POINTS = 3, 7


def point_sets(backend, dtype="float64", points=POINTS):
    return array(backend, np.random.default_rng(0).normal(0, 1, (SETS, points, 3)), dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_sets_are_their_points(backend, dtype):
    inner = vector_flow(backend, 2, dtype=dtype)
    x = point_sets(backend, dtype)
    sets = Pointwise(inner).forward(x)
    assert sets.logdet.method == "exact"
    points = inner.forward(backend.xp.reshape(x, (-1, 3)))
    np.testing.assert_array_equal(host(backend, sets.value).reshape(-1, 3), host(backend, points.value))
    total = host(backend, points.logdet.value).astype(np.float64).reshape(SETS, POINTS).sum(axis=1)
    error = np.abs(host(backend, sets.logdet.value) - total)
    assert (error <= host(backend, sets.logdet.bias_bound)).all()
    assert (host(backend, sets.logdet.products) == 2 * 3 * POINTS).all()


def test_any_number_of_points(backend):
    layer = Pointwise(vector_flow(backend, 2))
    for points in (4,) if backend.name == "jax" else (1, 4, 9):  # which compiles every operation for every shape
        x = point_sets(backend, points=points)
        back = layer.inverse(layer(x))
        distance = np.linalg.norm((host(backend, back.value) - host(backend, x)).reshape(SETS, -1), axis=1)
        assert (distance <= host(backend, back.error_bound) + 1e-12).all()
        flow = Flow([layer], (points, 3))
        assert tuple(flow.log_prob(x).value.shape) == (SETS,)
        assert tuple(flow.sample(2, rng=0).value.shape) == (2, points, 3)


def test_every_point_of_a_set_has_the_code_of_the_set(backend):
    inner = conditional_flow(backend, 3)
    flow, x = Flow([Pointwise(inner)], (POINTS, 3)), point_sets(backend)
    codes = array(backend, np.random.default_rng(1).normal(0, 1, (SETS, 2)))
    value, logdet = flow.forward(x, codes)
    for k in range(1 if backend.name == "jax" else SETS):
        one = inner.forward(x[k, ...], codes[k, ...])
        np.testing.assert_allclose(host(backend, value[k, ...]), host(backend, one.value), rtol=0, atol=1e-13)
        total = host(backend, one.logdet.value).sum()
        np.testing.assert_allclose(host(backend, logdet.value)[k], total, rtol=0, atol=1e-12)
    shared = flow.forward(x, codes[0, ...])
    np.testing.assert_allclose(host(backend, shared.value[0, ...]), host(backend, value[0, ...]), rtol=0, atol=1e-13)
    back = flow.inverse(value, codes)
    distance = np.linalg.norm((host(backend, back.value) - host(backend, x)).reshape(SETS, -1), axis=1)
    assert (distance <= host(backend, back.error_bound) + 1e-11).all()
    with pytest.raises(InvalidArgumentError, match="conditional"):
        flow.forward(x)


def test_estimates_of_points(backend):
    inner = Flow([dense_block(backend, np.random.default_rng(5), 3)], (3,))
    flow, x = Flow([Pointwise(inner)], (POINTS, 3)), point_sets(backend)
    exact = host(backend, flow.forward(x).logdet.value)
    estimate = flow.forward(x, method="arnoldi", rng=0).logdet
    error = np.abs(host(backend, estimate.value) - exact)
    assert (error <= 5 * host(backend, estimate.std_error) + host(backend, estimate.bias_bound)).all()
    if backend.name == "jax":
        return
    of_samples = flow.forward(x, method="arnoldi").logdet
    alone = flow.forward(x[1:2, ...], method="arnoldi").logdet
    np.testing.assert_allclose(host(backend, of_samples.value)[1], host(backend, alone.value)[0], rtol=0, atol=1e-12)
    noise = array(backend, np.random.default_rng(2).choice([-1.0, 1.0], (2, SETS, POINTS, 3)))
    given = flow.forward(x, method="arnoldi", noise=[noise]).logdet
    error = np.abs(host(backend, given.value) - exact)
    assert (error <= 5 * host(backend, given.std_error) + host(backend, given.bias_bound)).all()


def test_the_loss_of_a_part_of_the_sets(backend):
    flow, x = Flow([Pointwise(vector_flow(backend, 2))], (POINTS, 3)), point_sets(backend)
    whole = -host(backend, flow.log_prob(x).value).mean() / 1
    losses = [float(host(backend, training_loss(flow, x, share=0.5, rng=seed))) for seed in range(40)]
    spread = np.std(losses, ddof=1) / np.sqrt(len(losses))
    assert abs(np.mean(losses) - whole) <= 5 * spread + 1e-9


def test_what_is_no_set_is_refused(backend):
    layer = Pointwise(vector_flow(backend, 2))
    with pytest.raises(ShapeError, match="points"):
        layer.forward(array(backend, np.zeros((2, 3))))
    with pytest.raises(ShapeError):
        layer.forward(array(backend, np.zeros((2, 4, 2))))
    with pytest.raises(ShapeError, match="points"):
        Pointwise(Flow([Squeeze()], (1, 2, 2)))
    with pytest.raises(InvalidArgumentError, match="layer of a flow"):
        Pointwise(lambda x: x)


def test_equal_points_of_a_set_have_probes_of_their_own():
    """Else their errors would add up, and not in quadrature."""
    backend = find_backend("numpy")
    layer = Pointwise(dense_block(backend, np.random.default_rng(0), 12))
    x = array(backend, np.repeat(np.random.default_rng(1).normal(0, 1, (100, 1, 12)), 16, axis=1))
    flow = Flow([layer], (16, 12))
    error = flow.forward(x, method="arnoldi").logdet.value - flow.forward(x, method="exact").logdet.value
    std_error = flow.forward(x, method="arnoldi").logdet.std_error
    assert np.sqrt(np.mean((error / std_error) ** 2)) <= 1.3


def test_a_set_can_be_turned_round():
    x = point_sets(find_backend("numpy"))
    flow = Flow([Inverted(Pointwise(ActNorm()))], (POINTS, 3)).initialize(x)
    z = flow(x).reshape(-1, 3)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-6)
