"""Certificates in compiled programs: the numbers of the eager calls, to rounding."""

import numpy as np
import pytest
from frameworks_for_tests import COMPILERS, compiled

from iresnet_core import Convolution, Dense, lipschitz_bound
from iresnet_core.lipschitz import certificate

pytestmark = pytest.mark.needs("compile")

RNG = np.random.default_rng(5)


def image(*channels, window=3, **options):
    """A convolution as (its weight, the layer of a weight)."""
    out, inner = channels
    weight = RNG.standard_normal((out, inner // options.get("groups", 1), window, window))
    shape = (inner, *options.pop("spatial", (9, 8)))
    if options.get("data_format") == "channels_last":
        weight, shape = np.moveaxis(weight, (0, 1), (-1, -2)).copy(), (*shape[1:], inner)
    return weight, lambda w: Convolution(w, input_shape=shape, checked=True, **options)


LAYERS = [
    (RNG.standard_normal((12, 10)), lambda w: Dense(w, checked=True)),
    image(8, 6, padding=1, groups=2, stride=2, data_format="channels_last"),
    image(2, 2, groups=2, spatial=(70, 90), padding=2, dilation=2),
    image(12, 10, window=1, groups=2),
]


@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.strict_suite)])
def test_certificates_of_programs_are_those_of_eager_calls(backend, dtype):
    chosen = [LAYERS[0], LAYERS[1], LAYERS[3]]
    weights = [backend.from_numpy(weight.astype(dtype)) for weight, _ in chosen]

    def certificates(*weights):
        found = [certificate(make(w), derivative=True) for w, (_, make) in zip(weights, chosen, strict=True)]
        return [part for one in found for part in one]

    expected = [backend.to_numpy(part) for part in certificates(*weights)]
    assert all(part.dtype == dtype for part in expected)
    for compiler in COMPILERS[backend.name]:
        found = [backend.to_numpy(part) for part in compiled(backend, compiler, certificates)(*weights)]
        for one, other in zip(found, expected, strict=True):
            rtol = 1e-11 if dtype == np.float64 else 4 * np.finfo(dtype).eps
            np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-9 if dtype == np.float64 else 1e-6)


def test_bounds_of_programs_are_close_to_those_of_eager_calls(backend):
    """The method "auto" takes no explicit matrix of a convolution there, and looks at no value."""
    chosen = [LAYERS[2], LAYERS[3]]
    weights = [backend.from_numpy(weight) for weight, _ in chosen]

    def bounds(*weights):
        return [lipschitz_bound(make(w)).value for w, (_, make) in zip(weights, chosen, strict=True)]

    expected = [float(value) for value in bounds(*weights)]
    for compiler in COMPILERS[backend.name][:1]:
        found = [float(value) for value in compiled(backend, compiler, bounds)(*weights)]
        np.testing.assert_allclose(found, expected, rtol=2e-3)
        A = np.max(np.linalg.norm(chosen[1][0][:, :, 0, 0].reshape(2, 6, 5), 2, axis=(1, 2)))
        assert found[1] >= A * (1 - 1e-15)
