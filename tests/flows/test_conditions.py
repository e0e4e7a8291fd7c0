"""Conditions: what enters the layers, densities and samples under one and under many, gradients, and refusals."""

import numpy as np
import pytest
from flow_examples import (
    a_map,
    actnorm,
    array,
    conditional_flow,
    conv_block,
    dense_block,
    distances,
    host,
    vectors,
)

from iresnet_core.backends import backend as find_backend
from iresnet_core.branches.chain import Chain
from iresnet_core.errors import (
    DtypeError,
    InvalidArgumentError,
    MixedBackendsError,
    NonFiniteError,
    ShapeError,
)
from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.condition import Condition
from iresnet_core.flows.factor_out import FactorOut
from iresnet_core.flows.flow import Flow
from iresnet_core.flows.maximum_likelihood import PartFirst, mean_loss, training_log_prob, training_loss
from iresnet_core.flows.residual_block import ResidualBlock
from iresnet_core.operators.dense import Dense


def exact(flow, x, *context):
    return host(flow.log_prob(x, *context, method="exact").value)


def test_a_condition_is_what_it_says(backend):
    """A block is that with another bias, an ActNorm that with other parameters, both written out by hand."""
    rng = np.random.default_rng(0)
    block, norm = dense_block(backend, rng, 3), actnorm(backend, rng, 3)
    into, pair = rng.normal(0, 1, (5, 2)), rng.normal(0, 0.3, (6, 2))
    flow = Flow(
        [
            ActNorm(norm.log_scale, norm.bias, condition=Dense(array(backend, pair))),
            ResidualBlock(block.branch, condition=Dense(array(backend, into))),
        ],
        (3,),
        condition=Condition(mean=[1.0, -2.0], std=[0.5, 4.0]),
    )
    x, context = vectors(backend, 1, 4), rng.normal(0, 1, (4, 2))
    found = exact(flow, x, array(backend, context))
    for k in range(4):
        entering = (context[k] - [1.0, -2.0]) / [0.5, 4.0]
        first, *others = block.branch.layers
        bias = array(backend, host(first.bias) + into @ entering)
        scale, shift = np.split(pair @ entering, 2)
        by_hand = Flow(
            [
                ActNorm(array(backend, host(norm.log_scale) + scale), array(backend, host(norm.bias) + shift)),
                ResidualBlock(Chain([Dense(first.weight, bias), *others])),
            ],
            (3,),
        )
        expected = exact(by_hand, x[k : k + 1, ...])
        np.testing.assert_allclose(found[k], expected[0], rtol=1e-13)
        np.testing.assert_allclose(exact(flow, x, array(backend, context[k]))[k], expected[0], rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_sample_has_its_own_condition_both_ways(backend, dtype):
    flow = conditional_flow(backend, 2, dtype=dtype, mean=[0.0, 1.0], std=[1.0, 2.0])
    x, context = vectors(backend, 3, 4, dtype=dtype), vectors(backend, 4, 4, 2, dtype)
    z, logdet = flow.forward(x, context, method="exact")
    back = flow.inverse(z, context)
    # The bound is about z as it was rounded, by which the exact preimage has moved.
    growth = host(flow.given(context).inverse_lipschitz).max()
    assert (distances(back.value, x) <= host(back.error_bound) + growth * np.finfo(dtype).eps * 40).all()
    assert (host(back.error_bound) < growth * max(1e-10, 40 * np.finfo(dtype).eps)).all()
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    for k in range(4):
        alone = flow.given(context[k, ...]).forward(x[k : k + 1, ...], method="exact")
        np.testing.assert_allclose(host(alone.value)[0], host(z)[k], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(host(alone.logdet.value)[0], host(logdet.value)[k], atol=10 * tolerance)
    np.testing.assert_array_equal(host(flow(x, context)), host(z))


def test_log_determinants_are_those_of_the_jacobian(backend):
    """By difference quotients, in which the condition stays as it is."""
    flow = conditional_flow(backend, 5)
    x, context = host(vectors(backend, 6, 2)), vectors(backend, 7, 2, 2)
    step = 1e-6
    columns = [
        (host(flow(array(backend, x + step * e), context)) - host(flow(array(backend, x - step * e), context)))
        for e in np.eye(3)
    ]
    jacobian = np.stack(columns, axis=-1) / (2 * step)
    found = flow.forward(array(backend, x), context, method="exact").logdet
    np.testing.assert_allclose(host(found.value), np.linalg.slogdet(jacobian)[1], atol=1e-7)


def test_samples_follow_their_conditions(backend):
    flow = conditional_flow(backend, 2)
    context = vectors(backend, 8, 3, 2)
    many, one = flow.sample(3, context, rng=1), flow.sample(3, context[1, ...], rng=1)
    np.testing.assert_allclose(host(many.value)[1], host(one.value)[1], rtol=1e-9, atol=1e-9)
    assert np.abs(host(many.value)[0] - host(one.value)[0]).max() > 1e-3
    assert flow.sample(0, context[:0, ...]).value.shape[0] == 0
    bits = flow.bits_per_dim(many.value, context, levels=1, method="exact").value
    np.testing.assert_allclose(host(bits), -exact(flow, many.value, context) / (3 * np.log(2)), rtol=1e-12)


def test_labels_that_the_dtype_rounds_are_known(backend):
    given = Condition(labels=[(0.1, 0.3), None])
    for dtype in ("float32", "float64"):
        rows = array(backend, [[0.3, 0.1], [0.1, 2.0]], dtype)
        np.testing.assert_array_equal(host(given(rows)), np.array([[0, 1, 0.1], [1, 0, 2.0]], dtype))
    with pytest.raises(InvalidArgumentError, match=r"label 0\.2"):
        given(array(backend, [[0.2, 0.1]], "float32"))
    with pytest.raises(InvalidArgumentError, match="one number in"):
        Condition(labels=[(0.1, 0.1 + 1e-12)])(array(backend, [[0.1]], "float32"))
    assert host(Condition(labels=[(0.5, 1.0)])(backend.from_numpy(np.array([1])))).tolist() == [[0.0, 1.0]]


def test_labels_become_one_hot(backend):
    flow = conditional_flow(backend, 2, classes=3)
    x, labels = vectors(backend, 3, 4), np.array([2, 0, 1, 2])
    found = exact(flow, x, backend.from_numpy(labels))
    plain = Flow(flow.layers, (3,), condition=flow.condition.net)
    np.testing.assert_array_equal(found, exact(plain, x, array(backend, np.eye(3)[labels])))
    for same in (labels[:, None], labels.astype(np.int32), labels.astype(np.float32)):
        np.testing.assert_array_equal(exact(flow, x, backend.from_numpy(same)), found)
    for one in (np.array(2), np.array([2])):
        np.testing.assert_allclose(exact(flow, x, backend.from_numpy(one))[[0, 3]], found[[0, 3]], rtol=1e-12)
    with pytest.raises(InvalidArgumentError, match=r"sample 1 of the batch.*label 3, .*one-hot: 0, 1, 2"):
        flow.log_prob(x, backend.from_numpy(np.array([0, 3, 1, 0])))
    mixed = Condition(labels=[None, (5.0, 0.5)], mean=[2.0, 0.0], std=[4.0, 1.0])
    np.testing.assert_array_equal(host(mixed(array(backend, [[4.0, 0.5]]))), [[0.5, 0.0, 1.0]])
    with pytest.raises(InvalidArgumentError, match=r"label 6"):
        mixed(array(backend, [[4.0, 6.0]]))


def test_images_under_classes(backend):
    """A condition moves channels, whichever axis holds them, also of layers inside of a FactorOut."""
    rng = np.random.default_rng(0)
    block = conv_block(backend, rng, (2, 2, 2))
    inner = ResidualBlock(conv_block(backend, rng, (1, 2, 2)).branch, condition=a_map(backend, rng, 2, 1))
    layers = [ResidualBlock(block.branch, condition=a_map(backend, rng, 2, 2)), FactorOut(1, [inner])]
    flow = Flow(layers, (2, 2, 2), condition=Condition(classes=2))
    x = array(backend, rng.normal(0, 1, (3, 2, 2, 2)))
    labels = backend.from_numpy(np.array([0, 1, 1]))
    z = flow(x, labels)
    assert (distances(flow.inverse(z, labels).value, x) < 1e-9).all()
    shift = host(layers[0].condition.net(array(backend, np.eye(2))))
    first, *others = block.branch.layers
    moved = Chain([first.with_bias(first.bias + array(backend, shift[1])), *others])
    np.testing.assert_allclose(host(layers[0](x, array(backend, [0.0, 1.0]))), host(x + moved(x)), rtol=1e-12)
    assert np.abs(host(flow(x, backend.from_numpy(np.array(0)))) - host(z))[1].max() > 1e-3


def test_initialisation_sees_the_conditions(backend):
    rng = np.random.default_rng(0)
    zero = Dense(array(backend, np.zeros((6, 2))))
    block = ResidualBlock(dense_block(backend, rng, 3).branch, condition=a_map(backend, rng, 2, 5))
    flow = Flow([ActNorm(condition=zero), block, ActNorm()], (3,))
    x, context = vectors(backend, 1, 50), vectors(backend, 2, 50, 2)
    z = host(flow.initialize(x, context)(x, context))
    np.testing.assert_allclose([z.mean(axis=0), z.std(axis=0)], [[0] * 3, [1] * 3], atol=1e-9)
    with pytest.raises(InvalidArgumentError, match="is conditional"):
        flow.initialize(x)


@pytest.mark.needs("autodiff")
def test_gradients_by_condition_and_map(backend):
    """Against difference quotients: of the loss, and, implicitly, of samples."""
    flow = conditional_flow(backend, 5)
    x, z = vectors(backend, 6, 2), vectors(backend, 7, 2, scale=1.0)
    context, weight = vectors(backend, 8, 2, 2), flow.condition.net.layers[0].weight

    def with_weight(w):
        first, *others = flow.condition.net.layers
        return Flow(flow.layers, (3,), condition=Chain([Dense(w, first.bias, checked=True), *others]))

    functions = [
        (lambda c: flow.log_prob(x, c, method="exact", errors=False).value, context),
        (lambda c: flow.inverse(z, c, rtol=1e-13).value, context),
        (lambda w: with_weight(w).log_prob(x, context, method="exact", errors=False).value, weight),
        (lambda w: with_weight(w).inverse(z, context, rtol=1e-13).value, weight),
    ]
    rng = np.random.default_rng(0)
    for fn, at in functions:
        value, pullback = backend.vjp(fn, at)
        u, v = rng.normal(0, 1, tuple(value.shape)), rng.normal(0, 1, tuple(at.shape))
        found = (host(pullback(array(backend, u))) * v).sum()
        ahead, behind = (host(fn(at + array(backend, s * v))) for s in (1e-6, -1e-6))
        np.testing.assert_allclose(found, (u * (ahead - behind)).sum() / 2e-6, rtol=1e-5, atol=1e-6)
        assert abs(found) > 1e-3


def test_the_loss_takes_conditions_with_their_samples(backend):
    flow = conditional_flow(backend, 2)
    x, context = vectors(backend, 3, 6), vectors(backend, 4, 6, 2)
    nats = exact(flow, x, context)
    loss = training_loss(flow, x, context, share=1, method="exact")
    assert float(host(loss)) == pytest.approx(-nats.mean(), rel=1e-12)
    orders = [PartFirst(backend.from_numpy(np.roll(np.arange(6), -k)), 2) for k in (0, 2, 4)]
    found = []
    for first in orders:
        own = {"context": first.of(backend, context), "method": "exact", "errors": False}
        value = training_log_prob(flow, first.of(backend, x), 2, **own).value
        found.append(float(host(mean_loss(first.undone(backend, value), None))))
    assert np.mean(found) == pytest.approx(-nats.mean(), rel=1e-12)
    # Here log-determinants are the same everywhere, so that a part of the batch changes nothing.
    plain = Chain([Dense(array(backend, 0.5 * np.eye(3)))])
    linear = Flow([ResidualBlock(plain, condition=Dense(array(backend, np.eye(3, 2))))], (3,))
    loss = training_loss(linear, x, context, share=0.5, method="exact", rng=0)
    assert float(host(loss)) == pytest.approx(-exact(linear, x, context).mean(), rel=1e-12)
    for one in (context[0, ...], context[:1, ...]):  # stands for all, in whichever order they are
        loss = training_loss(flow, x, one, share=0.5, method="exact", rng=0)
        assert np.isfinite(float(host(loss)))


@pytest.mark.needs("compile")
def test_compiled_steps_leave_out_what_cannot_be_used(backend):
    """NaN for it, and the gradient that the other samples have."""
    flow = conditional_flow(backend, 2, classes=3)
    x = vectors(backend, 3, 3)

    def score(x, labels):
        return training_log_prob(flow, x, context=labels, method="exact", errors=False).value

    expected = exact(flow, x, array(backend, [0.0, 1.0, 2.0]))  # certifies the weights too
    found = host(backend.jit(score)(x, array(backend, [0.0, 4.0, 2.0])))
    np.testing.assert_allclose(found[[0, 2]], expected[[0, 2]], rtol=1e-9)
    assert np.isnan(found[1])
    plain = conditional_flow(backend, 2)

    def of_numbers(x, context):
        return training_log_prob(plain, x, context=context, method="exact", errors=False).value

    context = host(vectors(backend, 4, 3, 2)).copy()
    exact(plain, x, array(backend, context))
    context[1, 0] = np.nan
    found = host(backend.jit(of_numbers)(x, array(backend, context)))
    assert np.isnan(found).tolist() == [False, True, False]


def test_what_does_not_fit_is_refused(backend):
    flow, plain = conditional_flow(backend, 2), conditional_flow(backend, 2).given(array(backend, [0.0, 1.0]))
    x, context = vectors(backend, 3, 4), host(vectors(backend, 4, 4, 2))
    other = find_backend("numpy" if backend.name != "numpy" else "array_api_strict")
    nan = context.copy()
    nan[2, 1] = np.nan
    bad = [
        (None, InvalidArgumentError, r"conditional: pass context=.*\(batch, 2\)"),
        (array(backend, nan), NonFiniteError, "sample 2"),
        (array(backend, context, "float32"), DtypeError, "context has dtype"),
        (backend.from_numpy(np.ones((4, 2), dtype=np.int64)), DtypeError, "one-hot"),
        (array(backend, context[:3]), ShapeError, "3 rows, but there are 4 samples"),
        (array(backend, context[:, :1]), ShapeError, r"\(batch, 2\)"),
        (array(backend, np.ones((4, 2, 1))), ShapeError, r"\(batch, 2\)"),
        (array(other, context), MixedBackendsError, "arrays"),
    ]
    for wrong, error, match in bad:
        calls = [flow, flow.forward, flow.inverse, flow.log_prob, flow.bits_per_dim, flow.initialize]
        calls += [lambda x, c: training_loss(flow, x, c), lambda x, c: flow.sample(4, c)]
        for call in calls:
            with pytest.raises(error, match=match):
                call(x, wrong)
    given = array(backend, context)
    for call in (
        plain,
        plain.forward,
        plain.inverse,
        plain.log_prob,
        plain.initialize,
        lambda x, c: plain.sample(4, c),
    ):
        with pytest.raises(InvalidArgumentError, match="takes none"):
            call(x, given)
    under = flow.given(given)
    with pytest.raises(ShapeError, match="4 rows, but there are 3 samples"):
        under(x[:3, ...])


def test_maps_that_do_not_fit_are_refused(backend):
    rng = np.random.default_rng(0)
    block, norm = dense_block(backend, rng, 3), actnorm(backend, rng, 3)
    with pytest.raises(ShapeError, match=r"4 entries, but the first linear layer .* 5 channels"):
        ResidualBlock(block.branch, condition=a_map(backend, rng, 2, 4))
    with pytest.raises(InvalidArgumentError, match="Chain"):
        ResidualBlock(lambda x: x, lipschitz=0.5, condition=a_map(backend, rng, 2, 4))
    with pytest.raises(ShapeError, match="6, two per channel"):
        ActNorm(norm.log_scale, norm.bias, condition=a_map(backend, rng, 2, 3))
    two = ResidualBlock(block.branch, condition=a_map(backend, rng, 2, 5))
    three = ResidualBlock(block.branch, condition=a_map(backend, rng, 3, 5))
    with pytest.raises(ShapeError, match="of 2 features and of 3"):
        Flow([two, three], (3,))
    with pytest.raises(ShapeError, match="returns 4 entries, but the layers take 2"):
        Flow([two], (3,), condition=a_map(backend, rng, 1, 4))
    with pytest.raises(ShapeError, match="no layer takes"):
        Flow([block], (3,), condition=a_map(backend, rng, 1, 4))
    for wrong in (
        {},
        {"classes": 0},
        {"classes": 2, "labels": [(1,)]},
        {"labels": [(1, 1)]},
        {"mean": [0.0]},
        {"mean": [0.0], "std": [0.0]},
        {"net": np.tanh},
    ):
        with pytest.raises(InvalidArgumentError):
            Condition(**wrong)
    with pytest.raises(ShapeError, match="3 entries"):
        Condition(a_map(backend, rng, 2, 4), classes=3)
    far = ActNorm(norm.log_scale, norm.bias, condition=Dense(array(backend, np.full((6, 1), 1e3))))
    with pytest.raises(InvalidArgumentError, match="log_scale"):
        far(vectors(backend, 1, 2), array(backend, [[0.0], [1.0]]))
