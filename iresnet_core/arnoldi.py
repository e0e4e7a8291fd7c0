"""Quadratic forms v^T f(J) v by Arnoldi's method, with an a-posteriori certificate.

m products build an orthonormal basis V and the Hessenberg matrix H with J^T V = V H + h v e_m^T; the value is
||v||^2 e_1^T log(I + H) e_1. With y(t) = (I + t H)^-1 e_1,

    e_1^T log(I + H) e_1 = integral over t from 0 to 1 of (1 - e_1^T y(t)) / t,

and the residual of y(t) in the full space, -t h y_m(t) v_(m+1), bounds the error by

    ||v||^2 integral of h |y_m(t)| / (1 - t c),

because ||(I + t J)^-1|| <= 1 / (1 - t c). Both integrals are taken by one Gauss-Legendre rule. I + t H has a positive
definite symmetric part, so that its LU factors exist without pivoting; they grow by one column a product.

The same holds for a preconditioned E in place of J, I + E = B (I + J), with another bound K(t) on ||(I + t E)^-1||: see
`preconditioning`. There the norm of E need not be below 1, and both the error of the rule and that at its nodes are
bounded for the integrand of E itself, not that of H: whatever the LU factors give, the certificate is true of it.
"""

from collections.abc import Callable
from typing import Any

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.precision import round_up
from iresnet_core.quadratic_forms import FormEstimate, Products
from iresnet_core.quadrature import Rule
from iresnet_core.small_hessenberg import SMALL, SmallResolvent

__all__ = ["ArnoldiProcess", "arnoldi_estimate", "arnoldi_form", "resolvent_coefficients", "run_arnoldi"]

# Up to this many steps the least-squares problem of the resolvent is eliminated entry by entry.
ELIMINATED = 4


