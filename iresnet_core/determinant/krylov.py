"""Arnoldi's process for quadratic forms v^T log(I + J) v, with an a-posteriori certificate.

m products build an orthonormal basis V and the Hessenberg matrix H with J^T V = V H + h v e_m^T; the value is
||v||^2 e_1^T log(I + H) e_1. With y(t) = (I + t H)^-1 e_1,

    e_1^T log(I + H) e_1 = integral over t from 0 to 1 of (1 - e_1^T y(t)) / t,

and the residual of y(t) in the full space, -t h y_m(t) v_(m+1), bounds the error by

    ||v||^2 integral of h |y_m(t)| t c / (1 - t^2 c^2),

because |v_1^T (I + t J^T)^-1 v_(m+1)| <= t c / (1 - t^2 c^2) for orthogonal vectors, see `quadrature`. The worst case
over all J with these products and ||J|| <= c is less, see `worst_case`. All integrals are taken by one Gauss-Legendre
rule: what is bounded is the error of the rule for the integrand of J, and the difference of both integrands at its
nodes. I + t H has a positive definite symmetric part, so that its LU factors exist without pivoting; they grow by one
column per product.

The bound by the residual holds for a preconditioned E in place of J as well, I + E = B (I + J), with other bounds on
(I + t E)^-1: see `preconditioning`. There the norm of E need not be below 1, and whatever the LU factors give,
the certificate is true of it.
"""

import math

from iresnet_core.backends import Array, Backend
from iresnet_core.determinant.forms import JacobianProducts, Steps, Stops
from iresnet_core.determinant.quadrature import Rule
from iresnet_core.determinant.worst_case import Completions

__all__ = ["ArnoldiProcess", "run_arnoldi"]

# The bound by the worst case costs more than the one by the residual, and is some 10 times smaller at most, as far as
# was seen. It is looked at once the bound by the residual is within this factor of the target. Were it smaller still,
# one product too many would be taken.
LARGEST_GAIN = 16
# Products per probe at most, where their number is not given: the basis holds a vector for each. Up to c = 0.98 they
# certify 0.001 nats in d = 64 for every operator that was tried, and four to eight are enough for trained branches.
MOST_PRODUCTS = 64
# Numbers of the LU factors a probe and sample at most: fewer products are taken where the rule has more than 200 nodes.
MOST_FACTORS = 200 * MOST_PRODUCTS**2 // 2


