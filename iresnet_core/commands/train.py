"""The command `iresnet train`: settings from options, a progress bar, and what to do next."""

import math
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from iresnet_core.commands import INTERRUPTED
from iresnet_core.commands.joint_training import begun_together, follow, follow_flow, score_of_test_set
from iresnet_core.commands.run_announcement import announce
from iresnet_core.commands.terminal import FAILED, usage_errors, wide_console
from iresnet_core.commands.training_display import TrainingDisplay
from iresnet_core.commands.training_options import chosen_folder
from iresnet_core.commands.training_options import data_option as _data
from iresnet_core.commands.training_options import model_option as _model
from iresnet_core.commands.training_options import run_option as _run
from iresnet_core.commands.training_options import training_option as _training
from iresnet_core.errors import DataFileError, InvalidArgumentError, IResNetError, MissingDependencyError, RunError
from iresnet_core.files import SUFFIXES
from iresnet_core.flows import BASE_NAMES
from iresnet_core.training import (
    IMAGES,
    Dataset,
    DatasetSource,
    LayerPlan,
    Outcome,
    Processes,
    RunConfig,
    SampleLayout,
    TrainingRun,
    bits_per_dim,
    default_settings,
    find_trainer,
    fingerprint,
    has_tensorboard,
    joined_processes,
    load_dataset,
    package_versions,
    planned_layers,
    planned_shape,
    require_able,
    require_same_source,
    toy_names,
    train,
    trainer_names,
    with_changes,
)

__all__ = ["train_command"]


