"""The command `iresnet sample`: samples of a trained flow, each with a certified bound on its error."""

from pathlib import Path
from typing import Annotated

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
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.files import SUFFIXES, write_array
from iresnet_core.parallel import Chunk, SampleJob, require_output, rows_of_a_chunk
from iresnet_core.training import condition_values, draw_samples

__all__ = ["sample_command"]


def sample_command(
    run: RunArgument,
    n: Annotated[int, typer.Option("-n", help="Number of samples.", min=1)] = 1000,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Default samples.npy in RUN; of tables .csv.", show_default=False),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="PNG", help="Draw them too.", show_default=False)
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option("--condition", metavar="VALUES", help="Of all samples, as 0.5,2.", show_default=False),
    ] = None,
    dask: DaskOption = None,
    chunk: ChunkOption = None,
    seed: SeedOption = 0,
    backend: BackendOption = "numpy",
    dtype: DtypeOption = "float64",
) -> None:
    """Draw samples from a trained flow and write them to a .npy, .npz, .csv or .parquet file.

    Every sample comes with a certified bound on its distance to the exact preimage of its latent; the largest is
    printed, after what the distance is to first order.

    With --dask or --chunk, or to a .zarr group, they are drawn and written chunk by chunk, each chunk with a seed of
    its own: other samples than without chunks, and the same for any number of workers. Chunks that are done are kept in
    OUT.chunks until all are, and the same command goes on after an interruption.
    """
    console = wide_console()
    with usage_errors(), opened(run, backend, dtype) as model:
        # A table becomes a table again, with the names of its columns.
        target = out if out is not None else _beside(run, "samples.npy" if model.names is None else "samples.csv")
        chunked = dask is not None or chunk is not None or target.suffix.lower() == ".zarr"
        if not chunked:
            require_file(target, SUFFIXES)
        context = None if condition is None else condition_values(condition, model.flow.context_features)
        if context is None and model.flow.context_features is not None:
            raise InvalidArgumentError(
                f"this model is conditional: say under which condition to draw, --condition with "
                f"{model.flow.context_features} numbers."
            )
        if chunked:
            if picture is not None:
                raise InvalidArgumentError("--picture draws samples that are in memory: leave --dask and --chunk out.")
            _in_chunks(console, model, n, target, dask, chunk, seed, context)
            return
        with progress_bar() as progress:
            drawn = draw_samples(
                model.flow,
                n,
                seed=seed,
                progress=lambda done, total: progress(done, total, "samples"),
                context=context,
            )
        samples = model.layout.to_data(drawn.value)
        write_array(target, samples, model.names)
        console.print(f"{n} samples of shape {samples.shape[1:]} in {target}", soft_wrap=True)
        _print_errors(console, _errors(drawn._asdict()))
        if picture is not None:
            require_file(picture, (".png",))
            from iresnet_core.commands.flow_plots import write_png
            from iresnet_core.commands.plots_of_a_run import samples_figure

            write_png(samples_figure(samples, _data_of(model), model.names), picture)
            console.print(f"picture: {picture}", soft_wrap=True)


def _in_chunks(
    console: Console,
    model: OpenedModel,
    n: int,
    target: Path,
    dask: str | None,
    chunk: int | None,
    seed: int,
    context: np.ndarray | None,
) -> None:
    """Draw and write samples chunk by chunk."""
    require_output(target, model.layout.data_shape)
    job = SampleJob(
        flow=model.flow,
        n=n,
        rows=rows_of_a_chunk(model.flow.event_shape) if chunk is None else chunk,
        seed=seed,
        context=None if context is None else tuple(map(float, context)),
    )

    def columns(drawn: Chunk) -> Chunk:
        samples = model.layout.to_data(drawn["value"])
        if target.suffix.lower() == ".zarr":
            return {**drawn, "value": samples}
        if model.names is None or target.suffix.lower() == ".npy":
            return {"value": samples}
        return dict(zip(model.names, np.ascontiguousarray(samples.T), strict=True))

    errors = compute_in_chunks(job, dask, target, columns, _errors, "samples")
    console.print(f"{n} samples of shape {model.layout.data_shape} in {target}", soft_wrap=True)
    _print_errors(console, np.max(errors, axis=0))


def _errors(drawn: Chunk) -> np.ndarray:
    """Return the largest errors of some samples: the estimate, the bound, and that of the way back."""
    return np.array([np.max(drawn[name]) for name in ("error_estimate", "error_bound", "round_trip")])


def _print_errors(console: Console, errors: np.ndarray) -> None:
    console.print(
        f"distance to the exact preimages: about {errors[0]:.1e}, certainly at most {errors[1]:.1e}; the flow takes "
        f"them back within {errors[2]:.1e}",
        soft_wrap=True,
    )


def _data_of(model: OpenedModel) -> np.ndarray | None:
    """Return samples of the data, which are drawn beside those of the flow, if the run knows them."""
    return None if model.config is None else model.test_set(0)


def _beside(path: Path, name: str) -> Path:
    return (path if path.is_dir() else path.parent) / name
