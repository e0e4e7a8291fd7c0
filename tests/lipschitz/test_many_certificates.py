"""Thousands of bounds on matrices and convolutions of all sorts, none of which may be violated."""

import itertools

import numpy as np
import pytest
from bounds_for_tests import CERTIFIED, bound_of
from strategies import (
    KINDS,
    SCALES,
    convolution_matrix,
    holds,
    make_matrix,
    norm_from_below,
)

from iresnet_core import Convolution, lipschitz_bound

SHARDS = 8
MATRICES = 400
CONVOLUTIONS = 150
CASES = MATRICES * len(CERTIFIED) + CONVOLUTIONS


def test_strict_suite_is_large_enough():
    assert SHARDS * CASES >= 10_000


def sides():
    """Sides of the matrices of one shard: all small ones, some large ones, and 512."""
    rng = np.random.default_rng(SHARDS)
    small = rng.integers(1, 33, MATRICES - 70)
    return [*small, *rng.integers(33, 129, 50), *rng.integers(129, 513, 18), 511, 512]


@pytest.mark.strict_suite
@pytest.mark.parametrize("shard", range(SHARDS))
def test_ten_thousand_certificates(backend, shard, capsys):
    rng = np.random.default_rng([shard, 2024])
    choices = list(itertools.product(KINDS, SCALES))
    cases, violations = 0, []
    for number, side in enumerate(sides()):
        kind, dtype = choices[(number + 5 * shard) % len(choices)]
        m, n = rng.permutation([side, side if rng.random() < 0.5 else rng.integers(1, side + 1)])
        scale, seed = rng.choice(np.array(SCALES[dtype], object)), int(rng.integers(2**32))
        A = make_matrix(kind, m, n, scale=scale, dtype=dtype, seed=seed)
        norm = norm_from_below(A)
        for method in CERTIFIED:
            cases += 1
            if not holds(bound_of(backend, A, method)[0], A, norm):
                violations.append((method, kind, m, n, scale, dtype.__name__, seed))
    for _ in range(CONVOLUTIONS):
        cases += 1
        kernel, input_shape, options = random_convolution(rng)
        layer = Convolution(backend.from_numpy(kernel), input_shape=input_shape, **options)
        bound = backend.to_numpy(lipschitz_bound(layer, method="fft").value)
        if not holds(bound, convolution_matrix(kernel, input_shape, options)):
            violations.append(("fft", kernel, input_shape, options))
    with capsys.disabled():
        print(f"\n{backend.name}, part {shard + 1} of {SHARDS}: {cases} certificates, {len(violations)} violated")
    assert not violations
    assert cases == CASES


def random_convolution(rng):
    """A convolution that is drawn without hypothesis: (kernel, input shape, options)."""
    axes = int(rng.integers(1, 4))
    window, dilation = rng.integers(1, 4, axes), rng.integers(1, 3, axes)
    reach = (window - 1) * dilation
    circular = bool(rng.random() < 0.3)
    before = rng.integers(0, (reach if circular else reach + 2) + 1) // (2 if circular else 1)
    after = before if circular else rng.integers(0, reach + 2)
    spatial = np.maximum(reach + 1 - before - after, 1) + rng.integers(0, (12, 4, 2)[axes - 1], axes)
    spatial = np.maximum(spatial, before) if circular else spatial
    groups = int(rng.integers(1, 3))
    inner, outer = rng.integers(1, 12 if axes == 1 else 4, 2)
    kernel = rng.standard_normal((outer * groups, inner, *window)) * 10.0 ** rng.uniform(-30, 30)
    options = {
        "stride": tuple(map(int, rng.integers(1, 4, axes) if rng.random() < 0.4 else [1] * axes)),
        "padding": tuple((int(b), int(a)) for b, a in zip(before, after, strict=True)),
        "dilation": tuple(map(int, dilation)),
        "groups": groups,
        "padding_mode": "circular" if circular else "zeros",
    }
    dtype = np.float32 if rng.random() < 0.5 else np.float64
    return kernel.astype(dtype), (int(inner) * groups, *map(int, spatial)), options
