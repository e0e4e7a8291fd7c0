"""Exact log-determinants: an explicit matrix per sample, of the smallest order there is."""

import math
from typing import Any

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.branches import JointPass, Linearization, linearize
from iresnet_core.common import require_finite, round_up, unit_roundoff, widest
from iresnet_core.determinant.choice import exact_choice
from iresnet_core.determinant.request import Method, Problem
from iresnet_core.errors import NotContractiveError
from iresnet_core.results import LogDet

__all__ = ["EXACT", "determinant_order", "order_of"]

# Entries of the explicit Jacobians that are held at a time (256 MiB in float64).
ENTRIES_AT_A_TIME = 2**25
# Up to this order the determinant is written out.
WRITTEN_OUT = 2
# Growth of rounding in the layers up to which the chain is cut: beyond it I + M is too far from a contraction.
LARGEST_GROWTH_OF_A_CUT = 4.0
# A determinant minus 1 below this has lost digits.
CANCELLED_BELOW = -0.5


def determinant_order(linearization: Linearization, x: Array, growth: float) -> int:
    """Return the order of the determinant: d, or the narrowest width of the branch where it can be cut there.

    M is a product of the same layers in another order, of norm L = `growth` at most. With det(I + BA) = det(I + AB) is
    (I + M)^-1 = I - A (I + J)^-1 B, of norm 1 + L / (1 - c), so that its errors grow by up to 2 L^2 as much as those of
    a contraction.
    """
    width = None if linearization.sylvester_matrix is None else linearization.width
    return order_of(width, math.prod(x.shape[1:]), growth)


def order_of(width: int | None, d: int, growth: float) -> int:
    """Return the order of the determinant for a branch whose narrowest width is known, or None; see above."""
    return d if width is None or growth > LARGEST_GROWTH_OF_A_CUT else min(d, width)


