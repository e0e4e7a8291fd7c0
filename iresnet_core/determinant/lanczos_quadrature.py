"""Lanczos' method for quadratic forms v^T log(I + B) v of a symmetric B with its eigenvalues in [-c, c], c < 1.

m products build the tridiagonal matrix T of B in the Krylov space of v. The form is ||v||^2 times the integral of
log(1 + x) over the spectral measure of v / ||v||, and Gauss-Radau's rule of m + 1 nodes, one of them at an end of the
interval, is exact for polynomials of degree 2 m (Golub and Meurant 2010, Chapter 6). Its error has the sign of the
(2 m + 1)-th derivative of log(1 + x), which is positive, times that of the distance to the fixed node: the node -c
gives a lower bound, and c an upper bound. The value is their middle; no more is assumed than where the spectrum lies.
"""

from typing import Any

from iresnet_core.backends import Array
from iresnet_core.common import round_up
from iresnet_core.determinant.estimator import ProbedMethod
from iresnet_core.determinant.forms import FormEstimate, JacobianProducts, Steps
from iresnet_core.determinant.request import Problem, Request
from iresnet_core.errors import InvalidArgumentError, NotContractiveError

__all__ = ["LANCZOS"]

# Products per probe at most, where their number is not given, and in a compiled program: the basis holds a vector each.
MOST_PRODUCTS, COMPILED_PRODUCTS = 200, 16
# Residual of (I + B) w = v, relative to ||v||, at which w is good enough for the derivative w^T dB v. The form
# converges twice as fast as w.
GRADIENT_RESIDUAL = 1e-3
# By how much of its distance to 1 the interval is widened, so that no node falls on its end by rounding.
MARGIN = 1e-3


class Lanczos(ProbedMethod):
    """Lanczos' method for symmetric operators: half the products of "arnoldi", for the same certified error."""

    name = "lanczos"

    def applies_to(self, problem: Problem) -> bool:
        """Never for branches, whose Jacobians are not symmetric."""
        return False

    def form(self, products: JacobianProducts, v: Array, linear: Array | None, steps: Steps) -> FormEstimate:
        """Estimate v^T log(I + B) v for probes v (probes, batch, d); one product per step."""
        if steps.lengths is not None:
            raise InvalidArgumentError(
                "'lanczos' takes no further products by roulette, since its truncation is bounded. For unbiased=True "
                "use method='arnoldi'."
            )
        process = _Tridiagonal(products, v)
        xp = process.xp
        limit, shortfall = min(int(process.d), steps.terms or MOST_PRODUCTS), ""
        square = xp.astype(process.v_length, xp.float64) ** 2
        lower = upper = square
        while process.steps < limit:
            process.step()
            if steps.terms is not None and process.steps < limit:
                continue
            lower, upper = process.bounds()
            half = 0.5 * square * xp.abs(upper - lower)
            if steps.terms is None and steps.is_accurate(half) and process.has_gradient():
                break
        else:
            if steps.terms is None and not steps.is_accurate(half):
                shortfall = steps.missed(half, process.steps, "the most that are taken")
        return self._estimate(process, lower, upper, shortfall)

    def _estimate(self, process: "_Tridiagonal", lower: Array, upper: Array, shortfall: str) -> FormEstimate:
        products, xp, v = process.products, process.xp, process.v
        square = xp.astype(process.v_length, xp.float64) ** 2
        value = square * 0.5 * (lower + upper)
        theta, vectors = process.nodes(None)
        weights = vectors[..., 0, :] ** 2
        logarithm = xp.log1p(theta)
        resolvent = None
        if products.needs_gradient:
            y = xp.matmul(vectors, (vectors[..., 0, :] / (1 + theta))[..., None])[..., 0]
            resolvent = process.combination(y)
        count = process.steps * v.shape[0]
        scaled = xp.astype(value, v.dtype)
        if not products.needs_errors:
            return FormEstimate.without_errors(xp, scaled, count, resolvent)
        rounding = 64 * float(xp.finfo(xp.float64).eps) * process.steps * (1 + xp.abs(value))
        bias = 0.5 * square * xp.abs(upper - lower) + rounding + xp.abs(xp.astype(scaled, xp.float64) - value)
        image = xp.astype(square * xp.sum(weights * logarithm**2, axis=-1), v.dtype)
        sensitivity = square * xp.sqrt(xp.sum(weights / (1 + theta) ** 2, axis=-1))
        return FormEstimate(
            value=scaled,
            bias=round_up(products.backend, bias, v.dtype),
            squared_image=image,
            squared_form=image,
            sensitivity=xp.astype(sensitivity, v.dtype),
            extra_variance=None,
            products=count,
            resolvent=resolvent,
            shortfall=shortfall,
            peak=xp.astype(xp.max(logarithm**2, axis=-1), v.dtype),
        )

    @staticmethod
    def compiled_products(c: float, d: int) -> int:
        """A fixed number, at most d."""
        return min(d, COMPILED_PRODUCTS)

    def default_products(self, request: Request, d: int) -> int | None:
        """A fixed number where nobody looks at the errors; else as many as they ask for."""
        return None if request.errors else min(COMPILED_PRODUCTS, d)


