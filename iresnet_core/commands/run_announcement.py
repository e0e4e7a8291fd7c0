"""What `iresnet train` says of a run before it begins: data, model, training, and the unit of its scores."""

from rich.console import Console

from iresnet_core.training import Dataset, RunConfig, TrainingRun, share_at_ends

__all__ = ["announce"]


def announce(console: Console, config: RunConfig, dataset: Dataset, run: TrainingRun) -> None:
    """Print what a training is about to do, or to go on with."""
    model, training = config.settings.model, config.settings.training
    shape = " x ".join(map(str, dataset.event_shape))
    console.print(
        f"{dataset.name}: {dataset.train_count} samples of shape {shape} to train on, {len(dataset.validation)} to "
        f"validate, {len(dataset.test)} to test",
        soft_wrap=True,
    )
    for note in dataset.notes:
        console.print(note, soft_wrap=True)
    if dataset.condition is not None:
        kinds = [f"{len(own)} labels" if own else "numbers" for own in dataset.condition.labels]
        console.print(f"under conditions, columns {config.settings.data.condition}: {', '.join(kinds)}", soft_wrap=True)
    length = f"{training.steps} steps" if training.steps is not None else f"{training.minutes:g} minutes"
    console.print(
        f"{model.kind}, {model.blocks} blocks of {model.layers} x {model.hidden} {model.activation}, cap "
        f"{model.coeff:g}; {training.framework}, {length} of {training.batch}, "
        f"{training.optimizer.capitalize()}, learning rate {training.lr:g}"
        f"{'' if training.precision == 'float32' else f', products in {training.precision}'}",
        soft_wrap=True,
    )
    if model.base != "normal":
        console.print(f"the latents have the density {model.base}, whose parameters are trained", soft_wrap=True)
    if model.alpha is not None:
        console.print(
            f"logit with alpha {model.alpha:.3g} in front: {share_at_ends(dataset):.0%} of the pixels are black or "
            "white; by default it is a tenth of a level where more than half are, else 0.05",
            soft_wrap=True,
        )
    if config.levels is None:
        console.print("log-density: mean of log p(x) over samples x, in nats; more is better", soft_wrap=True)
    else:
        console.print(
            f"bits per dimension: mean of -log2 p(x) / dimensions, for {config.levels} grey levels; fewer is better",
            soft_wrap=True,
        )
    going_on = " (going on from its checkpoint)" if run.checkpoint_path.exists() else ""
    console.print(f"run folder: {run.folder}{going_on}", soft_wrap=True)
