"""The command `iresnet score`: log-densities of samples, with their errors."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from iresnet_core.commands.opened_model import (
    BackendOption,
    DtypeOption,
    OpenedModel,
    RunArgument,
    SeedOption,
    opened,
    require_file,
)
from iresnet_core.commands.terminal import progress_bar, usage_errors, wide_console
from iresnet_core.determinant import uses_own_seeds
from iresnet_core.errors import DataFileError, InvalidArgumentError, ShapeError
from iresnet_core.files import TABLE_SUFFIXES, Table, opened_table, write_text
from iresnet_core.training import (
    MeanScore,
    Scores,
    bits_per_dim,
    mean_score,
    samples_from_file,
    scores,
    split_columns,
)

__all__ = ["score_command"]


def score_command(
    run: RunArgument,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Samples; default the test set of the run.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write one row for each sample: .csv or .json.", show_default=False),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="NAME", help="Which array of a .npz file.", show_default=False)
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option(
            "--condition", metavar="COLUMNS", help="Conditions in FILE; default those of the run.", show_default=False
        ),
    ] = None,
    tol: Annotated[
        float | None,
        typer.Option("--tol", help="Standard error and bias bound to reach, in nats.", show_default=False),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="Of the log-determinants; see `logdet`.")] = "auto",
    seed: SeedOption = 0,
    backend: BackendOption = "numpy",
    dtype: DtypeOption = "float64",
) -> None:
    """Print the mean log-density of samples with its errors, and write the log-density of each sample.

    Grey levels are dequantised with uniform noise; their score is also given in bits per dimension.
    """
    console = wide_console()
    with usage_errors(), opened(run, backend, dtype) as model:
        if out is not None:
            require_file(out, (".csv", ".json"))
        x, levels, name, context, rows = _samples_to_score(model, file, key, seed, condition)
        with progress_bar() as progress:
            found = scores(
                model.flow,
                x,
                seed=None if uses_own_seeds({"method": method}) else seed,
                progress=lambda done, total: progress(done, total, "log-densities"),
                method=method,
                tol=tol,
                context=context,
            )
        mean = mean_score(found)
        console.print(f"{mean.n} samples: {name}", soft_wrap=True)
        if rows is not None and rows[-1] + 1 > len(rows):
            console.print("rows with missing values are left out; the others keep their numbers", soft_wrap=True)
        _print_mean(console, mean, found.method, levels, model.size)
        if out is not None:
            _write_scores(out, found, mean, levels, model.size, rows)
            console.print(f"scores: {out}", soft_wrap=True)


def _samples_to_score(
    model: OpenedModel, file: Path | None, key: str | None, seed: int, condition: str | None
) -> tuple[np.ndarray, int | None, str, np.ndarray | None, np.ndarray | None]:
    """Samples as the model takes them, their grey levels, what they are, their conditions, and which rows they are."""
    if condition is not None and model.flow.context_features is None:
        raise InvalidArgumentError("this model takes no condition: leave --condition out.")
    if file is None and condition is not None:
        raise InvalidArgumentError("--condition names columns of a FILE; those of the test set are known.")
    if file is None:
        test = model.layout.to_model(model.test_set(seed))
        return (
            test,
            model.levels,
            f"test set of {model.config.data_name}" if model.config else "test set",
            model.test_contexts(),
            None,
        )
    samples, own, kept = _read(model, file, key)
    context = None
    if model.flow.context_features is not None:
        known = condition if model.config is None or condition is not None else model.config.settings.data.condition
        if known is None:
            raise InvalidArgumentError(
                "this model is conditional: say which columns of FILE are conditions, --condition."
            )
        if model.config is not None and model.config.columns is not None and kept is not None:
            known = model.config.columns.placed(known, "--condition")
        samples, context = split_columns(samples, known, str(file))
        if context.shape[1] != model.flow.context_features:
            raise ShapeError(
                f"--condition {known} names {context.shape[1]} columns; a condition of this model has "
                f"{model.flow.context_features}."
            )
    levels = model.levels
    if levels is not None:
        whole = own is not None or np.array_equal(samples, np.floor(samples))
        if whole:
            if samples.min() < 0 or samples.max() >= levels:
                raise DataFileError(
                    f"{file} holds levels from {samples.min():g} to {samples.max():g}; the model was trained on 0 to "
                    f"{levels - 1}."
                )
            samples = model.ready(samples, seed)
    elif own is not None and model.config is None:
        raise DataFileError(
            f"{file} holds grey levels, and a model file does not say how they were scaled. Give the run folder, or "
            "floating-point samples as the model takes them."
        )
    if tuple(samples.shape[1:]) == model.layout.model_shape:
        return np.asarray(samples, dtype=np.float64), levels, str(file), context, kept
    if tuple(samples.shape[1:]) != model.layout.data_shape:
        raise ShapeError(
            f"{file} holds samples of shape {tuple(samples.shape[1:])}; the model takes {model.layout.data_shape}."
        )
    return model.layout.to_model(samples), levels, str(file), context, kept


def _read(model: OpenedModel, file: Path, key: str | None) -> tuple[np.ndarray, int | None, np.ndarray | None]:
    """Return samples, their grey levels, and for the tables of a run which rows they are."""
    columns = None if model.config is None else model.config.columns
    if columns is None or file.suffix.lower() not in TABLE_SUFFIXES:
        samples, own = samples_from_file(file, key=key)
        if columns is None or samples.ndim != 2:
            return samples, own, None
        table = Table(np.asarray(samples, dtype=np.float64), None, {})
    else:
        table = opened_table(file)
    values = columns.values_of(table, str(file))
    kept = columns.rows_to_keep(values, str(file), trains=False)
    return columns.imputed(values[kept]), None, np.flatnonzero(kept)


def _print_mean(console: Console, mean: MeanScore, method: str, levels: int | None, size: int) -> None:
    """Print the mean and what it may be wrong by, and why."""
    console.print(f"log-density {mean.mean:.4f} ± {mean.sampling_error:.4f} nats (standard error over the samples)")
    console.print(
        f"{mean.probe_error:.1e} of it by random probes; bias at most {mean.bias_bound:.1e}; method {method}",
        style="dim",
    )
    if levels is not None:
        bits, error = bits_per_dim(-mean.mean, levels, size), mean.sampling_error / (size * math.log(2))
        console.print(f"{bits:.4f} ± {error:.4f} bits per dimension")


def _write_scores(
    out: Path, found: Scores, mean: MeanScore, levels: int | None, size: int, rows: np.ndarray | None
) -> None:
    places = range(len(found.log_prob)) if rows is None else rows.tolist()
    columns: dict[str, Any] = {
        "log_prob": found.log_prob.tolist(),
        "std_error": found.std_error.tolist(),
        "bias_bound": found.bias_bound.tolist(),
    }
    if levels is not None:
        columns["bits_per_dim"] = [bits_per_dim(-value, levels, size) for value in found.log_prob]
    if out.suffix.lower() == ".json":
        known = {name: value if math.isfinite(value) else None for name, value in mean._asdict().items()}
        node = {"mean": known, "method": found.method, "sample": list(places), **columns}
        write_text(out, json.dumps(node, indent=1, allow_nan=False) + "\n")
        return
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["sample", *columns])
    writer.writerows([k, *row] for k, *row in zip(places, *columns.values(), strict=True))
    write_text(out, text.getvalue())
