"""log|det(I + J)| of a residual block, per sample, with its standard error and a bound on its bias."""

import math
from typing import Any

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.branches import Linearization, linearize, stated_lipschitz
from iresnet_core.common import (
    flatten,
    require_batch,
    require_contraction,
    require_finite,
    require_floating,
    require_nonnegative,
    require_nonnegative_int,
    require_positive_int,
    working_dtype,
)
from iresnet_core.determinant.choice import exact_limit
from iresnet_core.determinant.exact import determinant_order, exact_jointly, exact_logdet, samples_at_a_time
from iresnet_core.determinant.preconditioning import MeanJacobian, no_mean_jacobian, require_reference
from iresnet_core.determinant.probes import make_source
from iresnet_core.determinant.request import Request, given_probes
from iresnet_core.determinant.stochastic import stochastic_logdet
from iresnet_core.determinant.training import CONTROLLED_PRODUCTS, controlled_logdet
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.results import LogDet

__all__ = ["logdet", "value_and_logdet"]

# Up to this dimension a matrix of the mean Jacobian's size is made for every batch.
PRECONDITIONED_WIDTH = 1024
_STOCHASTIC = ("series", "roulette", "arnoldi", "mean-jacobian")


def logdet(
    g: Any,
    x: Array,
    *,
    method: str = "auto",
    tol: float | None = None,
    probes: int = 1,
    noise: Any = None,
    rng: Any = None,
    lipschitz: float | None = None,
    unbiased: bool = False,
    terms: int | None = None,
    probe_kind: str = "rademacher",
    control_variate: str = "auto",
    reference: MeanJacobian | None = None,
    errors: bool = True,
    exact_up_to: int | None = None,
) -> LogDet:
    """Estimate or compute log|det(I + J_g(x))|, sample by sample, in nats.

    Parameters
    ----------
    g : Branch or callable
        The contraction; a plain callable needs a backend with automatic differentiation.
    x : array (batch, ...)
        Where the Jacobian is taken; a sample has d entries.
    method : {"auto", "exact", "series", "roulette", "arnoldi", "mean-jacobian"}
        "exact": determinant of the explicit matrix, of order min(d, narrowest width of a Chain) by Sylvester.
        "series": truncated power series with random probes (report, Eq. 23). "roulette": the same made unbiased by
        Russian roulette on its tail (Chen et al. 2019). "arnoldi": Krylov approximation from the same probes, with an
        a-posteriori certificate; a third of the products of the series, or fewer. "mean-jacobian": Arnoldi's method
        on what a preconditioner, made of the slopes' means over the batch, leaves of the logarithm; the rest is exact.
        Some hundred times less noise than "arnoldi" on trained branches, in half the products; needs a `Chain` of
        dense layers, or convolutions on small images, and entrywise activations (or a branch whose linearisation has
        `mean_matrix`). "auto": "exact" up to a fixed order of the determinant (see `exact_up_to`), or where the
        tolerance would cost as much; else "mean-jacobian" where the branch allows it and d is at most 1024 (with
        convolutions: and a `reference` is given), else "arnoldi".
    tol : float, optional
        Spend products and probes until std_error and bias_bound are at most this, for every sample, in nats. The
        rounding in bias_bound cannot be brought down; where it is above `tol`, the result says so.
    probes : int
        Random probes a sample (with `tol`: to begin with).
    noise : array (probes, batch, ...) or (batch, ...), optional
        The probes themselves, for results that can be compared to rounding. For "roulette" and ``unbiased`` answers a
        pair ``(probes, lengths)``, lengths the numbers of products beyond the certain ones.
    rng : None, int or generator
        Source of the probes: None is the framework's own generator, an int a seed.
    lipschitz : float, optional
        Lipschitz constant c < 1 of g; default ``g.lipschitz``. All bounds rest on it.
    unbiased : bool
        Whether the mean of `value` over probes and lengths, and that of its gradient, is to be exact but for rounding,
        whatever was truncated: what the products of "series", "arnoldi" or "mean-jacobian" leave is added by Russian
        roulette. P(N >= j), the chance of j further products, is ``k^(j-1) / 8``, with k = c, or max(c, 1 - 1/d) for
        "mean-jacobian"; the variance is finite (proof in `iresnet_core.determinant.roulette`) and part of `std_error`.
    terms : int, optional
        Products a probe for "series", "arnoldi" and "mean-jacobian", certain terms for "roulette" (default 4). Default:
        as many as make the certified truncation error at most `tol`, or 1e-3 nats. The certificate is far above the
        error of "mean-jacobian": in training, ``terms=2`` is plenty.
    probe_kind : {"rademacher", "gaussian"}
        Rademacher probes, drawn as rows of a signed Hadamard matrix without replacement, have the lower variance;
        as many as the next power of two above d give the exact trace.
    control_variate : {"auto", "trace", "none"}
        "trace": only log(I + J) - theta J is estimated and theta tr J added exactly, theta = 1 / (1 + 0.6 tr J / d),
        which takes most of the noise away at half the cost of a product; needs a branch that offers its trace (a Chain
        of dense layers, or of convolutions that keep the extent, with at most two groups of slopes between them).
        "auto": where it does. "mean-jacobian" always takes its trace exactly (with more than two groups of slopes, but
        for a remainder of third order in their deviations from the mean).
    reference : MeanJacobian, optional
        For "mean-jacobian": the preconditioner of another batch, from `mean_jacobian`. Without it that of `x` itself is
        made, in some 4 d^3 operations a batch.

    errors : bool
        False leaves the errors out: `std_error` and `bias_bound` are NaN, and "exact" computes the Jacobian in the
        dtype of x. For training loops, which look at the value and its gradient only.
    exact_up_to : int, optional
        "auto" is exact up to this order of the determinant; default 64, and 32 with ``errors=False``. The choice
        depends on nothing else, so that all runs, machines and compiled programs choose alike.

    Returns
    -------
    LogDet
        value, std_error, bias_bound, products, each (batch,), the method used and why; in the dtype of x, but at least
        float32. `std_error` is estimated from the probes' own Krylov vectors, so that one probe suffices for it; for
        d > 4 it then errs upwards, up to twice, unless one direction dominates J (rank one, say): single probes may
        miss that and its variance together, so take several. `bias_bound` bounds the truncation error of this very
        draw, plus an allowance for the rounding of the products; that of the slopes, where the inputs of activations
        are huge, is not in it.

    Raises
    ------
    NotContractiveError
        If c >= 1, a product expanded by more than c, or the determinant is out of the range that c allows.
    NotConvergedError
        If `tol` cannot be reached.
    DerivativeError
        If neither g nor the backend provides products.
    UnknownLipschitzError, NonFiniteError, ShapeError, DtypeError, MixedBackendsError, InvalidArgumentError
        For arguments that make no sense.

    Notes
    -----
    Cost: one evaluation of g, and `products` products with J^T a sample ("exact": as many as the order of the
    determinant, in matrix form). "roulette" takes ``terms + c / (1 - c)`` on average; ``unbiased`` adds to the others
    at most ``1 / (8 (1 - k))``, and "arnoldi" and "mean-jacobian" end before that where their certificate is down to
    rounding. The number of products is drawn once a probe for the whole batch, so that the errors of its samples are
    correlated. Memory of
    "arnoldi" and "mean-jacobian" with m products: the Krylov basis, m probes batch d numbers, and some m^2 / 2 numbers
    for each of 10 to 200 quadrature nodes, probe and sample.

    Where the backend differentiates, `value` has its derivative with respect to x and to what g closes over, apart from
    the value: for each probe v the derivative of w^T J v with w = (I + J)^-T v held fixed, from the same products (one
    product with J more, and a backward pass through that), and the exact one of the trace; "exact" is differentiated as
    it is. "mean-jacobian" differentiates its own trace, so that only (w - B^T v)^T dJ v, B near (I + J)^-1, is left to
    the probe. Second derivatives of the stochastic methods are refused, and the errors have none. A compiled
    function cannot look at values: `tol` is refused there, "arnoldi" takes 10 products, "mean-jacobian" 4 and "series"
    those of its a-priori bound unless `terms` says otherwise, and bias_bound tells how far they came.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import Activation, Chain, Dense
    >>> g = Chain([Dense(np.array([[0.0, 0.5], [-0.5, 0.0]])), Activation("identity")])
    >>> result = logdet(g, np.zeros((1, 2)))
    >>> round(float(result.value[0]), 4), result.method
    (0.2231, 'exact')
    """
    return value_and_logdet(
        g,
        x,
        method=method,
        tol=tol,
        probes=probes,
        noise=noise,
        rng=rng,
        lipschitz=lipschitz,
        unbiased=unbiased,
        terms=terms,
        probe_kind=probe_kind,
        control_variate=control_variate,
        reference=reference,
        errors=errors,
        exact_up_to=exact_up_to,
    )[1]


