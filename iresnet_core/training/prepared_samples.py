"""What a trained model makes of rows of a file: the samples that it takes, and their conditions."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from iresnet_core.errors import DataFileError, InvalidArgumentError, ShapeError
from iresnet_core.files import Table, as_table
from iresnet_core.training.condition_columns import split_columns
from iresnet_core.training.datasets import dequantized
from iresnet_core.training.sample_arrays import as_samples
from iresnet_core.training.sample_layout import SampleLayout
from iresnet_core.training.table_columns import TableColumns

__all__ = ["PreparedSamples", "SamplePreparation"]


class PreparedSamples(NamedTuple):
    """Samples of a model.

    Attributes
    ----------
    x : float64 array (n, *model_shape)
        Samples as the model takes them.
    context : array (n, features) or None
        Their conditions.
    kept : array of int (n,) or None
        Which rows they are, counted from 0; None for all.
    """

    x: np.ndarray
    context: np.ndarray | None
    kept: np.ndarray | None


@dataclass(frozen=True)
class SamplePreparation:
    """How rows become samples; it depends on no row but that which it is asked about.

    Attributes
    ----------
    name : str
        Of the file, for messages.
    layout : SampleLayout
        Shapes of a sample in the data and in the model.
    levels : int or None
        Grey levels of the data that the model was trained on.
    columns : TableColumns or None
        The columns of the table that it was trained on.
    condition : str or None
        Which columns are conditions, as an option names them.
    features : int or None
        Numbers of a condition that the model takes.
    of_a_run : bool
        Whether a run says how grey levels were scaled; a model file alone does not.
    whole : bool or None
        Whether the file holds grey levels, where real numbers could be either; None to see by the rows.
    """

    name: str
    layout: SampleLayout
    levels: int | None
    columns: TableColumns | None
    condition: str | None
    features: int | None
    of_a_run: bool
    whole: bool | None = None

    def of(self, rows: np.ndarray | Table, rng: np.random.Generator, first: int | None = None) -> PreparedSamples:
        """Return the samples of these rows; `rng` draws the noise that grey levels are dequantised with.

        The first row has the number `first` in its file, from which messages count; None where it is the whole file.

        Raises
        ------
        ShapeError, DataFileError, NonFiniteDataError, InvalidArgumentError
            If they are not samples of this model.
        """
        samples, own, kept = self._samples(rows, first)
        samples, context = self._conditions(samples, from_table=kept is not None)
        samples = self._dequantized(samples, own, rng, first)
        if tuple(samples.shape[1:]) == self.layout.model_shape:
            return PreparedSamples(np.asarray(samples, dtype=np.float64), context, kept)
        if tuple(samples.shape[1:]) != self.layout.data_shape:
            raise ShapeError(
                f"{self.name} holds samples of shape {tuple(samples.shape[1:])}; the model takes "
                f"{self.layout.data_shape}."
            )
        return PreparedSamples(self.layout.to_model(samples), context, kept)

    def leaves_none(self, rows: np.ndarray | Table) -> bool:
        """Whether all of these rows have missing values and are left out."""
        if self.columns is None or self.columns.missing != "drop" or not self._is_table(rows):
            return False
        values = self.columns.values_of(as_table(rows), self.name)
        return bool(np.all(np.any(np.isnan(values), axis=1)) and not np.any(np.isinf(values)))

    def holds_levels(self, rows: np.ndarray | Table) -> bool:
        """Whether these rows are whole numbers that stand for grey levels."""
        if self.levels is None:
            return False
        samples, own, _ = self._samples(rows)
        return own is not None or np.array_equal(samples, np.floor(samples))

    def _samples(
        self, rows: np.ndarray | Table, first: int | None = None
    ) -> tuple[np.ndarray, int | None, np.ndarray | None]:
        """Return samples, their grey levels, and for the tables of a run which rows they are."""
        if self.columns is not None and self._is_table(rows):
            found = self.columns.values_of(as_table(rows), self.name)
            kept = self.columns.rows_to_keep(found, self.name, trains=False, first=first)
            return self.columns.imputed(found[kept]), None, np.flatnonzero(kept)
        samples, own = as_samples(rows.numbers() if isinstance(rows, Table) else rows, self.name, None, first)
        return samples, own, None

    def _is_table(self, rows: np.ndarray | Table) -> bool:
        return isinstance(rows, Table) or (rows.ndim <= 2 and rows.size > 0)

    def _conditions(self, samples: np.ndarray, *, from_table: bool) -> tuple[np.ndarray, np.ndarray | None]:
        if self.features is None:
            return samples, None
        if self.condition is None:
            raise InvalidArgumentError(
                "this model is conditional: say which columns of FILE are conditions, --condition."
            )
        known = self.condition
        if self.columns is not None and from_table:
            known = self.columns.placed(known, "--condition")
        samples, context = split_columns(samples, known, self.name)
        if context.shape[1] != self.features:
            raise ShapeError(
                f"--condition {known} names {context.shape[1]} columns; a condition of this model has {self.features}."
            )
        return samples, context

    def _dequantized(
        self, samples: np.ndarray, own: int | None, rng: np.random.Generator, first: int | None
    ) -> np.ndarray:
        if self.levels is None:
            if own is not None and not self.of_a_run:
                raise DataFileError(
                    f"{self.name} holds grey levels, and a model file does not say how they were scaled. Give the run "
                    "folder, or floating-point samples as the model takes them."
                )
            return samples
        whole = self.whole if self.whole is not None else own is not None or np.array_equal(samples, np.floor(samples))
        if not whole:
            return samples
        if samples.dtype.kind == "f" and not np.array_equal(samples, np.floor(samples)):
            row = int(np.argwhere(samples != np.floor(samples))[0, 0]) + (first or 0)
            raise DataFileError(
                f"{self.name}: the first samples are grey levels, and sample {row} holds other numbers. Write grey "
                "levels as integers; if these are no grey levels, begin with a chunk that shows it (--chunk)."
            )
        if samples.min() < 0 or samples.max() >= self.levels:
            raise DataFileError(
                f"{self.name} holds levels from {samples.min():g} to {samples.max():g}; the model was trained on 0 to "
                f"{self.levels - 1}."
            )
        return dequantized(samples, self.levels, rng)
