"""Weights below a cap in training: from any start, and where the matrix is zero."""

import os
import subprocess
import sys

import numpy as np
import pytest

from iresnet_core import Convolution, Dense
from iresnet_core.lipschitz import symbol
from iresnet_core.lipschitz.training_caps import (
    basis_shape,
    certificate,
    certificates,
    scaled_by_certificate,
    scaled_in_training,
)


@pytest.mark.parametrize("shape", [(3, 3), (30, 20), (1, 7)])
def test_weights_that_begin_as_zero_are_capped_once_they_are_not(backend, shape):
    rng = np.random.default_rng(0)
    weight, basis = np.zeros(shape), None
    for step in range(12):
        ((layer, basis),) = scaled_in_training([Dense(backend.from_numpy(weight))], [0.5], [basis])
        used = backend.to_numpy(layer.weight)
        assert tuple(basis.shape) == basis_shape(layer)
        assert np.linalg.norm(used, 2) <= 0.5 * (1 + 1e-3)
        np.testing.assert_allclose(used * np.linalg.norm(weight), weight * np.linalg.norm(used), atol=1e-10)
        if step >= 1:  # zero twice
            weight = weight + 0.3 * rng.standard_normal(shape)
    assert np.linalg.norm(used, 2) > 0.49


@pytest.mark.parametrize(("shape", "step"), [((128, 64), 1e-3), ((128, 128), 1e-2), ((30, 300), 3e-3)])
def test_matrices_are_followed_to_a_thousandth(backend, shape, step):
    """Steps like Adam's, of one size in every entry, whose signs are mostly those of a matrix of low rank."""
    rng = np.random.default_rng(0)
    weight, basis, seen = rng.uniform(-1, 1, shape) / shape[1] ** 0.5, None, []
    for _ in range(15):
        ((layer, basis),) = scaled_in_training([Dense(backend.from_numpy(weight.astype(np.float32)))], [0.7], [basis])
        seen.append(np.linalg.norm(backend.to_numpy(layer.weight).astype(np.float64), 2) / 0.7)
        pull = rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[1]))
        weight += step * np.sign(pull + 0.5 * rng.standard_normal(shape))
    assert min(seen) >= 0.999
    assert max(seen) <= 1.001


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-19, 1e19, 1e30])
def test_matrices_of_any_scale_are_followed(backend, scale):
    weight = (np.random.default_rng(0).standard_normal((20, 20)) * scale).astype(np.float32)
    cap = 0.5 * float(np.linalg.norm(weight.astype(np.float64), 2))
    basis = None
    for _ in range(3):
        ((layer, basis),) = scaled_in_training([Dense(backend.from_numpy(weight))], [cap], [basis])
        norm = np.linalg.norm(backend.to_numpy(layer.weight).astype(np.float64), 2)
        assert 0.999 * cap <= norm <= 1.001 * cap


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_convolutions_with_one_tap_are_matrices(backend, shape, data_format):
    rng = np.random.default_rng(0)
    first = data_format == "channels_first"
    matrices, bases = [rng.standard_normal(shape) for _ in range(2)], [None, None]
    image = (shape[1], 3, 3) if first else (3, 3, shape[1])
    for _ in range(2):
        kernels = [m[:, :, None, None] if first else m.T[None, None] for m in matrices]
        layers = [Convolution(backend.from_numpy(k), input_shape=image, data_format=data_format) for k in kernels]
        found = scaled_in_training(layers, [0.5, 0.6], bases)
        bases = [basis for _, basis in found]
        for (layer, basis), matrix, cap in zip(found, matrices, (0.5, 0.6), strict=True):
            assert tuple(basis.shape) == basis_shape(layer) == (4 if 4 in shape else 5,) * 2
            used = backend.to_numpy(layer.weight)
            used = used[:, :, 0, 0] if first else used[0, 0].T
            np.testing.assert_allclose(used, matrix * cap / np.linalg.norm(matrix, 2), rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"dilation": 2}])
