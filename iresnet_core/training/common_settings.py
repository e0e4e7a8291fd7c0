"""What the settings of every training have in common, that of a flow and that of a classifier."""

from collections.abc import Collection
from typing import Any

from iresnet_core.errors import InvalidArgumentError

__all__ = ["require_training"]

_SEEDS = 2**63  # what all frameworks take
_LARGEST_RATE = 1e6  # far beyond all that trains, and within the range of every dtype


def require_training(settings: Any, schedules: Collection[str]) -> None:
    """Check what the settings of every training have, that of a flow and that of a classifier.

    Raises
    ------
    InvalidArgumentError
        If a count, the length, the rate, the decay, the schedule, the threads or the seed has no meaning.
    """
    for name in ("batch", "evaluate_every", "checkpoint_every", "evaluation_samples"):
        if getattr(settings, name) < 1:
            raise InvalidArgumentError(f"{name} must be at least 1, got {getattr(settings, name)}.")
    if settings.warm_up < 0:
        raise InvalidArgumentError(f"warm_up, a number of steps, must not be negative, got {settings.warm_up}.")
    for name in ("lr", "clip"):
        if not 0 < getattr(settings, name) < float("inf"):
            raise InvalidArgumentError(f"{name} must be a positive number, got {getattr(settings, name):g}.")
    if settings.lr > _LARGEST_RATE:
        raise InvalidArgumentError(f"lr must be at most {_LARGEST_RATE:g}, got {settings.lr:g}.")
    if not 0 <= settings.weight_decay < float("inf"):
        raise InvalidArgumentError(f"weight_decay must be a number of at least 0, got {settings.weight_decay:g}.")
    if settings.lr * settings.weight_decay > 1:
        raise InvalidArgumentError(
            f"lr {settings.lr:g} times weight_decay {settings.weight_decay:g} is above 1, and would turn the signs of "
            "weights at every step; lower one of them."
        )
    if (settings.steps is None) == (settings.minutes is None):
        raise InvalidArgumentError("give either steps or minutes.")
    if settings.steps is not None and settings.steps < 1:
        raise InvalidArgumentError(f"steps must be at least 1, got {settings.steps}.")
    if settings.minutes is not None and not 0 < settings.minutes < float("inf"):
        raise InvalidArgumentError(f"minutes must be a positive number, got {settings.minutes:g}.")
    if settings.schedule not in schedules:
        raise InvalidArgumentError(f"there is no schedule {settings.schedule!r}; there are {', '.join(schedules)}.")
    if settings.threads is not None and settings.threads < 1:
        raise InvalidArgumentError(f"threads must be at least 1, got {settings.threads}.")
    if not 0 <= settings.seed < _SEEDS:
        raise InvalidArgumentError(f"seed {settings.seed}: a seed must not be negative, and be below 2^63.")
