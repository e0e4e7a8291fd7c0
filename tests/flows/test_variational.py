"""Samples with their densities, reverse KL and importance weights, against what is known in closed form."""

import numpy as np
import pytest
from flow_examples import array, dense_block, distances, host, image_flow, vector_flow
from frameworks_for_tests import DIFFERENTIATING, gradients

from iresnet_core import (
    ActNorm,
    Chain,
    Dense,
    Flow,
    Inverted,
    NormalMixture,
    ResidualBlock,
    VonMises,
    importance_weights,
    reverse_kl,
)
from iresnet_core.branches import Activation
from iresnet_core.errors import InvalidArgumentError, NonFiniteError, ShapeError


@pytest.mark.parametrize("make", ["ordinary", "turned", "images"])
def test_samples_come_with_the_density_that_scoring_gives(backend, make):
    if backend.name == "jax" and make == "images":
        pytest.skip("compiles for minutes; vectors run on it")
    flow = image_flow(backend, 1) if make == "images" else vector_flow(backend, 1, blocks=1)
    if make == "turned":
        flow = Flow([Inverted(layer) for layer in flow.layers], (3,))
    found = flow.sample(4, rng=3, like=flow.arrays[0], log_prob=True, method="exact")
    plain = flow.sample(4, rng=3, like=flow.arrays[0])
    assert (distances(found.samples.value, plain.value) <= host(found.samples.error_bound + plain.error_bound)).all()
    again = flow.log_prob(found.samples.value, method="exact")
    gap = np.abs(host(found.log_prob.value) - host(again.value))
    assert (gap <= host(found.log_prob.bias_bound) + host(again.bias_bound) + 1e-9).all()
    assert (host(found.log_prob.bias_bound) < (1e-3 if make == "images" else 1e-6)).all()  # near the ends of a logit


def affine(backend, scale, dtype="float64"):
    """A flow whose samples are scale * z, with a turned block of tanh in the middle that does next to nothing."""
    block = ResidualBlock(Chain([Dense(array(backend, (scale - 1) * np.eye(2), dtype))]))
    return Flow([Inverted(block)], (2,))


def test_reverse_kl_of_a_scaled_normal(backend):
    """KL(N(0, s^2) || N(0, 1)) = d (s^2 - 1 - 2 log s) / 2, and importance weights find log Z."""
    xp, flow = backend.xp, affine(backend, 1.5)

    def target(x):
        return -0.5 * xp.sum(x**2, axis=1)

    exact = 1.5**2 - 1 - 2 * np.log(1.5) - np.log(2 * np.pi)
    n = 4000
    loss = float(reverse_kl(flow, target, n, rng=0))
    assert abs(loss - exact) < 5 * (1.5**2 - 1) / n**0.5
    found = importance_weights(flow, target, n, rng=0)
    assert abs(float(found.log_evidence) - np.log(2 * np.pi)) < 5 * float(found.std_error)
    # E[w]^2 / E[w^2] in closed form: (2 s^2 - 1) / s^4 for two dimensions.
    assert abs(float(found.effective_sample_size) / n - (2 * 1.5**2 - 1) / 1.5**4) < 0.05
    weights = host(found.weights)
    np.testing.assert_allclose(weights.sum(), 1)
    logs = host(found.log_weights)
    np.testing.assert_allclose(logs - logs.max(), np.log(weights / weights.max()), atol=1e-12)
    same = importance_weights(flow, lambda x: -0.5 * xp.sum((x / 1.5) ** 2, axis=1), 100, rng=0)
    assert float(same.std_error) < 1e-6
    np.testing.assert_allclose(float(same.effective_sample_size), 100)


