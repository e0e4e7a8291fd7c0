"""The columns of a table that a flow is trained on: their names, what is left out, and what stands in for gaps."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iresnet_core.errors import DataFileError, InvalidArgumentError, NonFiniteDataError, ShapeError
from iresnet_core.files import Table
from iresnet_core.training.sample_arrays import samples_from

__all__ = ["MISSING", "TableColumns", "numbers_of_columns", "require_varying"]

MISSING = ("drop", "impute")
_LISTED = 5  # columns that a message names


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a file are used, in their order there.

    Attributes
    ----------
    width : int
        Columns of the file.
    used : tuple of int
        Places of those that are used, conditions among them.
    names : tuple of str, or None
        Their names, where the file has any.
    missing : {"drop", "impute"} or None
        What becomes of rows with gaps; None where there must be none.
    fill : tuple of float, or None
        What stands in for a gap, the median of the samples to train on, where gaps are imputed.
    """

    width: int
    used: tuple[int, ...]
    names: tuple[str, ...] | None = None
    missing: str | None = None
    fill: tuple[float, ...] | None = None

    @classmethod
    def of_table(cls, table: Table, drop: str | None, missing: str | None) -> "TableColumns":
        """Return the columns of a table but for those that `drop` names.

        Raises
        ------
        InvalidArgumentError
            If a column is not there, none is left, or `missing` is unknown.
        """
        if missing is not None and missing not in MISSING:
            raise InvalidArgumentError(f"--missing must be {' or '.join(MISSING)}, got {missing!r}.")
        width = table.values.shape[1]
        dropped = () if drop is None else numbers_of_columns(drop, width, "--drop", table.names)
        used = tuple(k for k in range(width) if k not in dropped)
        if not used:
            raise InvalidArgumentError(f"--drop {drop} leaves no column.")
        names = None if table.names is None or len(set(table.names)) < width else tuple(table.names[k] for k in used)
        return cls(width, used, names, missing)

    def placed(self, text: str, option: str) -> str:
        """Return the columns that an option names, by names or numbers in the file, as numbers among those used.

        Raises
        ------
        InvalidArgumentError
            If one is not there, or left out.
        """
        in_file: list[str | None] = [None] * self.width
        for place, column in enumerate(self.used):
            in_file[column] = self.label(place)
        chosen = numbers_of_columns(text, self.width, option, None if self.names is None else in_file)
        if not set(chosen) <= set(self.used):
            raise InvalidArgumentError(f"{option} {text} names a column that is left out.")
        return ",".join(str(self.used.index(k)) for k in chosen)

    def without(self, places: Sequence[int]) -> tuple[str, ...] | None:
        """Return the names of the columns but for some."""
        return None if self.names is None else tuple(n for k, n in enumerate(self.names) if k not in places)

    def label(self, place: int) -> str:
        """Return the name of a column that is used, or its number in the file."""
        return str(self.used[place]) if self.names is None else self.names[place]

    def values_of(self, table: Table, name: str) -> np.ndarray:
        """Return the columns (n, used) of a table of this kind, found by their names where both have some.

        Raises
        ------
        ShapeError
            If columns are not there, or several have the same name.
        DataFileError
            If one of them holds text.
        """
        width = table.values.shape[1]
        if self.names is not None and table.names is not None:
            lacking = [column for column in self.names if column not in table.names]
            if lacking:
                raise ShapeError(f"{name} lacks the columns {_listed(lacking)}; it has {_listed(table.names)}.")
            several = [column for column in self.names if table.names.count(column) > 1]
            if several:
                raise ShapeError(f"{name} has several columns of the names {_listed(several)}; rename all but one.")
            places = [table.names.index(column) for column in self.names]
        elif width == len(self.used):
            places = list(range(width))
        elif width == self.width:
            places = list(self.used)
        else:
            raise ShapeError(
                f"{name} has {width} columns; the model was made for samples of {len(self.used)} columns"
                + (f" of the {self.width} in its file." if self.width != len(self.used) else ".")
            )
        for place in places:
            if place in table.texts:
                raise DataFileError(table.texts[place])
        return np.ascontiguousarray(table.values[:, places])

    def rows_to_keep(
        self, values: np.ndarray, name: str, *, trains: bool = True, first: int | None = None
    ) -> np.ndarray:
        """Return which rows (n,) are kept: all, or those without a gap.

        The advice of an error is another one where a model is trained and where one is used; `first` is the number
        of the first row in its file, None where the values are those of the whole file.

        Raises
        ------
        NonFiniteDataError
            At gaps, if nothing is to be done about them; at infinity in any case.
        DataFileError
            If no row is left.
        """
        begin = first or 0
        if np.any(np.isinf(values)):
            row, place = map(int, np.argwhere(np.isinf(values))[0])
            raise NonFiniteDataError(
                f"{name}: infinity in sample {begin + row}, column {self.label(place)}. Remove or impute it."
            )
        gaps = np.isnan(values)
        if self.missing is None and np.any(gaps):
            counts = np.sum(gaps, axis=0)
            where = _listed([f"{self.label(k)} ({counts[k]})" for k in map(int, np.flatnonzero(counts))])
            row, place = map(int, np.argwhere(gaps)[0])
            raise NonFiniteDataError(
                f"{name}: NaN in sample {begin + row}, column {self.label(place)}, and so in "
                f"{np.sum(gaps.any(axis=1))} of {samples_from(len(values), first)}. "
                f"Values are missing in the columns {where}. "
                + (
                    "Leave the rows out (--missing drop), put medians in (--missing impute), or leave columns out "
                    "(--drop)."
                    if trains
                    else "The model was trained without gaps: remove these rows, or fill them in."
                )
            )
        kept = ~gaps.any(axis=1) if self.missing == "drop" else np.ones(len(values), dtype=bool)
        if not kept.any():
            worst = self.label(int(np.argmax(np.sum(gaps, axis=0))))
            raise DataFileError(
                f"{name}: every row has a missing value, most of them in column {worst}."
                + (f" Leave it out (--drop {_quoted(worst)}), or use --missing impute." if trains else "")
            )
        return kept

    def imputed(self, values: np.ndarray) -> np.ndarray:
        """Return values (n, used) with `fill` in place of the gaps."""
        return values if self.fill is None else np.where(np.isnan(values), np.array(self.fill), values)