class _ResolventIntegral:
    """The integrals over t, for the growing Hessenberg matrices of all probes; float64, (nodes, probes, batch)."""

    def __init__(self, backend: Backend, rule: Rule, eps: float, needs_errors: bool) -> None:
        self.xp = backend.xp
        self.t, self.weight, self.damping, self.crossing, self.error, norm = rule
        self.completions = None
        if needs_errors and norm is not None:
            self.completions = Completions(self.xp, self.t, norm, eps)
        self.upper: list[list[Array]] = []  # columns of U
        self.z: list[Array] = []  # L^-1 e_1
        self.w: list[Array] = []  # U^-T e_1
        self.ratios: list[Array] = []  # below the diagonal of L
        self.subdiagonal: Array = None
        self.previous_subdiagonal: Array = None
        self.one = self.xp.ones_like(self.t)
        self.first: Array = None  # e_1^T (I + t H)^-1 e_1

    def append(self, column: list[Array]) -> None:
        """Take in the next column of H: its entries (probes, batch) from the first to the one below the diagonal."""
        j, t = len(self.upper), self.t
        if j:
            self.ratios.append(t * self.subdiagonal / self.upper[-1][j - 1])
        above: list[Array] = []
        for i in range(j + 1):
            entry = t * column[i] + 1 if i == j else t * column[i]
            above.append(entry - self.ratios[i - 1] * above[i - 1] if i else entry)
        if j:
            self.z.append(-self.ratios[-1] * self.z[-1])
            self.w.append(-sum(a * w for a, w in zip(above, self.w, strict=False)) / above[j])
        else:
            self.z.append(self.xp.ones_like(above[0]))
            self.w.append(1 / above[0])
        self.upper.append(above)
        self.previous_subdiagonal, self.subdiagonal = self.subdiagonal, column[j + 1]
        if self.completions is not None:
            self.completions.append(column[j], self.w[j], self.ratios[-1] if j else None)
        gain = self.w[j] * self.z[j]
        self.first = gain if self.first is None else self.first + gain

    def logarithm(self) -> Array:
        """e_1^T log(I + H) e_1."""
        return self.xp.sum(self.weight * (self.one - self.first) / self.t, axis=0)

    def certificate(self) -> Array:
        """Bound on the error of `logarithm`."""
        by_residual = self.residual_certificate()
        if self.completions is None:
            return by_residual
        xp = self.xp
        middle, half = self.completions.interval(self.z[-1], self.upper[-1][-1], self.subdiagonal)
        farthest = xp.abs(xp.sum(self.weight * middle, axis=0)) + xp.sum(self.weight * half, axis=0)
        return xp.minimum(farthest, by_residual)

    def residual_certificate(self) -> Array:
        """Bound on the error of `logarithm` from the residual alone."""
        return self._certificate(-1, self.subdiagonal)

    def _certificate(self, at: int, subdiagonal: Array) -> Array:
        last = self.xp.abs(self.z[at] / self.upper[at][-1])
        return subdiagonal * self.xp.sum(self.crossing * last, axis=0)

    def last_certificate(self) -> Array:
        """The `residual_certificate` before the last step, of which there was more than one."""
        return self._certificate(-2, self.previous_subdiagonal)

    def last_gain(self) -> Array:
        """What the last step added to `logarithm`."""
        return -self.xp.sum(self.weight * self.w[-1] * self.z[-1] / self.t, axis=0)

    def keep(self, count: int) -> None:
        """Drop the probes beyond the first `count`."""
        self.upper = [[entry[:, :count, ...] for entry in column] for column in self.upper]
        self.z, self.w, self.ratios = ([a[:, :count, ...] for a in part] for part in (self.z, self.w, self.ratios))
        self.subdiagonal = self.subdiagonal[:count, ...]
        self.first = self.first[:, :count, ...]
        if self.completions is not None:
            self.completions.keep(count)

    def mean_resolvent(self) -> tuple[list[Array], list[Array], Array]:
        """Integrals of (I + t H)^-1 e_1, of e_1^T (I + t H)^-1, and of the norm of the first over 1 - t c."""
        xp, m = self.xp, len(self.upper)
        column: list[Array] = [self.one] * m
        row: list[Array] = [self.one] * m
        squares = xp.zeros_like(self.z[0])
        for i in reversed(range(m)):
            total = self.z[i]
            for j in range(i + 1, m):
                total = total - self.upper[j][i] * column[j]
            column[i] = total / self.upper[i][i]
            row[i] = self.w[i] if i == m - 1 else self.w[i] - self.ratios[i] * row[i + 1]
            squares = squares + column[i] ** 2
        averaged = [[xp.sum(self.weight * entry, axis=0) for entry in side] for side in (column, row)]
        return averaged[0], averaged[1], xp.sum(self.damping * xp.sqrt(squares), axis=0)


