"""Spectral norms from below and certified Lipschitz bounds from above, and weights kept below their caps."""

from iresnet_core.lipschitz.batched_bounds import lipschitz_bounds
from iresnet_core.lipschitz.bounds import BOUNDS, bound_methods, lipschitz_bound
from iresnet_core.lipschitz.certificates import gram_bound
from iresnet_core.lipschitz.enclosure import Enclosed, enclosed, square_operator
from iresnet_core.lipschitz.estimates import ESTIMATES, spectral_norm
from iresnet_core.lipschitz.normalization import cap_share, normalize, spectral_penalty
from iresnet_core.lipschitz.statements import Known, Statement, checked_statement, is_symmetric, refute, wrong
from iresnet_core.lipschitz.training_caps import (
    Certificate,
    any_size_bound,
    basis_shape,
    capped_constant,
    certificate,
    layer_cap,
    scaled_by_certificate,
    scaled_by_declaration,
    scaled_for_any_size,
    scaled_in_training,
    scaled_to_cap,
    training_constant,
)

__all__ = [
    "BOUNDS",
    "ESTIMATES",
    "Certificate",
    "Enclosed",
    "Known",
    "Statement",
    "any_size_bound",
    "basis_shape",
    "bound_methods",
    "cap_share",
    "capped_constant",
    "certificate",
    "checked_statement",
    "enclosed",
    "gram_bound",
    "is_symmetric",
    "layer_cap",
    "lipschitz_bound",
    "lipschitz_bounds",
    "normalize",
    "refute",
    "scaled_by_certificate",
    "scaled_by_declaration",
    "scaled_for_any_size",
    "scaled_in_training",
    "scaled_to_cap",
    "spectral_norm",
    "spectral_penalty",
    "square_operator",
    "training_constant",
    "wrong",
]
