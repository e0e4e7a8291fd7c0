"""What is asked of a log-determinant, and what every method of answering it has in common."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypedDict, cast

from iresnet_core.backends import Array, Backend
from iresnet_core.branches import Linearization
from iresnet_core.common import require_nonnegative, require_nonnegative_int, require_options, require_positive_int
from iresnet_core.determinant.probes import explicit_probes
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.results import LogDet

__all__ = [
    "LOGDET_OPTIONS",
    "LogDetOptions",
    "Method",
    "Problem",
    "Request",
    "checked_request",
    "given_lengths",
    "given_probes",
    "in_dtype",
    "refuse_tolerance",
]


class LogDetOptions(TypedDict, total=False):
    """Options of `logdet`, which layers and flows pass on; `logdet` says what each of them means."""

    method: str
    tol: float | None
    probes: int
    noise: Any
    rng: Any
    unbiased: bool
    terms: int | None
    probe_kind: Literal["rademacher", "gaussian"]
    control_variate: str
    errors: bool
    exact_up_to: int | None
    checkpoint: Any
    compiled: bool


LOGDET_OPTIONS = frozenset(LogDetOptions.__annotations__)


class Request(NamedTuple):
    """The options of `logdet` with their defaults, and the mean Jacobian that is given for its samples."""

    method: str = "auto"
    tol: float | None = None
    probes: int = 1
    noise: Any = None
    rng: Any = None
    unbiased: bool = False
    terms: int | None = None
    probe_kind: Literal["rademacher", "gaussian"] = "rademacher"
    control_variate: str = "auto"
    errors: bool = True
    exact_up_to: int | None = None
    checkpoint: bool = False
    compiled: bool = False
    reference: Any = None


class Problem(NamedTuple):
    """A branch g with the constant c at samples x, its linearisation there, and what is asked.

    At `max_products` products per sample a tolerance is given up, since the exact answer costs as much. Rounding may
    grow by `growth` on the way through the layers, see `layer_growth`.
    """

    backend: Backend
    g: Any
    x: Array
    linearization: Linearization
    constant: float
    request: Request
    max_products: int | None = None
    growth: float = 1.0


class Method(ABC):
    """A method of answering `logdet`; the table METHODS in `dispatch` has one object of each.

    Attributes
    ----------
    name : str
        What the option `method` calls it.
    always_unbiased : bool
        Whether it draws its number of products even if nobody asks for an unbiased answer. Then `terms` are the
        products that are certain, and go together with a tolerance.
    is_control_variate : bool
        Whether it takes the linear term exactly, by a mean Jacobian that may be given as `reference`.
    is_exact : bool
        Whether it needs no probes.
    takes_joint_pass : bool
        Whether it can do without derivatives of the linearisation, see `Linearization.joint`.
    """

    name: str
    always_unbiased = False
    is_control_variate = False
    is_exact = False
    takes_joint_pass = False

    @abstractmethod
    def applies_to(self, problem: Problem) -> bool:
        """Whether "auto" takes this method, if it has not taken one of those before it in the table."""

    @abstractmethod
    def answer(self, problem: Problem) -> tuple[Array, LogDet | None]:
        """Return g(x) and the log-determinant; None if a tolerance costs more than the exact answer."""


def checked_request(options: LogDetOptions, reference: Any, methods: Mapping[str, Method]) -> Request:
    """Check the options of `logdet` against each other, and fill in the defaults.

    Raises
    ------
    InvalidArgumentError
        If there is no such option or method, or the options contradict each other.
    """
    require_options(options, {*LOGDET_OPTIONS, "lipschitz", "reference"})
    request = Request(**cast(dict[str, Any], options), reference=reference)
    name = request.method
    if not isinstance(name, str) or (name != "auto" and name not in methods):
        raise InvalidArgumentError(f"logdet has the methods auto, {', '.join(methods)}; got {name!r}.")
    method, tol, terms, exact_up_to = methods.get(name), request.tol, request.terms, request.exact_up_to
    if tol is not None:
        tol = require_nonnegative(tol, "tol")
        if tol == 0:
            raise InvalidArgumentError("tol must be positive; for the exact value use method='exact'.")
        if terms is not None and not (method is not None and method.always_unbiased):
            raise InvalidArgumentError("tol decides the number of products itself; do not pass terms as well.")
        if request.noise is not None:
            raise InvalidArgumentError("tol may need more probes than noise holds; do not pass both.")
        if not request.errors:
            raise InvalidArgumentError("tol is met by looking at the errors; do not pass errors=False as well.")
    if request.control_variate not in ("auto", "trace", "none"):
        raise InvalidArgumentError(
            f"control_variate must be 'auto', 'trace' or 'none', got {request.control_variate!r}."
        )
    if request.probe_kind not in ("rademacher", "gaussian"):
        raise InvalidArgumentError(f"probe_kind must be 'rademacher' or 'gaussian', got {request.probe_kind!r}.")
    if not isinstance(request.checkpoint, bool):
        raise InvalidArgumentError(
            f"checkpoint is True or False, got {request.checkpoint!r}; inputs are found again by whole flows only."
        )
    by_mean = method is not None and method.is_control_variate
    if reference is not None and not (method is None or by_mean):
        raise InvalidArgumentError(f"a reference is for method 'mean-jacobian', not {name!r}.")
    if request.control_variate == "none" and (by_mean or reference is not None):
        raise InvalidArgumentError(
            "the mean Jacobian is a control variate itself, so that control_variate='none' contradicts method "
            "'mean-jacobian' and a reference."
        )
    return request._replace(
        tol=tol,
        probes=require_positive_int(request.probes, "probes"),
        unbiased=bool(request.unbiased),
        terms=None if terms is None else require_positive_int(terms, "terms"),
        errors=bool(request.errors),
        compiled=bool(request.compiled),
        exact_up_to=None if exact_up_to is None else require_nonnegative_int(exact_up_to, "exact_up_to"),
    )


def refuse_tolerance(request: Request) -> None:
    """Refuse a tolerance where there are no values to meet it by."""
    if request.tol is not None:
        raise InvalidArgumentError(
            "tol decides by values, which a program that is being compiled or batched does not have; give terms and "
            "probes."
        )


def given_probes(backend: Backend, x: Array, noise: Any, count: int, method: str) -> Array:
    """Check the probes that were given as `noise`, and that there are `count` of them; 1 stands for any number."""
    if isinstance(noise, tuple):
        raise InvalidArgumentError(
            f"for method {method!r} noise is one array, got a tuple; a pair is for unbiased=True."
        )
    probes = explicit_probes(backend, x, noise)
    if count not in (1, probes.shape[0]):
        raise InvalidArgumentError(f"probes={count}, but noise holds {probes.shape[0]}.")
    return probes


def given_lengths(lengths: Any) -> list[int]:
    """Return the lengths of a roulette as ints; refuse anything else."""
    try:
        return [operator.index(n) for n in lengths]
    except TypeError:
        raise InvalidArgumentError(f"lengths must hold whole numbers, one per probe, got {lengths!r}.") from None


def in_dtype(backend: Backend, g: Any, x: Array, request: Request, working: Any) -> tuple[Any, Array, Request]:
    """Move a problem to another dtype: from half precision to float32, where its norms can be taken, or to float64."""
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
