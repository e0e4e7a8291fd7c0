"""The cases of `iresnet validate` by their names: the shipped branches, a branch of convolutions, and a deep flow."""

from typing import Any

from iresnet_core import example_data
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.validation.flow_problem import FlowProblem
from iresnet_core.validation.image_problem import ImageProblem
from iresnet_core.validation.problem import Problem

__all__ = ["cases", "problem_class"]

_BUILT: dict[str, Any] = {"conv28x28_c0.9": ImageProblem, "flow2_8blocks": FlowProblem}


def cases() -> tuple[str, ...]:
    """Return the names of the cases.

    Examples
    --------
    >>> cases()[-3:]
    ('d64_c0.97', 'conv28x28_c0.9', 'flow2_8blocks')
    """
    return (*example_data.cases(), *_BUILT)


def problem_class(case: str) -> Any:
    """Return the class whose `load` makes a problem of a case.

    Raises
    ------
    InvalidArgumentError
        For an unknown case.
    """
    if case not in cases():
        raise InvalidArgumentError(f"there is no case {case!r}; the cases are {', '.join(cases())}.")
    return _BUILT.get(case, Problem)
