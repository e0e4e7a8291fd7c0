"""The commands `iresnet sample`, `score`, `plot` and `info`: what one does with a model file or a run.

They need no framework: the model is loaded into the core, on NumPy unless another backend is asked for.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from iresnet_core.backends import backend as find_backend
from iresnet_core.commands.model_summary import largest_constant, summary_rows
from iresnet_core.commands.terminal import one_thread, progress_bar, usage_errors, wide_console
from iresnet_core.errors import DataFileError, InvalidArgumentError, RunError, ShapeError
from iresnet_core.files import SUFFIXES, load, write_array, write_text
from iresnet_core.flows import Flow
from iresnet_core.training import (
    Dataset,
    MeanScore,
    RunConfig,
    SampleLayout,
    Scores,
    TrainingRun,
    bits_per_dim,
    dequantized,
    draw_samples,
    load_dataset,
    mean_score,
    model_file,
    samples_from_file,
    scores,
)

__all__ = ["info_command", "plot_command", "sample_command", "score_command"]

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or a model file.", show_default=False)]
BackendOption = Annotated[str, typer.Option("--backend", metavar="NAME", help="Backend that computes.")]
DtypeOption = Annotated[
    str, typer.Option("--dtype", metavar="DTYPE", help="float64 or float32, whatever the model was trained in.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0)]


@dataclass(frozen=True)
class _Model:
    """A flow with what its run says about its data."""

    flow: Flow
    layout: SampleLayout
    levels: int | None
    run: TrainingRun | None
    config: RunConfig | None

    @property
    def size(self) -> int:
        return math.prod(self.layout.data_shape)


@contextmanager
def _opened(path: Path, backend: str, dtype: str) -> Iterator[_Model]:
    """Load a model in the dtype asked for; inside, that dtype exists on the computing."""
    if dtype not in ("float64", "float32"):
        raise InvalidArgumentError(f"dtype must be float64 or float32, got {dtype!r}.")
    computing = find_backend(backend)
    with computing.full_precision() if dtype == "float64" else nullcontext(), one_thread():
        flow = load(model_file(path), backend=backend)
        if not isinstance(flow, Flow):
            raise RunError(f"{path} holds a {type(flow).__name__}; a flow is needed to score and to sample.")
        if flow.arrays:
            flow = flow.astype(getattr(computing.xp, dtype))
        if path.is_dir():
            run = TrainingRun.open(path)
            config = run.read_config()
            if config.layout.model_shape != flow.event_shape:
                raise RunError(
                    f"{run.model_path} takes samples of shape {flow.event_shape}, the run's are "
                    f"{config.layout.model_shape}: it is the model of another run."
                )
            yield _Model(flow, config.layout, config.levels, run, config)
        else:
            yield _Model(flow, SampleLayout(flow.event_shape, flow.event_shape), None, None, None)


def sample_command(
    run: RunArgument,
    n: Annotated[int, typer.Option("-n", help="How many.", min=1)] = 1000,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Default samples.npy in RUN.", show_default=False)
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="PNG", help="Draw them too.", show_default=False)
    ] = None,
    seed: SeedOption = 0,
    backend: BackendOption = "numpy",
    dtype: DtypeOption = "float64",
) -> None:
    """Draw samples from a trained flow and write them to a .npy, .npz or .csv file.

    Every sample comes with a certified bound on its distance to the exact preimage of its latent; the largest is
    printed.
    """
    console = wide_console()
    with usage_errors(), _opened(run, backend, dtype) as model:
        target = out if out is not None else _beside(run, "samples.npy")
        _require_file(target, SUFFIXES)
        with progress_bar() as progress:
            drawn = draw_samples(
                model.flow, n, seed=seed, progress=lambda done, total: progress(done, total, "samples")
            )
        samples = model.layout.to_data(drawn.value)
        write_array(target, samples)
        console.print(f"{n} samples of shape {samples.shape[1:]} in {target}", soft_wrap=True)
        console.print(
            f"distance to the exact preimages: at most {np.max(drawn.error_bound):.1e}, certified; the flow takes them "
            f"back within {np.max(drawn.round_trip):.1e}",
            soft_wrap=True,
        )
        if picture is not None:
            _require_file(picture, (".png",))
            from iresnet_core.commands.flow_plots import write_png
            from iresnet_core.commands.plots_of_a_run import samples_figure

            write_png(samples_figure(samples, _data_of(model)), picture)
            console.print(f"picture: {picture}", soft_wrap=True)


def score_command(
    run: RunArgument,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help=".npy, .npz or .csv; default the test set of the run.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write a row a sample: .csv or .json.", show_default=False),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="NAME", help="Which array of a .npz file.", show_default=False)
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
    """Print the mean log-density of samples with its errors, and write that of each sample.

    Grey levels are dequantised with uniform noise; their score is also given in bits per dimension.
    """
    console = wide_console()
    with usage_errors(), _opened(run, backend, dtype) as model:
        if out is not None:
            _require_file(out, (".csv", ".json"))
        x, levels, name = _samples_to_score(model, file, key, seed)
        with progress_bar() as progress:
            found = scores(
                model.flow,
                x,
                seed=seed,
                progress=lambda done, total: progress(done, total, "log-densities"),
                method=method,
                tol=tol,
            )
        mean = mean_score(found)
        console.print(f"{mean.n} samples: {name}", soft_wrap=True)
        _print_mean(console, mean, found.method, levels, model.size)
        if out is not None:
            _write_scores(out, found, mean, levels, model.size)
            console.print(f"scores: {out}", soft_wrap=True)


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
    with usage_errors(), _opened(run, backend, "float64") as model:
        if model.run is None or model.config is None:
            raise RunError(f"{run} is a model file; plot needs a run folder, which knows the data.")
        folder = out if out is not None else run / "plots"
        folder.mkdir(parents=True, exist_ok=True)
        data = _ready(_dataset(model.config).test, model.levels, seed)
        with progress_bar() as progress:
            written = draw_pictures(
                model.flow,
                data,
                folder,
                layout=model.layout,
                seed=seed,
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


def info_command(
    path: Annotated[Path, typer.Argument(metavar="FILE|RUN", help="Model file or run folder.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print layers, shapes, parameters and certified Lipschitz constants of a model, and how it was trained."""
    console = wide_console()
    with usage_errors(), one_thread():
        model = load(model_file(path))
        run = TrainingRun.open(path) if path.is_dir() else None
        try:
            rows = summary_rows(model)
        except AttributeError:
            raise RunError(f"{path} holds a {type(model).__name__}, which has no shapes outside a flow.") from None
        config = None if run is None else run.read_config()
        result = None if run is None else run.read_result()
        if as_json:
            node = {
                "model": type(model).__name__,
                "layers": [dataclasses.asdict(row) for row in rows],
                "parameters": sum(row.parameters for row in rows if row.depth == 0),
                "largest_constant": largest_constant(rows),
                "settings": None if config is None else config.settings.as_json(),
                "result": result,
            }
            print(json.dumps(node, indent=1))
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("layer", "shape", "parameters", "constant", "certificate"):
            table.add_column(
                heading, justify="right" if heading in ("parameters", "constant") else "left", no_wrap=True
            )
        for row in rows:
            shape = _shape(row.input_shape)
            if row.output_shape != row.input_shape:
                shape += f" -> {_shape(row.output_shape)}"
            inside = row.depth > 0
            table.add_row(
                Text("  " * row.depth + row.name, style="dim" if inside and row.parameters == 0 else ""),
                shape,
                f"{row.parameters:,}" if row.parameters else "",
                "" if row.lipschitz is None else f"{row.lipschitz:.6f}",
                row.certificate,
            )
        console.print(table)
        console.print()
        _print_facts(console, model, rows, run, config, result)


