"""The command `iresnet sample`: samples of a trained flow, each with a certified bound on its error."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

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
    seed: SeedOption = 0,
    backend: BackendOption = "numpy",
    dtype: DtypeOption = "float64",
) -> None:
    """Draw samples from a trained flow and write them to a .npy, .npz, .csv or .parquet file.

    Every sample comes with a certified bound on its distance to the exact preimage of its latent; the largest is
    printed, after what the distance is to first order.
    """
    console = wide_console()
    with usage_errors(), opened(run, backend, dtype) as model:
        # A table becomes a table again, with the names of its columns.
        target = out if out is not None else _beside(run, "samples.npy" if model.names is None else "samples.csv")
        require_file(target, SUFFIXES)
        context = None if condition is None else condition_values(condition, model.flow.context_features)
        if context is None and model.flow.context_features is not None:
            raise InvalidArgumentError(
                f"this model is conditional: say under which condition to draw, --condition with "
                f"{model.flow.context_features} numbers."
            )
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
        console.print(
            f"distance to the exact preimages: about {np.max(drawn.error_estimate):.1e}, certainly at most "
            f"{np.max(drawn.error_bound):.1e}; the flow takes them back within {np.max(drawn.round_trip):.1e}",
            soft_wrap=True,
        )
        if picture is not None:
            require_file(picture, (".png",))
            from iresnet_core.commands.flow_plots import write_png
            from iresnet_core.commands.plots_of_a_run import samples_figure

            write_png(samples_figure(samples, _data_of(model), model.names), picture)
            console.print(f"picture: {picture}", soft_wrap=True)


def _data_of(model: OpenedModel) -> np.ndarray | None:
    """Return samples of the data, which are drawn beside those of the flow, if the run knows them."""
    return None if model.config is None else model.test_set(0)


def _beside(path: Path, name: str) -> Path:
    return (path if path.is_dir() else path.parent) / name