def test_convolutions_have_the_weights_of_evaluation(backend, options):
    rng = np.random.default_rng(0)
    kernel = backend.from_numpy(rng.standard_normal((4, 4 // options.get("groups", 1), 3, 3)))
    layer = Convolution(kernel, input_shape=(4, 9, 9), padding="same", **options)
    ((used, basis),) = scaled_in_training([layer], [0.5], [None])
    expected = scaled_by_certificate(layer, 0.5, certificate(layer))
    assert basis is None
    assert basis_shape(layer) == (0,)
    assert bool(backend.xp.all(used.weight == expected.weight))
    assert used.lipschitz <= 0.5


SIDES = [
    ((5, 3, 3, 3), (3, 8, 8), {}),
    ((3, 5, 3, 3), (5, 8, 8), {}),  # of one shape with the first, transposed
    ((4, 2, 3, 3), (4, 6, 7), {"groups": 2}),  # another image has other frequencies
    ((5, 3, 1, 1), (3, 8, 8), {}),
]


def test_layers_side_by_side_have_the_certificates_that_they_have_alone(backend):
    """Of any scale each, zeros too."""
    rng, layers = np.random.default_rng(0), []
    for scale in (1.0, 1e-30, 0.0, 1e30):
        for shape, image, options in SIDES:
            kernel = backend.from_numpy((scale * rng.standard_normal(shape)).astype(np.float32))
            layers.append(Convolution(kernel, input_shape=image, padding="same", **options))
    for layer, found in zip(layers, certificates(layers, derivative=True), strict=True):
        alone = certificate(layer, derivative=True)
        assert found.bound.dtype == layer.weight.dtype
        np.testing.assert_allclose(backend.to_numpy(found.bound), backend.to_numpy(alone.bound), rtol=1e-6)
        np.testing.assert_allclose(backend.to_numpy(found.direction), backend.to_numpy(alone.direction), atol=1e-5)
        assert tuple(found.direction.shape) == tuple(layer.weight.shape)


def test_stacks_of_any_size_have_bounds_that_are_no_less_than_the_norms(monkeypatch):
    rng = np.random.default_rng(1)
    layers = [
        Convolution(rng.standard_normal((4, 2, 3, 2)), input_shape=(4, 5, 4), padding="same", groups=2)
        for _ in range(7)
    ]
    norms = np.array([np.linalg.norm(layer.matrix(), 2) for layer in layers])
    for entries in (1, 500, 2**17):  # one by one, some at a time, all at once
        monkeypatch.setattr(symbol, "ENTRIES_IN_CACHE", entries)
        bounds = np.array([float(found.bound) for found in certificates(layers)])
        assert np.all(bounds >= norms)
        assert np.all(bounds <= 1.3 * norms)


NARROW = """
import jax, jax.numpy as jnp, numpy as np
import iresnet_core as core
from iresnet_core.lipschitz.training_caps import (
    any_size_bound,
    certificate,
    scaled_by_certificate,
    scaled_in_training,
)
from iresnet_core.backends import backend

x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)
weight = jnp.asarray(np.random.default_rng(1).normal(size=(6, 6)), jnp.float32)
norm = core.ActNorm.initialize(x)

def loss(weight, scale, certify):
    layer = core.Dense(weight)
    if certify:
        layer = scaled_by_certificate(layer, 0.8, certificate(layer)).capped(0.8)
    else:
        ((layer, _),) = scaled_in_training([layer], [0.8], [None])
    block = core.ResidualBlock(core.Chain([layer, core.Activation("elu")]), lipschitz=0.9)
    flow = core.Flow([core.ActNorm(scale, norm.bias), block], (6,))
    return flow.log_prob(x, terms=2, noise=[jnp.ones_like(x)]).value.mean()

for certify in (False, True):
    found = jax.jit(jax.grad(lambda w, s: loss(w, s, certify), (0, 1)))(weight, norm.log_scale)
    assert all(a.dtype == jnp.float32 and np.isfinite(np.asarray(a)).all() for a in found)
def image_loss(kernel):
    layer = core.Convolution(kernel, input_shape=(3, 5, 6), padding="same")
    return (scaled_by_certificate(layer, 0.8, certificate(layer)).weight ** 2).sum()

kernel = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 3, 3)), jnp.float32)
found = jax.jit(jax.grad(image_loss))(kernel)
assert found.dtype == jnp.float32 and np.abs(found - jax.grad(image_loss)(kernel)).max() < 1e-5
chain = core.normalize(core.Chain([core.Dense(weight)]), 0.8)
flow = core.Flow([norm, core.ResidualBlock(chain)], (6,))
z = flow.forward(x, rng=0).value
found = flow.inverse(z)
host = [np.asarray(a, dtype=np.float64) for a in (norm.log_scale, norm.bias, chain.operators[0].weight, z, found.value)]
wide = core.Flow([core.ActNorm(*host[:2]), core.ResidualBlock(core.Chain([core.Dense(host[2])]))], (6,))
error = np.linalg.norm(host[4] - wide.inverse(host[3]).value, axis=1)
bounds = np.asarray(found.error_bound)
assert (error <= bounds).all() and bounds.max() < 1e-5
assert float(any_size_bound(backend("jax"), jnp.ones((2, 2, 3), jnp.float32))) >= 6
"""


def test_jax_without_64_bit_types(tmp_path):
    pytest.importorskip("jax", reason="jax is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", NARROW],
        cwd=tmp_path,
        env={**os.environ, "JAX_ENABLE_X64": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
