"""What NumPy and the frameworks made after it have in common: convolution, noise and the Cholesky factorisation."""

from typing import Any

import numpy as np

from iresnet_core.backends.base import Array, NoiseKind
from iresnet_core.backends.convolution import OffsetConvolution
from iresnet_core.backends.host_noise import draw, generator

__all__ = ["NumPyFamily"]


class NumPyFamily(OffsetConvolution):
    """A backend without automatic differentiation and compiler, which convolves by one product per kernel offset."""

    def generator(self, rng: Any) -> Any:
        """Return NumPy's generator."""
        return generator(rng)

    def sample(self, kind: NoiseKind, shape: tuple[int, ...], like: Array, rng: Any) -> Array:
        """Draw with NumPy in float64 and round, so that float32 runs see the same noise."""
        return self.xp.astype(self.from_numpy(draw(kind, shape, rng), like), like.dtype, copy=False)

    def uniform(self, shape: tuple[int, ...], rng: Any) -> Any:
        """Draw from the same generator as `sample`."""
        return np.asarray(generator(rng).random(shape))

    def erf(self, x: Array) -> Array:
        """Ask SciPy, on the host."""
        from scipy.special import erf

        return self.from_numpy(erf(self.to_numpy(x)), x)

    def is_positive_definite(self, matrix: Array) -> bool:
        """Ask for the Cholesky factor and take the refusal as the answer."""
        xp = self.xp
        try:
            # The transpose is the conjugate matrix, definite or not together with it; its columns are contiguous, which
            # spares LAPACK's copy the strided reads.
            factor = xp.linalg.cholesky(xp.matrix_transpose(matrix))
        except np.linalg.LinAlgError:
            return False
        return bool(xp.all(xp.isfinite(factor)))  # NaN passes through LAPACK