class ArnoldiProcess:
    """Arnoldi's method from every probe v (probes, batch, d), step by step; J^T V = V H + h v e_m^T.

    What it returns about the form is relative to ||v||^2, in float64, (probes, batch).
    """

    def __init__(self, products: JacobianProducts, v: Array) -> None:
        xp = products.backend.xp
        self.products, self.v, self.xp, self.d = products, v, xp, v.shape[-1]
        info = xp.finfo(v.dtype)
        self.eps = float(info.eps)
        # Below, squares underflow and a vector cannot be normalised.
        self.nothing = float(info.smallest_normal) ** 0.5 / self.eps
        self.v_length = xp.sqrt(xp.linalg.vecdot(v, v))
        zero = xp.astype(self.v_length == 0, v.dtype)
        self.basis = [v / (self.v_length + zero)[..., None]]
        rounding = self.eps * products.growth
        self.integral = _ResolventIntegral(products.backend, products.rule(v), rounding, products.needs_errors)
        self.columns: list[list[Array]] = []
        self.shortfall = ""
        self.stops = Stops()
        self._bound: Array | None = None

    @property
    def most_steps(self) -> int:
        """Limit on the products of every probe, where their number is not given."""
        nodes: int = self.integral.t.shape[0]
        return min(int(self.d), MOST_PRODUCTS, math.isqrt(2 * MOST_FACTORS // nodes))

    @property
    def steps(self) -> int:
        """Products so far, of every probe."""
        return len(self.columns)

    def step(self) -> None:
        """Take one product, and orthogonalise it against the basis."""
        xp = self.xp
        w = self.products.of_unit(self.basis[-1])
        column: list[Array] = []
        for b in self.basis:
            h = xp.linalg.vecdot(b, w)
            w = w - h[..., None] * b
            column.append(h)
        length, inverse = self.length_of(w, column)
        self.basis.append(inverse[..., None] * w)
        self.add(*column, length)

    def length_of(self, w: Array, column: list[Array]) -> tuple[Array, Array]:
        """Length of what a product has beside the entries of `column`, and its inverse; zeros if it is rounding."""
        xp = self.xp
        left = xp.linalg.vecdot(w, w)
        image = sum((h * h for h in column), left)  # squared length of the product
        ended = (left <= (8 * self.eps) ** 2 * image) | (left <= self.nothing**2)
        going = xp.astype(~ended, left.dtype)
        length = going * xp.sqrt(left)
        return length, going / (length + (1 - going))

    def add(self, *column: Array) -> None:
        """Take in a column of H."""
        self.columns.append([self.xp.astype(h, self.xp.float64, copy=False) for h in column])
        self.integral.append(self.columns[-1])
        self._bound = None

    def keep(self, count: int) -> None:
        """Drop the probes beyond the first `count`."""
        self.v, self.v_length = self.v[:count, ...], self.v_length[:count, ...]
        self.basis = [b[:count, ...] for b in self.basis]
        self.columns = [[h[:count, ...] for h in column] for column in self.columns]
        self.integral.keep(count)
        self._bound = None

    def is_accurate(self, square: Array, steps: Steps) -> bool:
        """Whether ``square * bound()`` is accurate enough; the bound is computed only where that is within reach."""
        integral = self.integral
        if integral.completions is not None:
            within_reach = steps.is_accurate(square * integral.residual_certificate() / LARGEST_GAIN)
            if not within_reach:
                return False
        return steps.is_accurate(square * self.bound())

    def note_stops(self, square: Array, target: float) -> None:
        """Note which probes and samples are accurate enough now, by the rule of `is_accurate` for each of them alone.

        Twice the error of the quadrature is the floor.
        """
        xp, integral = self.xp, self.integral
        limit = xp.maximum(2 * square * integral.error, xp.full_like(square, target))
        within_reach = square * integral.residual_certificate() <= LARGEST_GAIN * limit
        if integral.completions is None:
            within_reach = within_reach | True
        if not self.products.backend.is_tracing(within_reach) and not bool(xp.any(within_reach)):
            return
        done = within_reach & (square * self.bound() <= limit)
        self.stops.note(xp, done, integral.logarithm(), self.bound())

    def form(self, linear: Array | None) -> Array:
        """e_1^T log(I + H) e_1, less its linear term as far as that is to be subtracted."""
        value = self.integral.logarithm()
        return value if linear is None else value - linear * self.columns[0][0]

    def bound(self) -> Array:
        """Certified bound on the error of `form`."""
        if self._bound is None:
            certificate, a_priori = self.integral.certificate(), self.products.a_priori(self.steps)
            if a_priori is not None:
                certificate = self.xp.minimum(certificate, self.xp.full_like(certificate, a_priori))
            self._bound = certificate + self.integral.error
        return self._bound

    def combination(self, y: list[Array]) -> Array:
        """Return ||v|| V y (probes, batch, d)."""
        xp, dtype = self.xp, self.v.dtype
        scaled = [xp.astype(entry, dtype, copy=False) * self.v_length for entry in y]
        w = scaled[0][..., None] * self.basis[0]
        for entry, b in zip(scaled[1:], self.basis[1:], strict=False):
            w = w + entry[..., None] * b
        return w


def run_arnoldi(products: JacobianProducts, v: Array, steps: Steps) -> ArnoldiProcess:
    """Take the certain steps from every probe: `terms`, or as many as are accurate enough.

    They end at `ArnoldiProcess.most_steps` at the latest, and where the bound is within twice its floor, the error of
    the quadrature. The bound may rise for some steps before it falls, so that a rise is no reason to stop.
    """
    process = ArnoldiProcess(products, v)
    xp = process.xp
    square = xp.astype(process.v_length, xp.float64) ** 2
    if steps.terms is not None:
        for _ in range(steps.terms):
            process.step()
            if steps.by_sample:
                process.note_stops(square, steps.target)
        return process
    floor = steps.error_of(square * process.integral.error)
    wanted = steps._replace(target=max(steps.target, 2 * floor))
    limit = process.most_steps
    while True:
        process.step()
        if steps.by_sample:
            process.note_stops(square, steps.target)
            if process.stops.are_all(xp):
                return process
        elif process.is_accurate(square, wanted):
            if wanted.target > steps.target:
                process.shortfall = steps.missed(square * process.bound(), process.steps, "the floor of its quadrature")
            return process
        if process.steps >= limit:
            process.shortfall = steps.missed(square * process.bound(), process.steps, "the most that are taken")
            return process
