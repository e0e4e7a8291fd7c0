"""A branch at one batch: its value and the products with its Jacobian."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.branches.dense_traces import SlopeTrace
from iresnet_core.common import require_finite, require_same_dtype
from iresnet_core.errors import DerivativeError, InvalidArgumentError, ShapeError, UnknownLipschitzError

if TYPE_CHECKING:
    from iresnet_core.branches.joint_derivative import JointPass

__all__ = [
    "Branch",
    "ChainStructure",
    "Linearization",
    "checked",
    "evaluate",
    "layer_growth",
    "layer_product",
    "linearize",
    "stated_lipschitz",
]

ArrayMap = Callable[[Array], Array]
# Growth of rounding beyond which nothing is left of a product in any dtype.
LARGEST_GROWTH = 1e30


@dataclass(frozen=True)
class ChainStructure:
    """What the linearisation of a chain knows, and the package uses, beyond what every branch may offer.

    Attributes
    ----------
    depth : int
        Number of linear layers; it scales the allowance for rounding.
    preconditioned_trace : callable, optional
        B (d, d), slopes or None, kernels or None -> `SlopeTrace`: tr(B J) (batch,), exact, but for the trace of B T
        with a small T whose transposed products it knows. T is of third order in the deviations from these slopes, by
        default the means.
    mean_slopes : callable, optional
        () -> the means of the slopes over the batch, a list of arrays for `preconditioned_trace`.
    expanded_trace : callable, optional
        Means of the slopes or None -> `SlopeTrace`: tr J (batch,) of a chain that has no cheap trace, but for that of a
        T of third order in the deviations from these means, by default those of the batch; see `expanded_traces`.
    channel_means : callable, optional
        () -> the means of the slopes over batch and positions, a list of arrays for `expanded_trace`.
    cheap_expansion : bool
        Whether `expanded_trace` costs little beside the products, so that "auto" takes it. For dense chains it has
        products of weights, which cost as much for a small batch as for a large one.
    trace_kernels : callable, optional
        B, slopes -> what of `preconditioned_trace` depends on these and the weights alone, to be passed to it; for
        chains of convolutions, whose trace has no derivative then by the weights.
    cheap_mean : bool
        Whether `mean_matrix` and `preconditioned_trace` cost little beside the products, so that "auto" may ask for
        them at every batch.
    keeps_mean : bool
        Whether "auto" may keep a mean Jacobian with the weights, where `trace_kernels` are known. If an activation
        comes first, its slopes differ from place to place as those at standard normal points do not, so that the chain
        needs a reference.
    joint : JointPass, optional
        Where it is there, nothing of the linearisation has a derivative: the joint pass records one.
    """

    depth: int = 1
    preconditioned_trace: Callable[..., SlopeTrace] | None = None
    mean_slopes: Callable[[], list[Array]] | None = None
    trace_kernels: Callable[[Array, Sequence[Array]], Any] | None = None
    expanded_trace: Callable[..., SlopeTrace] | None = None
    channel_means: Callable[[], list[Array]] | None = None
    cheap_expansion: bool = True
    cheap_mean: bool = True
    keeps_mean: bool = False
    joint: "JointPass | None" = None


@dataclass(frozen=True)
class Linearization:
    """Value and Jacobian J of a branch at a batch x (batch, *event).

    Attributes
    ----------
    value : array (batch, *event)
        g(x).
    vjp : callable
        u -> J^T u, sample by sample; one Jacobian product.
    jvp : callable, optional
        v -> J v; one Jacobian product.
    trace : callable, optional
        () -> tr J (batch,), exact; offered where it costs no more than a product.
    mean_matrix : callable, optional
        () -> a Jacobian (d, d) that stands for all samples, such as the one at their mean slopes.
    matrix : callable, optional
        () -> J (batch, d, d), explicit; d products per sample.
    sylvester_matrix : callable, optional
        () -> M (batch, r, r) with det(I + M) = det(I + J), r the narrowest width (Sylvester); r products per sample.
    width : int, optional
        The order r of these matrices.
    leading_axes : bool
        Whether the products also take stacks (probes, batch, *event); if not, they are called once for each probe.
    structure : ChainStructure, optional
        What a `Chain` knows beyond that; other branches leave it out.
    """

    value: Array
    vjp: ArrayMap
    jvp: ArrayMap | None = None
    trace: Callable[[], Array] | None = None
    mean_matrix: Callable[[], Array] | None = None
    matrix: Callable[[], Array] | None = None
    sylvester_matrix: Callable[[], Array] | None = None
    width: int | None = None
    leading_axes: bool = False
    structure: ChainStructure | None = None  # an object as default is one that torch.compile cannot make

    @property
    def depth(self) -> int:
        """See `ChainStructure`."""
        return 1 if self.structure is None else self.structure.depth

    @property
    def preconditioned_trace(self) -> Callable[..., SlopeTrace] | None:
        """See `ChainStructure`."""
        return None if self.structure is None else self.structure.preconditioned_trace

    @property
    def cheap_mean(self) -> bool:
        """See `ChainStructure`."""
        return self.structure is None or self.structure.cheap_mean

    @property
    def joint(self) -> "JointPass | None":
        """See `ChainStructure`."""
        return None if self.structure is None else self.structure.joint

    def transposed_products(self, u: Array) -> Array:
        """Return J^T u for a stack u (probes, batch, *event)."""
        xp = get_backend(u).xp
        if u.shape[0] == 1:  # without the leading axis there is nothing to broadcast
            return self.vjp(xp.reshape(u, u.shape[1:]))[None, ...]
        if self.leading_axes:
            return self.vjp(u)
        return xp.stack([self.vjp(u[i, ...]) for i in range(u.shape[0])])

    def products(self, v: Array) -> Array:
        """Return J v for a stack v (probes, batch, *event), where `jvp` is known."""
        assert self.jvp is not None
        xp = get_backend(v).xp
        if v.shape[0] == 1:
            return self.jvp(xp.reshape(v, v.shape[1:]))[None, ...]
        if self.leading_axes:
            return self.jvp(v)
        return xp.stack([self.jvp(v[i, ...]) for i in range(v.shape[0])])


@runtime_checkable
class Branch(Protocol):
    """A residual branch g that carries its own derivative.

    `lipschitz` is its certified constant, ``g(x)`` its value, and ``g.linearize(x)`` the `Linearization` at x.
    """

    @property
    def lipschitz(self) -> float:
        """Certified Lipschitz constant in the Euclidean norm."""

    def __call__(self, x: Array) -> Array:
        """Return g(x), of the shape of x."""

    def linearize(self, x: Array) -> Linearization:
        """Return value and Jacobian products at x."""


def _check_output(backend: Backend, g: Any, x: Array, value: Array) -> Array:
    get_backend(x, value)
    if tuple(value.shape) != tuple(x.shape):
        raise ShapeError(
            f"a residual branch keeps the shape: {_name(g)} returned {tuple(value.shape)} for {tuple(x.shape)}."
        )
    require_same_dtype(value, f"the output of {_name(g)}", x, "its input")
    return value


def evaluate(backend: Backend, g: Any, x: Array) -> Array:
    """Return g(x) after checking its framework, shape and dtype; whether it is finite is the caller's to look at."""
    return _check_output(backend, g, x, g(x))


