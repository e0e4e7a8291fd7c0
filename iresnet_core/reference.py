"""Exact answers in SciPy float64, written to be checked by eye and not to be fast.

They share no formula with the core: matrices are written out entry by entry, activations have their own derivatives,
and the inverse is found by Newton's method. `iresnet validate` holds every estimator against them.
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import logm, svdvals
from scipy.special import expit, ndtr

from iresnet_core.backends import Array, get_backend
from iresnet_core.branches import SWISH_SLOPE, Activation, BranchLayer, Chain
from iresnet_core.errors import NotConvergedError, ShapeError
from iresnet_core.operators import (
    Convolution,
    ConvolutionTranspose,
    Dense,
    LinearLayer,
    LinearOperator,
    Matrices,
    as_operator,
)

__all__ = ["inverse", "jacobian", "log_matrix", "logdet", "matrix", "probe_value", "spectral_norm"]

Floats = NDArray[Any]  # float64; extended precision inside `inverse`


def _to_numpy(x: Array) -> Floats:
    return np.asarray(get_backend(x).to_numpy(x), dtype=np.float64)


def matrix(A: Any) -> Floats:
    """Return the explicit matrix of a linear operator.

    Parameters
    ----------
    A : array (..., m, n), Dense, Convolution, or an object with shape, matvec and rmatvec
        Of any backend.

    Returns
    -------
    array (..., m, n) of float64 on the host
        Samples are flattened in C order. A convolution is written out entry by entry, not applied.
    """
    if isinstance(A, Dense):
        return _to_numpy(A.weight)
    if isinstance(A, Convolution):
        return _convolution_matrix(A)
    operator = as_operator(A)
    if isinstance(operator, Matrices):
        return _to_numpy(operator.array)
    columns = [operator.matvec(e) for e in _unit_vectors(operator)]
    return np.stack([_to_numpy(column) for column in columns], axis=-1)


def _unit_vectors(operator: LinearOperator) -> Iterator[Array]:
    xp = operator.backend.xp
    for row in np.eye(operator.shape[1]):
        yield xp.astype(operator.backend.from_numpy(row, operator.like), operator.like.dtype)


def _convolution_matrix(layer: Convolution) -> Floats:
    """Place every kernel entry: output position o reads input position o * stride - padding + offset * dilation."""
    kernel = _to_numpy(layer.standard_kernel)
    out_channels, group_channels = kernel.shape[:2]
    group_outputs = out_channels // layer.groups
    entries = np.zeros((out_channels, *layer.out_spatial, layer.channels, *layer.spatial))
    for o in product(*map(range, layer.out_spatial)):
        for offset in product(*map(range, layer.window)):
            i = [
                at * s - pad[0] + k * d
                for at, s, pad, k, d in zip(o, layer.stride, layer.padding, offset, layer.dilation, strict=True)
            ]
            if layer.padding_mode == "circular":
                i = [at % n for at, n in zip(i, layer.spatial, strict=True)]
            elif any(not 0 <= at < n for at, n in zip(i, layer.spatial, strict=True)):
                continue
            for group in range(layer.groups):
                outputs = slice(group * group_outputs, (group + 1) * group_outputs)
                inputs = slice(group * group_channels, (group + 1) * group_channels)
                place: Any = (outputs, *o, inputs, *i)
                taps: Any = (outputs, slice(None), *offset)
                entries[place] += kernel[taps]
    if layer.data_format == "channels_last":
        axes = len(layer.window)
        entries = np.moveaxis(entries, (0, axes + 1), (axes, -1))
    return entries.reshape(layer.shape)


def spectral_norm(A: Any) -> Floats:
    """Return the largest singular value of the explicit matrix, by LAPACK's SVD.

    Parameters
    ----------
    A : as in `matrix`

    Returns
    -------
    array (...,) of float64
        One value for each matrix of a stack; an array of shape () for a single operator.
    """
    A = matrix(A)
    return np.asarray(np.vectorize(lambda one: svdvals(one)[0], signature="(m,n)->()")(A))


def _activate(layer: Activation, x: Floats) -> tuple[Floats, Floats]:
    """Value and slope of an entrywise activation at every entry."""
    p = layer.parameters
    match layer.name:
        case "lipswish":
            s = expit(p["beta"] * x)
            return x * s / SWISH_SLOPE, s * (1 + p["beta"] * x * expit(-p["beta"] * x)) / SWISH_SLOPE
        case "silu":
            s = expit(p["beta"] * x)
            return x * s, s * (1 + p["beta"] * x * expit(-p["beta"] * x))
        case "gelu":
            below = ndtr(x.astype(np.float64)).astype(x.dtype)  # SciPy has it in float64 at most
            density = np.exp(-(np.minimum(abs(x), 50) ** 2) / 2) / math.sqrt(2 * math.pi)
            return x * below, below + x * density
        case "mish":
            y = np.logaddexp(0, x)
            return x * np.tanh(y), np.tanh(y) + x * expit(x) * 4 * expit(2 * y) * expit(-2 * y)
        case "elu":
            negative = np.minimum(x, 0)
            return np.where(x > 0, x, p["alpha"] * np.expm1(negative)), np.where(
                x > 0, 1, p["alpha"] * np.exp(negative)
            )
        case "celu":
            ratio = np.minimum(x, 0) / p["alpha"]
            return np.where(x > 0, x, p["alpha"] * np.expm1(ratio)), np.where(x > 0, 1, np.exp(ratio))
        case "selu":
            negative, scale, alpha = np.minimum(x, 0), 1.0507009873554805, 1.6732632423543772
            return scale * np.where(x > 0, x, alpha * np.expm1(negative)), scale * np.where(
                x > 0, 1, alpha * np.exp(negative)
            )
        case "leakyrelu":
            return np.where(x > 0, x, p["slope"] * x), np.where(x > 0, 1.0, p["slope"])
        case "hardtanh":
            return np.clip(x, -p["limit"], p["limit"]), np.where(abs(x) < p["limit"], 1.0, 0.0)
        case "softshrink":
            return np.sign(x) * np.maximum(abs(x) - p["threshold"], 0), np.where(abs(x) > p["threshold"], 1.0, 0.0)
        case "softsign":
            return x / (1 + abs(x)), (1 + abs(x)) ** -2.0
        case "relu":
            return np.maximum(x, 0), np.where(x > 0, 1.0, 0.0)
        case "softplus":
            return np.logaddexp(0, p["beta"] * x) / p["beta"], expit(p["beta"] * x)
        case "tanh":
            return np.tanh(x), 4 * expit(2 * x) * expit(-2 * x)
        case "sigmoid":
            return expit(x), expit(x) * expit(-x)
        case "sin":
            return np.sin(x), np.cos(x)
        case "identity":
            return x, np.ones_like(x)
    raise NotImplementedError(f"no reference for {layer!r}")


def _sort_pairs(layer: Activation, x: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Value of maxmin, and for every entry of a flattened sample the entry it came from (batch, d)."""
    axis = int(layer.parameters["axis"])
    source = np.broadcast_to(np.arange(x[0].size).reshape(x.shape[1:]), x.shape)
    x, source = np.moveaxis(x, axis, -1), np.moveaxis(source, axis, -1)
    pairs, origins = x.reshape(*x.shape[:-1], -1, 2), source.reshape(*x.shape[:-1], -1, 2)
    order = np.argsort(-pairs, axis=-1, kind="stable")
    value = np.take_along_axis(pairs, order, -1).reshape(x.shape)
    origin = np.take_along_axis(origins, order, -1).reshape(x.shape)
    return np.moveaxis(value, -1, axis), np.moveaxis(origin, -1, axis).reshape(len(x), -1)


