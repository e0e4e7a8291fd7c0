"""Time, memory and products of the log-determinant from d = 64 to a million, and how they grow.

    python benchmarks/scaling.py [--quick] [--clock cpu] [--plots DIR] [--markdown FILE]

Two kinds of branches: convolutions 3x3-1x1-3x3 with 16 hidden channels on images of growing extent with 4 channels, and
dense chains d-64-d of low rank. `logdet(method="arnoldi")` with one probe, to a truncation certified below 1e-3 nats
per dimension (``tol`` would ask the same of the noise, so the products are raised until `bias_bound` is there).

Printed for each d: products; time a sample, and a sample and product; the peak of what NumPy allocates beyond the
branch and its inputs (tracemalloc, which sees NumPy's arrays), a sample and in units of d numbers of 8 bytes; and the
slopes of straight lines through the logarithms. The dense branch is also solved exactly (order 64, by Sylvester).
"""

import argparse
import math
import tracemalloc

import numpy as np
from report_tables import Report
from threadpoolctl import threadpool_limits
from timing import CLOCKS, medians

from iresnet_core import Activation, Chain, Convolution, Dense, logdet, normalize

CHANNELS, HIDDEN, RANK, CONSTANT = 4, 16, 64, 0.9
EXTENTS = (4, 8, 16, 32, 64, 128, 256, 500)
DIMENSIONS = (64, 256, 1024, 4096, 16384, 65536, 262144, 1_000_000)
PER_DIMENSION = 1e-3
# Entries of a batch: small problems are measured in batches, so that not the calls are timed.
ENTRIES = 2**16
# Products from which on a certificate is looked at, and at most.
MOST = 40
HEADS = ["d", "batch", "products", "ms per sample", "us per sample and product", "MiB per sample", "in d numbers"]


def convolutional(extent):
    """Branch on images (4, extent, extent)."""
    rng = np.random.default_rng(0)
    layers = []
    shapes = ((HIDDEN, CHANNELS, 3), (HIDDEN, HIDDEN, 1), (CHANNELS, HIDDEN, 3))
    for out, into, k in shapes:
        kernel = rng.standard_normal((out, into, k, k)) / math.sqrt(into * k * k)
        layer = Convolution(kernel, rng.standard_normal(out), input_shape=(into, extent, extent), padding="same")
        layers += [layer, Activation("elu")]
    return normalize(Chain(layers[:-1]), CONSTANT)


def low_rank(d):
    """Dense branch d-64-d."""
    rng = np.random.default_rng(0)
    layers = [
        Dense(rng.standard_normal((RANK, d)) / math.sqrt(d), rng.standard_normal(RANK)),
        Activation("elu"),
        Dense(rng.standard_normal((d, RANK)) / math.sqrt(d), np.zeros(d)),
    ]
    return normalize(Chain(layers), CONSTANT)


def certified_products(g, x):
    """Fewest products whose truncation is certified below 1e-3 nats per dimension, at the first sample."""
    d = math.prod(x.shape[1:])
    for m in range(1, MOST + 1):
        answer = logdet(g, x[:1], method="arnoldi", terms=m, rng=0)
        if float(np.max(answer.bias_bound)) <= PER_DIMENSION * d:
            return m
    return MOST


def peak(call):
    """Bytes that a call has allocated at most beyond what was there before it."""
    call()  # what is kept from the first call, as tables, is not counted
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def measure(g, shape, options, **method):
    """One row: d, batch, products, seconds and bytes a sample."""
    d = math.prod(shape)
    batch = max(1, ENTRIES // d)
    x = np.random.default_rng(1).standard_normal((batch, *shape))
    if method["method"] == "arnoldi":
        method["terms"] = certified_products(g, x)

    def call():
        return logdet(g, x, rng=0, **method)

    products = int(np.max(call().products))
    seconds = medians({"": call}, 3 if options.quick else 7, options.clock)[""]
    return d, batch, products, seconds / batch, peak(call) / batch


def show(report, title, found):
    """Print the rows and the slopes of growth over the upper half, where the calls are not what is timed."""
    rows = []
    for d, batch, products, seconds, size in found:
        per = 1e6 * seconds / products
        rows.append(
            (d, batch, products, f"{1e3 * seconds:.3f}", f"{per:.1f}", f"{size / 2**20:.3f}", f"{size / (8 * d):.0f}")
        )
    report.table(title, HEADS, rows)
    upper = found[len(found) // 2 :]
    logs = np.log([[row[0], row[3] / row[2], row[4]] for row in upper])
    time, memory = (np.polyfit(logs[:, 0], logs[:, i], 1)[0] for i in (1, 2))
    report.note(f"\ngrowth for d >= {upper[0][0]}: time a product ~ d^{time:.2f}, memory ~ d^{memory:.2f}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to d = 65536")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--plots", metavar="DIR", help="write the picture there")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there")
    options = parser.parse_args()
    report, found = Report(options.markdown), {}
    with threadpool_limits(limits=1):
        rows = []
        for extent in EXTENTS[:6] if options.quick else EXTENTS:
            g = convolutional(extent)
            rows.append(measure(g, g.input_shape, options, method="arnoldi"))
        found["convolutions"] = show(report, "convolutions 3x3-1x1-3x3, 4-16-16-4 channels", rows)
        for method in ("arnoldi", "exact"):
            rows = [
                measure(low_rank(d), (d,), options, method=method)
                for d in (DIMENSIONS[:6] if options.quick else DIMENSIONS)
            ]
            found[f"dense, {method}"] = show(report, f"dense d-64-d, {method}", rows)
    if options.plots:
        from scaling_plots import draw

        draw(found, options.plots)
    report.write()


if __name__ == "__main__":
    main()
