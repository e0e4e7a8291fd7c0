"""log|det(I + J)| of a residual block, per sample, with its standard error and a bound on its bias."""

from typing import Any, Unpack

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.branches import (
    Chain,
    evaluate,
    has_large_images,
    layer_growth,
    linearize,
    linearize_jointly,
    of_samples,
    stated_lipschitz,
)
from iresnet_core.common import (
    require_batch,
    require_contraction,
    require_finite,
    require_floating,
    working_dtype,
)
from iresnet_core.determinant.arnoldi import ARNOLDI
from iresnet_core.determinant.choice import exact_choice
from iresnet_core.determinant.exact import EXACT, determinant_order
from iresnet_core.determinant.lanczos_quadrature import LANCZOS
from iresnet_core.determinant.of_operator import operator_logdet
from iresnet_core.determinant.preconditioned_arnoldi import MEAN_JACOBIAN, PRECONDITIONED_WIDTH
from iresnet_core.determinant.preconditioning import MeanJacobian, require_reference
from iresnet_core.determinant.recomputation import of_arrays
from iresnet_core.determinant.request import (
    LogDetOptions,
    Method,
    Problem,
    Request,
    checked_request,
    in_dtype,
)
from iresnet_core.determinant.roulette import ROULETTE
from iresnet_core.determinant.sample_seed import SampleSeed
from iresnet_core.determinant.series import SERIES
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.operators import is_operator
from iresnet_core.results import LogDet

__all__ = ["METHODS", "logdet", "own_seed", "uses_own_seeds", "value_and_logdet"]

# All methods by name; "auto" takes the first of them that applies to the problem.
METHODS: dict[str, Method] = {method.name: method for method in (EXACT, MEAN_JACOBIAN, ARNOLDI, SERIES, ROULETTE)}

# Those that answer for a linear operator, see `of_operator`.
OPERATOR_METHODS: dict[str, Method] = {method.name: method for method in (LANCZOS, ARNOLDI, SERIES, ROULETTE)}


