"""Conditions: the map through which one enters the layers, and what is asked of the conditions themselves."""

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import and_
from typing import Any, Self

from iresnet_core.backends import Array, Backend, device_of, get_backend
from iresnet_core.branches import Chain
from iresnet_core.common import (
    Copyable,
    require_finite,
    require_floating,
    require_positive_int,
    require_same_device,
    require_same_dtype,
    which_samples,
    widest,
)
from iresnet_core.errors import DtypeError, InvalidArgumentError, ShapeError

__all__ = [
    "Condition",
    "Labels",
    "agreed",
    "as_condition",
    "checked_rows",
    "require_condition",
    "require_rows",
    "usable_rows",
]

# One column of conditions: the labels that it may hold, or None for a number.
Labels = tuple[tuple[float, ...] | None, ...]


class Condition(Copyable):
    """``h = net(e(c))``: the map of a condition c to what enters a flow or one of its layers.

    The encoding e takes every column of c: a number as it is, or as ``(c - mean) / std``, and a label one-hot. Neither
    it nor the net is part of a contraction, so that a net of any constant will do.

    Parameters
    ----------
    net : Dense or Chain, optional
        From the encoded columns to what enters; without it they enter as they are.
    classes : int, optional
        The condition is one whole number from 0 to ``classes - 1``, which becomes one-hot; short for
        ``labels=[range(classes)]``.
    labels : sequence with a sequence of float or None for each column, optional
        The labels that a column may hold, in the order of their places in the one-hot code; None for numbers.
    mean, std : sequence of float, optional
        One number for each column, `std` positive; those of a column of labels are not used. The difference is taken in
        float64 where the backend has it.

    Attributes
    ----------
    features : int
        Columns of a condition.
    width : int
        Entries of what the map returns.

    Raises
    ------
    InvalidArgumentError
        If nothing says how many columns there are, the net is no Dense or Chain, or labels are not finite and distinct.
    ShapeError
        If net, labels, mean and std do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from iresnet_core import Dense
    >>> Condition(Dense(np.array([[1.0, 10.0, 100.0]])), classes=3)(np.array([2, 0]))
    array([[100.],
           [  1.]])
    """

    def __init__(
        self,
        net: Any = None,
        *,
        classes: int | None = None,
        labels: Sequence[Iterable[float] | None] | None = None,
        mean: Iterable[float] | None = None,
        std: Iterable[float] | None = None,
    ) -> None:
        if classes is not None:
            if labels is not None:
                raise InvalidArgumentError("give classes, or the labels themselves, not both.")
            labels = [range(require_positive_int(classes, "classes"))]
        if (mean is None) != (std is None):
            raise InvalidArgumentError("give both mean and std, or neither.")
        self.net: Chain | None = None if net is None else _as_chain(net)
        self.labels: Labels | None = None if labels is None else tuple(map(_distinct, labels))
        self.mean, self.std = (None if n is None else tuple(map(float, n)) for n in (mean, std))
        known = [n for n in (self.labels, self.mean, self.std) if n is not None]
        if self.std is not None and not all(math.isfinite(m) and 0 < s < math.inf for m, s in self._scales()):
            raise InvalidArgumentError("mean and std must be finite, and std positive.")
        if not known and self.net is None:
            raise InvalidArgumentError("a Condition needs a net, classes, labels, or mean and std to know its size.")
        self.features = len(known[0]) if known else math.prod(self.net.input_shape) if self.net is not None else 0
        if not self.features or any(len(n) != self.features for n in known):
            raise ShapeError(f"labels, mean and std must have one entry per column, got {[len(n) for n in known]}.")
        encoded = sum(1 if n is None else len(n) for n in self.labels) if self.labels else self.features
        if self.net is not None and tuple(self.net.input_shape) != (encoded,):
            raise ShapeError(f"the net takes {self.net.input_shape}, but the encoded condition has {encoded} entries.")
        self.width = encoded if self.net is None else math.prod(self.net.output_shape)

    def __repr__(self) -> str:
        kinds = "" if self.labels is None else f", labels={[None if n is None else len(n) for n in self.labels]}"
        return f"Condition({self.features} -> {self.width}{kinds})"

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The parameters of the net."""
        return () if self.net is None else self.net.arrays

    def astype(self, dtype: Any) -> Self:
        """Return the map with a net of another dtype."""
        net = None if self.net is None else self.net.astype(dtype)
        return type(self)(net, labels=self.labels, mean=self.mean, std=self.std)

    def __call__(self, context: Array, like: Array | None = None) -> Array:
        """Return what enters for conditions (batch, features), or (1, width) for one of shape (features,).

        `like` gives the dtype of a map without a net, which is float32 for whole numbers otherwise.
        """
        backend, rows = checked_rows(context, self.features, self.labels, like)
        with backend.full_precision():
            return self.mapped(backend, rows, self.arrays[0] if self.arrays else like)

    def mapped(self, backend: Backend, rows: Array, like: Array | None) -> Array:
        """Return what enters for checked conditions (batch, features), in the dtype of `like`."""
        xp = backend.xp
        dtype = (
            like.dtype if like is not None else rows.dtype if xp.isdtype(rows.dtype, "real floating") else xp.float32
        )
        if self.labels is None and self.mean is None:
            encoded = rows
        else:
            parts = [self._encoded(backend, rows[:, k], k) for k in range(self.features)]
            encoded = xp.astype(xp.concat(parts, axis=1) if len(parts) > 1 else parts[0], dtype)
        return encoded if self.net is None else self.net(encoded)

    def _encoded(self, backend: Backend, column: Array, k: int) -> Array:
        """Return column k (batch,) in float64 as (batch, 1), or one-hot; a label that is not known has the code NaN."""
        xp, labels = backend.xp, None if self.labels is None else self.labels[k]
        wide = xp.astype(column, widest(backend))
        if labels is None:
            scaled = wide if self.mean is None or self.std is None else (wide - self.mean[k]) / self.std[k]
            return scaled[:, None]
        matches = _matches(backend, column, labels)
        code = xp.astype(matches, wide.dtype)
        if not backend.is_tracing(column):
            return code
        return xp.where(xp.any(matches, axis=1, keepdims=True), code, xp.full_like(code, math.nan))

    def _scales(self) -> Iterable[tuple[float, float]]:
        return zip(self.mean or (), self.std or (), strict=False)


def as_condition(condition: Any) -> Condition | None:
    """Return an argument `condition`, a Condition or the net of one, as a Condition; None for None."""
    return condition if condition is None or isinstance(condition, Condition) else Condition(condition)


def _as_chain(net: Any) -> Chain:
    if not hasattr(net, "input_shape") or not hasattr(net, "output_shape"):
        raise InvalidArgumentError(
            f"the map of a condition is a Dense or a Chain, or a Condition of one, got {type(net).__name__}."
        )
    chain = net if isinstance(net, Chain) else Chain([net])
    if len(chain.input_shape) != 1 or len(chain.output_shape) != 1:
        raise ShapeError(f"the net of a condition maps vectors to vectors, got {chain!r}.")
    return chain


def _distinct(labels: Iterable[float] | None) -> tuple[float, ...] | None:
    if labels is None:
        return None
    found = tuple(map(float, labels))
    if not found or len(set(found)) < len(found) or not all(map(math.isfinite, found)):
        raise InvalidArgumentError(f"the labels of a column must be finite, distinct and at least one, got {found}.")
    return found


def checked_rows(
    context: Array, features: int, labels: Labels | None = None, like: Array | None = None
) -> tuple[Backend, Array]:
    """Return the backend, and conditions (batch, features) or (features,) as rows; refuse what cannot be conditions.

    Parameters
    ----------
    context : array (batch, features), or (features,) for all samples
        With a single column of labels also (batch,) and ().
    features : int
        Columns.
    labels : tuple, optional
        As in `Condition`.
    like : array, optional
        What the conditions have to fit in backend, dtype and device.

    Raises
    ------
    MixedBackendsError, UnknownArrayError
        If the context is no array, or one of another framework.
    DtypeError
        If it has another dtype, or holds whole numbers where there are no labels.
    ShapeError
        If it has another shape.
    NonFiniteError
        If it holds NaN or infinity.
    InvalidArgumentError
        If it holds labels that are not known.
    """
    backend = get_backend(context) if like is None else get_backend(context, like)
    only_labels = labels is not None and None not in labels
    _require_dtype(backend, context, only_labels, like)
    if only_labels and features == 1 and len(context.shape) < 2:
        context = backend.xp.reshape(context, (-1, 1))
    elif len(context.shape) == 1:
        context = context[None, :]
    if len(context.shape) != 2 or context.shape[1] != features:
        raise ShapeError(
            f"context must have shape (batch, {features}), or ({features},) for all samples, got "
            f"{tuple(context.shape)}."
        )
    if backend.xp.isdtype(context.dtype, "real floating"):
        require_finite(backend, context, "the context", samples=True)
    if labels is not None and not backend.is_tracing(context):
        with backend.full_precision():
            _require_known(backend, context, labels)
    return backend, context


def _require_dtype(backend: Backend, context: Array, only_labels: bool, like: Array | None) -> None:
    if not backend.xp.isdtype(context.dtype, "real floating"):
        if only_labels and backend.xp.isdtype(context.dtype, ("integral", "bool")):
            return
        raise DtypeError(
            f"the context holds {context.dtype}, where numbers of floating point are expected. Convert numbers; labels "
            "enter one-hot: encode them so, or say how many there are, as in condition=Condition(net, classes=10)."
        )
    require_floating(backend, context, "the context")
    if like is not None:
        if not only_labels:
            require_same_dtype(context, "the context", like, "the flow")
        require_same_device(backend, context, "the context", like, "the flow")


def _matches(backend: Backend, column: Array, labels: tuple[float, ...]) -> Array:
    """Return (batch, labels): which of the labels each entry of a column is, in the dtype that the column came in.

    A label such as 0.1 is another number in float32 than in float64, and the column holds the rounded one.
    """
    xp, wide = backend.xp, widest(backend)
    known = xp.asarray(list(labels), dtype=wide, device=device_of(column))
    if xp.isdtype(column.dtype, "real floating"):
        known = xp.astype(known, column.dtype)
    return xp.astype(column, wide)[:, None] == xp.astype(known, wide)[None, :]


def _are_known(backend: Backend, rows: Array, labels: Labels) -> Array | None:
    """Return for each of the conditions (batch, features) whether its labels are known; None where all are numbers."""
    columns = [_matches(backend, rows[:, k], own) for k, own in enumerate(labels) if own is not None]
    return reduce(and_, [backend.xp.any(matches, axis=1) for matches in columns]) if columns else None


def _require_known(backend: Backend, rows: Array, labels: Labels) -> None:
    known = _are_known(backend, rows, labels)
    if known is None:
        return
    xp, found = backend.xp, {k: _matches(backend, rows[:, k], own) for k, own in enumerate(labels) if own is not None}
    if any(bool(xp.any(xp.sum(xp.astype(matches, xp.int32), axis=1) > 1)) for matches in found.values()):
        raise InvalidArgumentError(
            f"two labels of a condition are one number in {rows.dtype}: pass the context in a wider dtype."
        )
    if bool(xp.all(known)):
        return
    for k, matches in found.items():
        own, good = labels[k] or (), backend.to_numpy(xp.any(matches, axis=1)).tolist()
        if not all(good):
            value = float(backend.to_numpy(xp.astype(rows[:, k], widest(backend)))[good.index(False)])
            listed = ", ".join(f"{n:g}" for n in own[:8]) + (", ..." if len(own) > 8 else "")
            raise InvalidArgumentError(
                f"the context of {which_samples(backend, known)} holds the label {value:.9g}, which is none of the "
                f"{len(own)} that become one-hot: {listed}. A flow says nothing about a label that it has not seen."
            )


def require_rows(backend: Backend, rows: Array, x: Array) -> None:
    """Refuse conditions (rows, ...) of another number than that of samples x, but for one that stands for all."""
    n, batch = rows.shape[0], x.shape[0]
    if backend.knows_size(n) and n != 1 and backend.knows_size(batch) and n != batch:
        raise ShapeError(
            f"context has {n} rows, but there are {batch} samples: give one row for each sample, or one condition of "
            "shape (features,) for all."
        )


def usable_rows(backend: Backend, rows: Array, labels: Labels | None, largest: float) -> tuple[Array, Array]:
    """Return which conditions (batch, features) of a compiled program can be used, and them with others in their place.

    Those that cannot hold NaN, infinity, entries above `largest`, or labels that are not known.
    """
    xp = backend.xp
    with backend.full_precision():
        wide = xp.astype(rows, widest(backend))
        usable = xp.all(xp.abs(wide) < largest, axis=1)
        known = None if labels is None else _are_known(backend, rows, labels)
        if known is not None:
            usable = usable & known
        plain = [0.0 if own is None else own[0] for own in labels or (None,) * rows.shape[1]]
        other = xp.astype(xp.asarray(plain, dtype=wide.dtype, device=device_of(rows)), rows.dtype)
        return usable, xp.where(usable[:, None], rows, other[None, :])


def agreed(layers: Iterable[Any]) -> tuple[int | None, Labels | None]:
    """Return how many features the layers of a flow take, and with which labels; None where none takes any.

    Raises
    ------
    ShapeError
        If two of them take conditions of another kind.
    """
    found: tuple[int | None, Labels | None] = None, None
    for layer in layers:
        own = layer.context_features, layer.context_labels
        if own[0] is None or own == found:
            continue
        if found[0] is not None:
            raise ShapeError(
                f"the layers take different conditions, of {found[0]} features and of {own[0]}, or with other labels. "
                "Encode them once, in a condition= of the flow."
            )
        found = own
    return found


def require_condition(context: Any, features: int | None, owner: str) -> None:
    """Refuse a condition that is missing, or that would have no effect."""
    if context is None and features is not None:
        raise InvalidArgumentError(
            f"{owner} is conditional: pass context=, of shape (batch, {features}), or ({features},) for all samples."
        )
    if context is not None and features is None:
        raise InvalidArgumentError(
            f"a context was given, but {owner} takes none: no layer of it has a condition. Make one with "
            "ResidualBlock(branch, condition=...), or leave the context out."
        )
