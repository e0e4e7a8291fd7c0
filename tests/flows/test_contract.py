"""What every layer of a flow promises: an inverse, its bounds, empty batches, clear refusals, and never to change."""

import math

import numpy as np
import pytest
from flow_examples import array, distances, every_layer, host
from hypothesis import given, settings
from hypothesis import strategies as st

from iresnet_core.backends import backend as find_backend
from iresnet_core.errors import (
    DtypeError,
    InvalidArgumentError,
    MixedBackendsError,
    NonFiniteError,
    ShapeError,
    UnknownArrayError,
)


def cases(backend, dtype="float64"):
    for layer, shape in every_layer(backend, dtype):
        rng = np.random.default_rng(math.prod(shape))
        yield layer, array(backend, rng.random((3, *shape)), dtype)


def test_every_layer_inverts_itself(backend):
    for layer, x in cases(backend):
        z = layer(x)
        np.testing.assert_array_equal(host(layer.forward(x).value), host(z))
        back = layer.inverse(z)
        allowance = 1e-14 * float(layer.inverse_lipschitz) * (1 + np.linalg.norm(host(z)))
        assert (distances(back.value, x) <= host(back.error_bound) + allowance).all(), layer
        assert tuple(z.shape[1:]) == layer.output_shape(x.shape[1:])
        assert tuple(x.shape[1:]) == layer.input_shape(z.shape[1:])
        assert host(back.converged).all()


def test_every_layer_takes_empty_batches_and_batches_of_one(backend):
    for layer, x in cases(backend):
        for n in (0, 1):
            z, logdet = layer.forward(x[:n, ...])
            back = layer.inverse(z)
            assert z.shape[0] == back.value.shape[0] == n
            assert tuple(back.value.shape[1:]) == tuple(x.shape[1:])
            assert all(tuple(field.shape) == (n,) for field in (*logdet[:4], *back[1:])), layer
            if n:
                np.testing.assert_allclose(host(z), host(layer(x))[:1], rtol=1e-12, atol=1e-14)


@settings(max_examples=max(2, settings.default.max_examples // 5))  # each example runs every layer
@given(seed=st.integers(0, 2**32 - 1))
def test_inverse_lipschitz_bounds_every_inverse(backend, seed):
    for layer, x in cases(backend):
        rng = np.random.default_rng(seed)
        z = host(layer(x))
        first = z + rng.normal(0, 1, z.shape)
        second = first + rng.normal(0, 1, z.shape) * 10.0 ** rng.integers(-4, 1)
        one, two = layer.inverse(array(backend, first)), layer.inverse(array(backend, second))
        grown = float(layer.inverse_lipschitz) * distances(first, second)
        own = host(one.error_bound) + host(two.error_bound)
        assert (distances(one.value, two.value) <= grown * (1 + 1e-12) + own).all(), layer


def test_every_layer_refuses_bad_arrays(backend):
    other = find_backend("numpy" if backend.name != "numpy" else "array_api_strict")
    for layer, x in cases(backend):
        nan = host(x).copy()
        nan.flat[1] = np.nan
        for method in (layer, layer.forward):
            with pytest.raises(NonFiniteError, match="NaN"):
                method(array(backend, nan))
            with pytest.raises(DtypeError):
                method(backend.from_numpy(np.ones(x.shape, dtype=np.int64)))
            with pytest.raises(ShapeError, match=r"\(batch, ...\)"):
                method(array(backend, [1.0, 2.0]))
            with pytest.raises(UnknownArrayError):
                method([[1.0, 2.0]])
            if layer.arrays:
                with pytest.raises(DtypeError, match=r"float32.*float64"):
                    method(array(backend, host(x), "float32"))
                with pytest.raises(MixedBackendsError):
                    method(array(other, host(x)))
        with pytest.raises(InvalidArgumentError, match=r"no option probe;.*probes"):
            layer.forward(x, probe=3)
        with pytest.raises(InvalidArgumentError, match=r"no option start;.*solver"):
            layer.inverse(layer(x), start=x)


def test_layers_never_change(backend):
    for layer, x in cases(backend):
        before = host(x).copy()
        layer.inverse(layer.forward(x).value)
        np.testing.assert_array_equal(host(x), before)
        with pytest.raises(AttributeError, match="never changes"):
            layer.axis = 2


@pytest.mark.needs("float16")
def test_half_precision_is_accepted_and_its_sums_are_not(backend):
    for layer, x in cases(backend, "float16"):
        z, logdet = layer.forward(x)
        assert host(z).dtype == np.float16
        assert layer.is_block or host(logdet.value).dtype == np.float32
        back = layer.inverse(z)
        assert host(back.value).dtype == np.float16
        assert host(back.error_bound).dtype == np.float64
        wide = layer.astype(backend.xp.float64).inverse(array(backend, host(z)))
        assert (distances(back.value, wide.value) <= host(back.error_bound) + host(wide.error_bound)).all(), layer
