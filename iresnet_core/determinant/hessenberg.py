"""Integrals of the resolvent of a Hessenberg matrix of one or two columns, in closed form.

With H = [[a, b], [c, d]], D(t) = det(I + t H) = 1 + t tr H + t^2 det H is a parabola, the resolvent
(I + t H)^-1 e_1 = (1 + t d, -t c) / D(t), and with m = 1 + tr H / 2 and s^2 = (a - d)^2 / 4 + b c

    e_1^T log(I + H) e_1 = log(det(I + H)) / 2 + (a - d) / 2 * atanh(s / m) / s,

an arctangent where s^2 < 0. No nodes of a quadrature are needed, which for a few products is most of the time.
"""

from typing import Any

from iresnet_core.backends import Array, Backend
from iresnet_core.determinant.quadrature import Rule

__all__ = ["SMALL", "SmallResolvent"]

# Columns at most.
SMALL = 2
# Allowance for the rounding of the closed forms, relative to ||v||^2, and for that of the integrals of the bound.
ROUNDING, INTEGRAL = 1e-12, 1e-6
# D(t) at which there is nothing to certify, and what makes the certificate enormous there.
LEAST, VOID = 1e-30, 1e-15


class SmallResolvent:
    """What `arnoldi` asks of the integrals over t, for one column or two; float64 arrays (probes, batch).

    The certificate takes the least D(t) for all t, but not below `LEAST`: where it is not positive the certificate is
    beyond any that could be used.
    """

    def __init__(self, backend: Backend, rule: Rule, eps: float) -> None:
        self.xp: Any = backend.xp
        self.error = ROUNDING
        # Of the bound on the norm of the resolvent; of that between orthogonal vectors, and of t times that.
        self.damping = self.xp.sum(rule.damping, axis=0) * (1 + INTEGRAL)
        self.crossing = self.xp.sum(rule.crossing, axis=0) * (1 + INTEGRAL)
        self.moment = self.xp.sum(rule.t * rule.crossing, axis=0) * (1 + INTEGRAL)
        self.columns: list[list[Array]] = []

    def append(self, column: list[Array]) -> None:
        """Take in the next column of H: its entries (probes, batch) from the first to the one below the diagonal."""
        xp = self.xp
        self.columns.append(column)
        if len(self.columns) == 1:
            self.one = xp.ones_like(column[0])
            self.trace = self.excess = column[0]  # excess: D(1) - 1
            least = xp.minimum(self.one, self.one + self.trace)
        else:
            (a, c, *_), (b, d, *_) = self.columns
            self.trace, self.determinant = a + d, a * d - b * c
            self.excess = self.trace + self.determinant
            least = xp.minimum(self.one, self.one + self.excess)
            inside = (self.trace < 0) & (self.trace > -2 * self.determinant)
            vertex = self.one - self.trace**2 / xp.where(inside, 4 * self.determinant, self.one)
            least = xp.where(inside, xp.minimum(vertex, least), least)
        self.least = xp.maximum(least, LEAST * self.one)

    def logarithm(self) -> Array:
        """e_1^T log(I + H) e_1."""
        xp = self.xp
        if len(self.columns) == 1:
            return xp.log1p(self.trace)
        (a, c, *_), (b, d, *_) = self.columns
        half, middle = 0.5 * (a - d), self.one + 0.5 * self.trace
        square = half * half + b * c
        s = xp.sqrt(xp.abs(square) + 1e-280)
        real = square >= 0
        below = xp.where(real, middle - s, self.one)
        slope = xp.where(real, 0.5 * xp.log1p(2 * s / below), xp.atan2(s, middle)) / s
        return 0.5 * xp.log1p(self.excess) + half * slope

    def certificate(self) -> Array:
        """Bound on the error of `logarithm`."""
        last = self.columns[-1]
        if len(self.columns) == 1:
            return (last[1] * self.crossing + VOID) / self.least
        return (last[2] * self.columns[0][1] * self.moment + VOID) / self.least

    def mean_resolvent(self) -> tuple[list[Array], list[Array], Array]:
        """Integrals of (I + t H)^-1 e_1 and e_1^T (I + t H)^-1, and a bound on the norm of the first over t.

        The first two, by Simpson's rule, only tell the variance.
        """
        xp = self.xp
        if len(self.columns) == 1:
            mean = (1 + 4 / (1 + 0.5 * self.trace) + 1 / (1 + self.trace)) / 6
            return [mean], [mean], self.damping / self.least
        (_, c, *_), (b, d, *_) = self.columns
        half, whole = (2 / 3) / (1 + 0.5 * self.trace + 0.25 * self.determinant), (1 / 6) / (1 + self.excess)
        moment = 0.5 * half + whole
        mean = 1 / 6 + half + whole + d * moment
        length = xp.sqrt(xp.maximum(self.one, (1 + d) ** 2) + c * c)
        return [mean, -c * moment], [mean, -b * moment], self.damping * length / self.least
