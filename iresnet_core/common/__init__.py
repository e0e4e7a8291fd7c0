"""What every folder uses: argument checks, precision, samples of a batch, copies of immutable objects."""

from iresnet_core.common.arrays import flatten, gamma, norms, per_sample, round_up, unit_roundoff, widest, working_dtype
from iresnet_core.common.checks import (
    require_batch,
    require_contraction,
    require_finite,
    require_floating,
    require_nonnegative,
    require_nonnegative_int,
    require_positive_int,
    require_same_device,
    require_same_dtype,
    require_shape,
)
from iresnet_core.common.copying import Copyable, kept_property

__all__ = [
    "Copyable",
    "flatten",
    "gamma",
    "kept_property",
    "norms",
    "per_sample",
    "require_batch",
    "require_contraction",
    "require_finite",
    "require_floating",
    "require_nonnegative",
    "require_nonnegative_int",
    "require_positive_int",
    "require_same_device",
    "require_same_dtype",
    "require_shape",
    "round_up",
    "unit_roundoff",
    "widest",
    "working_dtype",
]
