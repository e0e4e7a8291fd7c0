"""The reference of a flow: what its branches see of some samples, from which evaluation takes mean Jacobians."""

import numpy as np
import pytest
from flow_examples import array, host

import iresnet_core
from iresnet_core.branches import Activation, Chain
from iresnet_core.determinant import logdet
from iresnet_core.errors import DtypeError, NonFiniteError, ShapeError
from iresnet_core.flows import ActNorm, FactorOut, Flow, Inverted, Pointwise, ResidualBlock, Squeeze
from iresnet_core.lipschitz import normalize
from iresnet_core.operators import Convolution, Dense


def branch(backend, channels, side, seed, coeff=0.9):
    """A branch that begins with an activation, whose slopes at data are not those at standard normal points."""
    rng, layers = np.random.default_rng(seed), []
    for outputs, inputs, window in ((12, channels, 3), (12, 12, 1), (channels, 12, 3)):
        kernel = array(backend, rng.standard_normal((outputs, inputs, window, window)))
        layers += [Activation("elu"), Convolution(kernel, input_shape=(inputs, side, side), padding="same")]
    return normalize(Chain(layers), coeff)


def images(n, channels=2, side=6, seed=0):
    """Images with bright and dark places, which are the same in all of them."""
    rng = np.random.default_rng(seed)
    places = 4 * np.random.default_rng(9).standard_normal((channels, side, side))
    return places + 0.3 * rng.standard_normal((n, channels, side, side))


def test_every_branch_gets_what_it_sees_of_the_samples(backend):
    inner = Flow([ActNorm(array(backend, np.full(2, 0.1)), array(backend, np.zeros(2)))], (2, 4, 4))
    inner = Flow([*inner.layers, ResidualBlock(branch(backend, 2, 4, 1))], (2, 4, 4))
    turned = Inverted(ResidualBlock(branch(backend, 4, 4, 2)), rtol=1e-12)
    flow = Flow([Squeeze(2), ResidualBlock(branch(backend, 4, 4, 0)), turned, FactorOut(2, inner)], (1, 8, 8))
    x = array(backend, images(3, 1, 8))
    referred = flow.with_reference(x)
    first, back = referred.layers[1], referred.layers[2]
    last = referred.layers[3].flow.layers[1]
    squeezed = flow.layers[0](x)
    middle = flow.layers[1](squeezed)
    behind = turned(middle)
    expected = (squeezed, behind, inner.layers[0](behind[:, :2, ...]))
    for block, seen in zip((first, back.layer, last), expected, strict=True):
        np.testing.assert_allclose(host(block.branch.reference), host(seen), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(host(referred(x)), host(flow(x)))
    assert all(array is not first.branch.reference for array in referred.arrays)


def test_a_reference_stays_through_casts_copies_and_conditions(backend):
    g = branch(backend, 2, 4, 0).with_reference(array(backend, images(3, 2, 4)))
    np.testing.assert_array_equal(host(g.with_arrays(g.arrays).reference), images(3, 2, 4))
    assert "reference=(3, 2, 4, 4)" in repr(g)
    narrow = g.astype(backend.xp.float32)
    assert narrow.reference.dtype == backend.xp.float32
    weight = array(backend, np.ones((24, 3)))
    block = ResidualBlock(g, condition=Dense(weight)).given(array(backend, np.ones((1, 3))))
    np.testing.assert_array_equal(host(block.branch.reference), images(3, 2, 4))
    assert g.with_reference(None).reference is None


def test_scores_are_less_noisy_with_a_reference_and_within_their_errors(backend):
    if backend.name not in ("numpy", "torch"):
        pytest.skip("the same answers by the same operations, which would be compiled one by one")
    flow = Flow([ResidualBlock(branch(backend, 2, 6, seed)) for seed in range(2)], (2, 6, 6))
    x = array(backend, images(40, seed=1))
    referred = flow.with_reference(array(backend, images(16, seed=2)))
    exact = host(flow.log_prob(x, method="exact").value)
    plain, known = flow.log_prob(x), referred.log_prob(x)
    assert (plain.method, known.method) == ("arnoldi", "mean-jacobian")
    errors = [host(result.value) - exact for result in (plain, known)]
    assert np.mean(errors[1] ** 2) < np.mean(errors[0] ** 2) / 4
    for result, error in zip((plain, known), errors, strict=True):
        assert np.all(np.abs(error) <= 5 * host(result.std_error) + host(result.bias_bound))
    alone = host(referred.log_prob(x[3:4, ...]).value)
    np.testing.assert_allclose(alone, host(known.value)[3:4], rtol=1e-10)


def test_a_file_keeps_the_reference(tmp_path):
    backend = iresnet_core.backends.backend("numpy")
    flow = Flow([ResidualBlock(branch(backend, 2, 6, 0))], (2, 6, 6)).with_reference(images(5))
    iresnet_core.save(flow, tmp_path / "with.safetensors")
    iresnet_core.save(Flow([flow.layers[0].with_reference(None)], (2, 6, 6)), tmp_path / "without.safetensors")
    loaded = iresnet_core.load(tmp_path / "with.safetensors")
    np.testing.assert_array_equal(loaded.layers[0].branch.reference, images(5))
    assert iresnet_core.load(tmp_path / "without.safetensors").layers[0].branch.reference is None
    x = images(4, seed=3)
    np.testing.assert_array_equal(loaded.log_prob(x).value, flow.log_prob(x).value)


def test_points_of_sets_are_the_reference_of_their_branch(backend):
    g = normalize(
        Chain([Dense(array(backend, np.random.default_rng(0).standard_normal((2, 2)))), Activation("elu")]), 0.9
    )
    x = array(backend, np.random.default_rng(1).standard_normal((3, 4, 2)))
    layer = Pointwise(ResidualBlock(g)).with_reference(x)
    np.testing.assert_array_equal(host(layer.layer.branch.reference), host(x).reshape(12, 2))


def test_what_is_no_reference_is_refused(backend):
    g = branch(backend, 2, 4, 0)
    flow = Flow([ResidualBlock(g)], (2, 4, 4))
    with pytest.raises(ShapeError, match=r"inputs \(n, \*\(2, 4, 4\)\), n at least 1"):
        g.with_reference(array(backend, images(3, 2, 5)))
    with pytest.raises(ShapeError):
        flow.with_reference(array(backend, images(3, 2, 5)))
    with pytest.raises(ShapeError):
        g.with_reference(array(backend, images(0, 2, 4)))
    with pytest.raises(NonFiniteError):
        flow.with_reference(array(backend, np.full((3, 2, 4, 4), np.nan)))
    with pytest.raises(DtypeError):
        flow.with_reference(backend.from_numpy(np.zeros((3, 2, 4, 4), dtype=np.int64)))


def test_dense_chains_take_it_for_samples_with_seeds_of_their_own():
    rng = np.random.default_rng(0)
    inner, outer = Dense(rng.standard_normal((90, 80))), Dense(rng.standard_normal((80, 90)))
    g = normalize(Chain([Activation("elu"), inner, Activation("elu"), outer]), 0.9)
    places = 4 * rng.standard_normal(80)
    x, reference = (places + 0.3 * rng.standard_normal((n, 80)) for n in (20, 16))
    exact = logdet(g, x, method="exact").value
    plain, known = (logdet(h, x, rng="sample") for h in (g, g.with_reference(reference)))
    assert plain.method == known.method == "mean-jacobian"
    assert np.mean((known.value - exact) ** 2) < np.mean((plain.value - exact) ** 2) / 4
