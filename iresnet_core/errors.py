"""Errors and warnings: each message says what was seen, where, and what to try."""

__all__ = [
    "ClusterError",
    "DataFileError",
    "DerivativeError",
    "DeviceError",
    "DtypeError",
    "EstimateWarning",
    "IResNetError",
    "InvalidArgumentError",
    "MissingDependencyError",
    "MissingProductError",
    "MixedBackendsError",
    "NonFiniteDataError",
    "NonFiniteError",
    "NotContractiveError",
    "NotConvergedError",
    "NotConvergedWarning",
    "RunError",
    "ShapeError",
    "StorageError",
    "UnknownArrayError",
    "UnknownLipschitzError",
]


class IResNetError(Exception):
    """Base class of every error that iresnet-core raises on purpose."""


class ClusterError(IResNetError, RuntimeError):
    """Workers or their scheduler cannot be reached, have died, or have other versions of the packages."""


class InvalidArgumentError(IResNetError, ValueError):
    """An option has no meaning: an unknown method, a negative tolerance, no probe at all."""


class ShapeError(IResNetError, ValueError):
    """An array has the wrong shape or number of axes."""


class DtypeError(IResNetError, TypeError):
    """An array has a dtype the numerics cannot use, or two arrays differ in dtype."""


class DeviceError(IResNetError, ValueError):
    """Arrays on two devices met in one call, or an array is on none and has no values."""


class UnknownArrayError(IResNetError, TypeError):
    """An argument is not an array of a known framework."""


class MissingProductError(UnknownArrayError, TypeError):
    """An operator does not offer the products with its transpose that are needed here."""


class MixedBackendsError(IResNetError, TypeError):
    """Arrays of two frameworks met in one call."""


class MissingDependencyError(IResNetError, ImportError):
    """A framework or an optional package is not installed."""


class NonFiniteError(IResNetError, ValueError):
    """NaN or infinity in weights, inputs, or in what a branch returned."""


class NotContractiveError(IResNetError, ValueError):
    """The branch is not a contraction, or expands more than its stated constant allows."""


class UnknownLipschitzError(IResNetError, ValueError):
    """Nothing says what the Lipschitz constant of the branch is."""


class DerivativeError(IResNetError, TypeError):
    """A derivative is needed that neither the branch nor the backend provides."""


class NotConvergedError(IResNetError, ArithmeticError):
    """An iteration ended before it reached its tolerance."""


class NotConvergedWarning(UserWarning):
    """An iteration ended before it reached its tolerance (``on_failure="warn"``)."""


class EstimateWarning(UserWarning):
    """An estimate was returned without its standard error, which is not small."""


class StorageError(IResNetError, ValueError):
    """A file is not a model of ours, or its description and its tensors disagree."""


class DataFileError(IResNetError, ValueError):
    """A file of data cannot be read as numbers, or does not hold what was asked for."""


class NonFiniteDataError(DataFileError, NonFiniteError):
    """NaN or infinity in a file of data; the message names the row."""


class RunError(IResNetError, ValueError):
    """A run folder is missing or damaged, or belongs to another training."""