def samples_at_a_time(order: int, d: int) -> int:
    """Return how many samples' matrices are held at a time."""
    return max(1, ENTRIES_AT_A_TIME // (order * max(order, d)))


class Exact(Method):
    """LU factors of the smallest matrix with that determinant: no noise, d products per sample in matrix form."""

    name = "exact"
    is_exact = True
    takes_joint_pass = True

    def applies_to(self, problem: Problem) -> bool:
        """Up to the limit on the order of the determinant, where no probes are given."""
        return exact_choice(determinant_order(problem.linearization, problem.x, problem.growth), problem.request)[0]

    def answer(self, problem: Problem) -> tuple[Array, LogDet]:
        """Return g(x) and its log-determinant."""
        backend, g, x, linearization, constant, _, _, growth = problem
        if linearization.joint is not None:
            d, is_flat = math.prod(x.shape[1:]), linearization.joint.is_dense
            if is_flat and determinant_order(linearization, x, growth) == d and samples_at_a_time(d, d) >= x.shape[0]:
                return exact_jointly(backend, linearization.joint, x, constant)
            linearization = linearize(backend, g, x)
            problem = problem._replace(linearization=linearization)
        return linearization.value, determinant_in_parts(problem)


def determinant_in_parts(problem: Problem) -> LogDet:
    """Compute log det(I + M) by LU factors, M the r x r matrix of the narrowest cut or the Jacobian itself.

    A branch that can be cast is evaluated in float64, unless its `errors` are of no interest. Cost: r products per
    sample in matrix form, and O(r^3).
    """
    backend, g, x, linearization, constant, request, _, growth = problem
    xp, errors = backend.xp, request.errors
    dtype, batch, d = x.dtype, x.shape[0], math.prod(x.shape[1:])
    order, wide = determinant_order(linearization, x, growth), widest(backend)
    castable = errors and hasattr(g, "astype") and dtype != wide

    def value_of(x: Array) -> Array:
        if not castable:
            return _in_parts(backend, g, x, linearization, order)
        branch, point = g.astype(wide), xp.astype(x, wide)
        return _in_parts(backend, branch, point, linearize(backend, branch, point), order)

    value = backend.differentiated_in_float64(value_of, x)
    u = unit_roundoff(backend, wide if castable else dtype) * growth
    _refuse_impossible(backend, value, constant, d, u)
    result = xp.astype(value, dtype)
    products = xp.full((batch,), order, dtype=xp.int32, device=device_of(x))
    if not errors:
        unknown = xp.full_like(result, math.nan)
        return LogDet(result, unknown, unknown, products, "exact")
    u = u * 2 * growth if order < d and growth > 1 else u
    allowance = 8 * u * order * (linearization.depth + math.sqrt(order)) / (1 - constant)
    rounding = xp.abs(xp.astype(result, xp.float64) - value)
    return LogDet(result, xp.zeros_like(result), round_up(backend, rounding + allowance, dtype), products, "exact")


def exact_jointly(backend: Backend, joint: JointPass, x: Array, constant: float) -> tuple[Array, LogDet]:
    """g(x) and the exact log-determinant, without errors, differentiated together: ``sum_p w_p^T dJ e_p``.

    The e_p are the d unit vectors and the w_p the rows of ``(I + J)^-1``. Cost: d products per sample.
    """
    xp, batch, d = backend.xp, x.shape[0], x.shape[1]
    units = xp.reshape(xp.eye(d, dtype=x.dtype, device=device_of(x)), (d, 1, d))
    with backend.no_grad():
        matrix = xp.permute_dims(joint.products(units), (1, 2, 0))
        require_finite(backend, matrix, "the Jacobian of g")
        value, inverses = _with_inverses(backend, xp.astype(matrix, widest(backend)))
        _refuse_impossible(backend, value, constant, d, unit_roundoff(backend, x.dtype))
        value, rows = xp.astype(value, x.dtype), xp.astype(xp.permute_dims(inverses, (1, 0, 2)), x.dtype)
    dtype = x.dtype  # the graph keeps the function, which is not to keep the samples

    def plain(images: Array, *_: Any) -> Array:
        return xp.astype(_of_matrices(backend, xp.permute_dims(images, (1, 2, 0))), dtype)

    g, result = joint.recorded(value, rows, plain)
    unknown = xp.full_like(value, math.nan)
    products = xp.full((batch,), d, dtype=xp.int32, device=device_of(x))
    return g, LogDet(result, unknown, unknown, products, "exact")


def _with_inverses(backend: Backend, M: Array) -> tuple[Array, Array]:
    """Return log det(I + M) (batch,), NaN where there is none, and (I + M)^-1, of known matrices M (batch, r, r)."""
    xp, order = backend.xp, M.shape[-1]
    if order > WRITTEN_OUT:
        A = xp.eye(order, dtype=M.dtype, device=device_of(M)) + M
        return _signed(xp, *xp.linalg.slogdet(A)), xp.linalg.inv(A)
    excess, determinant = _excess_and_determinant(M)
    value = _logarithms(xp, excess, determinant) if bool(xp.any(excess < CANCELLED_BELOW)) else xp.log1p(excess)
    if order == 1:
        return value, 1 / determinant[:, None, None]
    a, b, c, d = 1 + M[:, 0, 0], -M[:, 0, 1], -M[:, 1, 0], 1 + M[:, 1, 1]
    return value, xp.reshape(xp.stack([d, b, c, a], axis=-1) / determinant[:, None], M.shape)


def _in_parts(backend: Backend, g: Any, x: Array, linearization: Linearization, order: int) -> Array:
    """log|det(I + M)| (batch,) in float64, of as many samples at a time as fit."""
    xp, batch = backend.xp, x.shape[0]
    step = samples_at_a_time(order, math.prod(x.shape[1:]))
    if not backend.knows_size(batch):  # a compiled program is for any size, and works on the batch as a whole
        return _log_determinants(backend, linearization, x, order)
    if linearization.matrix is None and linearization.sylvester_matrix is None:
        step = max(1, batch)  # a function that draws or keeps statistics is evaluated once, for all products
    values = []
    for begin in range(0, batch, step):
        part = x[begin : min(begin + step, batch), ...]
        here = linearization if step >= batch else linearize(backend, g, part)
        values.append(_log_determinants(backend, here, part, order))
    return xp.concat(values) if values else xp.zeros((0,), dtype=xp.float64, device=device_of(x))


def _log_determinants(backend: Backend, linearization: Linearization, x: Array, order: int) -> Array:
    """log|det(I + M)| (batch,) in float64; -inf or NaN where the determinant is not positive."""
    if linearization.sylvester_matrix is not None and order == linearization.width:
        matrix = linearization.sylvester_matrix()
    elif linearization.matrix is not None:
        matrix = linearization.matrix()
    else:
        matrix = _from_products(backend, linearization, x)
    return _of_matrices(backend, matrix)


def _of_matrices(backend: Backend, matrix: Array) -> Array:
    """log|det(I + M)| (batch,) in float64 of matrices (batch, r, r)."""
    xp = backend.xp
    require_finite(backend, matrix, "the Jacobian of g")
    matrix = xp.astype(matrix, widest(backend))
    order = matrix.shape[-1]
    if order <= WRITTEN_OUT:
        return _logarithms(xp, *_excess_and_determinant(matrix))
    return _signed(xp, *xp.linalg.slogdet(xp.eye(order, dtype=matrix.dtype, device=device_of(matrix)) + matrix))


def _signed(xp: Any, sign: Array, value: Array) -> Array:
    """Logarithms of determinants, NaN where one is not positive."""
    return xp.where(sign > 0, value, xp.full_like(value, math.nan))


def _excess_and_determinant(M: Array) -> tuple[Array, Array]:
    """det(I + M) - 1, without cancellation, and det(I + M) of matrices (..., r, r), r at most 2.

    Factorising thousands of them would take far longer.
    """
    if M.shape[-1] == 1:
        return M[..., 0, 0], 1 + M[..., 0, 0]
    a, d, crossed = M[..., 0, 0], M[..., 1, 1], M[..., 0, 1] * M[..., 1, 0]
    return a + d + (a * d - crossed), (1 + a) * (1 + d) - crossed


def _logarithms(xp: Any, excess: Array, determinant: Array) -> Array:
    """Logarithms of determinants that are known in both forms, NaN where one is not positive."""
    # A small determinant is what is left of 1 by rounding in the one form, and accurate in the other.
    small, one = excess < CANCELLED_BELOW, xp.ones_like(excess)
    large = xp.log1p(xp.where(small, 0 * one, excess))
    value = xp.where(small, xp.log(xp.where(small & (determinant > 0), determinant, one)), large)
    return xp.where(small & ~(determinant > 0), xp.full_like(value, math.nan), value)


def _from_products(backend: Backend, linearization: Linearization, x: Array) -> Array:
    """The Jacobian from one product with J^T for each unit vector; (batch, d, d)."""
    xp = backend.xp
    batch, d = x.shape[0], math.prod(x.shape[1:])
    units = xp.eye(d, dtype=x.dtype, device=device_of(x))
    units = xp.broadcast_to(xp.reshape(units, (d, 1, *x.shape[1:])), (d, *x.shape))
    rows = xp.reshape(linearization.transposed_products(units), (d, batch, d))
    return xp.permute_dims(rows, (1, 0, 2))


def _refuse_impossible(backend: Backend, value: Array, constant: float, d: int, u: float) -> None:
    """Refuse log-determinants outside d log(1 - c) .. d log(1 + c), where those of a c-contraction lie."""
    if backend.is_tracing(value) or not value.shape[0]:
        return
    xp = backend.xp
    low, high = d * math.log1p(-constant), d * math.log1p(constant)
    slack = 1e-6 * (1 + high - low) + 64 * u * d / (1 - constant)
    bad = ~((value >= low - slack) & (value <= high + slack))
    if bool(xp.any(bad)):
        seen = value[int(xp.argmax(xp.astype(bad, xp.int64)))]
        raise NotContractiveError(
            f"a branch with Lipschitz constant {constant:.4g} in {d} dimensions has log|det(I + J)| between {low:.4g} "
            f"and {high:.4g} nats; got {float(seen):.4g} (nan: a determinant that is not positive). The stated "
            "constant is wrong."
        )


EXACT = Exact()
