"""Every log-determinant, its gradient, the inverse and the certificates beside the published estimators, in one run.

    python benchmarks/estimators.py [--quick] [--clock cpu] [--train SECONDS] [--plots DIR] [--markdown FILE]

measures, on all blocks of the trained flows in ``../shared/data`` (where they are missing, on those that ship), on
flows trained here with PyTorch, and on orthogonal weights with widely spread slopes:

- every method of `logdet` and the formulas of Residual Flow, i-ResNet and FrEIA, one probe each: products, time, bias,
  standard deviation and RMSE against the exact value, in nats;
- the gradient of the log-determinant with respect to the weights beside Residual Flow's Neumann series;
- the inverse beside the plain iteration; all certificates of a flow beside its forward pass;
  certified norms beside the SVD;
- counts of violated certificates over random cases, and means of the unbiased estimators over many draws.

It ends with a table of requirements. Times are medians of functions that run in turn, in float64 unless said otherwise,
on one thread. On a busy machine ``--clock cpu`` counts this process's own time.
"""

import argparse

import branch_cases
import certificate_counts
import certificate_figures
import gradient_figures
import inverse_figures
import logdet_figures
import numpy as np
from logdet_figures import RESIDUAL_FLOW
from report_tables import Report
from threadpoolctl import threadpool_limits
from timing import CLOCKS

HARD = [("lipswish", 0.9), ("elu", 0.9), ("sin", 0.9), ("sin", 0.97)]
PLAIN_TRACE = ["arnoldi, trace, m = 2", "arnoldi, trace, m = 3", "arnoldi, trace"]
CALLABLE = ["arnoldi, callable, m = 2", "arnoldi, callable, m = 3", "arnoldi, callable"]
MEAN = "mean-jacobian, m = 2"


class Requirements:
    """The last table: what has to hold, and what was measured."""

    def __init__(self):
        self.rows = []

    def at_most(self, what, figure, limit, form="{:.3g}"):
        """Require figure <= limit."""
        self._add(what, figure, f"<= {limit:g}", figure <= limit, form)

    def at_least(self, what, figure, limit, form="{:.3g}"):
        """Require figure >= limit."""
        self._add(what, figure, f">= {limit:g}", figure >= limit, form)

    def _add(self, what, figure, requirement, held, form):
        self.rows.append((what, form.format(figure), requirement, "yes" if held else "no"))


def logdets(report, must, options, fresh):
    """Value of the log-determinant; returns the figures of every case for the plots."""
    draws, repetitions = (5, 3) if options.quick else (12, 5)
    found = {}
    cases = branch_cases.trained(64)
    for case in [*cases, *fresh]:
        found[case.name] = logdet_figures.measure(case, draws, repetitions, options.clock)
        report.table(
            f"log-determinant, {case.name}, {len(case.blocks)} blocks, batch {case.blocks[0][1].shape[0]}",
            logdet_figures.HEADS,
            logdet_figures.rows(found[case.name]),
        )
    figures = [found[case.name] for case in cases]
    hard = []
    for activation, constant in HARD:
        case = branch_cases.orthogonal(activation, constant)
        found[case.name] = logdet_figures.measure(case, draws, repetitions, options.clock)
        hard.append((case.name, found[case.name]))
    report.table(
        "log-determinant, orthogonal weights, slopes spread",
        ["case", "RMSE", "RMSE of Residual Flow", "ratio"],
        [
            (name, f"{f[MEAN].rmse:.4f}", f"{f[RESIDUAL_FLOW].rmse:.4f}", f"{f[MEAN].rmse / f[RESIDUAL_FLOW].rmse:.3f}")
            for name, f in hard
        ],
    )
    must.at_most(f"{MEAN}: RMSE / Residual Flow's, worst c", max(map(_error_ratio, figures)), 0.01)
    own, kept = times(report, cases, options)
    must.at_most(f"{MEAN}: time / Residual Flow's, worst c, batch 256", own, 1, "{:.2f}")
    must.at_most("the same with reference=", kept, 1, "{:.2f}")
    must.at_most(f"{MEAN}, hard cases: RMSE / Residual Flow's, worst", max(_error_ratio(f) for _, f in hard), 0.2)
    fewer = min(logdet_figures.fewer_products(f, PLAIN_TRACE) for f in figures)
    must.at_least("exact trace alone: times fewer products at equal RMSE, worst c", fewer, 30, "{:.1f}")
    fewer = min(logdet_figures.fewer_products(f, CALLABLE) for f in figures)
    must.at_least("callable: times fewer products at equal RMSE, worst c", fewer, 2.5, "{:.1f}")
    return found


