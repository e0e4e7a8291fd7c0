"""Linear systems, determinants and the bits of numbers by elementary operations, for ONNX, which has none of them."""

from collections.abc import Callable
from typing import Any

import torch

from iresnet_core.backends.torch.compilation import compiled_loop

__all__ = ["calculated_bits", "eigenvalues_and_vectors", "eliminated", "log_determinant", "summed_words", "writes_onnx"]

Array = Any
# Up to this order the steps stand one after the other in the program, also inside of its loops; beyond it they are one
# loop, so that the program does not grow.
LONGEST_ROW_OF_STEPS = 8


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def writes_onnx() -> bool:
    """Whether an ONNX program is being made; asked outside of PyTorch's compiler, which says no inside of loops."""
    return torch.onnx.is_in_onnx_export()


def _steps(n: int, body: Callable[..., tuple[Array, ...]], state: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return the state after n steps, to each of which the one-hot vector (n,) of its number is given."""
    like = state[0]
    numbers = torch.arange(n, device=like.device)
    if n <= LONGEST_ROW_OF_STEPS:
        for k in range(n):
            state = body((numbers == k).to(like.dtype), *state)
        return state

    def step(k: Array, *values: Array) -> tuple[Array, ...]:
        return (k + 1, *body((numbers == k).to(like.dtype), *values))

    start = torch.zeros((), dtype=torch.int64, device=like.device)
    return compiled_loop(lambda k, *values: k < n, step, (start, *state), n)[1:]


def _with_largest_pivots(matrix: Array, right: Array) -> tuple[Array, Array, Array]:
    """Return the solution of matrix (..., n, n) X = right (..., n, k), and sign and logarithm of the determinant.

    Gauss-Jordan elimination with the largest pivot of each column. Rows stay where they are: the pivot of a column is
    known by a one-hot vector, of which the determinant has the sign of the permutation.
    """
    n = matrix.shape[-1]
    numbers = torch.arange(n, device=matrix.device)

    def step(
        one: Array, joined: Array, free: Array, order: Array, sign: Array, size: Array
    ) -> tuple[Array, Array, Array, Array, Array]:
        column = (joined[..., :n] * one).sum(-1)
        place = torch.where(free > 0, column.abs(), -1.0).argmax(-1, keepdim=True)
        here = (numbers == place).to(joined.dtype)
        row = (here[..., None] * joined).sum(-2)
        pivot = (row[..., :n] * one).sum(-1)
        joined = joined - (column - here)[..., None] * (row / pivot[..., None])[..., None, :]
        # Rows before this one that are still free have to be passed by.
        passed = (free * (numbers < place).to(joined.dtype)).sum(-1)
        odd = passed - 2 * torch.floor(passed / 2)
        sign = sign * torch.sign(pivot) * (1 - 2 * odd)
        order = order + here[..., :, None] * one
        return joined, free - here, order, sign, size + torch.log(pivot.abs())

    joined = torch.cat([matrix, right], -1)
    ones = torch.ones_like(matrix[..., 0])
    start = (joined, ones, torch.zeros_like(matrix), ones[..., 0], torch.zeros_like(ones[..., 0]))
    joined, _, order, sign, size = _steps(n, step, start)
    return torch.matmul(order.transpose(-1, -2), joined[..., n:]), sign, size


def eliminated(matrix: Array, right: Array) -> Array:
    """Return the solution (..., n, k) of systems, without a derivative."""
    return _with_largest_pivots(matrix, right)[0]


def log_determinant(matrix: Array) -> tuple[Array, Array]:
    """Return sign and logarithm of |det| of matrices (..., n, n), without a derivative."""
    _, sign, size = _with_largest_pivots(matrix, matrix[..., :0])
    return sign, size


def calculated_bits(x: Array) -> Array:
    """Return the bits of float32 numbers as int32: sign, exponent and fraction, calculated in float64."""
    size = x.to(torch.float64).abs()
    exponent = torch.floor(torch.log2(torch.clamp(size, min=2.0**-126)))  # that of subnormal numbers, or above
    # The logarithm may be rounded across a whole number.
    exponent = exponent - (torch.exp2(exponent) > size).to(torch.float64) * (size >= 2.0**-126).to(torch.float64)
    exponent = exponent + (torch.exp2(exponent + 1) <= size).to(torch.float64)
    # A subnormal number lacks the leading one, that is 2^23 steps of the smallest exponent.
    steps = size * torch.exp2(23 - exponent)
    word = (exponent + 126) * 2.0**23 + steps
    # Not a number and infinity, of which no answer is left, get any bits.
    word = torch.where(torch.isfinite(size), word, torch.full_like(size, 2139095040.0)).to(torch.int64)
    negative = (x < 0) | (torch.reciprocal(x) < 0)  # the zero with a sign as well
    return (word - negative.to(torch.int64) * 2**31).to(torch.int32)


def eigenvalues_and_vectors(matrix: Array) -> tuple[Array, Array]:
    """Return eigenvalues (..., n), ascending, and vectors (..., n, n) of small symmetric matrices: Jacobi's method.

    Each step rotates one pair of axes so that its entry becomes zero, all pairs in turn (Golub and Van Loan 2013, Sec.
    8.5). The convergence is quadratic: seven rounds are plenty for the orders below 20 that occur.
    """
    n = matrix.shape[-1]
    identity = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    firsts = torch.stack([identity[i] for i, _ in pairs])
    seconds = torch.stack([identity[j] for _, j in pairs])

    def product(left: Array, right: Array) -> Array:  # a product of stacks would fix the number of samples in a loop
        return (left[..., :, :, None] * right[..., None, :, :]).sum(-2)

    def step(k: Array, joined: Array) -> tuple[Array, Array]:
        A, V = joined[..., :n, :], joined[..., n:, :]
        one = (torch.arange(len(pairs), device=k.device) == k % len(pairs)).to(A.dtype)
        p, q = (one[:, None] * firsts).sum(0), (one[:, None] * seconds).sum(0)
        Ap, Aq = (A * p).sum(-1), (A * q).sum(-1)
        off, gap = (Ap * q).sum(-1), (Aq * q).sum(-1) - (Ap * p).sum(-1)
        # The smaller angle: t = sign(theta) / (|theta| + sqrt(theta^2 + 1)) for theta = gap / (2 off).
        side = torch.where(gap < 0, -1.0, 1.0).to(A.dtype)
        t = 2 * off * side / (gap.abs() + torch.sqrt(gap * gap + 4 * off * off) + torch.finfo(A.dtype).tiny)
        c = 1 / torch.sqrt(t * t + 1)
        s = (t * c)[..., None, None]
        planes = p[:, None] * p + q[:, None] * q
        turn = identity + (c[..., None, None] - 1) * planes + s * (p[:, None] * q - q[:, None] * p)
        A = product(turn.transpose(-1, -2), product(A, turn))
        return k + 1, torch.cat([A, product(V, turn)], -2)

    start = torch.zeros((), dtype=torch.int64, device=matrix.device)
    rounds = 7 * len(pairs)
    joined = torch.cat([matrix, identity.expand_as(matrix)], -2)
    joined = compiled_loop(lambda k, _: k < rounds, step, (start, joined), rounds)[1]
    values, order = torch.sort((joined[..., :n, :] * identity).sum(-1), dim=-1)
    return values, torch.gather(joined[..., n:, :], -1, order[..., None, :].expand_as(matrix))


def summed_words(words: Array, axis: Any) -> Array:
    """Return sums of int32 that go round at 2^31, for which ONNX's own sum has no promise."""
    total = torch.sum(words.to(torch.int64), dim=axis) & 0xFFFFFFFF
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)