def train_command(
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA", help=f"{', '.join((*toy_names(), *IMAGES))}, or a {' or '.join(SUFFIXES)} file."
        ),
    ] = None,
    out: Annotated[Path | None, _run("--out", metavar="RUN", help="Run folder; default runs/DATA.")] = None,
    resume: Annotated[Path | None, _run("--resume", metavar="RUN", help="Go on with this run.")] = None,
    framework: Annotated[
        str | None,
        _training("--framework", "--engine", metavar="NAME", help=f"{' or '.join(trainer_names())}; default torch."),
    ] = None,
    model: Annotated[str | None, _model("--model", metavar="KIND", help="mlp or conv; default by the data.")] = None,
    blocks: Annotated[int | None, _model("--blocks", help="Residual blocks (8; conv: 4 for each scale).")] = None,
    hidden: Annotated[int | None, _model("--hidden", help="Width of the hidden layers (64 or 128; conv: 32).")] = None,
    layers: Annotated[int | None, _model("--layers", help="Hidden layers in each block (2).")] = None,
    activation: Annotated[str | None, _model("--activation", help="Such as lipswish, elu or sin.")] = None,
    coeff: Annotated[float | None, _model("--coeff", help="Cap on the Lipschitz constant of a block (0.9).")] = None,
    alpha: Annotated[float | None, _model("--alpha", help="Parameter of the logit for images (0.05, or less).")] = None,
    activation_first: Annotated[
        bool | None,
        _model(
            "--activation-first/--no-activation-first",
            help="Begin a block with an activation; default for mlp on images.",
        ),
    ] = None,
    standardize: Annotated[
        bool | None,
        _model("--standardize/--no-standardize", help="Begin with a layer that standardizes the data (yes)."),
    ] = None,
    scales: Annotated[
        int | None, _model("--scales", metavar="N", help="Of conv: how often images are squeezed (2).")
    ] = None,
    squeeze: Annotated[
        str | None, _model("--squeeze", metavar="NAME", help="Of conv, 2 x 2 pixels as: haar (default), pixels.")
    ] = None,
    spread: Annotated[
        float | None,
        _model(
            "--spread", metavar="S", help="Deviation of what enters blocks, 0.1 to 10000 (1; in the plane 20; conv: 5)."
        ),
    ] = None,
    base: Annotated[
        str | None,
        _model("--base", metavar="NAME", help=f"Density of the latents: {', '.join(BASE_NAMES)}; default by the data."),
    ] = None,
    steps: Annotated[int | None, _training("--steps", help="Length of the training in steps (2000).")] = None,
    minutes: Annotated[float | None, _training("--minutes", help="Length in minutes instead of steps.")] = None,
    batch: Annotated[int | None, _training("--batch", help="Samples in each step (256; conv: 64).")] = None,
    lr: Annotated[float | None, _training("--lr", help="Learning rate (0.005; conv: 0.02).")] = None,
    optimizer: Annotated[
        str | None, _training("--optimizer", metavar="NAME", help="adam, or muon (the default of conv).")
    ] = None,
    schedule: Annotated[str | None, _training("--schedule", help="cosine (default) or constant.")] = None,
    start: Annotated[
        str | None,
        _training("--start", help="First weights: orthogonal, or uniform (below 10000 samples)."),
    ] = None,
    weight_decay: Annotated[
        float | None, _training("--weight-decay", help="Decoupled weight decay (2 below 10000 samples, else 0).")
    ] = None,
    clip: Annotated[float | None, _training("--clip", help="Longer gradients are shortened to this norm (10).")] = None,
    share: Annotated[
        float | None,
        _training("--share", help="Part of each batch that log-determinants are taken of (a quarter)."),
    ] = None,
    dtype: Annotated[str | None, _training("--dtype", help="float32 (default) or float64.")] = None,
    seed: Annotated[int | None, _training("--seed", help="Seed of everything (0).")] = None,
    evaluate_every: Annotated[
        int | None, _run("--evaluate-every", metavar="N", help="Steps between evaluations (100; conv: 250).")
    ] = None,
    checkpoint_every: Annotated[
        int | None, _run("--checkpoint-every", metavar="N", help="Steps between checkpoints (500).")
    ] = None,
    evaluation_samples: Annotated[
        int | None,
        _run("--evaluation-samples", metavar="N", help="Samples in an evaluation (1000)."),
    ] = None,
    recompute: Annotated[
        bool | None,
        _training("--recompute/--no-recompute", help="The same as --checkpoint input: less memory, more time."),
    ] = None,
    compiled: Annotated[
        bool | None,
        _training("--compile/--no-compile", help="Compile the blocks with PyTorch; Keras always compiles."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        _training("--checkpoint", help="What blocks keep for the gradient: all (default), input, or inverse."),
    ] = None,
    penalty: Annotated[
        float | None,
        _training("--penalty", help="Weight of the squared spectral norms in the loss (0)."),
    ] = None,
    ema: Annotated[
        float | None,
        _training("--ema", metavar="DECAY", help="Evaluate and export a moving average of the weights."),
    ] = None,
    threads: Annotated[
        int | None, _training("--threads", metavar="N", help="Threads on the CPU; default the framework's.")
    ] = None,
    warm_up: Annotated[
        int | None, _training("--warm-up", metavar="STEPS", help="Steps over which the learning rate rises (0).")
    ] = None,
    flip: Annotated[
        bool | None, _training("--flip/--no-flip", help="Mirror every image with a probability of a half (no).")
    ] = None,
    accumulate: Annotated[
        int | None,
        _training("--accumulate", metavar="N", help="Take every batch in N parts, for less memory (1)."),
    ] = None,
    precision: Annotated[
        str | None,
        _training("--precision", help="Of products in training: float32 (default), tf32 on a GPU, bfloat16 on a CPU."),
    ] = None,
    device: Annotated[
        str | None,
        _training("--device", metavar="NAME", help="Of PyTorch: cpu, cuda or cuda:1; default a GPU if any."),
    ] = None,
    devices: Annotated[
        int | None,
        _training("--devices", metavar="N", help="With Keras: devices of this machine that share out a batch (1)."),
    ] = None,
    samples: Annotated[int | None, _data("--samples", metavar="N", help="How much data to draw or to use.")] = None,
    file: Annotated[
        str | None, _data("--file", metavar="FILE", help="The file mnist.npz, or the archive or folder of CIFAR.")
    ] = None,
    key: Annotated[str | None, _data("--key", metavar="NAME", help="Which array of a .npz or .zarr file.")] = None,
    levels: Annotated[
        int | None, _data("--levels", metavar="N", help="Number of grey levels in a file of whole numbers.")
    ] = None,
    condition: Annotated[
        str | None,
        _data("--condition", metavar="COLUMNS", help="Columns of a table that are conditions, as age,3."),
    ] = None,
    labels: Annotated[
        str | None, _data("--labels", metavar="COLUMNS", help="Conditions that hold labels, which enter one-hot.")
    ] = None,
    drop: Annotated[str | None, _data("--drop", metavar="COLUMNS", help="Columns to leave out, as id,3.")] = None,
    missing: Annotated[
        str | None, _data("--missing", metavar="HOW", help="Rows with missing values: drop, or impute medians.")
    ] = None,
    memory: Annotated[
        int | None,
        _data("--memory", metavar="MIB", help="Read FILE in shuffled blocks, so much at once (all; large files 1024)."),
    ] = None,
    tensorboard: Annotated[
        bool | None,
        _run("--tensorboard/--no-tensorboard", help="Log for TensorBoard; default where that is installed."),
    ] = None,
) -> None:
    """Train a flow by maximum likelihood.

    The run folder holds the model with the best validation, checkpoints, and the log. Ctrl-C ends the training with a
    checkpoint; the same command, or --resume RUN, goes on from there as if it had not been interrupted.
    """
    asked = {
        "kind": model,
        "blocks": blocks,
        "hidden": hidden,
        "layers": layers,
        "activation": activation,
        "coeff": coeff,
        "alpha": alpha,
        "standardize": standardize,
        "activation_first": activation_first,
        "framework": framework,
        "steps": steps,
        "minutes": minutes,
        "batch": batch,
        "lr": lr,
        "optimizer": optimizer,
        "schedule": schedule,
        "start": start,
        "weight_decay": weight_decay,
        "clip": clip,
        "share": share,
        "dtype": dtype,
        "seed": seed,
        "evaluate_every": evaluate_every,
        "checkpoint_every": checkpoint_every,
        "evaluation_samples": evaluation_samples,
        "compiled": compiled,
        "penalty": penalty,
        "ema": ema,
        "threads": threads,
        "scales": scales,
        "squeeze": squeeze,
        "spread": spread,
        "base": base,
        "warm_up": warm_up,
        "flip": flip,
        "accumulate": accumulate,
        "precision": precision,
        "device": device,
        "devices": devices,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    of_data = {"samples": samples, "file": file, "key": key, "levels": levels, "condition": condition, "labels": labels}
    of_data |= {"drop": drop, "missing": missing, "memory": memory}
    of_data = {name: value for name, value in of_data.items() if value is not None}
    with usage_errors(), ExitStack() as held:
        processes = held.enter_context(joined_processes())
        if processes.rank:
            follow(processes, follow_flow)
            return
        began = held.enter_context(begun_together(processes))
        asked |= _kept_by_blocks(checkpoint, recompute)
        known = f"{', '.join((*toy_names(), *IMAGES))}, or a {' or '.join(SUFFIXES)} file"
        folder = chosen_folder(data, out, resume, suffix="", question=f"train on what? {known}; or --resume RUN.")
        run = TrainingRun(folder)
        if run.exists():
            held.enter_context(run.locked())
            config, dataset = _resumed(run, data, asked, of_data)
        else:
            if resume is not None:
                TrainingRun.open(resume)
            config, dataset = _begun(data or "", asked, of_data)
        _planned(config, dataset)  # fails where they do not fit
        trainer = find_trainer(config.settings.training.framework)
        require_able(trainer, config.settings.training, processes)
        if config.settings.training.recover and not trainer.recovers_inputs:
            raise InvalidArgumentError(
                f"--checkpoint inverse looks at every step whether the inputs were found, which the compiled steps of "
                f"{config.settings.training.framework} cannot. Try --checkpoint input, or another --framework."
            )
        if tensorboard and not has_tensorboard():
            raise MissingDependencyError("--tensorboard needs tensorboard. Try: pip install tensorboard")
        if tensorboard is None:
            tensorboard = has_tensorboard()
        if not run.exists():
            run = TrainingRun.create(folder, config)
            held.enter_context(run.locked())
        began(run, config)
        _train(wide_console(), run, config, dataset, tensorboard, processes)


def _train(
    console: Console,
    run: TrainingRun,
    config: RunConfig,
    dataset: Dataset,
    tensorboard: bool,
    processes: Processes,
) -> None:
    """Train in a folder that is locked, and score what came out of it."""
    announce(console, config, dataset, run)
    plan = _planned(config, dataset)
    try:
        with TrainingDisplay(config, console) as display:
            outcome = train(run, config, dataset, plan, display, tensorboard=tensorboard, processes=processes)
    except KeyboardInterrupt:
        console.print(
            f"Ended at once; the last checkpoint stays. Resume: iresnet train --resume {run.folder}", soft_wrap=True
        )
        raise typer.Exit(INTERRUPTED) from None
    except (RunError, DataFileError):  # the user can mend what is in the folder and in the data
        raise
    except IResNetError as error:
        print(f"iresnet: {error}", file=sys.stderr)
        raise typer.Exit(FAILED) from error
    if not outcome.finished:
        when = f"at step {outcome.step}; everything is saved" if outcome.step else "before the first step"
        console.print(
            f"Interrupted {when}. Resume: iresnet train --resume {run.folder}",
            style="yellow",
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED)
    _finish(console, run, config, dataset, outcome, processes)


def _kept_by_blocks(checkpoint: str | None, recompute: bool | None) -> dict[str, bool]:
    """Return the settings that `--checkpoint` stands for, and `--recompute`, its older form."""
    if recompute is not None:
        if checkpoint is not None:
            raise InvalidArgumentError("give either --checkpoint or --recompute, not both.")
        return {"recompute": recompute}
    if checkpoint is None:
        return {}
    if checkpoint not in ("all", "input", "inverse"):
        raise InvalidArgumentError(f"--checkpoint is all, input or inverse, got {checkpoint!r}.")
    return {"recompute": checkpoint == "input", "recover": checkpoint == "inverse"}


def _planned(config: RunConfig, dataset: Dataset) -> tuple[LayerPlan, ...]:
    context = None if dataset.condition is None else dataset.condition.width
    return planned_layers(config.settings.model, config.layout.data_shape, context)


def _begun(data: str, asked: Mapping[str, Any], of_data: Mapping[str, Any]) -> tuple[RunConfig, Dataset]:
    """Settings of a new run, and its data."""
    name = data if data in (*toy_names(), *IMAGES) else str(Path(data).absolute())
    if name != data and not Path(data).exists():
        name = data  # for the error, which names it as it was written
    source = DatasetSource(name, seed=asked.get("seed", 0), **of_data)
    dataset = load_dataset(source)
    settings = default_settings(source, dataset, asked.get("framework", "torch"), asked)
    trainer = find_trainer(settings.training.framework)
    shape = planned_shape(settings.model, dataset.event_shape)
    if len(shape) == 3 and trainer.channels_last:
        shape = (*shape[1:], shape[0])
    config = RunConfig(
        settings=settings,
        layout=SampleLayout(dataset.event_shape, shape),
        levels=dataset.levels,
        data_name=dataset.name,
        data_hash=fingerprint(dataset),
        versions=package_versions(("iresnet-core", "numpy", settings.training.framework)),
        columns=dataset.columns,
    )
    return config, dataset


def _resumed(
    run: TrainingRun, data: str | None, asked: Mapping[str, Any], of_data: Mapping[str, Any]
) -> tuple[RunConfig, Dataset]:
    """Settings of a run that goes on, and its data."""
    config = run.read_config()
    source = config.settings.data
    require_same_source(run.folder, source, data, of_data)
    settings = with_changes(config.settings, asked, str(run.folder))
    dataset = load_dataset(source)
    if fingerprint(dataset) != config.data_hash:
        raise RunError(f"the data in {source.name} are not those that {run.folder} was begun with.")
    if settings != config.settings:
        config = RunConfig(**{**vars(config), "settings": settings})
        run.write_config(config)
    return config, dataset


def _finish(
    console: Console,
    run: TrainingRun,
    config: RunConfig,
    dataset: Dataset,
    outcome: Outcome,
    processes: Processes,
) -> None:
    """Score the exported model on the test set, on NumPy as anybody else would, and write and print the result."""
    size = math.prod(dataset.event_shape)
    found = score_of_test_set(run, config, dataset, processes)
    result: dict[str, Any] = {
        "log_prob": found.mean,
        "sampling_error": found.sampling_error,
        "probe_error": found.probe_error,
        "bias_bound": found.bias_bound,
        "samples": found.n,
        "step": outcome.best_step,
        "steps": outcome.step,
        "seconds": round(outcome.seconds, 2),
    }
    if dataset.levels is not None:
        result["bits_per_dim"] = bits_per_dim(-found.mean, dataset.levels, size)
    run.write_result(result)
    console.print(
        f"Done: {outcome.step} steps in {outcome.seconds:.0f} s, best validation at step {outcome.best_step}."
    )
    bits = ""
    if dataset.levels is not None:
        error = found.sampling_error / (size * math.log(2))
        bits = f", {result['bits_per_dim']:.4f} ± {error:.4f} bits per dimension"
    console.print(
        f"test log-density {found.mean:.4f} ± {found.sampling_error:.4f} nats ({found.n} samples){bits}",
        style="bold green",
        soft_wrap=True,
    )
    console.print(
        f"Next: iresnet plot {run.folder}, iresnet sample {run.folder}, iresnet info {run.folder}", soft_wrap=True
    )
