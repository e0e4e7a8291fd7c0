"""A layer of one's own in a chain: what it states, what is checked, and what the other layers keep."""

import numpy as np
import pytest
from branches_for_tests import array, host
from frameworks_for_tests import COMPILERS, compiled_once, gradients

from iresnet_core import (
    Activation,
    Chain,
    Convolution,
    Dense,
    FourierFeatures,
    Reshape,
    ResidualBlock,
    logdet,
    normalize,
    reference,
    save,
)
from iresnet_core.backends import get_backend
from iresnet_core.branches.conditioning import Shift
from iresnet_core.errors import (
    DerivativeError,
    DtypeError,
    InvalidArgumentError,
    NotContractiveError,
    ShapeError,
    StorageError,
    UnknownLipschitzError,
)

DIM, HIDDEN = 4, 6


class Hyperbola:
    """sqrt(1 + x^2), entry by entry, differentiated by the backend."""

    lipschitz = 1.0

    def apply(self, x):
        return get_backend(x).xp.sqrt(1 + x * x)


class HyperbolaByHand(Hyperbola):
    """The same with its products."""

    slope_lipschitz = 1.0

    def linearize(self, x):
        value = self.apply(x)
        return value, lambda v: x / value * v, lambda u: x / value * u


class Pairs:
    """Half the sums of neighbours, which are half as many; a stack would break it, since it counts the axes."""

    lipschitz = 0.5**0.5
    input_shape, output_shape = (HIDDEN,), (HIDDEN // 2,)

    def apply(self, x):
        assert len(x.shape) == 2
        return (x[:, 0::2] + x[:, 1::2]) / 2

    def linearize(self, x):
        xp = get_backend(x).xp
        return self.apply(x), self.apply, lambda u: xp.reshape(xp.stack([u, u], axis=-1), (-1, HIDDEN)) / 2


class Scale:
    """A layer with an array."""

    def __init__(self, scale):
        self.scale = scale
        self.lipschitz = 2.0

    def apply(self, x):
        return self.scale * x

    def linearize(self, x):
        return self.apply(x), self.apply, self.apply

    def astype(self, dtype):
        return Scale(get_backend(self.scale).xp.astype(self.scale, dtype))


def chain(backend, own, dtype="float64", out=HIDDEN):
    rng = np.random.default_rng(0)
    into, back = rng.standard_normal((HIDDEN, DIM)), rng.standard_normal((DIM, out))
    bias = array(backend, rng.standard_normal(HIDDEN), dtype)
    layers = [Dense(array(backend, into, dtype), bias), own, Activation("silu"), Dense(array(backend, back, dtype))]
    return normalize(Chain(layers), 0.8)


def samples(backend, dtype="float64"):
    return array(backend, np.random.default_rng(1).standard_normal((3, DIM)), dtype)


def own_layers(backend, dtype="float64"):
    scale = array(backend, np.linspace(-2, 1, HIDDEN), dtype)
    return {"by hand": HyperbolaByHand(), "pairs": Pairs(), "scale": Scale(scale)}


@pytest.mark.parametrize("kind", ["by hand", "pairs", "scale"])
def test_a_chain_takes_it(backend, kind):
    g = chain(backend, own_layers(backend)[kind], out=HIDDEN // 2 if kind == "pairs" else HIDDEN)
    x = samples(backend)
    assert g.certificate == "stated"
    # The others have their certificates, and are capped at what is left.
    assert all(layer.bound.certificate in ("exact", "certified") for layer in g.operators)
    assert g.lipschitz == pytest.approx(0.8, rel=1e-9)
    J = reference.jacobian(lambda x: g(x), x)
    at = g.linearize(x)
    np.testing.assert_allclose(host(backend, at.matrix()), J, atol=1e-9)
    u, v = np.random.default_rng(2).standard_normal((2, 2, 3, DIM))
    forward, back = host(backend, at.jvp(array(backend, v))), host(backend, at.vjp(array(backend, u)))
    np.testing.assert_allclose(forward, np.einsum("bij,pbj->pbi", J, v), atol=1e-9)
    assert (forward * u).sum() == pytest.approx((back * v).sum(), abs=1e-12)
    assert np.linalg.norm(J, 2, axis=(1, 2)).max() <= g.lipschitz
    block = ResidualBlock(g)
    z, found = block.forward(x)
    expected = np.linalg.slogdet(np.eye(DIM) + J)[1]
    assert found.method == "exact"
    np.testing.assert_allclose(host(backend, found.value), expected, atol=1e-9)
    series = logdet(g, x, method="series", probes=200, rng=0)
    gap = abs(host(backend, series.value) - expected)
    assert (gap <= 5 * host(backend, series.std_error) + host(backend, series.bias_bound)).all()
    inverse = block.inverse(z)
    distance = np.linalg.norm(host(backend, inverse.value) - host(backend, x), axis=1)
    assert (distance <= host(backend, inverse.error_bound) + 1e-14).all()


class NoTranspose:
    """A rotation by a quarter, whose product with the transpose goes the wrong way round."""

    lipschitz = 1.0

    def apply(self, x):
        xp = get_backend(x).xp
        return xp.concat([-x[:, 1:], x[:, :1]], axis=1)

    def linearize(self, x):
        return self.apply(x), self.apply, self.apply


def test_products_that_are_not_transposes_are_refused(backend):
    g = Chain([NoTranspose(), Dense(array(backend, 0.5 * np.eye(2)))])
    with pytest.raises(DerivativeError, match=r"contradict each other.*not that of the transpose"):
        logdet(g, array(backend, np.ones((3, 2))))


@pytest.mark.needs("autodiff")
def test_without_products_the_backend_differentiates(backend):
    by_hand, g = chain(backend, HyperbolaByHand()), chain(backend, Hyperbola())
    x = samples(backend)
    at = g.linearize(x)
    assert at.jvp is None
    u = array(backend, np.random.default_rng(2).standard_normal((3, DIM)))
    np.testing.assert_allclose(host(backend, at.vjp(u)), host(backend, by_hand.linearize(x).vjp(u)), atol=1e-13)
    expected = host(backend, logdet(by_hand, x).value)
    np.testing.assert_allclose(host(backend, logdet(g, x, method="exact").value), expected, atol=1e-11)
    block = ResidualBlock(g)
    np.testing.assert_allclose(host(backend, block.inverse(block.forward(x)[0]).value), host(backend, x), atol=1e-8)


@pytest.mark.needs("compile")
def test_compiled(backend):
    g, x = chain(backend, HyperbolaByHand()), samples(backend)

    def transformed(x):
        return x + g(x), logdet(g, x, method="exact").value

    with compiled_once(backend, COMPILERS[backend.name][0], transformed) as program:
        found = program(x)
    for a, b in zip(found, transformed(x), strict=True):
        np.testing.assert_allclose(host(backend, a), host(backend, b), atol=1e-12)


@pytest.mark.needs("autodiff")
def test_gradients_reach_the_arrays_of_the_layer(backend):
    """Through the value, the log-determinant and the inverse; the chain itself does not know these arrays."""
    x, xp = samples(backend), backend.xp
    start = np.linspace(0.5, 1.5, HIDDEN)

    def loss(scale):
        block = ResidualBlock(chain(backend, Scale(scale)))
        z, found = block.forward(x)
        return xp.sum(z * z) + xp.sum(found.value) + xp.sum(block.inverse(x).value ** 3)

    (found,) = gradients(backend, loss, [array(backend, start)])
    direction, step = np.random.default_rng(3).standard_normal(HIDDEN), 1e-5
    ahead, behind = (float(loss(array(backend, start + s * direction))) for s in (step, -step))
    assert float((np.asarray(found) * direction).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-5)


def test_float32_is_computed_in_float64_where_the_answer_needs_it(backend):
    g = chain(backend, own_layers(backend, "float32")["scale"], "float32")
    x = samples(backend, "float32")
    found = logdet(g, x, method="exact")
    wide = logdet(g.astype(backend.xp.float64), samples(backend), method="exact")
    assert found.value.dtype == x.dtype
    assert (abs(host(backend, found.value) - host(backend, wide.value)) < 1e-5).all()


class Doubled(HyperbolaByHand):
    """It states a constant that is too small."""

    def apply(self, x):
        return 2 * super().apply(x)

    def linearize(self, x):
        value, jvp, vjp = HyperbolaByHand().linearize(x)
        return 2 * value, lambda v: 2 * jvp(v), lambda u: 2 * vjp(u)


def test_a_constant_that_a_product_contradicts(backend):
    g = chain(backend, Doubled())
    u = array(backend, np.random.default_rng(0).standard_normal((3, DIM)))
    small, far = array(backend, 0.01 * np.ones((1, HIDDEN))), 9 * samples(backend)
    g.layers[1].linearize(small)  # where its slopes are small nothing contradicts it
    at = g.linearize(far)
    for product in (at.vjp, at.jvp, lambda u: logdet(g, far)):
        with pytest.raises(NotContractiveError, match=r"Doubled\(lipschitz=1\) expanded by [12]\.?.*State a larger"):
            product(u)
    with pytest.raises(NotContractiveError, match=r"expanded by [12]\.?.*State a larger"):  # by the first comparison
        chain(backend, Doubled()).linearize(far)


class DenseOfMyOwn(Dense):
    def apply(self, v):
        return 3 * super().apply(v)


class ConvolutionOfMyOwn(Convolution):
    def _affine(self, x):
        return 3 * super()._affine(x)


class ActivationOfMyOwn(Activation):
    def __call__(self, x):
        return 3 * super().__call__(x)


class NamedDense(Dense):
    """A subclass that computes as its class does."""

    def __repr__(self):
        return "named"


def test_a_subclass_with_its_own_forward_is_no_known_layer():
    for layer in (
        DenseOfMyOwn(np.eye(2)),
        ConvolutionOfMyOwn(np.ones((1, 1, 1)), input_shape=(1, 2)),
        ActivationOfMyOwn("tanh"),
    ):
        with pytest.raises(UnknownLipschitzError, match=f"{type(layer).__name__} computes .* class of its own"):
            Chain([Dense(np.eye(2)), layer])
    assert Chain([NamedDense(np.eye(2)), Activation("tanh"), Shift(np.zeros((1, 2)))]).certificate == "certified"


def test_a_bound_that_was_given_is_stated():
    given = normalize(Dense(np.eye(2)), 0.5, bound=1.0)
    assert Chain([given]).certificate == "stated"
    assert Chain([normalize(Dense(np.eye(2)), 0.5)]).certificate == "certified"


class Bad(HyperbolaByHand):
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        (lambda x: x, InvalidArgumentError, r"apply\(x\), linearize\(x\) and lipschitz, got function"),
        (Bad(lipschitz=-1.0), InvalidArgumentError, r"Bad\.lipschitz"),
        (Bad(lipschitz=0.0), InvalidArgumentError, r"Bad\.lipschitz must be positive"),
        (Bad(lipschitz=float("nan")), InvalidArgumentError, r"Bad\.lipschitz"),
        (Bad(lipschitz="1"), InvalidArgumentError, r"Bad\.lipschitz must be a number"),
        (Bad(output_shape=(3,)), ShapeError, "needs its input_shape"),
        (Bad(input_shape=(5,)), ShapeError, "takes samples of another shape"),
        (Bad(input_shape=6), InvalidArgumentError, "sequence of whole numbers"),
        (Bad(apply=lambda x: x[:, :3]), ShapeError, r"returned shape \(3, 3\).*states input_shape"),
        (Bad(apply=lambda x: x.astype(np.float32)), DtypeError, "returned float32 for an input of float64.*astype"),
        (Bad(linearize=lambda x: x), DerivativeError, r"\(value, jvp, vjp\)"),
        (Bad(linearize=lambda x: (x, lambda v: v, lambda u: u[:, :3])), ShapeError, r"vjp of Bad.*\(3, 3\)"),
    ],
)
def test_bad_layers(layer, error, match):
    x = np.ones((3, DIM))

    def used():
        g = chain(get_backend(x), layer)
        return g(x), g.linearize(x).vjp(x)

    with pytest.raises(error, match=match):
        used()


