"""What every folder uses: argument checks, precision, samples, start vectors, copies, the style of plots."""

from iresnet_core.common.arrays import (
    flatten,
    gamma,
    per_sample,
    round_up,
    safe_sample_norms,
    sample_norms,
    unit_roundoff,
    widest,
    working_dtype,
)
from iresnet_core.common.checks import (
    refuse_expansion,
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
from iresnet_core.common.linear import fixed_start, squared_frobenius
from iresnet_core.common.plot_style import BLACK, BLUE, GREEN, ORANGE, PLOT_STYLE, PURPLE, RED, SKY

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "ORANGE",
    "PLOT_STYLE",
    "PURPLE",
    "RED",
    "SKY",
    "Copyable",
    "fixed_start",
    "flatten",
    "gamma",
    "kept_property",
    "per_sample",
    "refuse_expansion",
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
    "safe_sample_norms",
    "sample_norms",
    "squared_frobenius",
    "unit_roundoff",
    "widest",
    "working_dtype",
]
