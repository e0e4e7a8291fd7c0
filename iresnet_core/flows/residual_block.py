"""The residual block x + g(x) as a layer of a flow."""

import math
from collections.abc import Sequence
from typing import Any, Self

from iresnet_core.backends import Array, Backend, device_of
from iresnet_core.branches import Chain, conditioned, entries, evaluate, stated_lipschitz
from iresnet_core.common import require_contraction, unit_roundoff, widest
from iresnet_core.determinant import value_and_logdet
from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.flows.condition import Condition, as_condition
from iresnet_core.flows.layer import (
    ForwardOptions,
    InverseOptions,
    Layer,
    Shape,
    Transformed,
    scaled_error,
    wide_norms,
)
from iresnet_core.flows.preimage import Preimage, nearest
from iresnet_core.inverse import UNSTATED_ROUNDING, invert, refined
from iresnet_core.results import Inverse, LogDet

__all__ = ["ResidualBlock"]


class ResidualBlock(Layer):
    """``z = x + g(x)`` with Lip(g) < 1, log-determinant ``log det(I + J_g(x))`` (Behrmann et al. 2019, Theorem 1).

    Write the branch as a `Chain` of normalised layers, from which the constant and its certificate follow. `forward`
    takes its log-determinant from `logdet` and `inverse` its solution from `invert`, with their options.

    Parameters
    ----------
    branch : Branch or callable
        The residual branch g: a `Chain`, an object with `lipschitz` and `linearize`, or a plain callable, which needs
        `lipschitz` here and a backend that differentiates.
    lipschitz : float, optional
        Constant to use instead of the branch's own certified one. It is your declaration, and every error bound then
        rests on it.
    condition : Condition, Dense or Chain, optional
        Map of a condition to what is added behind the first linear layer of a branch that is a `Chain`, one number for
        each channel. If it returns numbers for all linear layers but the last, side by side, they are added behind
        each. It may have any constant: the branch is equally contractive under every condition.

    Attributes
    ----------
    branch : Branch or callable
        The argument `branch`.
    declared_lipschitz : float or None
        The argument `lipschitz`.
    lipschitz : float
        The constant in use.

    Raises
    ------
    InvalidArgumentError
        If the branch is not callable, or has a condition and is no Chain.
    ShapeError
        If the branch states that it changes the shape, or the map of the condition does not fit it.
    NotContractiveError
        If the declared constant is not below 1. A branch's own constant is looked at when it is needed: `inverse`
        raises where it is not below 1.

    Notes
    -----
    `forward` costs one evaluation of g besides what `logdet` spends.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core.branches.chain import Chain
    >>> from iresnet_core import Dense
    >>> block = ResidualBlock(Chain([Dense(np.array([[0.0, 0.5], [0.5, 0.0]]))]))
    >>> z, logdet = block.forward(np.array([[1.0, 2.0]]))
    >>> z
    array([[2. , 2.5]])
    >>> logdet.value.round(6)  # log 0.75
    array([-0.287682])
    >>> block.inverse(z).value.round(6)
    array([[1., 2.]])
    """

    branch: Any
    declared_lipschitz: float | None
    residual_blocks = 1
    is_block = True

    def __init__(self, branch: Any, *, lipschitz: float | None = None, condition: Any = None) -> None:
        if not callable(branch):
            raise InvalidArgumentError(f"a residual branch must be callable, got {type(branch).__name__}.")
        before, after = getattr(branch, "input_shape", None), getattr(branch, "output_shape", None)
        if before is not None and after is not None and tuple(before) != tuple(after):
            raise ShapeError(f"a residual branch keeps the shape: {branch!r} takes {before} to {after}.")
        if lipschitz is not None:
            lipschitz = require_contraction(lipschitz, "the argument lipschitz")
        condition = as_condition(condition)
        if condition is not None:
            _require_fitting(condition, branch)
        self._keep(branch=branch, declared_lipschitz=lipschitz, condition=condition)

    def __repr__(self) -> str:
        declared = "" if self.declared_lipschitz is None else f", lipschitz={self.declared_lipschitz:g}"
        condition = "" if self.condition is None else f", condition={self.condition!r}"
        return f"ResidualBlock({self.branch!r}{declared}{condition})"

    @property
    def lipschitz(self) -> float:
        """The constant in use.

        Raises
        ------
        UnknownLipschitzError
            If it is neither declared nor stated by the branch.
        """
        return float(stated_lipschitz(self.branch, self.declared_lipschitz)[0])

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Weights and biases, where the branch lists its linear layers, and those of the map of the condition."""
        operators = getattr(self.branch, "operators", ())
        parameters = (p for operator in operators for p in (operator.weight, operator.bias))
        others = (p for layer in getattr(self.branch, "layers", ()) for p in getattr(layer, "arrays", ()))
        own = tuple(p for p in (*parameters, *others) if p is not None)
        return own if self.condition is None else own + self.condition.arrays

    @property
    def inverse_lipschitz(self) -> float:
        """1 / (1 - c), rounded up."""
        constant = require_contraction(*stated_lipschitz(self.branch, self.declared_lipschitz))
        return (1 + 1e-15) / (1 - constant)

    @property
    def forward_lipschitz(self) -> float:
        """1 + c, rounded up."""
        return (1 + self.lipschitz) * (1 + 1e-15)

    def output_shape(self, input_shape: Sequence[int]) -> Shape:
        """Return the same shape."""
        expected = getattr(self.branch, "input_shape", None)
        if expected is not None and tuple(expected) != tuple(input_shape):
            raise ShapeError(
                f"the branch {self.branch!r} takes samples of shape {tuple(expected)}, got {tuple(input_shape)}."
            )
        return tuple(input_shape)

    def input_shape(self, output_shape: Sequence[int]) -> Shape:
        """Return the same shape."""
        return self.output_shape(output_shape)

    def astype(self, dtype: Any) -> Self:
        """Return the block with weights of another dtype.

        Raises
        ------
        InvalidArgumentError
            If the branch has no method `astype`.
        """
        if not hasattr(self.branch, "astype"):
            raise InvalidArgumentError(f"the branch {self.branch!r} has no method astype(dtype).")
        condition = None if self.condition is None else self.condition.astype(dtype)
        return type(self)(self.branch.astype(dtype), lipschitz=self.declared_lipschitz, condition=condition)

    def with_reference(self, x: Array, context: Array | None = None) -> "ResidualBlock":
        """Return the block with inputs `x` as the reference of its branch, if that is a Chain, under any condition."""
        if not isinstance(self.branch, Chain):
            return self
        return type(self)(self.branch.with_reference(x), lipschitz=self.declared_lipschitz, condition=self.condition)

    def _given(self, backend: Backend, rows: Array, single: bool) -> "ResidualBlock":
        if self.condition is None:
            return self
        branch = self.branch.with_layers(conditioned(self.branch.layers, rows, single=single))
        return type(self)(branch, lipschitz=self.declared_lipschitz)

    def _map(self, backend: Backend, x: Array) -> Array:
        return x + evaluate(backend, self.branch, x)

    def _forward(self, backend: Backend, x: Array, options: ForwardOptions) -> Transformed:
        constant = stated_lipschitz(self.branch, self.declared_lipschitz)[0]
        value, determinant = value_and_logdet(self.branch, x, lipschitz=constant, **options)
        part = options.get("part")
        return Transformed(x + value, determinant if part is None else _for_all(backend, determinant, x, part))

    def _inverse(self, backend: Backend, z: Array, options: InverseOptions) -> Inverse:
        of_solver = {name: value for name, value in options.items() if name != "errors"}
        return invert(self.branch, z, lipschitz=self.declared_lipschitz, **of_solver)  # type: ignore[arg-type]

    def _refined(self, backend: Backend, state: Preimage, step: Inverse) -> Preimage:
        with backend.no_grad():
            found = refined(self.branch, state.refined, step.value, state.error, self.declared_lipschitz)
        if found is None:
            return self._unrefined(backend, state, step)
        return state.after(
            step._replace(residual=found.residual),
            value=nearest(backend, step.value, found.x),
            refined=found.x,
            error=found.error,
            estimate=state.estimate + found.residual,
        )

    def _with_rounding(self, backend: Backend, x: Array) -> tuple[Array, Array]:
        xp, wide = backend.xp, widest(backend)
        if hasattr(self.branch, "with_rounding"):
            image, error = self.branch.with_rounding(x)
            error = xp.astype(error, wide, copy=False)
        else:
            image = evaluate(backend, self.branch, x)
            terms = wide_norms(backend, x) + wide_norms(backend, image)
            error = UNSTATED_ROUNDING * unit_roundoff(backend, x.dtype) * terms
        value = x + image
        return value, error + 2 * unit_roundoff(backend, x.dtype) * wide_norms(backend, value)

    def _spread(self, backend: Backend, x: Array, error: Array) -> tuple[Array, Array]:
        """The derivative of the log-determinant is tr((I + J)^-1 dJ), at most the nuclear norm of dJ over 1 - c.

        That is at most the width of the branch, through which every part of dJ passes, times its norm. And log det lies
        between d log(1 - c) and d log(1 + c).
        """
        d, c = math.prod(x.shape[1:]), self.lipschitz
        width = getattr(self.branch, "width", None)
        constants = getattr(self.branch, "curvature", None)
        grown = error * self.forward_lipschitz
        if c >= 1:
            return grown, scaled_error(backend, error, math.inf)
        steepest = math.inf if constants is None else constants.lipschitz * min(d, width or d) / (1 - c)
        worst = d * (math.log1p(c) - math.log1p(-c)) * (1 + 1e-14)
        change = scaled_error(backend, error, steepest * (1 + 1e-14))
        return grown, backend.xp.minimum(change, backend.xp.full_like(change, worst))


def _require_fitting(condition: Condition, branch: Any) -> None:
    """Refuse a condition that has no place to enter a branch."""
    if not isinstance(branch, Chain):
        raise InvalidArgumentError(
            f"a condition enters behind the linear layers of a Chain; {branch!r} is none. Write the branch as a Chain, "
            "or let a callable take the condition itself, and make a block for each condition."
        )
    widths = entries(branch.layers)
    if condition.width not in (widths[0], sum(widths)):
        every = f", or {sum(widths)} for all places behind linear layers" if len(widths) > 1 else ""
        raise ShapeError(
            f"the map of the condition returns {condition.width} entries, but the first linear layer of {branch!r} has "
            f"{widths[0]} channels{every}."
        )


def _for_all(backend: Backend, first: LogDet, x: Array, part: int) -> LogDet:
    """Let the log-determinants of the first samples, `part` of them, stand for all, see `ForwardOptions`."""
    xp, rest = backend.xp, x.shape[0] - part

    def extended(values: Array) -> Array:
        return xp.concat([values, xp.zeros((rest,), dtype=values.dtype, device=device_of(values))])

    value = extended((x.shape[0] / part) * first.value)
    unknown = xp.full_like(value, math.nan)
    return first._replace(value=value, std_error=unknown, bias_bound=unknown, products=extended(first.products))
