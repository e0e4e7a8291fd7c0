"""The table of what can be reproduced: one row for each figure and table."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

from iresnet_core.errors import InvalidArgumentError
from iresnet_core.reproduction.record import Record, machine_name
from iresnet_core.reproduction.request import Request

__all__ = ["TARGETS", "find_target"]

# name -> (module of its function `reproduce`, one line), in the order of the page. A module is imported when it is run.
TARGETS: dict[str, tuple[str, str]] = {
    "figure1": (
        "iresnet_core.reproduction.figure1",
        "paths through a plain residual network, an i-ResNet and a neural ODE",
    ),
    "figure2": ("iresnet_core.reproduction.figure2", "densities of toy sets, ours and the comparators'"),
    "figure3": ("iresnet_core.reproduction.figure3", "reconstructions by the certified inverse, and samples of images"),
    "tables": ("iresnet_core.reproduction.tables", "densities of tables, ours and the comparators'"),
    "table1": (
        "iresnet_core.reproduction.table1",
        "classification errors over the cap, and the inverse",
    ),
    "table2": ("iresnet_core.reproduction.table2", "bits per dimension of images, ours and the comparators'"),
    "ablation": ("iresnet_core.reproduction.ablation", "training by the biased, the unbiased and our estimator"),
}


def find_target(name: str) -> Callable[[Request], Record]:
    """Return the function that reproduces a figure or a table.

    Raises
    ------
    InvalidArgumentError
        If there is none of that name.
    """
    if name not in TARGETS:
        raise InvalidArgumentError(f"there is nothing called {name!r} to reproduce; there are {', '.join(TARGETS)}.")
    function: Callable[[Request], Record] = import_module(TARGETS[name][0]).reproduce

    def with_its_machine(request: Request) -> Record:
        record = function(request)
        # Where no device is asked for, most trainings are on the CPU; a target that takes another one names it itself.
        return record if request.device is None else replace(record, machine=machine_name(request.device))

    return with_its_machine