def linearize(backend: Backend, g: Any, x: Array) -> Linearization:
    """Linearise a branch, or a plain callable through the backend's automatic differentiation.

    Raises
    ------
    DerivativeError
        If g carries no derivative and the backend has none, or ``g.linearize`` returns something else.
    ShapeError, DtypeError, MixedBackendsError, NonFiniteError
        If what g returns does not fit x, or is not finite.
    """
    if hasattr(g, "linearize"):
        linearization = g.linearize(x)
        if not isinstance(linearization, Linearization):
            raise DerivativeError(
                f"{_name(g)}.linearize(x) must return a Linearization, got {type(linearization).__name__}."
            )
    elif callable(g):
        value, pullback = backend.vjp(g, x)
        linearization = Linearization(value=value, vjp=pullback)
    else:
        raise InvalidArgumentError(f"a branch must be callable, got {type(g).__name__}.")
    return checked(backend, g, x, linearization)


def checked(backend: Backend, g: Any, x: Array, linearization: Linearization) -> Linearization:
    """Return the linearisation of g at x after checking that its value fits x and is finite."""
    _check_output(backend, g, x, linearization.value)
    require_finite(backend, linearization.value, f"the output of {_name(g)}", samples=True)
    return linearization


def stated_lipschitz(g: Any, lipschitz: float | None) -> tuple[Any, str]:
    """The constant of g and where it comes from: the argument first, then the branch itself.

    Raises
    ------
    UnknownLipschitzError
        If neither states it.
    """
    if lipschitz is not None:
        return lipschitz, "the argument lipschitz"
    constant = getattr(g, "lipschitz", None)
    if constant is None:
        raise UnknownLipschitzError(
            f"the Lipschitz constant of {_name(g)} is unknown, and no answer has a bound without it. Pass lipschitz=, "
            "or build g as a Chain, which certifies its own."
        )
    return constant, f"{_name(g)}.lipschitz"


def layer_growth(g: Any) -> float:
    """By how much the layers of a chain may expand a vector on the way through it: the product of their constants.

    It is what the rounding of a product with J may grow by, and at least 1. A constant that was declared for the whole
    chain may be far below it, where one layer undoes what another has done. 1 stands for a branch that is no chain, and
    for weights that have no constant because they are computed in a program that is being compiled.
    """
    known = layer_product(g)
    return 1.0 if known is None else min(max(1.0, known), LARGEST_GROWTH)


def layer_product(g: Any) -> float | None:
    """The product of the constants of a chain's layers, whatever was declared for all of it; None if it is not known.

    It also bounds the norm of the Jacobian at mean slopes, which are no steeper than the slopes themselves.
    """
    operators = getattr(g, "operators", ())
    if not operators or not all(operator.has_constant for operator in operators):
        return None
    return float(g.lipschitz)


def _name(g: Any) -> str:
    return getattr(g, "__name__", type(g).__name__)