def _print_facts(console: Console, model: Any, rows: Any, run: Any, config: RunConfig | None, result: Any) -> None:
    facts = {"parameters": f"{sum(row.parameters for row in rows if row.depth == 0):,}"}
    if model.arrays:
        facts["dtype"] = str(model.arrays[0].dtype)
    constant = largest_constant(rows)
    if constant is not None:
        facts["largest constant"] = f"{constant:.6f}"
    if config is not None:
        settings = config.settings
        facts["data"] = f"{config.data_name} of shape {_shape(config.layout.data_shape)}"
        if config.levels is not None:
            facts["data"] += f", {config.levels} levels"
        facts["trained with"] = f"{settings.training.framework}, seed {settings.training.seed}"
        log = run.read_log()
        if log:
            best = min(log, key=lambda row: row["validation_nats"] or math.inf)
            facts["steps"] = f"{log[-1]['step']:.0f} in {log[-1]['seconds']:.0f} s; exported at {best['step']:.0f}"
            facts["validation"] = f"{-best['validation_nats']:.4f} ± {best['validation_error']:.4f} nats"
    if result is not None:
        facts["test"] = f"{result['log_prob']:.4f} ± {result['sampling_error']:.4f} nats"
        if "bits_per_dim" in result:
            facts["test"] += f", {result['bits_per_dim']:.4f} bits per dimension"
    width = max(map(len, facts))
    for name, fact in facts.items():
        console.print(f"{name:<{width}}  {fact}", soft_wrap=True)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


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


