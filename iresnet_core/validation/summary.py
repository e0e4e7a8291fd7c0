"""Records of the validation in words: what the terminal and the HTML page both say."""

from collections.abc import Sequence

from iresnet_core.validation.agreement import COUNTS, DTYPES, LIMITS, REFERENCE
from iresnet_core.validation.runs import Record, disagreeing, violated

__all__ = [
    "AGREEMENT_HEADS",
    "AGREEMENT_TITLE",
    "TITLES",
    "accuracy_remarks",
    "accuracy_verdict",
    "agreement_remarks",
    "agreement_rows",
    "agreement_verdict",
    "bound_text",
    "by_case",
    "held_text",
    "two_digits",
    "z_score_text",
]

TITLES = {
    "spectral_norm": "spectral norm",
    "lipschitz_bound": "Lipschitz bound",
    "inverse": "inverse",
    "logdet": "log-determinant",
    "normalize": "normalised weights",
    "branch": "branch, its products",
    "flow_inverse": "inverse of a flow",
    "log_prob": "log-density of a flow",
}
AGREEMENT_TITLE = f"Largest relative disagreement with {REFERENCE} on the same noise"
AGREEMENT_HEADS = ("primitive", "backend", *(part for dtype in DTYPES for part in (dtype, "counts")), "held")


def by_case(records: Sequence[Record]) -> list[list[Record]]:
    """Return the records of each case, backend and dtype, in the order of the run."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((record["case"], record["backend"], record["dtype"]), []).append(record)
    return list(groups.values())


def _comparison(record: Record) -> str:
    """Return what was compared, as one phrase."""
    return " ".join(str(record[key]) for key in ("case", "backend", "dtype", "primitive", "method"))


def two_digits(value: float | None) -> str:
    """Format with two digits; nothing for None."""
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.1e}"


def bound_text(record: Record) -> str:
    """Format the bound: a bound on a norm with the digits that tell bounds apart."""
    if record["primitive"] == "lipschitz_bound":
        return f"{record['max_bound']:.4f}"
    return two_digits(record["max_bound"])


def held_text(record: Record) -> str:
    """Say whether the bound held: yes, NO, "no*" where it was only probable, "-" where there is none."""
    if record["certificate"] == "unbiased":
        return "-"
    if not record["bound_violations"]:
        return "yes"
    return "no*" if record["certificate"] == "probabilistic" else "NO"


def z_score_text(record: Record) -> str:
    """Return the z score, with "!" where the estimate is outside its error bar."""
    if record["z"] is None:
        return ""
    return f"{record['z']:.1f}" + ("" if record["within_error_bar"] else "!")


def accuracy_verdict(records: Sequence[Record]) -> str:
    """Return the conclusion in one sentence."""
    answers = sum(r["samples"] for r in records if r["certificate"] not in ("unbiased", "probabilistic"))
    wrong = violated(records)
    if wrong:
        return f"{sum(r['bound_violations'] for r in wrong)} certified bounds VIOLATED, of {answers}."
    noisy = [r for r in records if r["within_error_bar"] is not None]
    inside = sum(r["within_error_bar"] for r in noisy)
    sentence = f"All {answers} certified bounds held"
    if not noisy:
        return f"{sentence}."
    return (
        f"{sentence}; {inside} of {len(noisy)} randomised estimates agree with the exact value within their error bar."
    )


def accuracy_remarks(records: Sequence[Record]) -> list[str]:
    """Return one sentence for each comparison that went wrong or needs a look."""
    found = [
        f"violated: {_comparison(r)}, {r['bound_violations']} of {r['samples']}, "
        f"largest error {two_digits(r['max_certified_error'])}"
        for r in violated(records)
    ]
    found += [
        f"* a probabilistic bound may fail, and did: {_comparison(r)}"
        for r in records
        if r["certificate"] == "probabilistic" and r["bound_violations"]
    ]
    return found + [
        f"! outside the error bar, z = {r['z']:.1f}: {_comparison(r)}"
        for r in records
        if r["within_error_bar"] is False
    ]


def agreement_rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Return the table of agreement, one row for each primitive and backend, with the columns of `AGREEMENT_HEADS`.

    The first row holds the limits. Counts are iterations and products: "equal", or by how much they differ.
    """
    rows: list[tuple[str, ...]] = [
        (
            "limit",
            "",
            *(part for dtype in DTYPES for part in (two_digits(LIMITS[dtype]), _count_limit(records, dtype))),
            "",
        )
    ]
    for primitive in dict.fromkeys(record["primitive"] for record in records):
        of_primitive = [record for record in records if record["primitive"] == primitive]
        for backend in dict.fromkeys(record["backend"] for record in of_primitive):
            group = [record for record in of_primitive if record["backend"] == backend]
            cells = [part for dtype in DTYPES for part in _largest([r for r in group if r["dtype"] == dtype])]
            rows.append((TITLES[primitive], backend, *cells, "NO" if disagreeing(group) else "yes"))
    return rows


def _count_limit(records: Sequence[Record], dtype: str) -> str:
    limits = [r["limit"] for r in records if r["dtype"] == dtype and r["quantity"] in COUNTS]
    return "equal" if any(limit is not None for limit in limits) else "-"


def _largest(records: Sequence[Record]) -> tuple[str, str]:
    """Return the largest disagreement of values and of counts; "" where there are no counts."""
    values = [r["disagreement"] for r in records if r["quantity"] not in COUNTS]
    counts = [r["disagreement"] for r in records if r["quantity"] in COUNTS]
    words = "" if not counts else "equal" if max(counts) == 0 else f"\N{PLUS-MINUS SIGN}{max(counts):.0f}"
    return two_digits(max(values)), words


def agreement_verdict(records: Sequence[Record]) -> str:
    """Return the conclusion on the agreement in one sentence."""
    wrong = disagreeing(records)
    checked = [record for record in records if record["limit"] is not None]
    backends = ", ".join(dict.fromkeys(record["backend"] for record in records))
    if wrong:
        return f"{len(wrong)} of {len(checked)} quantities DISAGREE with {REFERENCE} by more than their limit."
    return f"{backends} agree with {REFERENCE} within the limits, in all {len(checked)} quantities."


def agreement_remarks(records: Sequence[Record]) -> list[str]:
    """Return one sentence for each quantity that disagrees."""
    return [
        f"disagrees: {_comparison(r)}, {r['quantity']}, "
        f"{two_digits(r['disagreement'])} where {two_digits(r['limit'])} is allowed"
        for r in disagreeing(records)
    ]
