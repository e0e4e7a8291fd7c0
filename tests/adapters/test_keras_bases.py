"""Densities of latents in Keras flows: learned by fit and fixed, in Keras' files and in ours."""

import math
import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed", exc_type=ImportError)
keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
if keras.backend.backend() != "tensorflow":
    pytest.skip(f"Keras runs on {keras.backend.backend()} in this process", allow_module_level=True)

from keras_models import data, numbers  # noqa: E402

import iresnet_core as core  # noqa: E402
from iresnet_core.adapters.keras import (  # noqa: E402
    ActNorm,
    Base,
    Flow,
    FourierFeatures,
    InvertibleResidual,
    Wrap,
)
from iresnet_core.errors import InvalidArgumentError, ShapeError, StorageError  # noqa: E402

MEANS = np.random.default_rng(0).normal(size=(3, 2))
BASES = {
    "full": core.FullNormal(MEANS[0], np.array([[1.0, 0.0], [0.5, 2.0]])),
    "mixture": core.NormalMixture(np.array([0.0, 0.5, -1.0]), MEANS, np.full((3, 2), 0.7)),
    "cylinder": core.ProductBase(
        [core.VonMises(MEANS[0, :1], np.ones(1)), core.StudentT(3.0, MEANS[0, 1:], np.ones(1))], [[1], [0]]
    ),
}


def a_flow(base):
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    return Flow([ActNorm(), InvertibleResidual([dense(8, activation="elu"), dense(2)])], (2,), base=base)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("name", BASES)
def test_a_base_is_trained_or_not_and_goes_everywhere(name, learned, tmp_path):
    x = data(2, 32)
    flow = a_flow(Base(BASES[name], learned=learned)).initialize(x)
    z, logdet = (numbers(part).astype(float) for part in flow.encode(x, logdet=True, method="exact"))
    found = numbers(flow.log_prob(x, method="exact"))
    np.testing.assert_allclose(found, BASES[name].log_prob(z) + logdet, rtol=1e-4, atol=1e-4)
    assert len(flow.base.trainable_variables) == (len(BASES[name].arrays) if learned else 0)
    assert len(flow.base.variables) == len(BASES[name].arrays)
    before = [numbers(variable) for variable in flow.base.variables]
    flow.compile(optimizer=keras.optimizers.SGD(0.05), run_eagerly=True)
    flow.fit(x, batch_size=16, epochs=1, verbose=0)
    after = [numbers(variable) for variable in flow.base.variables]
    for one, other in zip(before, after, strict=True):
        assert bool((one != other).any()) == learned
    nats = numbers(flow.log_prob(x, method="exact"))
    flow.save(tmp_path / "flow.keras")
    again = keras.saving.load_model(tmp_path / "flow.keras")
    np.testing.assert_allclose(numbers(again.log_prob(x, method="exact")), nats, rtol=1e-6, atol=1e-6)
    assert again.base.learned == learned
    cloned = keras.models.clone_model(flow).base
    np.testing.assert_array_equal(numbers(cloned.variables[0]), before[0])
    flow.save(tmp_path / "flow")
    loaded = core.load(tmp_path / "flow")
    np.testing.assert_allclose(loaded.log_prob(x, method="exact").value, nats, rtol=1e-4, atol=1e-4)
    drawn, density = flow.sample(5, rng=3, log_prob=True, method="exact")
    np.testing.assert_allclose(numbers(density), numbers(flow.log_prob(drawn, method="exact")), atol=1e-4)
    assert np.isfinite(float(flow.reverse_kl(lambda y: -keras.ops.sum(y**2, axis=1), 8)))


def test_a_flow_on_a_torus_has_a_density_and_samples(tmp_path):
    keras.utils.set_random_seed(0)
    turn, dense = 2 * math.pi, keras.layers.Dense
    base = core.Uniform([0.0, 0.0], [turn, turn], periodic=True)
    block = InvertibleResidual([FourierFeatures(np.eye(2)), dense(8, activation="elu"), dense(2)])
    flow = Flow([Wrap(), block], (2,), base=base)
    x = np.float32(turn) * np.random.default_rng(0).random((9, 2), np.float32)
    flow.compile(optimizer=keras.optimizers.Adam(1e-2))
    with pytest.warns(
        UserWarning, match="Gradients do not exist"
    ):  # the last bias turns the torus, which changes nothing
        history = flow.fit(x, batch_size=6, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    np.testing.assert_allclose(
        flow.predict(x, batch_size=4, verbose=0), numbers(flow.log_prob(x)), rtol=1e-4, atol=1e-4
    )
    nats = numbers(flow.log_prob(x, method="exact"))
    np.testing.assert_allclose(numbers(flow.log_prob(x + np.float32(turn), method="exact")), nats, atol=1e-4)
    drawn = numbers(flow.sample(300, rng=0))
    assert ((drawn >= 0) & (drawn < np.float32(turn))).all()
    flow.save(tmp_path / "flow")
    np.testing.assert_allclose(core.load(tmp_path / "flow").log_prob(x, method="exact").value, nats, atol=1e-5)


class Own:
    """A density that Keras cannot save."""

    def log_prob(self, z):
        return keras.ops.sum(-keras.ops.abs(z), axis=1) - 2 * math.log(2)

    def sample(self, n, rng, like):
        return like + keras.random.normal((n, 2), seed=0)


def test_objects_of_ones_own_and_what_is_no_base(tmp_path):
    flow = a_flow(Own()).initialize(data(2, 32))
    assert np.isfinite(numbers(flow.log_prob(data(2, 32)))).all()
    for name in ("flow", "flow.keras"):
        with pytest.raises(StorageError, match="base"):
            flow.save(tmp_path / name)
    with pytest.raises(ShapeError, match="those of the flow"):
        a_flow(core.Uniform([0.0], [1.0]))
    with pytest.raises(InvalidArgumentError, match="no base density"):
        a_flow("cauchy")


@pytest.mark.parametrize(("name", "kind"), [("diagonal-normal", "DiagonalNormal"), ("student-t", "StudentT")])
def test_bases_have_names(name, kind, tmp_path):
    flow, x = a_flow(name), data(2, 32)
    flow.initialize(x)
    assert type(flow.base.core_base()).__name__ == kind
    assert [variable.name for variable in flow.base.trainable_variables] == ["mean", "log_scale"]
    expected = numbers(flow.log_prob(x))
    flow.save(tmp_path / "flow.keras")
    loaded = keras.saving.load_model(tmp_path / "flow.keras")
    np.testing.assert_allclose(numbers(loaded.log_prob(x)), expected, atol=1e-5)
    flow.save(tmp_path / "flow.safetensors")
    np.testing.assert_allclose(core.load(tmp_path / "flow.safetensors").log_prob(x).value, expected, atol=1e-4)
    with pytest.raises(InvalidArgumentError, match="by name there are normal, diagonal-normal, student-t"):
        a_flow("cauchy")
