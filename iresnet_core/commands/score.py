"""The command `iresnet score`: log-densities of samples, with their errors."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from iresnet_core.commands.in_chunks import ChunkOption, DaskOption, compute_in_chunks
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
from iresnet_core.files import TABLE_SUFFIXES, RowFile, Table, as_table, open_rows, opened_table, write_text
from iresnet_core.parallel import Chunk, HeldOutRows, ScoreJob, rows_of_a_chunk
from iresnet_core.training import (
    MeanScore,
    PreparedSamples,
    SamplePreparation,
    Scores,
    array_to_score,
    bits_per_dim,
    mean_score,
    merged_means,
    samples_from_file,
    scores,
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
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write one row for each sample: .csv or .json; in chunks .csv, .npy, .parquet or .zarr.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="NAME", help="Which array of a .npz or .zarr file.", show_default=False),
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
    samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="N", help="Score the first N alone.", min=1, show_default=False),
    ] = None,
    dask: DaskOption = None,
    chunk: ChunkOption = None,
    seed: SeedOption = 0,
    backend: BackendOption = "numpy",
    dtype: DtypeOption = "float64",
) -> None:
    """Print the mean log-density of samples with its errors, and write the log-density of each sample.

    Grey levels are dequantised with uniform noise; their score is also given in bits per dimension.

    Files larger than memory (.npy, .zarr, .parquet) are scored chunk by chunk with --chunk or --dask, and so is the
    test set of the run, also where its scores go to a .csv file. Chunks that are done are kept in OUT.chunks until all
    are: the same command goes on after an interruption.
    """
    console = wide_console()
    with usage_errors(), opened(run, backend, dtype) as model:
        if condition is not None and model.flow.context_features is None:
            raise InvalidArgumentError("this model takes no condition: leave --condition out.")
        if file is not None and out is not None:
            _require_apart(file, out)
        if _asks_for_chunks(file, out, dask, chunk):
            if file is None:
                name = _name_of_test_set(model, condition)
                job = _job_of_test_set(model, run, seed, samples, chunk)
            else:
                name = str(file)
                job = _job(model, open_rows(file, key), _preparation(model, file, condition), samples, chunk)
            job = replace(job, seed=seed, own_seeds=uses_own_seeds({"method": method}), method=method, tol=tol)
            means = compute_in_chunks(job, dask, out, _columns, _summary, "log-densities")
            known = [(one, used) for one, used in means if one.n]
            if not known:
                raise DataFileError(f"every row of {name} has a missing value.")
            mean = merged_means(one for one, _ in known)
            console.print(f"{mean.n} samples: {name}", soft_wrap=True)
            if mean.n < job.n:
                _say_left_out(console)
            _print_mean(console, mean, known[0][1], model.levels, model.size)
            if out is not None:
                console.print(f"scores: {out}", soft_wrap=True)
            return
        if out is not None:
            require_file(out, (".csv", ".json"))
        if file is None:
            prepared, name = _test_set(model, seed, condition, samples)
        else:
            rows, name = _rows(model, file, key, samples), str(file)
            prepared = _preparation(model, file, condition).of(rows, np.random.default_rng([seed, 5]))
        with progress_bar() as progress:
            found = scores(
                model.flow,
                prepared.x,
                seed=None if uses_own_seeds({"method": method}) else seed,
                progress=lambda done, total: progress(done, total, "log-densities"),
                method=method,
                tol=tol,
                context=prepared.context,
            )
        mean, kept = mean_score(found), prepared.kept
        console.print(f"{mean.n} samples: {name}", soft_wrap=True)
        if kept is not None and kept[-1] + 1 > len(kept):
            _say_left_out(console)
        _print_mean(console, mean, found.method, model.levels, model.size)
        if out is not None:
            _write_scores(out, found, mean, model.levels, model.size, kept)
            console.print(f"scores: {out}", soft_wrap=True)


def _test_set(model: OpenedModel, seed: int, condition: str | None, most: int | None) -> tuple[PreparedSamples, str]:
    """Return the test set of the run as the model takes it, and its name."""
    name = _name_of_test_set(model, condition)
    test, context = model.layout.to_model(model.test_set(seed)), model.test_contexts()
    return PreparedSamples(test[:most], None if context is None else context[:most], None), name


def _name_of_test_set(model: OpenedModel, condition: str | None) -> str:
    if condition is not None:
        raise InvalidArgumentError("--condition names columns of a FILE; those of the test set are known.")
    return f"test set of {model.config.data_name}" if model.config else "test set"


def _preparation(model: OpenedModel, file: Path, condition: str | None) -> SamplePreparation:
    known = condition if model.config is None or condition is not None else model.config.settings.data.condition
    return SamplePreparation(
        name=str(file),
        layout=model.layout,
        levels=model.levels,
        columns=None if model.config is None else model.config.columns,
        condition=known,
        features=model.flow.context_features,
        of_a_run=model.config is not None,
    )


def _rows(model: OpenedModel, file: Path, key: str | None, most: int | None) -> np.ndarray | Table:
    """Return all rows of a file, or the first of them."""
    if key is not None and file.suffix.lower() in TABLE_SUFFIXES:
        raise DataFileError(f"{file} holds a table; leave out --key {key}.")
    if model.config is not None and model.config.columns is not None:
        rows = opened_table(file) if file.suffix.lower() in TABLE_SUFFIXES else array_to_score(file, key)
        if isinstance(rows, Table) or (rows.ndim in (1, 2) and rows.size):
            table = as_table(rows)
            return replace(table, values=table.values[:most])
    return samples_from_file(file, key=key)[0][:most]


def _say_left_out(console: Console) -> None:
    console.print("rows with missing values are left out; the others keep their numbers", soft_wrap=True)


def _require_apart(file: Path, out: Path) -> None:
    """Refuse to write the scores over the samples, or among the files of their folder."""
    samples, scored = file.resolve(), out.resolve()
    if scored == samples or samples in scored.parents:
        raise InvalidArgumentError(f"--out {out} would be written over the samples, {file}. Give another --out.")


def _asks_for_chunks(file: Path | None, out: Path | None, dask: str | None, chunk: int | None) -> bool:
    """Whether something is asked for that only chunks can do, or that is as good in chunks.

    The scores of a test set are the same in chunks, so that those of a .csv file are kept as they come.
    """
    read = file is not None and (file.suffix.lower() == ".zarr" or file.is_dir())
    in_chunks = (".npy", ".parquet", ".zarr", *((".csv",) if file is None else ()))
    written = out is not None and out.suffix.lower() in in_chunks
    return dask is not None or chunk is not None or read or written


def _job(
    model: OpenedModel, source: RowFile, preparation: SamplePreparation, samples: int | None, chunk: int | None
) -> ScoreJob:
    n = len(source) if samples is None else min(samples, len(source))
    if not n:
        raise ShapeError(f"{source.path} has no row to score.")
    rows = rows_of_a_chunk(model.flow.event_shape) if chunk is None else chunk
    first = source.read(0, min(rows, n))
    return ScoreJob(
        flow=model.flow,
        source=source,
        preparation=replace(preparation, whole=preparation.holds_levels(first)),
        n=n,
        rows=rows,
        size=model.size,
    )


def _job_of_test_set(model: OpenedModel, run: Path, seed: int, samples: int | None, chunk: int | None) -> ScoreJob:
    if model.config is None:
        raise InvalidArgumentError("a model file has no test set; give a FILE of samples.")
    rows = HeldOutRows(model.config.settings.data, model.layout, model.levels, str(run.absolute()), seed)
    return ScoreJob(
        flow=model.flow,
        source=rows,
        preparation=rows,
        n=len(rows) if samples is None else min(samples, len(rows)),
        rows=rows_of_a_chunk(model.flow.event_shape) if chunk is None else chunk,
        size=model.size,
    )


def _columns(chunk: Chunk) -> Chunk:
    """Return what is written of a chunk."""
    return {name: column for name, column in chunk.items() if name != "method"}


def _summary(chunk: Chunk) -> tuple[MeanScore, str]:
    method = str(chunk["method"])
    if not len(chunk["log_prob"]):
        return MeanScore(0.0, 0.0, 0.0, 0.0, 0), method
    return mean_score(Scores(chunk["log_prob"], chunk["std_error"], chunk["bias_bound"], method)), method


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