def _error_ratio(figures):
    return figures[MEAN].rmse / figures[RESIDUAL_FLOW].rmse


def times(report, cases, options):
    """Table of times relative to Residual Flow's by batch and dtype; returns those of float64 and 256 samples."""
    rows, found = [], {}
    for dtype in ("float64", "float32"):
        for batch in (64, 256, 1024):
            own, kept = np.max(time_ratios(cases, options, dtype, batch), axis=0)
            found[dtype, batch] = own, kept
            rows.append((f"{dtype}, {batch} samples", f"{own:.2f}", f"{kept:.2f}"))
    report.table(f"time of {MEAN} / Residual Flow's, worst c", ["", "J0 made for the batch", "with reference="], rows)
    return found["float64", 256]


def time_ratios(cases, options, dtype, batch):
    """Time of mean-jacobian with m = 2 relative to Residual Flow's, and with a reference, for every case."""
    labels = [RESIDUAL_FLOW, MEAN, f"{MEAN}, reference"]
    ratios = []
    for case in cases:
        case = branch_cases.cast(branch_cases.resized(case, batch), dtype)
        repetitions = 5 if options.quick else 9
        spent = [logdet_figures.block_times(g, x, repetitions, options.clock, labels) for g, x in case.blocks[-2:]]
        peer, own, kept = (np.mean([times[label] for times in spent]) for label in labels)
        ratios.append((own / peer, kept / peer))
    return ratios


def certified(report, must, cases):
    """Products a probe for a certified 1e-3 nats."""
    methods = ("mean-jacobian", "arnoldi", "series")
    rows, most = [], dict.fromkeys(methods, 0)
    for case in cases:
        counts = []
        for method in methods:
            answers = [certified_answer(g, x, method) for g, x in case.blocks]
            counts.append([int(np.max(answer.products)) for answer in answers])
            assert max(float(np.max(answer.bias_bound)) for answer in answers) <= 1.01e-3
            most[method] = max(most[method], *counts[-1])
        rows.append((case.name, *(f"{np.mean(count):.1f}" for count in counts)))
    report.table("products per probe for a certified 1e-3 nats", ["case", *methods], rows)
    for method in methods[:2]:
        must.at_most(f"products for a certified 1e-3 nats, {method}, most", most[method], 10)


def certified_answer(g, x, method):
    """One answer certified to the default 1e-3 nats."""
    return logdet_figures.logdet(g, x, method=method, rng=0)


def gradients(report, must, options):
    """Gradient of the log-determinant."""
    if not gradient_figures.available():
        report.note("gradients: skipped, PyTorch is not installed")
        return
    import torch

    torch.set_num_threads(1)
    worst, products = {}, {}
    for case in branch_cases.trained(64):
        g, x = case.blocks[-1]
        found = gradient_figures.measure(g, x, 20 if options.quick else 60, 5 if options.quick else 9, options.clock)
        report.table(
            f"gradient of sum log det, {case.name}, last block, batch {x.shape[0]}",
            gradient_figures.HEADS,
            gradient_figures.rows(found),
        )
        for label in found:
            by_time, by_products = gradient_figures.ratios(found, label)
            worst[label] = max(worst.get(label, 0), by_time)
            products[label] = max(products.get(label, 0), by_products)
    plain = min(value for label, value in worst.items() if label.startswith("plain"))
    must.at_most("gradient, plain probes with exact trace: variance x time / Neumann's, worst c", plain, 0.1)
    plain = min(value for label, value in products.items() if label.startswith("plain"))
    must.at_most("the same, variance x products", plain, 0.1)
    preconditioned = min(value for label, value in worst.items() if "A0" in label)
    must.at_most("gradient, A0: variance x time / Neumann's, worst c", preconditioned, 0.01)


