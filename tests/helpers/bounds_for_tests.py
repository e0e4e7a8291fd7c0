"""What the tests of bounds share: their methods from the table, how tight each is, and what a bound must hold."""

import numpy as np
import pytest
from strategies import (
    norm_from_below,
)

from iresnet_core import as_operator, lipschitz_bound
from iresnet_core.lipschitz.bounds import BOUNDS, bound_methods

ON_MATRICES = bound_methods(as_operator(np.eye(1)))
CERTIFIED = tuple(name for name in ON_MATRICES if BOUNDS[name].certificate != "probabilistic")
every_method = pytest.mark.parametrize("method", CERTIFIED)
# How far above the norm the bound may be, relative to it; None: as loose as the method is.
TIGHTNESS = {"svd": 1e-12, "cholesky": 5e-3, "gram": 2e-3, "frobenius": None, "holder": None}
# Where the rounding to the dtype of a bound is small against it.
ORDINARY = (1.0, 0.37, 2.0**-40, 1e-20, 1e20, 1e-30, 1e30)


def bound_of(backend, A, method, **options):
    """The bound as a NumPy array, and the rest of the result."""
    result = lipschitz_bound(backend.from_numpy(A), method=method, **options)
    return backend.to_numpy(result.value), result


def is_close(bound, A, room):
    """Whether bounds are at most `room` above the norms, relative to them, but for rounding to the dtype."""
    info = np.finfo(A.dtype)
    return bool(np.all(bound <= norm_from_below(A) * (1 + room + 4 * info.eps) + 2 * info.smallest_normal))


def is_tight(bound, A, method):
    return TIGHTNESS.get(method) is None or is_close(bound, A, TIGHTNESS.get(method))
