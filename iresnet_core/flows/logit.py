"""Logit of images, which takes [0, 1] to the real line (Dinh, Sohl-Dickstein and Bengio 2017, Sec. 4.1)."""

import math
from collections.abc import Sequence
from typing import Any

from iresnet_core.backends import Array, Backend
from iresnet_core.common import flatten, unit_roundoff, widest
from iresnet_core.determinant import LogDetOptions
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.flows.layer import (
    InverseOptions,
    Layer,
    Shape,
    Transformed,
    closed_form_inverse,
    closed_form_logdet,
    scaled_error,
    wide_norms,
)
from iresnet_core.results import Inverse

__all__ = ["Logit"]


class Logit(Layer):
    """``z = log(p / (1 - p))`` with ``p = alpha + (1 - 2 alpha) x``, entry by entry; it takes [0, 1] to the real line.

    The first layer of a flow on images, whose entries were dequantised and scaled to [0, 1].

    Parameters
    ----------
    alpha : float
        Distance of p from 0 and 1, in (0, 0.5). 0.05 suits images of grey levels; a smaller one spreads black and
        white pixels further out.

    Raises
    ------
    InvalidArgumentError
        If alpha is outside (0, 0.5); from `forward`, if an entry of x is where the map is not defined.

    Notes
    -----
    The inverse ``1/2 + tanh(z/2) / (2 - 4 alpha)`` is defined for every z and lands in the open interval from
    -alpha/(1 - 2 alpha) to 1 + alpha/(1 - 2 alpha): samples may lie a little outside [0, 1] (by 0.056 for alpha =
    0.05). They are returned as they are, since a clipped sample would not be the preimage of its latent, and `forward`
    takes them back.

    Examples
    --------
    >>> import numpy as np
    >>> Logit(0.05).forward(np.array([[0.5, 1.0]])).value.round(6)
    array([[0.      , 2.944439]])
    """

    alpha: float

    def __init__(self, alpha: float = 0.05) -> None:
        number = float(alpha)
        if not 0 < number < 0.5:
            raise InvalidArgumentError(f"alpha must be in (0, 0.5), got {alpha!r}.")
        self._keep(alpha=number)

    def __repr__(self) -> str:
        return f"Logit(alpha={self.alpha:g})"

    @property
    def inverse_lipschitz(self) -> Any:
        """Largest slope of the inverse, at z = 0."""
        return (1 + 1e-15) / (4 * (1 - 2 * self.alpha))

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the same shape."""
        return tuple(input_shape)

    def input_shape(self, output_shape: Sequence[int]) -> Shape:
        """Return the same shape."""
        return self.output_shape(output_shape)

    def _map(self, backend: Backend, x: Array) -> Array:
        self._require_domain(backend, x)
        p, q = self._pair(x)
        return backend.xp.log(p) - backend.xp.log(q)

    def _pair(self, x: Array) -> tuple[Array, Array]:
        """Return the argument of the logit and its complement, each a sum of positive terms and so accurate."""
        width = 1 - 2 * self.alpha
        return self.alpha + width * x, self.alpha + width * (1 - x)

    def _require_domain(self, backend: Backend, x: Array) -> None:
        if backend.is_tracing(x) or not x.shape[0]:
            return
        x = backend.stop_gradient(x)
        low, high = float(backend.xp.min(x)), float(backend.xp.max(x))
        margin = self.alpha / (1 - 2 * self.alpha)
        p, q = self._pair(x)
        if float(backend.xp.min(p)) <= 0 or float(backend.xp.min(q)) <= 0:
            raise InvalidArgumentError(
                f"{self!r} takes data in [0, 1] and is defined between {-margin:.4g} and {1 + margin:.4g}, got entries "
                f"from {low:.6g} to {high:.6g}. Divide 8-bit images by 255, or by 256 after adding uniform noise in "
                "[0, 1)."
            )

    def _forward(self, backend: Backend, x: Array, options: LogDetOptions) -> Transformed:
        value = self._map(backend, x)
        xp = backend.xp
        size = math.prod(x.shape[1:])
        p, q = self._pair(flatten(xp, xp.astype(x, widest(backend))))
        terms = -xp.log(p) - xp.log(q)
        constant = size * math.log1p(-2 * self.alpha)
        # Both logarithms are of numbers below 1, so the terms are positive and their sum bounds its own rounding.
        total = xp.sum(terms, axis=1)
        rounding = unit_roundoff(backend, widest(backend)) * ((size + 8) * (total + abs(constant)) + 16 * size)
        return Transformed(value, closed_form_logdet(backend, total + constant, rounding, x.dtype))

    def _with_rounding(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        value, xp, wide = self._map(backend, x), backend.xp, widest(backend)
        u = unit_roundoff(backend, x.dtype)
        entries = xp.astype(x, wide)
        p, q = self._pair(entries)
        # Two roundings each of the terms of p and q, four of a logarithm, and that of the difference.
        size = self.alpha + (1 - 2 * self.alpha) * xp.abs(entries)
        off = 4 * u * (size / p + (size + 1) / q) + 10 * u * (xp.abs(xp.log(p)) + xp.abs(xp.log(q)))
        return value, wide_norms(backend, off)

    def _spread(self, backend: Backend, x: Array, error: Array) -> tuple[Array, Array]:
        """Slope and derivative of its logarithm are at most (1 - 2 alpha) / (p q) in every entry."""
        xp, wide = backend.xp, widest(backend)
        width = 1 - 2 * self.alpha
        p, q = self._pair(flatten(xp, xp.astype(x, wide)))
        reach = (width * error + 4 * unit_roundoff(backend, wide))[:, None]
        least = xp.where((p > reach) & (q > reach), (p - reach) * (q - reach), xp.zeros_like(p))
        inside = least > 0
        slope = xp.where(inside, width / xp.where(inside, least, xp.ones_like(least)), xp.full_like(least, math.inf))
        slope = slope * (1 + 1e-14)
        largest, root = xp.max(slope, axis=1), xp.sqrt(xp.sum(slope**2, axis=1))
        return scaled_error(backend, error, largest), scaled_error(backend, error, root)

    def _inverse(self, backend: Backend, z: Array, options: InverseOptions) -> Inverse:
        deviation = backend.xp.tanh(0.5 * z) / (2 - 4 * self.alpha)
        x = 0.5 + deviation
        info = backend.xp.finfo(z.dtype)
        # Four roundings of eps at most for tanh, one for each operation and for the constant.
        rounding = 8 * float(info.eps) * (wide_norms(backend, deviation) + wide_norms(backend, x)) + math.sqrt(
            math.prod(z.shape[1:])
        ) * float(info.smallest_normal)
        return closed_form_inverse(backend, x, rounding)
