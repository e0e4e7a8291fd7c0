"""The log-determinant log|det(I + J_g(x))|: its methods, their errors, and the choice between them."""

from iresnet_core.determinant.dispatch import logdet, value_and_logdet
from iresnet_core.determinant.preconditioning import MeanJacobian, mean_jacobian
from iresnet_core.determinant.series import linear_share

__all__ = ["MeanJacobian", "linear_share", "logdet", "mean_jacobian", "value_and_logdet"]