def _write_scores(out: Path, found: Scores, mean: MeanScore, levels: int | None, size: int) -> None:
    columns: dict[str, Any] = {
        "log_prob": found.log_prob.tolist(),
        "std_error": found.std_error.tolist(),
        "bias_bound": found.bias_bound.tolist(),
    }
    if levels is not None:
        columns["bits_per_dim"] = [bits_per_dim(-value, levels, size) for value in found.log_prob]
    if out.suffix.lower() == ".json":
        node = {"mean": mean._asdict(), "method": found.method, **columns}
        write_text(out, json.dumps(node, indent=1, allow_nan=False) + "\n")
        return
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["sample", *columns])
    writer.writerows([k, *row] for k, row in enumerate(zip(*columns.values(), strict=True)))
    write_text(out, text.getvalue())


def _samples_to_score(
    model: _Model, file: Path | None, key: str | None, seed: int
) -> tuple[np.ndarray, int | None, str]:
    """Samples as the model takes them, their grey levels, and what they are."""
    if file is None:
        if model.config is None:
            raise InvalidArgumentError("a model file has no test set; give a FILE of samples.")
        test = _dataset(model.config).test
        name = f"test set of {model.config.data_name}"
        return model.layout.to_model(_ready(test, model.levels, seed)), model.levels, name
    samples, own = samples_from_file(file, key=key)
    levels = model.levels
    if levels is not None:
        whole = own is not None or np.array_equal(samples, np.floor(samples))
        if whole:
            if samples.min() < 0 or samples.max() >= levels:
                raise DataFileError(
                    f"{file} holds levels from {samples.min():g} to {samples.max():g}; the model was trained on 0 to "
                    f"{levels - 1}."
                )
            samples = _ready(samples, levels, seed)
    elif own is not None and model.config is None:
        raise DataFileError(
            f"{file} holds grey levels, and a model file does not say how they were scaled. Give the run folder, or "
            "floating-point samples as the model takes them."
        )
    if tuple(samples.shape[1:]) == model.layout.model_shape:
        return np.asarray(samples, dtype=np.float64), levels, str(file)
    if tuple(samples.shape[1:]) != model.layout.data_shape:
        raise ShapeError(
            f"{file} holds samples of shape {tuple(samples.shape[1:])}; the model takes {model.layout.data_shape}."
        )
    return model.layout.to_model(samples), levels, str(file)


def _ready(x: np.ndarray, levels: int | None, seed: int) -> np.ndarray:
    return dequantized(x, levels, np.random.default_rng([seed, 5]))


def _dataset(config: RunConfig) -> Dataset:
    return load_dataset(config.settings.data)


def _data_of(model: _Model) -> np.ndarray | None:
    """Samples of the data to stand beside those of the flow, if the run knows them."""
    return None if model.config is None else _ready(_dataset(model.config).test, model.levels, 0)


def _beside(path: Path, name: str) -> Path:
    return (path if path.is_dir() else path.parent) / name


def _require_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Fail before the work, not after it."""
    if path.suffix.lower() not in suffixes:
        raise InvalidArgumentError(f"{path}: the name must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise InvalidArgumentError(f"{path} is a folder, a file is needed.")
    path.parent.mkdir(parents=True, exist_ok=True)