def inverses(report, must, options, fresh):
    """The contraction inverse."""
    repetitions = 3 if options.quick else 9
    cases = [*branch_cases.trained(64, names=("0.9", "0.97")), *fresh]
    small = branch_cases.trained(2, names=("0.9", "0.97"))
    hard = [branch_cases.aligned(c) for c in (0.9, 0.97, 0.99)]
    hard += [branch_cases.orthogonal(activation, 0.97) for activation in ("elu", "sin")]
    found = {case.name: inverse_figures.measure(case, repetitions, options.clock) for case in [*cases, *small, *hard]}
    report.table(
        "evaluations of g, the batch's worst, mean over the blocks",
        inverse_figures.HEADS,
        [inverse_figures.row(case, found[case.name]) for case in [*cases, *small, *hard]],
    )
    fewest = min((found[case.name].fewer, case.name) for case in cases)
    must.at_least(f"inverse: times fewer evaluations, worst ({fewest[1]})", fewest[0], 3, "{:.2f}")
    slowest = max(found[case.name].time_ratio for case in hard)
    must.at_most("inverse, orthogonal weights: time / plain iteration's, worst", slowest, 1.3, "{:.2f}")


def certificates(report, must, options):
    """Certified norms."""
    repetitions = 5 if options.quick else 15
    rows = []
    for dtype in ("float64", "float32"):
        own, forward = certificate_figures.beside_forward(dtype, repetitions, options.clock)
        rows.append((dtype, f"{1e3 * own:.1f}", f"{1e3 * forward:.1f}", f"{own / forward:.2f}"))
        must.at_most(f"30 certificates / a forward pass of 500, {dtype}", own / forward, 2, "{:.2f}")
    report.table(
        "all certificates of ten blocks 64-128-128-64", ["dtype", "certificates, ms", "forward pass, ms", "ratio"], rows
    )
    rows = []
    for n in (512,) if options.quick else (512, 1024):
        excess, ratio = certificate_figures.beside_svd(n, 3 if options.quick else 5, options.clock)
        rows.append((f"{n} x {n}", f"{excess:.2%}", f"{ratio:.2f}"))
        must.at_most(f"sigma, n = {n}: certified excess", excess, 0.005)
        must.at_most(f"sigma, n = {n}: time / SVD's", ratio, 1 / 3)
    report.table("certified norm of a Gaussian matrix", ["matrix", "above the norm", "time / SVD's"], rows)


def counts(report, must, options):
    """Certificates over random cases, and the unbiased estimators."""
    cases, broken = certificate_counts.violations(1000 if options.quick else 10_000)
    report.note(f"\ncertificates over {cases} random cases: " + ", ".join(f"{n} of {k}" for k, n in broken.items()))
    must.at_most(f"violated certificates in {cases} cases", sum(broken.values()), 0)
    draws = 5000 if options.quick else 100_000
    block = branch_cases.trained(64, names=("0.9",))[0].blocks[-1]
    deviations = certificate_counts.unbiased_deviations(block, draws)
    report.table(
        f"unbiased estimators: deviation of the mean of {draws} draws",
        ["method", "Jacobian", "standard errors"],
        [(method, kind, f"{z:.2f}") for (method, kind), z in deviations.items()],
    )
    must.at_most(f"unbiased: standard errors of the mean over {draws} draws, worst", max(deviations.values()), 4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer draws and repetitions: a minute")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--train", type=float, default=10.0, metavar="SECONDS", help="for each fresh flow; 0: none")
    parser.add_argument("--plots", metavar="DIR", help="write the pictures there")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there")
    options = parser.parse_args()
    report, must = Report(options.markdown), Requirements()
    with threadpool_limits(limits=1):
        fresh = []
        for constant in (0.9, 0.99) if options.train else ():
            case = branch_cases.freshly_trained(constant, options.train)
            if case is None:
                report.note("freshly trained flows: skipped, PyTorch is not installed")
                break
            fresh.append(case)
        found = logdets(report, must, options, fresh)
        certified(report, must, [*branch_cases.trained(64), *fresh])
        gradients(report, must, options)
        inverses(report, must, options, fresh)
        certificates(report, must, options)
        counts(report, must, options)
    report.table("Must hold", ["what", "figure", "required", "holds"], must.rows)
    if options.plots:
        from estimator_plots import draw

        draw(found, options.plots)
    report.write()


if __name__ == "__main__":
    main()