LANCZOS = Lanczos()


class _Tridiagonal:
    """The growing matrix T, (probes, batch) of them in float64, and the orthonormal basis."""

    def __init__(self, products: JacobianProducts, v: Array) -> None:
        self.products, self.v, self.backend = products, v, products.backend
        self.xp, self.d = products.backend.xp, v.shape[-1]
        c = products.constant
        self.end = c + MARGIN * (1 - c)
        info = self.xp.finfo(v.dtype)
        self.eps, self.nothing = float(info.eps), float(info.smallest_normal) ** 0.5 / float(info.eps)
        self.v_length = self.xp.linalg.vector_norm(v, axis=-1)
        self.basis = [self._unit(v, self.v_length)[0]]
        self.alpha: list[Array] = []
        self.beta: list[Array] = []
        # Pivots of T + end I and end I - T, positive as long as the eigenvalues of T lie between the ends.
        self.above: Array = None
        self.below: Array = None
        # The last pivot of I + T, and the residual of (I + T) y = e_1 in the whole space.
        self.pivot: Array = None
        self.residual: Array = None

    @property
    def steps(self) -> int:
        """Products so far, of every probe."""
        return len(self.alpha)

    def _unit(self, w: Array, length: Array) -> tuple[Array, Array]:
        one = self.xp.where(length > 0, length, self.xp.ones_like(length))
        return w / one[..., None], length

    def step(self) -> None:
        """Take one product, and orthogonalise it against the whole basis, as rounding would leave copies of nodes."""
        xp, wide = self.xp, self.xp.float64
        w = self.products.of_unit(self.basis[-1])
        alpha = xp.linalg.vecdot(self.basis[-1], w)
        size = xp.linalg.vector_norm(w, axis=-1)
        w = w - alpha[..., None] * self.basis[-1]
        for b in self.basis:
            w = w - xp.linalg.vecdot(b, w)[..., None] * b
        length = xp.linalg.vector_norm(w, axis=-1)
        going = (length > 8 * self.eps * size) & (length > self.nothing)
        length = xp.where(going, length, xp.zeros_like(length))
        self.basis.append(xp.where(going[..., None], self._unit(w, length)[0], xp.zeros_like(w)))
        alpha, beta = xp.astype(alpha, wide), xp.astype(length, wide)
        above, below, pivot = self.end + alpha, self.end - alpha, 1 + alpha
        if self.beta:
            before = self.beta[-1] ** 2
            above, below, pivot = above - before / self.above, below - before / self.below, pivot - before / self.pivot
        self.residual = beta / pivot * (1 if self.residual is None else self.residual)
        self.pivot = pivot
        self.alpha.append(alpha)
        self.beta.append(beta)
        self.above, self.below = above, below
        inside = (above > 0) & (below > 0)
        if not self.backend.is_tracing(inside) and not bool(xp.all(inside)):
            raise NotContractiveError(
                "an eigenvalue lies outside of the interval that was stated or found for a symmetric operator, or the "
                "operator is not symmetric."
            )

    def has_gradient(self) -> bool:
        """Whether the resolvent is good enough for a derivative, if there is to be one."""
        return not self.products.needs_gradient or bool(self.xp.all(self.residual <= GRADIENT_RESIDUAL))

    def nodes(self, last: Array | None) -> tuple[Array, Array]:
        """Eigenvalues and vectors of T, or of T with one row more, whose diagonal entry is `last`."""
        xp = self.xp
        diagonal = [*self.alpha] if last is None else [*self.alpha, last]
        m = len(diagonal)
        zero = xp.zeros_like(self.alpha[0])
        rows = []
        for i in range(m):
            row = [zero] * m
            row[i] = diagonal[i]
            if i:
                row[i - 1] = self.beta[i - 1]
            if i + 1 < m:
                row[i + 1] = self.beta[i]
            rows.append(xp.stack(row, axis=-1))
        theta, vectors = xp.linalg.eigh(xp.stack(rows, axis=-2))
        end = xp.full_like(theta, self.end)
        return xp.minimum(xp.maximum(theta, -end), end), vectors

    def bounds(self) -> tuple[Array, Array]:
        """The lower and the upper bound on the form, relative to ||v||^2."""
        square = self.beta[-1] ** 2
        return self._integral(square / self.above - self.end), self._integral(self.end - square / self.below)

    def _integral(self, last: Array) -> Array:
        theta, vectors = self.nodes(last)
        return self.xp.sum(vectors[..., 0, :] ** 2 * self.xp.log1p(theta), axis=-1)

    def combination(self, y: Array) -> Array:
        """Return ||v|| V y (probes, batch, d)."""
        xp = self.xp
        scaled: Any = xp.astype(y, self.v.dtype) * self.v_length[..., None]
        w = scaled[..., 0][..., None] * self.basis[0]
        for j in range(1, self.steps):
            w = w + scaled[..., j][..., None] * self.basis[j]
        return w