def test_the_gradient_is_that_of_the_samples(backend):
    """Pathwise: against the derivative of the loss for fixed latents, by differences in float64."""
    if backend.name not in DIFFERENTIATING:
        pytest.skip("takes no derivatives")
    rng = np.random.default_rng(2)
    first, second = (0.8 * np.linalg.qr(rng.standard_normal((2, 2)))[0] for _ in range(2))

    def loss(weight):
        chain = Chain([Dense(weight), Activation("tanh"), Dense(array(backend, second))])
        layers = [Inverted(ResidualBlock(chain, lipschitz=0.65)), ActNorm(*(array(backend, [0.2, 0.1]) for _ in "ab"))]
        flow = Flow(layers, (2,))
        return reverse_kl(flow, lambda x: -backend.xp.sum(x**4, axis=1), 16, rng=5, method="exact")

    (found,) = gradients(backend, loss, [array(backend, first)])
    direction = rng.standard_normal((2, 2))
    ends = [float(loss(array(backend, first + step * direction))) for step in (1e-5, -1e-5)]
    np.testing.assert_allclose((found * direction).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


def test_a_share_of_the_log_determinants_has_the_same_mean(backend):
    if backend.name == "jax":
        pytest.skip("a hundred draws; nothing of it is the backend's")
    flow = Flow([Inverted(dense_block(backend, np.random.default_rng(1), 2, 0.8))], (2,))

    def target(x):
        return -0.5 * backend.xp.sum(x**2, axis=1)

    whole = float(reverse_kl(flow, target, 20000, rng=1, share=1, method="exact"))
    parts = [float(reverse_kl(flow, target, 200, rng=k, share=0.1, method="exact")) for k in range(100)]
    assert abs(np.mean(parts) - whole) < 5 * np.std(parts) / 10 + 0.02
    assert np.std(parts) > 0


def test_bad_targets_are_refused(backend):
    xp, flow = backend.xp, affine(backend, 1.2)
    with pytest.raises(ShapeError, match="one for each"):
        reverse_kl(flow, lambda x: x, 4, rng=0)
    with pytest.raises(NonFiniteError, match="target is not finite"):
        reverse_kl(flow, lambda x: xp.sum(x, axis=1) * float("inf"), 4, rng=0)
    with pytest.raises(NonFiniteError, match="do not overlap"):
        importance_weights(flow, lambda x: 0 * x[:, 0] - float("inf"), 4, rng=0)
    half = importance_weights(flow, lambda x: xp.where(x[:, 0] > 0, 0 * x[:, 0], 0 * x[:, 0] - float("inf")), 50, rng=0)
    assert (host(half.weights) == 0).any()
    for n in (0, -1):
        with pytest.raises(InvalidArgumentError):
            reverse_kl(flow, lambda x: x[:, 0], n)
    with pytest.raises(InvalidArgumentError, match="function"):
        reverse_kl(flow, 3, 4)
    with pytest.raises(InvalidArgumentError, match="no option"):
        reverse_kl(flow, lambda x: x[:, 0], 4, probe=3)


def of_mixture(backend, logs, n, seed, **options):
    """Reverse KL of a mixture of two normals to N(3, 1), as a function of the weights."""
    zero, means = array(backend, [0.0]), array(backend, [[-3.0], [3.0]])
    base = NormalMixture(logs, means, backend.xp.ones_like(means))
    flow = Flow([ActNorm(zero, zero)], (1,), base=base)
    return reverse_kl(flow, lambda x: -0.5 * (x[:, 0] - 3) ** 2, n, rng=seed, **options)


def of_angles(backend, concentration, n, seed):
    zero = array(backend, [0.0])
    flow = Flow([ActNorm(zero, zero)], (1,), base=VonMises(zero, concentration))
    return reverse_kl(flow, lambda x: 2 * backend.xp.cos(x[:, 0] - 1), n, rng=seed)


@pytest.mark.filterwarnings("error")
def test_parameters_that_samples_are_not_differentiable_by_have_their_gradient(backend):
    """Against derivatives of the integrals by quadrature."""
    if backend.name not in DIFFERENTIATING:
        assert np.isfinite(float(of_mixture(backend, array(backend, [0.0, 0.0]), 8, 1)))
        assert np.isfinite(float(of_angles(backend, array(backend, [1.5]), 8, 1)))
        return

    def integral(p):
        grid = np.linspace(-12, 12, 20001)
        w = np.exp(p) / np.exp(p).sum()
        q = sum(v * np.exp(-0.5 * (grid - m) ** 2) / np.sqrt(2 * np.pi) for v, m in zip(w, (-3, 3), strict=True))
        return np.trapezoid(q * (np.log(q) + 0.5 * (grid - 3) ** 2), grid)

    def of_circle(k):
        grid = np.linspace(-np.pi, np.pi, 20001)
        q = np.exp(k * np.cos(grid))
        q /= np.trapezoid(q, grid)
        return np.trapezoid(q * (np.log(q) - 2 * np.cos(grid - 1)), grid)

    step = np.array([1e-4, 0.0])
    right = (integral(np.array([0.5, 0.0]) + step) - integral(np.array([0.5, 0.0]) - step)) / 2e-4
    (found,) = gradients(backend, lambda p: of_mixture(backend, p, 40000, 1), [array(backend, [0.5, 0.0])])
    np.testing.assert_allclose(found, [right, -right], atol=0.1)
    right = (of_circle(1.5 + 1e-4) - of_circle(1.5 - 1e-4)) / 2e-4
    (found,) = gradients(backend, lambda k: of_angles(backend, k, 40000, 1), [array(backend, [1.5])])
    np.testing.assert_allclose(found, [right], atol=0.05)


def test_the_score_has_no_bias_for_few_samples(backend):
    if backend.name != "torch":
        pytest.skip("hundreds of draws; nothing of it is the backend's")
    logs = [array(backend, [0.5, 0.0])]
    (right,) = gradients(backend, lambda p: of_mixture(backend, p, 40000, 1), logs)
    found = [gradients(backend, lambda p, s=s: of_mixture(backend, p, 2, s), logs)[0][0] for s in range(600)]
    assert abs(np.mean(found) - right[0]) < 5 * np.std(found) / 600**0.5 + 0.1
    assert 5 * np.std(found) / 600**0.5 + 0.1 < 0.5 * right[0]
