"""The power series of the logarithm for a stack of probes, in constant memory."""

import copy
from typing import Any

from iresnet_core.backends import Array
from iresnet_core.determinant.forms import JacobianProducts, mean_resolvent_bound

__all__ = ["MANY_TERMS", "MOST_TERMS", "PowerSeries"]

# Terms of a series after which less accuracy will do, where no tolerance was given.
MANY_TERMS = 64
# Most terms of a series, where their number is not given. Up to c = 0.995 less than 1e-5 nats per dimension remain.
MOST_TERMS = 2048


class PowerSeries:
    """Running sums of v^T log(I + J) v for probes v (probes, batch, d), one term per product.

    The coefficients of J^k are (-1)^(k+1) / k, and 1 less `linear` for k = 1. Whatever is needed of the terms is summed
    as they come: a long series takes no more memory than a short one.
    """

    _ARRAYS = (
        *("v", "power", "previous_power", "log_times_v", "resolvent"),
        *("length_of_v", "length", "previous_length", "total_length", "second", "crossed", "mixed"),
    )

    def __init__(self, products: JacobianProducts, v: Array, linear: Array | None) -> None:
        xp = products.backend.xp
        self.xp, self.linear, self.constant, self.terms = xp, linear, products.constant, 0
        self.v = self.power = self.previous_power = v
        self.log_times_v: Array = None
        self.resolvent: Array | None = None
        if products.needs_gradient:  # (I + J^T)^-1 v, less theta v where theta J v is subtracted
            self.resolvent = v if linear is None else (1 - linear)[..., None] * v
        self.length_of_v = self.length = self.previous_length = xp.linalg.vector_norm(v, axis=-1)
        self.total_length = self.length_of_v  # ||v|| + ||J^T v|| + ...
        # v^T J^2 v, and those parts of v^T f(J)^2 v that are due to the terms without J, and to J with them.
        self.second: Array = None
        self.crossed: Array = None
        self.mixed: Array = None
        self._harmonic = 0.0

    def step(self, products: JacobianProducts, chance: float = 1.0) -> Array:
        """Take the next product, which had this chance of being taken; returns its term, undivided."""
        self.previous_power, self.previous_length = self.power, self.length
        self.power, self.length = products(self.power, self.length)  # (J^T)^k v
        self.total_length = self.total_length + self.length
        self.terms += 1
        k = self.terms
        moment = self.xp.linalg.vecdot(self.v, self.power)
        if self.resolvent is not None:
            self.resolvent = self.resolvent + (-1.0) ** k / chance * self.power
        if k == 1:
            if self.linear is None:
                self.log_times_v = self.power
                return moment
            share = 1 - self.linear
            self.log_times_v = share[..., None] * self.power
            return share * moment
        weight = (-1.0) ** (k + 1) / k
        self.log_times_v = self.log_times_v + weight * self.power
        self._square(k, moment)
        return weight * moment

    def _square(self, k: int, moment: Array) -> None:
        """Take in v^T J^k v.

        Its coefficient in log(I + J)^2 without the term J is (-1)^k times the sum over j from 2 to k - 2 of
        1 / (j (k - j)), which is 2 / k times a harmonic sum, and in twice J times the rest (-1)^k 2 / (k - 1).
        """
        if k == 2:
            self.second, self.crossed, self.mixed = moment, 0 * moment, 0 * moment
            return
        if k > 3:
            self._harmonic += 1 / (k - 2)
        sign = 2.0 * (-1.0) ** k
        self.crossed = self.crossed + sign * self._harmonic / k * moment
        self.mixed = self.mixed + sign / (k - 1) * moment

    def value(self) -> Array:
        """The sum of the terms."""
        return self.xp.linalg.vecdot(self.v, self.log_times_v)

    def scale(self) -> Array:
        """||v|| times the length of the last product: times `series_tail` it bounds what is left."""
        return self.length_of_v * self.length

    def squared_image(self) -> Array:
        """||f(J) v||^2."""
        return self.xp.linalg.vecdot(self.log_times_v, self.log_times_v)

    def squared_form(self) -> Array:
        """v^T f(J)^2 v as far as the moments go.

        Where they do not reach v^T J^4 v (v^T J^2 v, if nothing is subtracted), ||f(J) v||^2 stands for it.
        """
        if self.terms < (2 if self.linear is None else 4):
            return self.squared_image()
        share: Any = 1 if self.linear is None else 1 - self.linear
        squared: Array = self.crossed + share * (self.mixed + share * self.second)
        return squared

    def peak(self) -> Array:
        """f(theta)^2 for the Rayleigh quotient theta of J at the last vector but one, see `FormEstimate`.

        Powers of J turn every vector to the eigenvector of the largest eigenvalue.
        """
        xp, c = self.xp, self.constant
        square = self.previous_length * self.previous_length
        clear = square > float(xp.finfo(square.dtype).smallest_normal)
        one = xp.ones_like(square)
        theta = xp.linalg.vecdot(self.previous_power, self.power) / xp.where(clear, square, one)
        theta = xp.where(clear, xp.minimum(xp.maximum(theta, -c * one), c * one), 0 * one)
        value = xp.log1p(theta)
        return (value if self.linear is None else value - self.linear * theta) ** 2

    def fourth_moment(self) -> Array:
        """Half of its bound, peak ||f(J) v||^2, about which it is on trained branches, see `FormEstimate`."""
        return 0.5 * self.peak() * self.squared_image()

    def sensitivity(self) -> Array:
        """||v|| (||v|| + ||J^T v|| + ...) times the integral of 1 / (1 - t c), see `FormEstimate`."""
        c = self.constant
        return self.length_of_v * (self.total_length + self.length * c / (1 - c)) * mean_resolvent_bound(c)

    def split(self, count: int) -> "PowerSeries":
        """Keep the first `count` probes, and return the others as a series of their own."""
        rest = copy.copy(self)
        for name in self._ARRAYS:
            array: Any = getattr(self, name)
            if array is not None:
                setattr(rest, name, array[count:, ...])
                setattr(self, name, array[:count, ...])
        return rest
