"""The command `iresnet info`: the layers of a model, and how it was trained."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from iresnet_core.commands.model_summary import SummaryRow, largest_constant, repeated, summary_rows
from iresnet_core.commands.terminal import one_thread, usage_errors, wide_console
from iresnet_core.errors import RunError
from iresnet_core.files import load
from iresnet_core.training import (
    RunConfig,
    TrainingRun,
    model_file,
)

__all__ = ["info_command"]


def info_command(
    path: Annotated[Path, typer.Argument(metavar="FILE|RUN", help="Model file or run folder.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    all_layers: Annotated[
        bool, typer.Option("--all", help="Every layer with what is inside, also where many are alike.")
    ] = False,
) -> None:
    """Print layers, shapes, parameters and certified Lipschitz constants of a model, and how it was trained.

    Layers that are alike stand once, with the largest of their constants.
    """
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
        if all_layers:
            for row in rows:
                _add(table, row, row.depth)
        else:
            for times, group in repeated(rows):
                if times > 1:
                    table.add_row(Text(f"{times} times", style="dim"), "", "", "", "")
                for row in group:
                    _add(table, row, row.depth + (times > 1))
        console.print(table)
        console.print()
        _print_facts(console, model, rows, run, config, result)


def _add(table: Table, row: SummaryRow, depth: int) -> None:
    shape = _shape(row.input_shape)
    if row.output_shape != row.input_shape:
        shape += f" -> {_shape(row.output_shape)}"
    table.add_row(
        Text("  " * depth + row.name, style="dim" if row.in_branch and row.parameters == 0 else ""),
        shape,
        f"{row.parameters:,}" if row.parameters else "",
        "" if row.lipschitz is None else f"{row.lipschitz:.6f}",
        row.certificate,
    )


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
            facts["logit"] = f"alpha {settings.model.alpha:.3g}"
        facts["trained with"] = f"{settings.training.framework}, seed {settings.training.seed}"
        log = run.read_log()
        if log:
            best = min(log, key=lambda row: row["validation_nats"] or math.inf)
            facts["steps"] = f"{log[-1]['step']:.0f} in {log[-1]['seconds']:.0f} s; exported at {best['step']:.0f}"
            facts["validation"] = f"{-best['validation_nats']:.4f} ± {best['validation_error']:.4f} nats"
    if result is not None:
        error = math.inf if result["sampling_error"] is None else result["sampling_error"]
        facts["test"] = f"{result['log_prob']:.4f} ± {error:.4f} nats"
        if "bits_per_dim" in result:
            facts["test"] += f", {result['bits_per_dim']:.4f} bits per dimension"
    width = max(map(len, facts))
    for name, fact in facts.items():
        console.print(f"{name:<{width}}  {fact}", soft_wrap=True)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
