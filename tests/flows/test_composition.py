"""How errors, seeds, noise and tolerances pass through a flow."""

import numpy as np
import pytest
from flow_examples import array, dense_block, host, vectors

from iresnet_core.determinant.dispatch import logdet
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows.factor_out import FactorOut
from iresnet_core.flows.flow import Flow
from iresnet_core.flows.layer import Layer, Transformed
from iresnet_core.results import Inverse, LogDet


class Stated(Layer):
    """The identity, with whatever errors a test wants to see composed."""

    residual_blocks = 1
    is_block = True

    def __init__(self, growth=1.0, own=0.0, residual=0.0, determinant=(0.0, 0.0, 0.0, 0), method="exact", seen=None):
        self._keep(growth=growth, own=own, residual=residual, determinant=determinant, method=method, seen=seen)

    @property
    def inverse_lipschitz(self):
        return self.growth

    def output_shape(self, input_shape):
        return tuple(input_shape)

    input_shape = output_shape

    def _map(self, backend, x):
        return x

    def _forward(self, backend, x, options):
        if self.seen is not None:
            self.seen.append(options)
        *fields, products = (backend.xp.full((x.shape[0],), value, dtype=x.dtype) for value in self.determinant)
        return Transformed(x, LogDet(*fields, backend.xp.astype(products, backend.xp.int32), self.method))

    def _inverse(self, backend, z, options):
        bound, residual, one = (
            backend.xp.full((z.shape[0],), value, dtype=z.dtype) for value in (self.own, self.residual, 1.0)
        )
        return Inverse(z, bound, residual, backend.xp.astype(one, backend.xp.int32), bound < 1.0)


def test_error_bounds_grow_by_the_inverses_they_pass(backend):
    layers = [Stated(growth=2.0, own=0.5), Stated(growth=3.0, own=0.25, residual=2.0), Stated(growth=7.0, own=0.125)]
    back = Flow(layers, (2,)).inverse(vectors(backend, 0, d=2))
    np.testing.assert_allclose(host(back.error_bound), 0.5 + 2.0 * (0.25 + 3.0 * 0.125), rtol=1e-14)
    assert (host(back.error_bound) >= 0.5 + 2.0 * (0.25 + 3.0 * 0.125)).all()
    np.testing.assert_array_equal(host(back.residual), 2.0)
    np.testing.assert_array_equal(host(back.iterations), 3)
    assert host(back.converged).all()
    assert not host(Flow([Stated(), Stated(own=2.0)], (2,)).inverse(vectors(backend, 0, d=2)).converged).any()


def test_errors_of_logdets_add_up(backend):
    layers = [
        Stated(determinant=(1.0, 3.0, 0.5, 4), method="arnoldi"),
        Stated(determinant=(-2.5, 4.0, 0.25, 2), method="exact"),
        Flow([Stated(determinant=(0.5, 12.0, 0.125, 1), method="arnoldi")], (2,)),
    ]
    total = Flow(layers, (2,)).forward(vectors(backend, 0, d=2)).logdet
    np.testing.assert_allclose(host(total.value), -1.0)
    np.testing.assert_allclose(host(total.std_error), 13.0)
    np.testing.assert_allclose(host(total.bias_bound), 0.875)
    assert (host(total.bias_bound) >= 0.875).all()
    np.testing.assert_array_equal(host(total.products), 7)
    assert total.method == "arnoldi+exact"


# --- seeds, noise, tolerances ---


def options_seen(flow_of, backend, **options):
    """The options that each of five blocks is given; two of them are inside a FactorOut, one in a flow in there."""
    seen = []
    layers = [Stated(seen=seen) for _ in range(5)]
    inner = [layers[2], Flow([layers[3]], (1,))]
    flow = flow_of([layers[0], layers[1], FactorOut(1, inner), layers[4]], (2,))
    flow.forward(vectors(backend, 0, d=2), **options)
    assert len(seen) == 5
    return seen


def test_one_seed_gives_every_block_a_stream_of_its_own(backend):
    seeds = [options["rng"] for options in options_seen(Flow, backend, rng=3)]
    assert len(set(seeds)) == 5
    assert all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in seeds)
    assert seeds == [options["rng"] for options in options_seen(Flow, backend, rng=np.int64(3))]
    assert not set(seeds) & {options["rng"] for options in options_seen(Flow, backend, rng=4)}
    generator = np.random.default_rng(0)
    assert all(options["rng"] is generator for options in options_seen(Flow, backend, rng=generator))
    assert not any(options["rng"] for options in options_seen(Flow, backend, rng=None))
    places = [options["rng"].path for options in options_seen(Flow, backend)]
    assert len(set(places)) == 5
    with pytest.raises(InvalidArgumentError, match="negative"):
        options_seen(Flow, backend, rng=-1)


def test_the_tolerance_is_for_the_whole_flow(backend):
    tolerances = [options["tol"] for options in options_seen(Flow, backend, tol=1.0)]
    assert tolerances == pytest.approx([0.2] * 5)
    with pytest.raises(InvalidArgumentError, match="tol"):
        options_seen(Flow, backend, tol=-1.0)


def test_noise_is_one_entry_a_block(backend):
    noise = [vectors(backend, seed) for seed in range(5)]
    given_out = [options["noise"] for options in options_seen(Flow, backend, noise=noise, probes=2)]
    assert all(a is b for a, b in zip(given_out, noise, strict=True))
    assert all(options["probes"] == 2 for options in options_seen(Flow, backend, probes=2))
    for bad, seen in ((noise[:4], "4 entries"), (noise[0], "got")):
        with pytest.raises(InvalidArgumentError, match=f"5 residual blocks.*{seen}"):
            options_seen(Flow, backend, noise=bad)


def test_a_seed_reproduces_and_equal_blocks_get_unequal_probes(backend):
    rng = np.random.default_rng(5)
    block = dense_block(backend, rng, 6, coeff=0.9)
    flow = Flow([block, block], (6,))
    x = vectors(backend, 5, d=6)
    options = {"method": "arnoldi", "control_variate": "none"}
    first, again, other = (host(flow.log_prob(x, rng=seed, **options).value) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    probes = [array(backend, np.sign(rng.normal(0, 1, (1, 3, 6)))) for _ in range(2)]
    total = flow.forward(x, noise=probes, **options).logdet
    parts = [logdet(block.branch, at, noise=v, **options) for at, v in zip((x, block(x)), probes, strict=True)]
    np.testing.assert_allclose(host(total.value), sum(host(part.value) for part in parts), rtol=1e-12)
    np.testing.assert_allclose(host(total.std_error), np.hypot(*(host(part.std_error) for part in parts)), rtol=1e-12)
