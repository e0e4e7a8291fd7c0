"""The log-determinant log|det(I + J_g(x))|: its methods, their errors, and the choice between them."""

from iresnet_core.determinant.dispatch import METHODS, logdet, own_seed, uses_own_seeds, value_and_logdet
from iresnet_core.determinant.forms import linear_share
from iresnet_core.determinant.preconditioning import MeanJacobian, mean_jacobian
from iresnet_core.determinant.request import LOGDET_OPTIONS, LogDetOptions, Method
from iresnet_core.determinant.sample_seed import SampleSeed

__all__ = [
    "LOGDET_OPTIONS",
    "METHODS",
    "LogDetOptions",
    "MeanJacobian",
    "Method",
    "SampleSeed",
    "linear_share",
    "logdet",
    "mean_jacobian",
    "own_seed",
    "uses_own_seeds",
    "value_and_logdet",
]
