"""What `iresnet validate` does: every method against exact SciPy answers, and every backend against NumPy."""

from iresnet_core.validation.curves import error_curves
from iresnet_core.validation.report import write_report
from iresnet_core.validation.runs import FIELDS, Record, compare_backends, disagreeing, run, steps_of, violated
from iresnet_core.validation.summary import (
    AGREEMENT_HEADS,
    AGREEMENT_TITLE,
    TITLES,
    agreement_remarks,
    agreement_rows,
    agreement_verdict,
    bound,
    grouped,
    held,
    number,
    remarks,
    score,
    verdict,
)

__all__ = [
    "AGREEMENT_HEADS",
    "AGREEMENT_TITLE",
    "FIELDS",
    "TITLES",
    "Record",
    "agreement_remarks",
    "agreement_rows",
    "agreement_verdict",
    "bound",
    "compare_backends",
    "disagreeing",
    "error_curves",
    "grouped",
    "held",
    "number",
    "remarks",
    "run",
    "score",
    "steps_of",
    "verdict",
    "violated",
    "write_report",
]