def numbers_of_columns(
    text: str, columns: int, option: str, names: Sequence[str | None] | None = None
) -> tuple[int, ...]:
    """Return the columns that an option names, by their names or as "2,3", counted from 0, or from the end as "-1".

    Columns whose name is None have been left out before, and are known by their numbers alone.

    Raises
    ------
    InvalidArgumentError
        If it does not name columns of the table, one of them twice, or gives a name that several columns have.
    """
    found = []
    # A name with a comma stands in quotation marks, as in a file.
    parts = next(csv.reader([text], skipinitialspace=True), [])
    for part in (part.strip() for part in parts or [""]):
        if names is not None and part in names:
            if len(places := [k for k, name in enumerate(names) if name == part]) > 1:
                raise InvalidArgumentError(
                    f"{option} {text}: {len(places)} columns have the name {part}. Give their numbers, which are "
                    f"{', '.join(map(str, places))}."
                )
            found += places
            continue
        try:
            k = int(part)
        except ValueError:
            there = None if names is None else [name for name in names if name is not None]
            known = "" if there is None else f", or their names, which are {_listed(there)}"
            raise InvalidArgumentError(
                f"{option} takes numbers of columns with commas between them, such as 2,3{known}; got {text!r}."
            ) from None
        if not -columns <= k < columns:
            raise InvalidArgumentError(f"{option} {text}: the data have {columns} columns, 0 to {columns - 1}.")
        found.append(k % columns)
    if len(set(found)) < len(found):
        raise InvalidArgumentError(f"{option} {text} names a column twice.")
    return tuple(found)


def require_varying(samples: np.ndarray, labels: Sequence[str], name: str | Path) -> None:
    """Refuse columns that are constant over the samples to train on: they have no density, and are no condition.

    Raises
    ------
    DataFileError
        The message names them.
    """
    constant = np.flatnonzero(np.all(samples == samples[:1], axis=0))
    if len(constant):
        what = [labels[int(k)] for k in constant]
        options = ",".join(map(_quoted, what[:_LISTED])) + (",..." if len(what) > _LISTED else "")
        raise DataFileError(
            f"{name}: all samples to train on have the same value in the columns {_listed(what)}, which says nothing "
            f"and has no density. Leave them out: --drop {options}."
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(_quoted, names[:_LISTED])) + more


def _quoted(name: str) -> str:
    """Return a name as an option takes it: in quotation marks if it has a comma."""
    return f'"{name}"' if "," in name else name
