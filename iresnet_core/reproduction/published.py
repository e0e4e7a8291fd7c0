"""Figures that others have published, each table with its source; what the page prints beside ours."""

from dataclasses import dataclass

__all__ = ["PUBLISHED", "Published"]

_PAPER = "Behrmann et al. 2019, Invertible Residual Networks (arXiv:1811.00995)"


@dataclass(frozen=True)
class Published:
    """One column of a published table.

    Attributes
    ----------
    what : str
        Quantity and unit.
    source : str
        Where it was published.
    values : dict
        Model -> value; for classification, vanilla and the caps .9 to .5.
    """

    what: str
    source: str
    values: dict[str, float]


def _errors(resnet: float | None, *others: float) -> dict[str, float]:
    first = {} if resnet is None else {"ResNet-164": resnet}
    return {**first, **dict(zip(("vanilla", "0.9", "0.8", "0.7", "0.6", "0.5"), others, strict=True))}


_ERROR, _BITS, _NATS = "classification error, per cent", "bits per dimension", "test log-density, nats"
_TABLES = ("POWER", "GAS", "HEPMASS", "MINIBOONE", "BSDS300")
_TABULAR = {
    "MAF": ("Papamakarios et al. 2017, Masked Autoregressive Flow", (0.24, 10.08, -17.73, -12.24, 154.93)),
    "FFJORD": ("Grathwohl et al. 2019, FFJORD", (0.46, 8.59, -14.92, -10.43, 157.40)),
    "NSF": ("Durkan et al. 2019, Neural Spline Flows, RQ-NSF (AR)", (0.66, 13.09, -14.01, -9.22, 157.31)),
}

PUBLISHED: dict[str, Published] = {
    "table1 MNIST": Published(_ERROR, f"{_PAPER}, Table 2", _errors(None, 0.38, 0.40, 0.42, 0.40, 0.42, 0.86)),
    "table1 CIFAR10": Published(_ERROR, f"{_PAPER}, Table 2", _errors(5.50, 6.69, 6.78, 6.86, 6.93, 7.72, 8.71)),
    "table1 CIFAR100": Published(
        _ERROR, f"{_PAPER}, Table 2", _errors(24.30, 23.97, 24.58, 24.99, 25.99, 27.30, 29.45)
    ),
    "table2 MNIST": Published(
        _BITS,
        f"{_PAPER}, Table 4",
        {
            **{"NICE": 4.36, "MADE": 2.04, "MAF": 1.89, "Real NVP": 1.06, "Glow": 1.05, "FFJORD": 0.99},
            "i-ResNet": 1.06,
        },
    ),
    "table2 CIFAR10": Published(
        _BITS,
        f"{_PAPER}, Table 4",
        {
            **{"NICE": 4.48, "MADE": 5.67, "MAF": 4.31, "Real NVP": 3.49, "Glow": 3.35, "FFJORD": 3.40},
            "i-ResNet": 3.45,
        },
    ),
    **{
        f"tables {table}": Published(
            _NATS,
            "; ".join(source for source, _ in _TABULAR.values()),
            {model: values[k] for model, (_, values) in _TABULAR.items()},
        )
        for k, table in enumerate(_TABLES)
    },
}
