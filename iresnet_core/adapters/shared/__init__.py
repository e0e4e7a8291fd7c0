"""What the layers of both frameworks have in common, written once as mixins that know no framework."""

import warnings

__all__ = ["warn_deprecated"]


def warn_deprecated(old: str, new: str) -> None:
    """Warn the caller's caller that a name will be gone in the next release."""
    warnings.warn(f"{old} is deprecated and goes with the next release: use {new}.", DeprecationWarning, stacklevel=3)
