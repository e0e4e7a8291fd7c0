"""Conditions of a table: which of its columns they are, and what enters a flow for them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iresnet_core.errors import DataFileError, InvalidArgumentError, ShapeError
from iresnet_core.training.table_columns import numbers_of_columns

__all__ = ["ConditionPlan", "condition_values", "planned_condition", "split_columns"]

_MOST_LABELS = 1000
_HIDDEN, _ENTERING = 64, 32


@dataclass(frozen=True)
class ConditionPlan:
    """The map of a condition: its columns one-hot or scaled, two hidden layers, and what enters the layers.

    Attributes
    ----------
    labels : tuple
        For every column the labels that were seen, or None for numbers.
    mean, std : tuple of float
        For every column of numbers.
    hidden, width : int
        Width of the hidden layers, and entries of what enters.
    """

    labels: tuple[tuple[float, ...] | None, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hidden: int = _HIDDEN
    width: int = _ENTERING

    @property
    def encoded(self) -> int:
        """Entries of an encoded condition."""
        return sum(1 if own is None else len(own) for own in self.labels)


def split_columns(table: np.ndarray, condition: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples (n, d) and the conditions (n, k) of a table, whose columns `condition` names.

    Raises
    ------
    ShapeError
        If the data are no table.
    InvalidArgumentError
        If the columns are not there, or none is left for the samples.
    """
    if table.ndim != 2:
        raise ShapeError(f"--condition takes columns of a table; {name} has samples of shape {table.shape[1:]}.")
    chosen = numbers_of_columns(condition, table.shape[1], "--condition")
    others = [k for k in range(table.shape[1]) if k not in chosen]
    if not others:
        raise InvalidArgumentError(f"--condition {condition} leaves no column of {name} for the samples.")
    return np.ascontiguousarray(table[:, others]), np.ascontiguousarray(table[:, list(chosen)])


def planned_condition(
    contexts: np.ndarray, condition: str, labels: str | None, columns: int, *, others: Sequence[np.ndarray] = ()
) -> ConditionPlan:
    """Return the map for the conditions (n, k) of a training, with the labels that they and those of the `others` hold.

    A label that only the validation or test set has would end a run with an error in its first evaluation, or its last.

    Raises
    ------
    InvalidArgumentError
        If `labels` names columns that are no conditions.
    DataFileError
        If a column has so many labels that it hardly holds any.
    """
    chosen = numbers_of_columns(condition, columns, "--condition")
    of_labels = () if labels is None else numbers_of_columns(labels, columns, "--labels")
    if not set(of_labels) <= set(chosen):
        raise InvalidArgumentError(f"--labels {labels} names a column that --condition {condition} does not.")
    known: list[tuple[float, ...] | None] = []
    for place, column in enumerate(chosen):
        held = [part[:, place] for part in (contexts, *others)]
        seen = np.unique(np.concatenate(held)) if column in of_labels else None
        if seen is not None and len(seen) > _MOST_LABELS:
            raise DataFileError(f"column {column} has {len(seen)} labels, more than {_MOST_LABELS}: leave it a number.")
        known.append(None if seen is None else tuple(map(float, seen)))
    mean, std = contexts.mean(axis=0), contexts.std(axis=0)
    return ConditionPlan(tuple(known), tuple(map(float, mean)), tuple(float(s) if s > 0 else 1.0 for s in std))


def condition_values(text: str, features: int | None) -> np.ndarray:
    """Return one condition (features,) from text such as "0.5,2".

    Raises
    ------
    InvalidArgumentError
        If it is no condition, or the flow takes none or one of another size.
    """
    if features is None:
        raise InvalidArgumentError("this model takes no condition: leave --condition out.")
    try:
        values = np.array([float(part) for part in text.split(",")])
    except ValueError:
        raise InvalidArgumentError(
            f"--condition takes numbers with commas between them, such as 0.5,2, got {text!r}."
        ) from None
    if len(values) != features or not np.isfinite(values).all():
        raise InvalidArgumentError(f"a condition of this model has {features} finite numbers, got {text!r}.")
    return values