def logdet(
    g: Any,
    x: Array | None = None,
    *,
    lipschitz: float | None = None,
    spectrum: tuple[float, float | None] | None = None,
    disc: tuple[float, float | None] | None = None,
    half_plane: float | None = None,
    reference: MeanJacobian | None = None,
    **options: Unpack[LogDetOptions],
) -> LogDet:
    """Estimate or compute log|det(I + J_g(x))| in nats for every sample, or log det(I + A) of a linear operator.

    Parameters
    ----------
    g : Branch or callable, or a linear operator
        The contraction. A plain callable needs a backend with automatic differentiation. Without `x` it is a linear
        operator: a square matrix (..., d, d), a SciPy sparse matrix or LinearOperator, a `Dense`, or what `as_operator`
        makes of two functions. Products with A alone, without A^T, are enough where something bounds A.
    x : array (batch, ...), optional
        The samples at which the Jacobian is taken. A sample has d entries. Leave it out for a linear operator, whose
        Jacobian is the same everywhere.
    spectrum : (low, high), optional
        For a symmetric operator of any norm: its eigenvalues lie between low > -1 and high. Pass None for a `high` that
        is to be found. An implicit Euler step for diffusion has ``spectrum=(0, None)``.
    disc : (s, r), optional
        For an operator of any norm: ||A - s I|| <= r < 1 + s. Pass None for an `r` that is to be found.
    half_plane : float, optional
        For an operator of any norm: v^T A v >= low ||v||^2 for all v, with low > -1, as in a step with advection. Half
        the logarithm of det (I + A)^T (I + A) is computed then, with two products per step.
    lipschitz : float, optional
        The Lipschitz constant c < 1 of g; by default ``g.lipschitz``. All bounds rest on it. If it is below the product
        of the layers' norms, the errors allow for rounding that grows by that product on its way through the layers. A
        compiled program that gets the weights as arguments cannot know their norms, and takes the layers as balanced.
    reference : MeanJacobian, optional
        For "mean-jacobian": the preconditioner of another batch, from `mean_jacobian`. Without it the preconditioner of
        `x` itself is made, which takes some 4 d^3 operations for a batch.
    **options
        All options that follow; layers and flows take them too (`LogDetOptions`). Their defaults are::

            method="auto", tol=None, probes=1, noise=None, rng=None, unbiased=False, terms=None,
            probe_kind="rademacher", control_variate="auto", errors=True, exact_up_to=None, checkpoint=False,
            compiled=False

    method : {"auto", "exact", "series", "roulette", "arnoldi", "mean-jacobian", "lanczos"}
        How the answer is computed.

        - "exact": the determinant of the explicit matrix. By Sylvester's identity its order is d or the narrowest width
          of a `Chain`, whichever is less.
        - "series": the truncated power series with random probes (Behrmann et al. 2019).
        - "roulette": the same series, made unbiased by Russian roulette on its tail (Chen et al. 2019).
        - "arnoldi": a Krylov approximation from the same probes, with an a-posteriori certificate. It takes a third of
          the products of the series, or fewer.
        - "mean-jacobian": a matrix at the mean slopes of the batch gives most of the answer exactly, and Arnoldi's
          method estimates the rest. On trained branches the noise is some hundred times less than that of "arnoldi",
          with half the products. It needs a `Chain` of dense layers, or of convolutions on small images, with entrywise
          activations (or a branch whose linearisation has `mean_matrix`).
        - "lanczos", for symmetric operators: Gauss-Radau's rules bound every form from both sides, with half the
          products of "arnoldi". For a sparse matrix, or with `pattern` in `as_operator`, every probe sees entries of
          one colour, which lie far apart in the pattern: more than 4 steps, unless `probes` or `tol` is given.
        - "auto" for a branch: "exact" up to a fixed order of the determinant (`exact_up_to`), or where the tolerance
          would cost as much. Otherwise "mean-jacobian" where the branch allows it and d is at most 1024; with
          convolutions only if a `reference` is given, or with ``rng="sample"`` and either a convolution first or a
          branch with a reference of its own. Otherwise "arnoldi".
        - "auto" for an operator: "exact" up to order 64, for a matrix up to 1024 and for a sparse one up to 4096, by
          its factors. Otherwise "lanczos" where that applies, and else "arnoldi".
    tol : float, optional
        The largest `std_error` and `bias_bound`, in nats, that you accept for any sample. Products and probes are added
        until both are met, with at most 4096 probes. Rounding, which is part of `bias_bound`, cannot be brought down.
        Where it is above `tol` the standard error may be as large as the rounding, and `reason` says so.
    probes : int
        The number of random probes for each sample. With `tol` it is the number to begin with.
    noise : array (probes, batch, ...) or (batch, ...), optional
        The probes themselves, so that results can be compared to rounding between backends. For "roulette" and
        ``unbiased=True`` it is a pair ``(probes, lengths)``; the lengths are the numbers of products beyond the certain
        ones.
    rng : None, int, generator or "sample"
        The source of the probes. None is the framework's own generator, and an int is a seed. With "sample" the probes
        are a hash of the bits of each sample, rounded to float32. A sample then has the same answer in any batch, order
        and program, and up to rounding on every backend. The evaluation of a flow does that by default. The
        preconditioner of "mean-jacobian" is then made at the reference of the branch (`Chain`), or at standard normal
        points, instead of the batch, and for convolutions it is kept with the weights.
    unbiased : bool
        Whether the mean of `value` and of its gradient over all draws is to be exact, up to rounding. What the products
        of "series", "arnoldi" or "mean-jacobian" leave out is then added by Russian roulette. The chance of j further
        products is P(N >= j) = ``k^(j-1) / 8`` with k = c, or k = max(c, 1 - 1/d) for "mean-jacobian". The variance is
        finite (the proof is in `iresnet_core.determinant.roulette`) and part of `std_error`.
    terms : int, optional
        The number of products for each probe of "series", "arnoldi" and "mean-jacobian", and the number of certain
        terms of "roulette" (4 by default). By default products are taken until the truncation error is certified to be
        at most `tol`, or 1e-3 nats, but at most 64. "series" is content with 1e-3 nats per dimension from its 64th term
        on, and takes up to 2048 terms for that or for `tol`. The certificate of "mean-jacobian" is far above its error,
        so that ``terms=2`` is plenty in training. Where its rounding in float32 would exceed 1e-3 nats per dimension,
        its products are taken in float64.
    probe_kind : {"rademacher", "gaussian"}
        The distribution of the probes. Rademacher probes have the lower variance. They are drawn as rows of a signed
        Hadamard matrix without replacement, and as many as the next power of two above d give the exact trace.
    control_variate : {"auto", "trace", "none"}
        With "trace" only log(I + J) - theta J is estimated, and theta tr J is added exactly, theta = 1 / (1 + 0.6 tr J
        / d). This removes most of the noise and costs half a product. It needs a branch that offers its trace: a Chain
        of dense layers with at most four groups of slopes between them, or of convolutions that keep the extent, with
        at most six and, beyond three convolutions, few taps. From three groups on a remainder of third order is left
        to the probes; it is taken in the deviations of the slopes from their means over the batch, or from fixed points
        for ``rng="sample"`` and with `noise`. "auto" is "trace" where that is possible, but for dense layers with more
        than two groups. "mean-jacobian" always takes its trace exactly, but for a remainder of third order where there
        are more than two groups of slopes.
    errors : bool
        False leaves the errors out: `std_error` and `bias_bound` are NaN, and "exact" computes the Jacobian in the
        dtype of x. This is for training, which needs the value and its gradient only.
    exact_up_to : int, optional
        The order of the determinant up to which "auto" is exact: 64 by default, and 32 with ``errors=False``. The
        choice depends on nothing else, so that all runs, machines and compiled programs choose alike.
    checkpoint : bool
        Whether intermediate results are computed again on the way back instead of being kept. Then only x, the weights
        and the probes are kept for the derivative. Values and gradients are the same up to rounding, and the time grows
        by one evaluation. It has no effect on an answer to a `tol`, whose probes are not known beforehand, or where
        nothing is differentiated. On JAX and TensorFlow first derivatives only; the parameters of a plain callable on
        TensorFlow have to be variables.
    compiled : bool
        Whether the backend compiles the answer for a `Chain` without errors (``errors=False``), once for all chains
        that differ in their arrays only (`Backend.by_program`). The probes are drawn outside, so that the answer is the
        same up to rounding. It has an effect on PyTorch only, outside of other programs and of autocast.

    Returns
    -------
    LogDet
        The arrays value, std_error, bias_bound and products, each (batch,), then the method used, and why. They
        have the dtype of x, but at least float32. For an operator they have the shape (), or (...,) for a stack of
        matrices (..., d, d). `std_error` is estimated from the products of the probes, so that one probe is enough; for
        d > 4 it may then be up to twice too large. Where one direction dominates J, which single probes may miss, its
        eigenvalue is taken from the products. `bias_bound` bounds the truncation error of this draw, plus an allowance
        for the rounding of the products. The rounding of the slopes, where the inputs of activations are huge, is not
        in it.

    Raises
    ------
    NotContractiveError
        If c >= 1, a product expanded by more than c, or the determinant is out of the range that c allows.
    NotConvergedError
        If `tol` cannot be reached with 4096 probes, or with the largest number of products.
    DerivativeError
        If neither g nor the backend provides products.
    UnknownLipschitzError, NonFiniteError, ShapeError, DtypeError, MixedBackendsError, InvalidArgumentError
        If an argument makes no sense, or an option does not exist.

    Notes
    -----
    **Cost.** One evaluation of g and, for each sample, `products` products with J^T; "exact" takes as many as the order
    of the determinant, in matrix form. "roulette" takes ``terms + c / (1 - c)`` products on average. ``unbiased=True``
    adds at most ``1 / (8 (1 - k))`` on average to those of the other methods. "arnoldi" and "mean-jacobian" end earlier
    where their certificate is down to rounding; "series" and "roulette" end after 2^14 products at the latest. The
    number of products is drawn once for each probe and the whole batch, so that the errors of its samples are
    correlated.

    **Memory** of "arnoldi" and "mean-jacobian" with m products: the Krylov basis holds m * probes * batch * d numbers,
    and each of 10 to 200 quadrature nodes some m^2 / 2 numbers for each probe and sample.

    **Derivatives.** Where the backend differentiates, `value` has a derivative with respect to x and to what g closes
    over, which is estimated separately from the value. For each probe v it is the derivative of w^T J v with w = (I +
    J)^-T v held fixed, from the same products, one more product with J and a backward pass through that. The trace is
    differentiated exactly, and so is "exact". "mean-jacobian" differentiates its own trace, so that only (w - B^T v)^T
    dJ v, with B near (I + J)^-1, is left to the probe. Second derivatives of the stochastic methods are refused, and
    the errors have no derivative.

    **Compiled functions** cannot look at values. There `tol` is refused, and unless `terms` says otherwise "arnoldi"
    takes 10 products, "mean-jacobian" 4, and "series" those of its a-priori bound; `bias_bound` says what they left.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import Activation, Chain, Dense
    >>> g = Chain([Dense(np.array([[0.0, 0.5], [-0.5, 0.0]])), Activation("identity")])
    >>> result = logdet(g, np.zeros((1, 2)))
    >>> round(float(result.value[0]), 4), result.method
    (0.2231, 'exact')
    """
    if x is None:
        if hasattr(g, "linearize"):
            raise InvalidArgumentError(f"logdet of a {type(g).__name__} needs the x at which its Jacobian is taken.")
        request = checked_request(options, reference, {EXACT.name: EXACT, **OPERATOR_METHODS})
        known: dict[str, Any] = {"lipschitz": lipschitz, "spectrum": spectrum, "disc": disc, "half_plane": half_plane}
        asked = "probes" in options
        return operator_logdet(g, request=request, methods=OPERATOR_METHODS, probes_asked=asked, known=known)
    if is_operator(g):
        raise InvalidArgumentError(
            f"the log-determinant of a linear operator, here {type(g).__name__}, is the same at every x: leave x out."
        )
    if any(known is not None for known in (spectrum, disc, half_plane)):
        raise InvalidArgumentError("spectrum=, disc= and half_plane= are for linear operators, that is without x.")
    return value_and_logdet(g, x, lipschitz=lipschitz, reference=reference, **options)[1]