def value_and_logdet(
    g: Any,
    x: Array,
    *,
    method: str = "auto",
    tol: float | None = None,
    probes: int = 1,
    noise: Any = None,
    rng: Any = None,
    lipschitz: float | None = None,
    unbiased: bool = False,
    terms: int | None = None,
    probe_kind: str = "rademacher",
    control_variate: str = "auto",
    reference: MeanJacobian | None = None,
    errors: bool = True,
    exact_up_to: int | None = None,
) -> tuple[Array, LogDet]:
    """Return g(x), which the log-determinant needs anyway, and `logdet`; same arguments, costs and errors."""
    backend = get_backend(x)
    require_batch(x, "x")
    require_floating(backend, x, "x")
    require_finite(backend, x, "x")
    if not isinstance(method, str) or method not in ("auto", "exact", *_STOCHASTIC):
        raise InvalidArgumentError(f"logdet has the methods auto, exact, {', '.join(_STOCHASTIC)}; got {method!r}.")
    if exact_up_to is not None:
        exact_up_to = require_nonnegative_int(exact_up_to, "exact_up_to")
    constant = require_contraction(*stated_lipschitz(g, lipschitz))
    request = _request(tol, probes, noise, rng, terms, probe_kind, control_variate, method)
    request = request._replace(unbiased=bool(unbiased))
    if not errors:
        if tol is not None:
            raise InvalidArgumentError("tol is met by looking at the errors; do not pass errors=False as well.")
        request = request._replace(errors=False)
    if reference is not None:
        if method not in ("auto", "mean-jacobian"):
            raise InvalidArgumentError(f"a reference is for method 'mean-jacobian', not {method!r}.")
        request = request._replace(reference=reference)
    with backend.full_precision(), backend.batch_of_unknown_size(x):
        given, working = x.dtype, working_dtype(backend, x.dtype)
        if working != x.dtype:
            g, x, request = _raised(backend, g, x, request, working)
        if reference is not None:
            require_reference(reference, x)
            if control_variate == "none":
                raise InvalidArgumentError("a reference is a control variate itself; control_variate='none' is not.")
        linearization = linearize(backend, g, x, jointly=_recorded_later(x, method, request))
        reason = ""
        if method == "auto":
            method, reason, give_up_at = _choose(backend, x, linearization, request, exact_up_to)
            request = request._replace(give_up_at=give_up_at)
        result = None
        if method != "exact" and x.shape[0] != 0:
            value, result = _estimate(backend, linearization, x, constant, method, request)
            if result is None:
                reason = f"tol={tol:g} would cost as much as the exact answer"
        if result is None:
            value, result = _exact(backend, g, x, linearization, constant, errors)
        return value if working == given else backend.xp.astype(value, given), result._replace(reason=reason)


