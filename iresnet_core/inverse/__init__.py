"""The solution x of x + g(x) = y, with a certified distance to the exact one."""

from iresnet_core.inverse.dispatch import invert
from iresnet_core.inverse.problem import UNSTATED_ROUNDING
from iresnet_core.inverse.refinement import MOST_EVALUATIONS, Refined, refined
from iresnet_core.inverse.solvers import SOLVERS

__all__ = ["MOST_EVALUATIONS", "SOLVERS", "UNSTATED_ROUNDING", "Refined", "invert", "refined"]
