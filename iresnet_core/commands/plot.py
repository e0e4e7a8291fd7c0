"""The command `iresnet plot`: the pictures of a run."""

import math
from pathlib import Path
from typing import Annotated

import typer

from iresnet_core.commands.opened_model import BackendOption, RunArgument, SeedOption, opened
from iresnet_core.commands.terminal import progress_bar, usage_errors, wide_console
from iresnet_core.errors import InvalidArgumentError, RunError

__all__ = ["plot_command"]


def plot_command(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Default the folder plots in RUN.", show_default=False)
    ] = None,
    seed: SeedOption = 0,
    backend: BackendOption = "numpy",
) -> None:
    """Draw what suits the data: density, samples, the transport of a grid, images, the course of the training."""
    from iresnet_core.commands.flow_plots import training_figure, write_png
    from iresnet_core.commands.plots_of_a_run import draw_pictures

    console = wide_console()
    with usage_errors(), opened(run, backend, "float64") as model:
        if model.run is None or model.config is None:
            raise RunError(f"{run} is a model file; plot needs a run folder, which knows the data.")
        if model.flow.context_features is not None:
            raise InvalidArgumentError(
                "plot draws one density, and this model has one for every condition: iresnet sample --condition VALUES "
                "--picture PNG draws samples under one."
            )
        folder = out if out is not None else run / "plots"
        folder.mkdir(parents=True, exist_ok=True)
        data = model.test_set(seed)
        with progress_bar() as progress:
            written = draw_pictures(
                model.flow,
                data,
                folder,
                layout=model.layout,
                seed=seed,
                names=model.names,
                told=lambda k, total, picture: progress(k, total, picture),
            )
        rows = model.run.read_log()
        if rows:
            unit = "nats" if model.levels is None else "bits_per_dim"
            coeff = model.config.settings.model.coeff
            best = min(rows, key=lambda row: row["validation_nats"] or math.inf)["step"]
            write_png(training_figure(rows, coeff, unit, best), folder / "training.png")
            written.append(folder / "training.png")
        for path in written:
            console.print(str(path), soft_wrap=True)