class Float32Only(HyperbolaByHand):
    def apply(self, x):
        if x.dtype != np.float32:
            raise RuntimeError("float32 only")
        return super().apply(x)


def test_a_failure_in_another_dtype_says_where_it_was():
    g = chain(get_backend(np.ones(1)), Float32Only(), "float32")
    with pytest.raises(RuntimeError, match="float32 only") as caught:
        logdet(g, np.ones((3, DIM), np.float32), method="exact")
    assert "Float32Only" in caught.value.__notes__[0]
    assert "astype(dtype)" in caught.value.__notes__[0]


def test_a_file_cannot_hold_it(tmp_path):
    with pytest.raises(StorageError, match=r"layers\.1 is a .*HyperbolaByHand"):
        save(chain(get_backend(np.ones(1)), HyperbolaByHand()), tmp_path / "model.safetensors")


def test_subclasses_of_fixed_layers_are_no_known_layers():
    class Larger(Reshape):
        def apply(self, v):
            return 5 * super().apply(v)

    class Believed(FourierFeatures):
        lipschitz = 0.01

    for layer in (Larger((DIM,), (DIM,)), Believed(np.eye(DIM))):
        with pytest.raises(UnknownLipschitzError, match="in its own way"):
            Chain([layer, Dense(np.eye(DIM, layer.output_shape[0]))])
