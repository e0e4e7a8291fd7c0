"""Eigenvalues of explicit matrices that no logarithm of a determinant can be continued past."""

import numpy as np

__all__ = ["is_beyond_singular"]

# Imaginary part, relative to the modulus, that rounding may give to a real eigenvalue.
ROUNDING = 1e-9


def is_beyond_singular(matrices: np.ndarray) -> bool:
    """Whether one of real matrices (..., d, d) has a real eigenvalue at or below zero."""
    values = np.linalg.eigvals(matrices)
    return bool(np.any((values.real <= 0) & (abs(values.imag) <= ROUNDING * abs(values))))
