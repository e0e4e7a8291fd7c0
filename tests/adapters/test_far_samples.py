"""A sample that is far out, in one batch of a training: an error where one can be raised, and no step with it."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from iresnet_core.errors import NonFiniteError

FAR = [1e10, 1e15, 1e19, 1e25, 1e30, 3.4e38, np.inf, np.nan]


def batch(far=0.0):
    x = np.random.default_rng(0).standard_normal((32, 2)).astype("float32")
    x[7, 1] = far
    return x


def torch_flow():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from iresnet_core.adapters.torch import Activation, ActNorm, Flow, InvertibleResidual

    torch.manual_seed(0)
    activations = (torch.nn.ELU(), Activation("lipswish"))
    nets = [torch.nn.Sequential(torch.nn.Linear(2, 8), a, torch.nn.Linear(8, 2)) for a in activations]
    return torch, Flow([layer for net in nets for layer in (ActNorm(2), InvertibleResidual(net))], (2,))


@pytest.mark.parametrize("far", FAR)
def test_a_loop_of_ones_own_in_torch_raises_before_its_step(far):
    torch, flow = torch_flow()
    flow.initialize(torch.tensor(batch()))
    for loss in (flow.training_loss, lambda x: -flow.log_prob(x).sum()):
        with pytest.raises(NonFiniteError, match="sample 7 of the batch"):
            loss(torch.tensor(batch(far)))
    assert torch.isfinite(flow.training_loss(torch.tensor(batch(1e6))))  # this is far, and nothing overflows


def test_what_is_not_refused_leaves_the_moments_of_adam_finite():
    torch, flow = torch_flow()
    flow.initialize(torch.tensor(batch()))
    far = 2.0**40
    while True:
        try:
            loss = flow.training_loss(torch.tensor(batch(far))[7:8])  # alone, so that no mean makes it smaller
            break
        except NonFiniteError:
            far /= 2
    assert far > 1e9
    optimizer = torch.optim.Adam(flow.parameters())
    loss.backward()
    optimizer.step()
    assert all(torch.isfinite(state["exp_avg_sq"]).all() for state in optimizer.state.values())


def test_compiled_in_torch_it_has_no_gradient_and_the_loss_says_nan():
    torch, flow = torch_flow()
    flow.initialize(torch.tensor(batch()))
    torch.compiler.reset()
    program = torch.compile(lambda x: flow.log_prob(x), backend="eager", fullgraph=True)

    def gradients(values):
        flow.zero_grad()
        torch.manual_seed(1)
        values().backward()
        return [p.grad.clone() for p in flow.parameters()]

    keep = torch.arange(32) != 7
    expected = gradients(lambda: flow.log_prob(torch.tensor(batch()))[keep].sum() / 32)
    for far in FAR:
        x = torch.tensor(batch(far))
        values = program(x)
        assert torch.equal(torch.isnan(values), ~keep)
        found = gradients(lambda: program(x).mean())  # noqa: B023  # called here
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(program(torch.tensor(batch())), flow.log_prob(torch.tensor(batch())))


def keras_flow():
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    from iresnet_core.adapters.keras import ActNorm, Flow, InvertibleResidual

    keras.utils.set_random_seed(0)
    net = [keras.layers.Dense(8, activation="elu"), keras.layers.Dense(2)]
    flow = Flow([ActNorm(), InvertibleResidual(net)], event_shape=(2,)).initialize(batch())
    return keras, flow


def test_fit_in_keras_keeps_the_weights_and_says_nan():
    keras, flow = keras_flow()
    flow.compile(keras.optimizers.Adam(1e-2))
    x = np.concatenate([batch(), *map(batch, FAR[:-2]), batch()])
    losses = []
    step = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(logs["loss"]))
    before = flow.get_weights()
    flow.fit(x, batch_size=32, epochs=1, shuffle=False, verbose=0, callbacks=[step])
    assert np.isfinite(losses[0])
    assert np.isnan(losses[1:]).all()  # Keras shows the mean since the beginning of the epoch
    assert any(not np.array_equal(a, b) for a, b in zip(before, flow.get_weights(), strict=True))
    assert all(np.isfinite(np.asarray(v)).all() for v in flow.optimizer.variables)
    assert np.isfinite(flow.fit(batch(), batch_size=32, verbose=0).history["loss"]).all()
    rows = [keras.ops.convert_to_tensor(batch(far)) for far in FAR[-2:]]
    for row in rows:
        with pytest.raises(NonFiniteError, match="sample 7 of the batch"):
            flow.training_loss(row)
    flow.train_on_batch(rows[-1])  # nothing looks at these before the program does
    assert all(np.isfinite(w).all() for w in flow.get_weights())