class _ResolventIntegral:
    """The integrals over t, for the growing Hessenberg matrices of all probes; float64, (nodes, probes, batch)."""

    def __init__(self, engine: Backend, rule: Rule) -> None:
        self.xp = engine.xp
        self.t, self.weight, self.damping, self.error = rule
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
        gain = self.w[j] * self.z[j]
        self.first = gain if self.first is None else self.first + gain

    def logarithm(self) -> Array:
        """e_1^T log(I + H) e_1."""
        return self.xp.sum(self.weight * (self.one - self.first) / self.t, axis=0)

    def certificate(self) -> Array:
        """Bound on the error of `logarithm`."""
        return self._certificate(-1, self.subdiagonal)

    def _certificate(self, at: int, subdiagonal: Array) -> Array:
        last = self.xp.abs(self.z[at] / self.upper[at][-1])
        return subdiagonal * self.xp.sum(self.damping * last, axis=0)

    def last_certificate(self) -> Array:
        """The certificate before the last step, of which there was more than one."""
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

    What it returns about the form is relative to ||v||^2, in float64, (probes, batch). With `last` given there are no
    more steps than that.
    """

    def __init__(self, multiply: Products, v: Array, last: int | None = None) -> None:
        xp = multiply.engine.xp
        self.multiply, self.v, self.xp, self.d = multiply, v, xp, v.shape[-1]
        info = xp.finfo(v.dtype)
        self.eps = float(info.eps)
        # Below, squares underflow and a vector cannot be normalised.
        self.nothing = float(info.smallest_normal) ** 0.5 / self.eps
        self.v_length = xp.sqrt(xp.linalg.vecdot(v, v))
        self.last = last
        unit = xp.ones_like(self.v_length)
        self.basis = [v / xp.where(self.v_length > 0, self.v_length, unit)[..., None]]
        few = last is not None and last <= SMALL
        # `_ResolventIntegral` wherever steps may follow: it can drop probes, and knows what the last step gained.
        self.integral: Any = (SmallResolvent if few else _ResolventIntegral)(multiply.engine, multiply.rule(v))
        self.columns: list[list[Array]] = []

    @property
    def steps(self) -> int:
        """Products so far, of every probe."""
        return len(self.columns)

    def step(self) -> None:
        """Take one product, and orthogonalise it against the basis."""
        xp = self.xp
        w = self.multiply.of_unit(self.basis[-1])
        column: list[Array] = []
        for b in self.basis:
            h = xp.linalg.vecdot(b, w)
            w = w - h[..., None] * b
            column.append(h)
        left = xp.linalg.vecdot(w, w)
        length = xp.sqrt(left)
        image = sum((h * h for h in column), left)  # squared length of the product
        ended = (length <= 8 * self.eps * xp.sqrt(image)) | (length <= self.nothing)
        zero = xp.zeros_like(length)
        if self.steps + 1 != self.last:
            inverse = 1 / xp.where(ended, xp.ones_like(length), length)
            self.basis.append(xp.where(ended, zero, inverse)[..., None] * w)
        length = xp.where(ended, zero, length)
        self.columns.append([xp.astype(h, xp.float64) for h in (*column, length)])
        self.integral.append(self.columns[-1])

    def keep(self, count: int) -> None:
        """Drop the probes beyond the first `count`."""
        self.v, self.v_length = self.v[:count, ...], self.v_length[:count, ...]
        self.basis = [b[:count, ...] for b in self.basis]
        self.columns = [[h[:count, ...] for h in column] for column in self.columns]
        self.integral.keep(count)

    def form(self, subtract_linear: bool) -> Array:
        """e_1^T log(I + H) e_1, less the first entry of H where the linear term is subtracted."""
        value = self.integral.logarithm()
        return value - self.columns[0][0] if subtract_linear else value

    def bound(self) -> Array:
        """Certified bound on the error of `form`."""
        certificate, a_priori = self.integral.certificate(), self.multiply.a_priori(self.steps)
        if a_priori is not None:
            certificate = self.xp.minimum(certificate, self.xp.full_like(certificate, a_priori))
        return certificate + self.integral.error

    def combination(self, y: list[Array], subtract_v: bool = False) -> Array:
        """Return ||v|| V y (probes, batch, d), less v if that is to be subtracted."""
        xp, dtype = self.xp, self.v.dtype
        scaled = [xp.astype(entry, dtype) * self.v_length for entry in y]
        first = scaled[0] - self.v_length if subtract_v else scaled[0]  # the first vector of the basis is v / ||v||
        w = first[..., None] * self.basis[0]
        for entry, b in zip(scaled[1:], self.basis[1:], strict=False):
            w = w + entry[..., None] * b
        return w


def run_arnoldi(
    multiply: Products, v: Array, *, terms: int | None, enough: Callable[[Array], bool], goes_on: bool = False
) -> ArnoldiProcess:
    """Take `terms` steps from every probe; with None, as many as make ``enough(bound)`` true, at most d.

    `goes_on` says that the caller will take further steps.
    """
    process = ArnoldiProcess(multiply, v, None if goes_on else terms)
    xp = process.xp
    square = xp.astype(process.v_length, xp.float64) ** 2
    for _ in range(process.d if terms is None else terms):
        process.step()
        if terms is None and enough(square * process.bound()):
            break
    return process


def arnoldi_form(
    multiply: Products, v: Array, *, subtract_linear: bool, terms: int | None, enough: Callable[[Array], bool]
) -> FormEstimate:
    """Arnoldi's method from every probe v (probes, batch, d); one product a step.

    With `terms` None, steps are added until ``enough(bound)``; d of them are always enough. Where ``multiply.errors``
    is False `terms` is given, and only value and resolvent are computed.
    """
    return arnoldi_estimate(run_arnoldi(multiply, v, terms=terms, enough=enough), subtract_linear)


def arnoldi_estimate(process: ArnoldiProcess, subtract_linear: bool) -> FormEstimate:
    """What the steps so far tell."""
    multiply, xp, columns, m = process.multiply, process.xp, process.columns, process.steps
    v = process.v
    square = xp.astype(process.v_length, xp.float64) ** 2
    value = process.form(subtract_linear)

    def scaled(a: Any) -> Array:
        return xp.astype(square * a, v.dtype)

    resolvent = resolvent_error = None
    if multiply.resolvent:
        y, residual = resolvent_coefficients(xp, columns)
        resolvent = process.combination(y, subtract_v=subtract_linear)
        resolvent_error = xp.astype(residual, v.dtype) * process.v_length / (1 - multiply.constant)
    if not multiply.errors:
        return FormEstimate.without_errors(xp, scaled(value), m * v.shape[0], resolvent)
    column, row, sensitivity = process.integral.mean_resolvent()
    image = [sum(columns[j][i] * column[j] for j in range(max(0, i - 1), m)) for i in range(m + 1)]
    pulled = [sum(columns[j][i] * row[i] for i in range(min(j + 2, m))) for j in range(m)]
    if subtract_linear:
        image = [entry - columns[0][i] if i < 2 else entry for i, entry in enumerate(image)]
        pulled = [entry - columns[j][0] for j, entry in enumerate(pulled)]

    return FormEstimate(
        value=scaled(value),
        bias=round_up(multiply.engine, square * process.bound(), v.dtype),
        squared_image=scaled(sum(entry * entry for entry in image)),
        squared_form=scaled(sum(a * b for a, b in zip(pulled, image, strict=False))),
        sensitivity=scaled(sensitivity),
        extra_variance=None,
        products=m * v.shape[0],
        resolvent=resolvent,
        resolvent_error=resolvent_error,
    )


def resolvent_coefficients(xp: Any, columns: list[list[Array]]) -> tuple[list[Array], Array]:
    """The y with the least ||e_1 - (I + H) y|| (GMRES), and that residual, for H (m + 1, m) given by its columns.

    The least-squares problem is solved by its normal equations: the condition of I + H is at most (1 + c) / (1 - c),
    and float64 bears its square.
    """
    m = len(columns)
    if m <= ELIMINATED:
        return _eliminated(xp, columns)
    zero = xp.zeros_like(columns[0][0])
    entries = [
        [(columns[j][i] if i < len(columns[j]) else zero) + (1.0 if i == j else 0.0) for j in range(m)]
        for i in range(m + 1)
    ]
    A = xp.stack([xp.stack(row, axis=-1) for row in entries], axis=-2)  # (probes, batch, m + 1, m)
    At = xp.matrix_transpose(A)
    y = xp.linalg.solve(xp.matmul(At, A), At[..., :, :1])
    first = xp.reshape(xp.astype(xp.arange(m + 1, device=device_of(A)) == 0, A.dtype), (m + 1, 1))
    residual = xp.linalg.vector_norm((first - xp.matmul(A, y))[..., 0], axis=-1)
    return [y[..., j, 0] for j in range(m)], residual


def _eliminated(xp: Any, columns: list[list[Array]]) -> tuple[list[Array], Array]:
    """As `resolvent_coefficients`, for a few columns, entry by entry: stacks of tiny systems are slow to solve."""
    m = len(columns)
    A = [[*column, *[None] * (m - 1 - j)] for j, column in enumerate(columns)]
    A = [[entry + 1 if i == j else entry for i, entry in enumerate(column)] for j, column in enumerate(A)]

    def dot(a: list[Any], b: list[Any]) -> Array:
        return sum(p * q for p, q in zip(a, b, strict=True) if p is not None and q is not None)

    M = [[dot(A[i], A[j]) for j in range(i + 1)] for i in range(m)]  # lower part of the normal equations
    y = [A[j][0] for j in range(m)]
    for k in range(m):  # LDL^T and forward substitution
        for i in range(k + 1, m):
            ratio = M[i][k] / M[k][k]
            for j in range(k + 1, i + 1):
                M[i][j] = M[i][j] - ratio * M[j][k]
            y[i] = y[i] - ratio * y[k]
    for k in reversed(range(m)):
        y[k] = (y[k] - sum(M[i][k] * y[i] for i in range(k + 1, m))) / M[k][k]
    rest = [(1.0 if i == 0 else 0.0) - sum(A[j][i] * y[j] for j in range(max(0, i - 1), m)) for i in range(m + 1)]
    return y, xp.sqrt(sum(entry * entry for entry in rest))
