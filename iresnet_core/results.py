"""What the primitives return: the answer together with its error, the same tuples for every backend."""

from typing import Any, Literal, NamedTuple

__all__ = ["Certificate", "Inverse", "LipschitzBound", "LogDet", "SpectralNorm"]

Array = Any
Certificate = Literal["exact", "certified", "probabilistic", "stated"]


class SpectralNorm(NamedTuple):
    """Estimate of the largest singular value of an operator, from below, with its singular vectors.

    Attributes
    ----------
    value : array (...,)
        ``left^T A right``; never above the spectral norm, but for rounding.
    left, right : array (..., m), (..., n)
        Unit singular vectors (zero where the operator is zero).
    iterations : int array (...,)
        Steps taken; two operator products each, none for ``method="svd"``.
    converged : bool array (...,)
        Whether ``residual <= rtol * value``.
    residual : array (...,)
        ``||A^T left - value right|| / sqrt(2)``: some singular value lies within this distance of `value`
        (Weyl's bound for the symmetric matrix [[0, A], [A^T, 0]]).
    """

    value: Array
    left: Array
    right: Array
    iterations: Array
    converged: Array
    residual: Array


class LipschitzBound(NamedTuple):
    """Upper bound on the spectral norm of an operator, which is the Lipschitz constant of the map.

    Attributes
    ----------
    value : array (...,)
        The bound, rounding included.
    certificate : {"exact", "certified", "probabilistic", "stated"}
        "exact": the norm itself up to rounding; "certified": holds for certain; "probabilistic": holds with the
        probability that the method states; "stated": somebody gave it, and it was not checked.
    method : str
        What computed it.
    """

    value: Array
    certificate: Certificate
    method: str


class Inverse(NamedTuple):
    """Solution x of x + g(x) = y, per sample.

    Attributes
    ----------
    value : array (batch, ...)
        The solution.
    error_bound : array (batch,)
        Certified bound on the Euclidean distance to the exact solution.
    residual : array (batch,)
        ``||x + g(x) - y||``.
    iterations : int array (batch,)
        Evaluations of g.
    converged : bool array (batch,)
        Whether the error bound met the tolerance, or the floor of the dtype was reached.
    error_estimate : array (batch,)
        What the error is to first order, not certified and at most `error_bound`. They differ in flows, where the bound
        may have grown through the blocks; a single solution has the bound here too.
    """

    value: Array
    error_bound: Array
    residual: Array
    iterations: Array
    converged: Array
    error_estimate: Array | None = None


class LogDet(NamedTuple):
    """log|det(I + J)| in nats, per sample, with its two errors.

    Attributes
    ----------
    value : array (batch,)
        The estimate, in nats.
    std_error : array (batch,)
        Standard error of `value` over the random probes; zero where nothing is random.
    bias_bound : array (batch,)
        Bound on the deterministic part of the error: the truncation, certified, and an allowance for rounding, eight
        units in the last place a layer and product, carried through the sensitivity of the logarithm.
    products : int array (batch,)
        Jacobian products spent on the sample.
    method : str
        The method that was used ("auto" is replaced by its choice).
    reason : str
        Why "auto" chose the method, and what kept `bias_bound` above what was asked for; empty where there is nothing
        to say.
    """

    value: Array
    std_error: Array
    bias_bound: Array
    products: Array
    method: str
    reason: str = ""
