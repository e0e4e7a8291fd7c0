"""Caps of Keras layers: held in evaluation and export, and after training."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
if keras.backend.backend() != "tensorflow":
    pytest.skip(f"Keras runs on {keras.backend.backend()} in this process", allow_module_level=True)

from keras_models import capped_weights, data, largest, mlp, trained_flow  # noqa: E402

from iresnet_core.adapters.keras import (  # noqa: E402
    ActNorm,
    Flow,
    InvertibleResidual,
    Squeeze,
)
from iresnet_core.adapters.shared.weight import training_layers  # noqa: E402

Dense, Conv2D = keras.layers.Dense, keras.layers.Conv2D


@pytest.fixture(scope="module", params=[2, 64])
def trained(request):
    """A flow after 200 Adam steps, and its data."""
    return trained_flow(request.param)


def test_caps_hold_in_evaluation_and_export(trained):
    flow, _ = trained
    for capped in capped_weights(flow):
        assert largest(capped.certified().weight) <= capped.cap * (1 + 1e-6)
        assert largest(training_layers([capped])[capped.state].weight) <= capped.cap * 1.001  # an estimate from below
        assert largest(capped.free().weight) > capped.cap  # or there would be nothing to see
    assert 0.5 < flow.lipschitz <= 0.9
    for layer in flow.to_core().layers[1:]:
        assert max(largest(dense.weight) for dense in layer.branch.operators) <= capped.cap * (1 + 1e-6)
        assert layer.lipschitz <= 0.9


LONG = pytest.mark.strict_suite


@pytest.mark.parametrize(
    ("kind", "lr", "steps"),
    [
        ("images", 1e-2, 200),
        pytest.param("images", 1e-3, 200, marks=LONG),
        *(pytest.param(kind, lr, 200, marks=LONG) for kind in (2, 64) for lr in (1e-3, 1e-2)),
        *(pytest.param(kind, lr, 2000, marks=LONG) for kind in (2, 64, "images") for lr in (1e-3, 1e-2)),
    ],
)
def test_no_layer_exceeds_its_cap_after_training(kind, lr, steps):
    """In evaluation and in what is exported, by the norm of the explicit matrix, to 1e-6 relative."""
    keras.utils.set_random_seed(0)
    if kind == "images":
        net = [Conv2D(4, 3, padding="same", activation="elu"), Conv2D(4, 3, padding="same")]
        flow = Flow([Squeeze(), ActNorm(), InvertibleResidual(net, 0.9)], event_shape=(4, 4, 1))
        x = np.random.default_rng(0).standard_normal((100, 4, 4, 1)).astype("float32") ** 3
    else:
        flow, x = Flow([ActNorm(), mlp(kind)], event_shape=(kind,)), data(kind)
    for block in flow._blocks():  # from beyond the caps, so that there is something to hold back
        for capped in block.capped_layers():
            capped.state._linear().kernel.assign(3 * capped.state._linear().kernel)
    flow.compile(optimizer=keras.optimizers.Adam(lr))
    flow.fit(x, batch_size=50, epochs=steps // 2, verbose=0)
    assert int(flow.optimizer.iterations) == steps
    exported = [o for layer in flow.to_core().layers if hasattr(layer, "branch") for o in layer.branch.operators]
    for capped, operator in zip(capped_weights(flow), exported, strict=True):
        for layer in (capped.certified(), operator):
            assert largest(layer.astype(tf.float64).matrix()) <= capped.cap * (1 + 1e-6)
        assert largest(capped.free().matrix()) > capped.cap
    assert flow.lipschitz <= 0.9


def test_a_compiled_program_stays_below_the_cap_when_weights_move():
    flow = Flow([mlp(3)], event_shape=(3,))
    state = flow.flow_layers[0].capped[0]
    kernel = state._linear().kernel
    used = tf.function(lambda: state.capped_layer().certified().weight, autograph=False)
    np.testing.assert_allclose(used(), state.capped_layer().certified().weight, rtol=1e-5)
    kernel.assign(5 * np.random.default_rng(0).standard_normal(kernel.shape))
    assert 0.1 * state.cap < largest(used()) <= state.cap * (1 + 1e-6)
    flow.certify()
    assert largest(used()) == pytest.approx(state.cap, rel=1e-5)
    assert not state.capped_layer().certify()  # nothing has changed since


def test_weights_that_begin_as_zero():
    flow = Flow([InvertibleResidual([Dense(4, activation="tanh"), Dense(2, kernel_initializer="zeros")])], (2,))
    flow.compile(optimizer=keras.optimizers.Adam(0.5), run_eagerly=True)
    flow.fit(data(2, 40), batch_size=10, epochs=3, verbose=0)
    capped = capped_weights(flow)[-1]
    assert largest(capped.free().weight) > 1
    assert largest(training_layers([capped])[capped.state].weight) <= capped.cap * 1.001


def test_spectral_penalty_brings_norms_down():
    keras.utils.set_random_seed(0)
    flow = Flow([mlp(2)], event_shape=(2,), penalty=1.0)
    flow.compile(optimizer=keras.optimizers.Adam(3e-2), run_eagerly=True)
    norms = [largest(capped.free().weight) for capped in capped_weights(flow)]
    before = float(flow.spectral_penalty(2.0))
    assert before == pytest.approx(2 * sum(s**2 for s in norms), rel=1e-3)
    flow.fit(data(2, 40), batch_size=20, epochs=6, verbose=0)
    assert float(flow.spectral_penalty(2.0)) < 0.6 * before