def _recorded_later(x: Array, method: str, request: Request) -> bool:
    """Whether the answer will come from tangents that are known beforehand; see `Linearization.joint`."""
    if request.errors or request.unbiased or x.shape[0] == 0 or math.prod(x.shape[1:]) > PRECONDITIONED_WIDTH:
        return False
    alone = request.noise is None or request.reference is not None
    return method in ("exact", "mean-jacobian") or (method == "auto" and alone and request.control_variate == "auto")


def _exact(
    backend: Backend, g: Any, x: Array, linearization: Linearization, constant: float, errors: bool
) -> tuple[Array, LogDet]:
    """The value g(x) and the exact answer."""
    if linearization.joint is not None:
        d = math.prod(x.shape[1:])
        if determinant_order(linearization, x) == d and samples_at_a_time(d, d) >= x.shape[0]:
            return exact_jointly(backend, linearization.joint, x, constant)
        linearization = linearize(backend, g, x)
    return linearization.value, exact_logdet(backend, g, x, linearization, constant, errors=errors)


def _choose(
    backend: Backend, x: Array, linearization: Linearization, request: Request, exact_up_to: int | None
) -> tuple[str, str, int | None]:
    """Return the method of "auto", the reason, and the products a sample at which a tolerance becomes too dear."""
    method, order = _stochastic_choice(linearization, x, request), determinant_order(linearization, x)
    if request.noise is not None:
        return method, "noise rules out the exact answer", None
    limit, whose = exact_limit(exact_up_to, errors=request.errors)
    if order <= limit:
        return "exact", f"order {order} is at most {limit}, {whose}", None
    return method, f"order {order} is above {limit}, {whose}", order


