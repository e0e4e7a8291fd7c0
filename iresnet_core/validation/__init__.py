"""The program behind `iresnet validate`: it compares methods with exact answers, and backends with NumPy."""

from iresnet_core.validation.case_table import cases
from iresnet_core.validation.curves import error_curves
from iresnet_core.validation.report import write_report
from iresnet_core.validation.runs import (
    FIELDS,
    Record,
    ValidationJob,
    compare_backends,
    disagreeing,
    run,
    steps_of,
    violated,
)
from iresnet_core.validation.summary import (
    AGREEMENT_HEADS,
    AGREEMENT_TITLE,
    TITLES,
    accuracy_remarks,
    accuracy_verdict,
    agreement_remarks,
    agreement_rows,
    agreement_verdict,
    bound_text,
    by_case,
    held_text,
    two_digits,
    z_score_text,
)

__all__ = [
    "AGREEMENT_HEADS",
    "AGREEMENT_TITLE",
    "FIELDS",
    "TITLES",
    "Record",
    "ValidationJob",
    "accuracy_remarks",
    "accuracy_verdict",
    "agreement_remarks",
    "agreement_rows",
    "agreement_verdict",
    "bound_text",
    "by_case",
    "cases",
    "compare_backends",
    "disagreeing",
    "error_curves",
    "held_text",
    "run",
    "steps_of",
    "two_digits",
    "violated",
    "write_report",
    "z_score_text",
]
