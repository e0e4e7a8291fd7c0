"""Integrals of the resolvent of a Hessenberg matrix of one or two columns, in closed form.

With H = [[a, b], [c, d]], D(t) = det(I + t H) = 1 + t tr H + t^2 det H is a parabola, the resolvent
(I + t H)^-1 e_1 = (1 + t d, -t c) / D(t), and with m = 1 + tr H / 2 and s^2 = (a - d)^2 / 4 + b c

    e_1^T log(I + H) e_1 = log(det(I + H)) / 2 + (a - d) / 2 * atanh(s / m) / s,

an arctangent where s^2 < 0. No nodes of a quadrature are needed, which for a few products is most of the time.
"""

from typing import Any

from iresnet_core.backends import Array, Backend
from iresnet_core.quadrature import Rule

__all__ = ["SMALL", "SmallResolvent"]

# Columns at most.
SMALL = 2
# Allowance for the rounding of the closed forms, relative to ||v||^2, and for that of the integrals of the bound.
ROUNDING, INTEGRAL = 1e-12, 1e-6


class SmallResolvent:
    """What `arnoldi` asks of the integrals over t, for one column or two; float64 arrays (probes, batch).

    The certificate takes the least D(t) for all t. Where that is not positive nothing is certified: it is NaN.
    """

    def __init__(self, engine: Backend, rule: Rule) -> None:
        self.xp: Any = engine.xp
        self.error = ROUNDING
        # Of the bound K(t) on the norm of the resolvent, and of t K(t).
        self.damping = self.xp.sum(rule.damping, axis=0) * (1 + INTEGRAL)
        self.moment = self.xp.sum(rule.t * rule.damping, axis=0) * (1 + INTEGRAL)
        self.columns: list[list[Array]] = []

    def append(self, column: list[Array]) -> None:
        """Take in the next column of H: its entries (probes, batch) from the first to the one below the diagonal."""
        xp = self.xp
        self.columns.append(column)
        one = xp.ones_like(column[0])
        if len(self.columns) == 1:
            self.trace, self.determinant = column[0], xp.zeros_like(one)
            self.least = xp.minimum(one, 1 + column[0])
        else:
            (a, c, *_), (b, d, *_) = self.columns
            self.trace, self.determinant = a + d, a * d - b * c
            inside = (self.trace < 0) & (self.trace > -2 * self.determinant)
            vertex = 1 - self.trace**2 / xp.where(inside, 4 * self.determinant, one)
            ends = xp.minimum(one, 1 + self.trace + self.determinant)
            self.least = xp.where(inside, xp.minimum(vertex, ends), ends)
        self.least = xp.where(self.least > 0, self.least, xp.full_like(one, float("nan")))

    def logarithm(self) -> Array:
        """e_1^T log(I + H) e_1."""
        xp = self.xp
        if len(self.columns) == 1:
            return xp.log1p(self.trace)
        (a, c, *_), (b, d, *_) = self.columns
        half, middle = 0.5 * (a - d), 1 + 0.5 * self.trace
        square = half * half + b * c
        s = xp.sqrt(xp.maximum(xp.abs(square), xp.full_like(square, 1e-280)))
        real = square >= 0
        below = xp.where(real, middle - s, xp.ones_like(s))
        slope = xp.where(real, 0.5 * xp.log1p(2 * s / below), xp.atan2(s, middle)) / s
        return 0.5 * xp.log1p(self.trace + self.determinant) + half * slope

    def certificate(self) -> Array:
        """Bound on the error of `logarithm`."""
        last = self.columns[-1]
        if len(self.columns) == 1:
            return last[1] / self.least * self.damping
        return last[2] * self.columns[0][1] / self.least * self.moment

    def mean_resolvent(self) -> tuple[list[Array], list[Array], Array]:
        """Integrals of (I + t H)^-1 e_1 and e_1^T (I + t H)^-1, and a bound on the norm of the first over t.

        The first two, by Simpson's rule, only tell the variance.
        """
        xp = self.xp
        half, whole = (1 + t * self.trace + t * t * self.determinant for t in (0.5, 1.0))
        if len(self.columns) == 1:
            mean = (1 + 4 / half + 1 / whole) / 6
            return [mean], [mean], self.damping / self.least
        (_, c, *_), (b, d, *_) = self.columns
        mean = (1 + 4 * (1 + 0.5 * d) / half + (1 + d) / whole) / 6
        moment = (2 / half + 1 / whole) / 6
        length = xp.sqrt(xp.maximum(xp.ones_like(d), xp.abs(1 + d)) ** 2 + c * c)
        return [mean, -c * moment], [mean, -b * moment], self.damping * length / self.least