def _stochastic_choice(linearization: Linearization, x: Array, request: Request) -> str:
    """Take the mean-Jacobian method where the branch has what it needs, and its matrices are of moderate size."""
    known = linearization.mean_matrix is not None and linearization.preconditioned_trace is not None
    small = math.prod(x.shape[1:]) <= PRECONDITIONED_WIDTH
    # The matrices of convolutions are many times the size of their kernels: worth it for several probes, if asked for.
    known = known and (linearization.cheap_mean or request.reference is not None)
    wanted = request.control_variate != "none"
    if not request.errors:
        # The answer to given probes should be that of the sample alone, whatever else is in the batch.
        alone = request.noise is None or request.reference is not None
        wanted = request.control_variate == "auto" and alone and linearization.jvp is not None
    return "mean-jacobian" if known and small and wanted else "arnoldi"


def _estimate(
    backend: Backend, linearization: Linearization, x: Array, constant: float, method: str, request: Request
) -> tuple[Array, LogDet | None]:
    """The value g(x), and the estimate by a method; None if a tolerance costs more than the exact answer."""
    short = not (request.errors or request.unbiased)
    if method == "mean-jacobian" and short and linearization.jvp is not None:
        return _controlled(backend, linearization, x, constant, request)
    return linearization.value, stochastic_logdet(backend, linearization, x, constant, method, request)


def _controlled(
    backend: Backend, linearization: Linearization, x: Array, constant: float, request: Request
) -> tuple[Array, LogDet]:
    """The mean-Jacobian method without errors, see `controlled_determinant`."""
    if request.control_variate == "none":
        raise InvalidArgumentError("method 'mean-jacobian' is a control variate itself; control_variate='none' is not.")
    if linearization.mean_matrix is None:
        raise no_mean_jacobian()
    flat = flatten(backend.xp, x)
    if request.noise is None:
        drawn = make_source(backend, request.probe_kind, flat, request.rng).draw(request.probes)
    else:
        drawn = given_probes(backend, x, request.noise, request.probes, "mean-jacobian")
    products = request.terms or CONTROLLED_PRODUCTS
    return controlled_logdet(backend, linearization, x, constant, drawn, products=products, reference=request.reference)


def _request(
    tol: float | None,
    probes: int,
    noise: Any,
    rng: Any,
    terms: int | None,
    probe_kind: str,
    control_variate: str,
    method: str,
) -> Request:
    """Check the options of the stochastic methods."""
    if tol is not None:
        tol = require_nonnegative(tol, "tol")
        if tol == 0:
            raise InvalidArgumentError("tol must be positive; for the exact value use method='exact'.")
        if terms is not None and method != "roulette":
            raise InvalidArgumentError("tol decides the number of products itself; do not pass terms as well.")
        if noise is not None:
            raise InvalidArgumentError("tol may need more probes than noise holds; do not pass both.")
    if terms is not None:
        terms = require_positive_int(terms, "terms")
    if control_variate not in ("auto", "trace", "none"):
        raise InvalidArgumentError(f"control_variate must be 'auto', 'trace' or 'none', got {control_variate!r}.")
    if probe_kind not in ("rademacher", "gaussian"):
        raise InvalidArgumentError(f"probe_kind must be 'rademacher' or 'gaussian', got {probe_kind!r}.")
    return Request(
        tol, require_positive_int(probes, "probes"), noise, rng, terms, probe_kind, control_variate, give_up_at=None
    )


def _raised(backend: Backend, g: Any, x: Array, request: Request, working: Any) -> tuple[Any, Array, Request]:
    """Move a half-precision problem to float32, where its norms can be taken."""
    xp = backend.xp
    if hasattr(g, "astype"):
        g = g.astype(working)
    else:
        raise InvalidArgumentError(
            f"log-determinants of {type(g).__name__} in {x.dtype} need float32 products, and it has no astype. Use a "
            "Chain, or float32."
        )
    noise = request.noise
    if isinstance(noise, tuple):
        noise = (xp.astype(noise[0], working), noise[1])
    elif noise is not None:
        noise = xp.astype(noise, working)
    return g, xp.astype(x, working), request._replace(noise=noise)