def value_and_logdet(
    g: Any,
    x: Array,
    *,
    lipschitz: float | None = None,
    reference: MeanJacobian | None = None,
    part: int | None = None,
    **options: Unpack[LogDetOptions],
) -> tuple[Array, LogDet]:
    """Return g(x), which the log-determinant needs anyway, and `logdet`; same arguments, costs and errors.

    With `part` the log-determinant is that of the first samples alone, so many, and g(x) that of all.
    """
    backend = get_backend(x)
    require_batch(x, "x")
    require_floating(backend, x, "x")
    require_finite(backend, x, "x", samples=True)
    request = checked_request(options, reference, METHODS)
    if isinstance(request.rng, str):
        request = request._replace(rng=own_seed(options, x))
    constant = require_contraction(*stated_lipschitz(g, lipschitz))
    with backend.full_precision(), backend.batch_of_unknown_size(x):
        given, working = x.dtype, working_dtype(backend, x.dtype)
        if working != x.dtype:
            g, x, request = in_dtype(backend, g, x, request, working)
        if reference is not None:
            require_reference(reference, x)
        # A chain that certifies the constant itself is balanced, and an answer without errors promises nothing.
        growth = layer_growth(g) if request.errors and lipschitz is not None else 1.0

        def answer(g: Any, x: Array, request: Request) -> tuple[Array, LogDet]:
            return _answered(backend, g, x, part, request, constant=constant, growth=growth)

        # The probes for a tolerance are not known beforehand.
        again = request.checkpoint and request.tol is None and (isinstance(g, Chain) or backend.recomputes_pullbacks())
        request = request._replace(checkpoint=again, compiled=request.compiled and _has_program(backend, g, x, request))
        if request.checkpoint or request.compiled:
            method = METHODS.get(request.method)
            value, result = of_arrays(backend, g, x, request, answer, method=method, growth=growth, part=part)
        else:
            value, result = answer(g, x, request)
        return value if working == given else backend.xp.astype(value, given), result


