"""The solution x of x + g(x) = y, with a certified distance to the exact one."""

from iresnet_core.inverse.dispatch import invert
from iresnet_core.inverse.solvers import SOLVERS

__all__ = ["SOLVERS", "invert"]