class _Written:
    """A chain with its matrices written out once; evaluates in the precision of its input."""

    def __init__(self, chain: Chain) -> None:
        self.steps: list[tuple[Any, Floats | None, Floats | None]] = []
        for layer in chain.layers:
            if isinstance(layer, LinearLayer):
                self.steps.append((layer, matrix(layer), _bias(layer)))
            else:
                self.steps.append((layer, None, None))

    def __call__(self, x: Floats) -> Floats:
        return self._push(x, None)[0]

    def jacobian(self, x: Floats) -> Floats:
        identity = np.broadcast_to(np.eye(x[0].size), (len(x), x[0].size, x[0].size))
        J = self._push(x, identity)[1]
        assert J is not None
        return J

    def _push(self, x: Floats, J: Floats | None) -> tuple[Floats, Floats | None]:
        batch = len(x)
        for layer, weight, bias in self.steps:
            if weight is not None and bias is not None:
                x = (x.reshape(batch, -1) @ weight.T.astype(x.dtype) + bias).reshape(batch, *layer.output_shape)
                J = None if J is None else weight @ J
            elif layer.name == "shift":
                x = x + _to_numpy(layer.value)
            elif layer.name == "maxmin":
                x, origin = _sort_pairs(layer, x)
                J = None if J is None else np.take_along_axis(J, origin[:, :, None], axis=1)
            else:
                x, slope = _activate(layer, x)
                J = None if J is None else slope.reshape(batch, -1, 1) * J
        return x, J


def _bias(layer: LinearLayer) -> Floats:
    """Return the bias of every entry of a flattened output."""
    per_entry = np.zeros(layer.output_shape)
    if layer.bias is None:
        return per_entry.reshape(-1)
    bias = _to_numpy(layer.bias)
    if isinstance(layer, Convolution | ConvolutionTranspose) and layer.data_format == "channels_first":
        bias = bias.reshape(-1, *[1] * len(layer.window))
    return (per_entry + bias).reshape(-1)