def _answered(
    backend: Backend,
    branch: Any,
    everything: Array,
    part: int | None,
    request: Request,
    *,
    constant: float,
    growth: float,
) -> tuple[Array, LogDet]:
    """Choose the method, and let it answer in the dtype of the samples."""
    with backend.full_precision(), backend.batch_of_unknown_size(everything):  # once more, with `checkpoint`
        x, g = everything, branch
        if part is not None:
            x, g = x[:part, ...], of_samples(branch, 0, part)
        if _recorded_later(x, request):
            linearization = linearize_jointly(backend, branch, everything, part)
        else:
            linearization = linearize(backend, g, x)
        problem = Problem(backend, g, x, linearization, constant, request, growth=growth)
        method, reason = METHODS.get(request.method), ""
        if method is None:
            method = next(row for row in METHODS.values() if row.applies_to(problem))
            order = determinant_order(linearization, x, growth)
            reason = exact_choice(order, request)[1]
            if method is ARNOLDI and _has_idle_reference(problem):
                reason += "; the reference is not used, as the images of the branch are too large for it"
            problem = problem._replace(max_products=order)
        if x.shape[0] == 0:
            method = EXACT
        value, result = method.answer(problem)
        if result is None:
            value, result = EXACT.answer(problem)
            reason = f"tol={request.tol:g} would cost as much as the exact answer"
        if part is not None and (backend.is_tracing(value) or value.shape[0] == part):
            rest = everything[part:, ...]
            others = evaluate(backend, of_samples(branch, part, everything.shape[0]), rest)
            value = backend.xp.concat([value, others], axis=0)
        reason = "; ".join(word for word in (reason, result.reason) if word)
        return value, result._replace(reason=reason)


