"""What a run of `iresnet reproduce` was asked for, and the command that asks for it again."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from iresnet_core.errors import InvalidArgumentError

__all__ = ["Request"]


def _silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Request:
    """The options of one run.

    Attributes
    ----------
    out : Path
        The run folder, which holds the finished cells, the record and the pictures.
    seconds : float or None
        Training time of every model; None for the default of the target.
    seed : int
        Seed of data, models and trainings.
    data, models : tuple of str
        Which data sets and which models; empty for all of the target.
    paper : bool
        Whether the sizes are those of the paper instead of those that two cores finish.
    device : str or None
        Device of the trainings, such as "cpu" or "cuda"; None for that of the target, which is the CPU in table 2.
    say : callable
        Takes one line of progress.
    """

    out: Path
    seconds: float | None = None
    seed: int = 0
    data: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    paper: bool = False
    device: str | None = None
    say: Callable[[str], None] = _silent

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise InvalidArgumentError(f"seconds must be a positive number, got {self.seconds:g}.")
        if not 0 <= self.seed < 2**63:
            raise InvalidArgumentError(f"seed {self.seed}: a seed must not be negative, and be below 2^63.")

    @property
    def of_gpu(self) -> dict[str, str]:
        """Settings of ours with --paper on a GPU that is named: products in TF32."""
        gpu = self.paper and (self.device or "cpu").startswith("cuda")
        return {"precision": "tf32"} if gpu else {}

    def require_unset(self, *names: str) -> None:
        """Refuse options that a target has no use for.

        Raises
        ------
        InvalidArgumentError
            If one of them is given.
        """
        for name in names:
            if getattr(self, name):
                raise InvalidArgumentError(f"--{name} has no meaning for this target; leave it out.")

    def command(self, target: str) -> str:
        """Return the command that makes this run again."""
        parts = ["iresnet", "reproduce", target]
        if self.seconds is not None:
            parts += ["--seconds", f"{self.seconds:g}"]
        if self.seed:
            parts += ["--seed", str(self.seed)]
        for name in ("data", "models"):
            if getattr(self, name):
                parts += [f"--{name}", ",".join(getattr(self, name))]
        if self.paper:
            parts.append("--paper")
        if self.device is not None:
            parts += ["--device", self.device]
        return shlex.join(parts)

    def chosen(self, what: str, known: Sequence[str]) -> tuple[str, ...]:
        """Return the data sets or the models (`what` is "data" or "models") of a target that are to be run.

        Raises
        ------
        InvalidArgumentError
            If the target does not have one of them.
        """
        asked: tuple[str, ...] = getattr(self, what)
        for name in asked:
            if name not in known:
                raise InvalidArgumentError(
                    f"--{what} {name}: there is none of that name here; choose from {', '.join(known)}."
                )
        return tuple(dict.fromkeys(asked)) or tuple(known)