class _Called:
    """A plain callable in float64, with its Jacobian by central differences of fourth order."""

    def __init__(self, g: Any, like: Array) -> None:
        self.g, self.like, self.backend = g, like, get_backend(like)

    def __call__(self, x: Floats) -> Floats:
        return _to_numpy(self.g(self.backend.from_numpy(np.asarray(x, dtype=np.float64), self.like)))

    def jacobian(self, x: Floats) -> Floats:
        flat = x.reshape(len(x), -1)
        columns = []
        for i in range(flat.shape[1]):
            step = np.zeros_like(flat)
            step[:, i] = 1e-3 * np.maximum(1, np.abs(flat[:, i]))
            far, near = (
                (self(x + k * step.reshape(x.shape)) - self(x - k * step.reshape(x.shape))).reshape(flat.shape)
                for k in (2, 1)
            )
            columns.append((8 * near - far) / (12 * step[:, i : i + 1]))
        return np.stack(columns, axis=-1)


def _written(g: Any, x: Array) -> tuple[_Written | _Called, Floats]:
    """Return the branch and its input on the host."""
    values = _to_numpy(x)
    if values.ndim < 2:
        raise ShapeError(f"x must have shape (batch, ...), got {values.shape}.")
    written = isinstance(g, Chain) and not any(isinstance(layer, BranchLayer) for layer in g.layers)
    return (_Written(g) if written else _Called(g, x)), values


def jacobian(g: Any, x: Array) -> Floats:
    """Return the explicit Jacobian of g at each sample.

    Parameters
    ----------
    g : Chain or callable
        A Chain of linear layers and activations is multiplied out matrix by matrix; anything else is differenced in
        float64, to about 1e-12.
    x : array (batch, ...)

    Returns
    -------
    array (batch, d, d) of float64, d the number of entries of a sample
    """
    branch, values = _written(g, x)
    return branch.jacobian(values)


def logdet(g: Any, x: Array) -> Floats:
    """Return log|det(I + J_g(x))| in nats, by LU of the explicit matrix.

    Parameters
    ----------
    g, x : as in `jacobian`

    Returns
    -------
    array (batch,) of float64
    """
    J = jacobian(g, x)
    return np.asarray(np.linalg.slogdet(np.eye(J.shape[-1]) + J)[1])


def log_matrix(J: Floats) -> Floats:
    """Return the principal logarithm of I + J (SciPy's inverse scaling and squaring).

    Parameters
    ----------
    J : array (..., d, d)
        With spectral radius below 1, so that the principal logarithm is real.

    Returns
    -------
    array (..., d, d) of float64
    """
    each = np.vectorize(lambda one: np.real(logm(np.eye(len(one)) + one)), signature="(d,d)->(d,d)")
    return np.asarray(each(np.asarray(J, dtype=np.float64)))


def probe_value(J: Floats, v: Floats) -> Floats:
    """Return v^T log(I + J) v: what a log-determinant estimator without truncation gives for these probes.

    Parameters
    ----------
    J : array (batch, d, d)
    v : array (..., batch, d)
        Probes; leading axes for several.

    Returns
    -------
    array (..., batch) of float64
    """
    v = np.asarray(v, dtype=np.float64)
    return np.asarray(np.einsum("...bi,bij,...bj->...b", v, log_matrix(J), v))


def inverse(g: Any, y: Array) -> Floats:
    """Return the solution x of x + g(x) = y by Newton's method with the explicit Jacobian and step halving.

    Parameters
    ----------
    g : Chain or callable
        With Lipschitz constant below 1.
    y : array (batch, ...)

    Returns
    -------
    array (batch, ...) of float64
        For a Chain the residual is evaluated in the platform's extended precision where it has one, so that the error
        is about the rounding of the result to float64.

    Raises
    ------
    NotConvergedError
        If a residual stays above 1e-13 (1 + ||y||).
    """
    branch, values = _written(g, y)
    batch = len(values)
    target: Floats = values.astype(np.longdouble if isinstance(branch, _Written) else np.float64)
    good = 1e-13 * (1 + _norms(target))
    x = target.copy()
    residual = x + branch(x) - target
    for _ in range(100):
        J = branch.jacobian(x.astype(np.float64))
        right_side = residual.reshape(batch, -1, 1).astype(np.float64)
        step = np.linalg.solve(np.eye(J.shape[-1]) + J, right_side).reshape(x.shape)
        improved = np.zeros(batch, dtype=bool)
        for halving in range(40):
            trial = x - step * 0.5**halving
            new = trial + branch(trial) - target
            better = (_norms(new) < _norms(residual)) & ~improved
            x[better], residual[better] = trial[better], new[better]
            improved |= better
            if np.all(improved | (_norms(residual) <= good)):
                break
        if not improved.any():
            break
    worst = float(np.max(_norms(residual) - good, initial=-np.inf))
    if not worst <= 0:
        raise NotConvergedError(
            f"Newton's method left a residual of {float(np.max(_norms(residual))):.3g}; is g a contraction?"
        )
    return x.astype(np.float64)


def _norms(x: Floats) -> Floats:
    return np.asarray(np.sqrt(np.sum(x.reshape(len(x), -1) ** 2, axis=1)))
