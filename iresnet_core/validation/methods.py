"""The methods that are validated, from the tables of the folders, and their settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from iresnet_core.determinant import METHODS
from iresnet_core.lipschitz import ESTIMATES, bound_methods
from iresnet_core.operators import as_operator

__all__ = ["BOUND_METHODS", "ESTIMATORS", "NOISE", "SPECTRAL_METHODS", "TOLERANCES", "TRUNCATIONS", "Setting"]

SPECTRAL_METHODS = tuple(ESTIMATES)
BOUND_METHODS = ("auto", *bound_methods(as_operator(np.eye(1))))
TOLERANCES = (1e-6, 1e-12)


@dataclass(frozen=True)
class Setting:
    """A randomised log-determinant with its options.

    Attributes
    ----------
    label : str
        Its name in tables and plots.
    method, probe_kind, control_variate : str
        Options of `logdet`; the trace is exact unless `control_variate` is "none".
    probes : int
        Random probes per sample.
    more : mapping
        Further options of `logdet`.
    """

    label: str
    method: str
    probe_kind: Literal["rademacher", "gaussian"] = "rademacher"
    control_variate: str = "trace"
    probes: int = 1
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unbiased(self) -> bool:
        """Whether the number of products is drawn, so that one answer has no bound and takes its lengths as noise."""
        return METHODS[self.method].always_unbiased or bool(self.more.get("unbiased", False))

    @property
    def around_mean(self) -> bool:
        """Whether the method works relative to the mean Jacobian of the batch, which is passed as `reference`."""
        return METHODS[self.method].is_control_variate

    @property
    def options(self) -> dict[str, Any]:
        """All options of `logdet` but the probes."""
        return {
            "method": self.method,
            "probe_kind": self.probe_kind,
            "control_variate": self.control_variate,
            **self.more,
        }

    def with_terms(self, terms: int) -> "Setting":
        """Return the setting with another number of products."""
        return replace(self, more={**self.more, "terms": terms})


_SETTINGS = (
    Setting("series, 5 terms", "series", more={"terms": 5}),
    Setting("series, 10 terms", "series", more={"terms": 10}),
    Setting("series", "series"),
    Setting("series, no trace", "series", control_variate="none"),
    Setting("series, 8 probes", "series", probes=8),
    Setting("arnoldi, 2 products", "arnoldi", more={"terms": 2}),
    Setting("arnoldi, 4 products", "arnoldi", more={"terms": 4}),
    Setting("arnoldi", "arnoldi"),
    Setting("arnoldi, no trace", "arnoldi", control_variate="none"),
    Setting("arnoldi, Gaussian", "arnoldi", probe_kind="gaussian"),
    Setting("arnoldi, 8 probes", "arnoldi", probes=8),
    Setting("mean-jacobian, 2 products", "mean-jacobian", more={"terms": 2}),
    Setting("mean-jacobian", "mean-jacobian"),
    Setting("mean-jacobian, 8 probes", "mean-jacobian", probes=8, more={"terms": 2}),
    Setting("arnoldi, unbiased", "arnoldi", more={"unbiased": True}),
    Setting("mean-jacobian, unbiased", "mean-jacobian", more={"unbiased": True}),
    Setting("roulette", "roulette"),
    Setting("roulette (Residual Flow)", "roulette", probe_kind="gaussian", control_variate="none"),
    Setting("roulette, 8 probes", "roulette", probes=8),
)
# The settings that are checked against exact answers and compared across backends. A method that has none of its own
# is checked with its defaults.
ESTIMATORS = (
    *_SETTINGS,
    *(
        Setting(name, name)
        for name, method in METHODS.items()
        if not method.is_exact and name not in {setting.method for setting in _SETTINGS}
    ),
)
# Truncation of one probe, plotted against the number of products.
TRUNCATIONS = (
    Setting("series", "series"),
    Setting("Arnoldi", "arnoldi"),
    Setting("mean Jacobian", "mean-jacobian"),
)
# Noise of the answer, plotted against the number of probes.
NOISE = (
    Setting("roulette, Gaussian (as in Residual Flow)", "roulette", probe_kind="gaussian", control_variate="none"),
    Setting("series, Rademacher", "series", control_variate="none"),
    Setting("series, exact trace", "series"),
    Setting("Arnoldi, exact trace", "arnoldi"),
    Setting("mean Jacobian", "mean-jacobian", more={"terms": 2}),
)
