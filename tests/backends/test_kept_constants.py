"""Constants that stay on a device from one call to the next."""

import numpy as np

from iresnet_core.backends.kept_constants import LARGEST, MOST, KeptConstants


def test_constants_are_made_once_and_the_large_ones_are_not_kept():
    kept, made = KeptConstants(), []

    def get(key, size):
        def make():
            made.append(key)
            return np.zeros(size)

        return kept.get(key, make, lambda host: host + 1)

    assert get("small", 3) is get("small", 3)
    assert get("large", LARGEST + 1) is not get("large", LARGEST + 1)
    assert made == ["small", "large", "large"]
    for key in range(2 * MOST):
        get(key, 1)
    assert len(kept._kept) == MOST
    assert get(2 * MOST - 1, 1) is get(2 * MOST - 1, 1)
