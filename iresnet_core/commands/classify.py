"""The command `iresnet classify`: a classifier is trained in a run folder as a flow is, and scored."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from iresnet_core.classification import (
    PRECISIONS,
    ClassifierConfig,
    ClassifierRun,
    as_result,
    begun,
    find_classifier_trainer,
    resumed,
    score_classifier,
    score_inverse,
    train_classifier,
)
from iresnet_core.commands import INTERRUPTED
from iresnet_core.commands.joint_training import begun_together, follow, follow_classifier
from iresnet_core.commands.terminal import FAILED, progress_bar, usage_errors, wide_console
from iresnet_core.commands.training_display import ClassifierDisplay
from iresnet_core.commands.training_options import chosen_folder
from iresnet_core.commands.training_options import data_option as _data
from iresnet_core.commands.training_options import model_option as _model
from iresnet_core.commands.training_options import run_option as _run
from iresnet_core.commands.training_options import training_option as _training
from iresnet_core.errors import DataFileError, InvalidArgumentError, IResNetError, MissingDependencyError, RunError
from iresnet_core.training import (
    IMAGES,
    LabelledDataset,
    Outcome,
    Processes,
    has_tensorboard,
    joined_processes,
    require_share,
)

__all__ = ["classify_command"]


def classify_command(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help=f"{', '.join(IMAGES)}, or a .npz file with images and labels.")
    ] = None,
    out: Annotated[Path | None, _run("--out", metavar="RUN", help="Run folder; default runs/DATA-classifier.")] = None,
    resume: Annotated[Path | None, _run("--resume", metavar="RUN", help="Go on with this run.")] = None,
    framework: Annotated[str | None, _training("--framework", metavar="NAME", help="torch.")] = None,
    widths: Annotated[
        str | None,
        _model("--widths", metavar="N,N", help="Hidden channels of the blocks of each stage, as 16,16,32."),
    ] = None,
    blocks: Annotated[str | None, _model("--blocks", metavar="N,N", help="Blocks of each stage, as 0,2,2.")] = None,
    padding: Annotated[int | None, _model("--padding", help="Zero channels appended to the images (3).")] = None,
    coeff: Annotated[float | None, _model("--coeff", help="Cap on the Lipschitz constant of a block (0.9).")] = None,
    vanilla: Annotated[
        bool | None, _model("--vanilla", help="Blocks without a cap, to compare with: they have no inverse.")
    ] = None,
    activation: Annotated[str | None, _model("--activation", help="Such as elu (default), lipswish or sin.")] = None,
    steps: Annotated[int | None, _training("--steps", help="Length of the training in steps (2000).")] = None,
    epochs: Annotated[float | None, _training("--epochs", help="Length in passes over the data.")] = None,
    minutes: Annotated[float | None, _training("--minutes", help="Length in minutes.")] = None,
    batch: Annotated[int | None, _training("--batch", help="Images in each step (128).")] = None,
    lr: Annotated[float | None, _training("--lr", help="Learning rate (0.1).")] = None,
    schedule: Annotated[str | None, _training("--schedule", help="cosine (default), step or constant.")] = None,
    warm_up: Annotated[
        int | None,
        _training("--warm-up", metavar="N", help="Steps over which the rate grows from zero (50, at most a tenth)."),
    ] = None,
    momentum: Annotated[float | None, _training("--momentum", help="Momentum of the gradient (0.9).")] = None,
    nesterov: Annotated[bool | None, _training("--nesterov/--no-nesterov", help="Nesterov's momentum (yes).")] = None,
    weight_decay: Annotated[float | None, _training("--weight-decay", help="Weight decay (5e-4).")] = None,
    clip: Annotated[float | None, _training("--clip", help="Longer gradients are shortened to this norm (5).")] = None,
    crop: Annotated[
        int | None,
        _training("--crop", metavar="N", help="Images are moved by up to so many pixels (by their size)."),
    ] = None,
    flip: Annotated[
        bool | None,
        _training("--flip/--no-flip", help="Images are mirrored at random (those of several channels)."),
    ] = None,
    precision: Annotated[
        str | None, _training("--precision", help=f"Of the convolutions in training: {', '.join(PRECISIONS)}.")
    ] = None,
    device: Annotated[str | None, _training("--device", help="Such as cpu or cuda:0; default the GPU if any.")] = None,
    threads: Annotated[int | None, _training("--threads", metavar="N", help="Threads on the CPU.")] = None,
    seed: Annotated[int | None, _training("--seed", help="Seed of everything (0).")] = None,
    evaluate_every: Annotated[
        int | None, _run("--evaluate-every", metavar="N", help="Steps between evaluations.")
    ] = None,
    checkpoint_every: Annotated[
        int | None, _run("--checkpoint-every", metavar="N", help="Steps between checkpoints (500).")
    ] = None,
    evaluation_samples: Annotated[
        int | None, _run("--evaluation-samples", metavar="N", help="Images in an evaluation (2000).")
    ] = None,
    invert: Annotated[
        bool | None,
        _run("--invert/--no-invert", help="Invert the features on the whole test set (yes, where blocks have a cap)."),
    ] = None,
    samples: Annotated[int | None, _data("--samples", metavar="N", help="How many images to use.")] = None,
    file: Annotated[
        str | None, _data("--file", metavar="PATH", help="The file mnist.npz, or the archive or folder of CIFAR.")
    ] = None,
    key: Annotated[
        str | None, _data("--key", metavar="NAME", help="The array of the images in a .npz file (x).")
    ] = None,
    label_key: Annotated[
        str | None,
        _data("--label-key", metavar="NAME", help="The array of the labels (y); for cifar100 fine or coarse."),
    ] = None,
    levels: Annotated[
        int | None, _data("--levels", metavar="N", help="Number of grey levels in a file of whole numbers.")
    ] = None,
    tensorboard: Annotated[
        bool | None,
        _run("--tensorboard/--no-tensorboard", help="Log for TensorBoard; default where that is installed."),
    ] = None,
) -> None:
    """Train an invertible classifier on images with labels.

    The run folder holds the classifier with the best validation, checkpoints, and the log. Ctrl-C ends the training
    with a checkpoint; the same command, or --resume RUN, goes on from there as if it had not been interrupted.
    """
    asked: dict[str, Any] = {
        "padding": padding,
        "coeff": coeff,
        "activation": activation,
        "framework": framework,
        "steps": steps,
        "epochs": epochs,
        "minutes": minutes,
        "batch": batch,
        "lr": lr,
        "schedule": schedule,
        "warm_up": warm_up,
        "momentum": momentum,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
        "clip": clip,
        "crop": crop,
        "flip": flip,
        "precision": precision,
        "device": device,
        "threads": threads,
        "seed": seed,
        "evaluate_every": evaluate_every,
        "checkpoint_every": checkpoint_every,
        "evaluation_samples": evaluation_samples,
    }
    of_data = {"samples": samples, "file": file, "key": key, "label_key": label_key, "levels": levels}
    of_data = {name: value for name, value in of_data.items() if value is not None}
    with usage_errors(), ExitStack() as held:
        processes = held.enter_context(joined_processes())
        if processes.rank:
            follow(processes, follow_classifier)
            return
        began = held.enter_context(begun_together(processes))
        asked["widths"], asked["blocks"] = _numbers("--widths", widths), _numbers("--blocks", blocks)
        asked["network"] = "vanilla" if vanilla else None
        asked = {name: value for name, value in asked.items() if value is not None}
        if framework is not None:
            find_classifier_trainer(framework)
        question = f"classify what? {', '.join(IMAGES)}, or a .npz file; or --resume RUN."
        run = ClassifierRun(chosen_folder(data, out, resume, suffix="-classifier", question=question))
        if run.exists():
            held.enter_context(run.locked())
            config, dataset = resumed(run, data, asked, of_data)
        else:
            if resume is not None:
                ClassifierRun.open(resume)
            config, dataset = begun(data or "", asked, of_data)
        capped = config.settings.model.coeff is not None
        if invert and not capped:
            raise InvalidArgumentError("blocks without a cap have no certified inverse; leave out --invert.")
        require_share(processes, config.settings.training.batch)
        if tensorboard and not has_tensorboard():
            raise MissingDependencyError("--tensorboard needs tensorboard. Try: pip install tensorboard")
        if not run.exists():
            run = ClassifierRun.create(run.folder, config)
            held.enter_context(run.locked())
        inverts = capped and invert is not False
        logged = has_tensorboard() if tensorboard is None else tensorboard
        began(run, config, inverts)
        _train(wide_console(), run, config, dataset, processes, tensorboard=logged, invert=inverts)


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgumentError(f"{option} takes whole numbers with commas between them, got {text!r}.") from None


def _train(
    console: Console,
    run: ClassifierRun,
    config: ClassifierConfig,
    dataset: LabelledDataset,
    processes: Processes,
    *,
    tensorboard: bool,
    invert: bool,
) -> None:
    """Train in a folder that is locked, and score what came out of it."""
    _announce(console, run, config, dataset)
    again = f"Resume: iresnet classify --resume {run.folder}"
    try:
        with ClassifierDisplay(config, console) as display:
            outcome, trainer = train_classifier(
                run, config, dataset, display, tensorboard=tensorboard, processes=processes
            )
        if not outcome.finished:
            when = f"at step {outcome.step}; everything is saved" if outcome.step else "before the first step"
            console.print(f"Interrupted {when}. {again}", style="yellow", soft_wrap=True)
            raise typer.Exit(INTERRUPTED)
        trainer.load_exported(run.model_path)
        found = score_classifier(trainer, config, dataset, processes)
        inverse = None
        if invert:
            with progress_bar() as told:
                inverse = score_inverse(trainer, config, dataset, _of_inverse(told), processes)
    except KeyboardInterrupt:
        console.print(f"Ended at once; the last checkpoint stays. {again}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    except (RunError, DataFileError):  # the user can mend what is in the folder and in the data
        raise
    except IResNetError as error:
        print(f"iresnet: {error}", file=sys.stderr)
        raise typer.Exit(FAILED) from error
    result = {
        **as_result(found, inverse),
        "lipschitz": trainer.lipschitz(),
        "parameters": trainer.parameter_count(),
        "step": outcome.best_step,
        "steps": outcome.step,
        "seconds": round(outcome.seconds, 2),
    }
    run.write_result(result)
    _print_result(console, outcome, result)


def _of_inverse(told: Callable[[int, int, str], None]) -> Callable[[int, int], None]:
    return lambda done, total: told(done, total, "inverse of the test set")


def _announce(console: Console, run: ClassifierRun, config: ClassifierConfig, dataset: LabelledDataset) -> None:
    model, training, images = config.settings.model, config.settings.training, dataset.images
    shape = " x ".join(map(str, config.input_shape))
    console.print(
        f"{images.name}: {len(images.train)} images of shape {shape} in {len(config.classes)} classes to train on, "
        f"{len(images.validation)} to validate, {len(images.test)} to test",
        soft_wrap=True,
    )
    cap = "without a cap, for comparison" if model.coeff is None else f"cap {model.coeff:g}"
    blocks, widths = (",".join(map(str, numbers)) for numbers in (model.blocks, model.widths))
    length = f"{training.steps} steps" if training.steps is not None else f"{training.minutes:g} minutes"
    console.print(
        f"{model.network}, blocks {blocks} of widths {widths}, {model.padding} channels of padding, {cap}; "
        f"{training.framework}, {length} of {training.batch}, learning rate {training.lr:g}, {training.precision}",
        soft_wrap=True,
    )
    going_on = " (going on from its checkpoint)" if run.checkpoint_path.exists() else ""
    console.print(f"run folder: {run.folder}{going_on}", soft_wrap=True)


def _print_result(console: Console, outcome: Outcome, result: dict[str, Any]) -> None:
    console.print(
        f"Done: {outcome.step} steps in {outcome.seconds:.0f} s, best validation at step {outcome.best_step}."
    )
    constant = result["lipschitz"]
    console.print(
        f"test error {result['error']:.2%} ± {result['error_std']:.2%} ({result['samples']} images), cross-entropy "
        f"{result['cross_entropy']:.4f} ± {result['cross_entropy_std']:.4f} nats"
        + ("" if constant is None else f", largest constant of a block {constant:.4f}"),
        style="bold green",
        soft_wrap=True,
    )
    if "inverted" in result:
        within = "every image is" if result["within_bound"] else "NOT every image is"
        console.print(
            f"inverse on the {result['inverted']} images of the test set: largest distance to the image "
            f"{result['inverse_error']:.1e}, largest certified bound {result['inverse_bound']:.1e}, {within} within "
            f"its bound; {result['mean_iterations']:.0f} iterations of the solver on average, "
            f"{result['iterations']} at most",
            soft_wrap=True,
        )