def _has_idle_reference(problem: Problem) -> bool:
    """Whether samples have seeds of their own and the branch a reference, which the size of its images rules out."""
    g, request = problem.g, problem.request
    if not isinstance(g, Chain) or g.reference is None or not isinstance(request.rng, SampleSeed):
        return False
    return problem.linearization.mean_matrix is None and has_large_images(g.layers)


def uses_own_seeds(options: LogDetOptions) -> bool:
    """Whether an answer with these options, of an evaluation, takes the seeds of the samples unless `rng` is given.

    Unbiased answers draw the number of their products, which has to differ from call to call.
    """
    method = METHODS.get(options.get("method", "auto"))
    drawn = options.get("unbiased") or (method is not None and method.always_unbiased)
    return options.get("noise") is None and bool(options.get("errors", True)) and not drawn


def own_seed(options: LogDetOptions, x: Array) -> SampleSeed:
    """Return the seeds that rng="sample" stands for."""
    if options["rng"] != "sample":
        raise InvalidArgumentError(f"rng must be None, a seed, a generator or 'sample', got {options['rng']!r}.")
    if not uses_own_seeds({**options, "errors": True, "noise": None}):
        raise InvalidArgumentError(
            "rng='sample' draws no numbers of products, which unbiased answers need. Pass a seed or a generator."
        )
    return SampleSeed(x)


def _has_program(backend: Backend, g: Any, x: Array, request: Request) -> bool:
    """Whether an answer is a function of arrays that looks at no value, with a fixed number of products."""
    method = METHODS.get(request.method)
    drawn = request.unbiased or (method is not None and method.always_unbiased)
    if drawn or request.errors or not isinstance(g, Chain) or backend.is_tracing(x, *g.arrays):
        return False
    return bool(x.shape[0] > 0)


def _recorded_later(x: Array, request: Request) -> bool:
    """Whether the derivative will come from tangents that are known beforehand; see `linearize_jointly`."""
    if request.errors or request.unbiased or x.shape[0] == 0:
        return False
    method = METHODS.get(request.method)
    if len(x.shape) == 2 and x.shape[1] <= PRECONDITIONED_WIDTH:
        if method is not None and method.takes_joint_pass:
            return True
        if method is None and request.control_variate == "auto" and (request.noise is None or request.reference):
            return True
    if method not in (None, ARNOLDI) or request.reference is not None:
        return False
    return request.probes == 1 or request.noise is not None  # all probes at once
