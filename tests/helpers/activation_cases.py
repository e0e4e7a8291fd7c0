"""Every entrywise activation of the table, with its defaults and with other values of its parameters."""

from iresnet_core.branches.activation_functions import ACTIVATIONS

__all__ = ["CASES", "ENTRYWISE", "IDS", "other_parameters"]

# Values to try; those of a slope lie between -1 and 1, all others are positive.
VALUES = {"slope": (0.25, -0.5, -1.0)}
OTHERS = (0.25, 3.0, 7.0)
ENTRYWISE = tuple(name for name, function in ACTIVATIONS.items() if function.entrywise)
CASES = [(name, {}) for name in ENTRYWISE]
CASES += [
    (name, {key: value})
    for name in ENTRYWISE
    for key in ACTIVATIONS[name].defaults
    for value in VALUES.get(key, OTHERS)
]
IDS = ["-".join([name, *map(str, parameters.values())]) for name, parameters in CASES]


def other_parameters(name):
    """Return parameters of an activation, none of which has its default value."""
    return {key: 0.3 if key == "slope" else 2 if key == "axis" else 1.7 for key in ACTIVATIONS[name].defaults}
