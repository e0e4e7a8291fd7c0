"""Products, memory, error and time of every answer at the size of the work: the table of docs/sizes.md.

    python benchmarks/sizes.py --quick                    # six cases
    python benchmarks/sizes.py [--c 0.9 --c 0.98] [--dtype float64] [--layers 4] [--markdown sizes.md]

The branches are those of ``tests/sizes``, which ``tests/helpers/branches_of_size.py`` builds: random weights scaled up
to their caps, and weights after thirty steps of Adam with PyTorch. Two samples each, NumPy, one thread. What a column
holds is said on the page. Errors are measured against the same weights in float64: a log-determinant against the power
series for the same probe, an inverse against a solution to 1e-14. Times are process time of a second run.
"""

import argparse
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from branches_of_size import CONSTANTS, FEW, SIZES, Case, branch, form, in_float64, samples

from iresnet_core import ActNorm, Flow, ResidualBlock, invert, lipschitz_bound, logdet, spectral_norm
from iresnet_core.backends import backend as find_backend

NUMPY = find_backend("numpy")
BLOCKS = 4
HEADS = (
    *("sample", "c", "weights", "norm: above", "ms"),
    *("log-det: products", "memory", "bias bound", "bias", "std error", "ms"),
    *("inverse: evaluations", "bound", "error", "ms"),
    *("flow: evaluations", "bound", "error", "log p: products"),
)


def measured(call):
    """The answer of a call, its process time in milliseconds, and the most bytes that it held."""
    call()
    tracemalloc.start()
    answer = call()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    begin = time.process_time()
    call()
    return answer, 1e3 * (time.process_time() - begin), most


def norms(g):
    """By how much the certified bounds exceed an estimate from below, at most, and the time of certifying them."""
    below = [float(spectral_norm(operator).value) for operator in g.operators]
    bounds, milliseconds, _ = measured(lambda: [float(lipschitz_bound(operator).value) for operator in g.operators])
    excess = max(bound / estimate - 1 for bound, estimate in zip(bounds, below, strict=True))
    return f"{100 * excess:.2f} %", f"{milliseconds:.0f}"


def log_determinants(case, g, x):
    """One probe of Arnoldi's method: what it took, and what it truncated."""
    probe = np.random.default_rng(0).choice([-1.0, 1.0], (1, *x.shape)).astype(x.dtype)
    options = {"method": "arnoldi", "noise": probe}
    answer, milliseconds, most = measured(lambda: logdet(g, x, **options))
    plain = logdet(g, x, control_variate="none", **options)
    bias = np.abs(plain.value - form(NUMPY, g, x, probe))
    return (
        str(answer.products.max()),
        f"{most / x.nbytes:.0f}",
        f"{answer.bias_bound.max() / case.d:.0e}",
        f"{bias.max() / case.d:.0e}",
        f"{answer.std_error.max():.2g}",
        f"{milliseconds:.0f}",
    )


def relative(vectors, like):
    """Largest length of vectors (batch, ...), relative to that of others."""
    return np.max(np.linalg.norm(vectors.reshape(len(like), -1), axis=1) / lengths(like))


def lengths(x):
    """Lengths of the samples."""
    return np.linalg.norm(x.reshape(len(x), -1), axis=1)


def inverses(g, x):
    """The default solver at its default tolerance."""
    y = x + g(x)
    answer, milliseconds, _ = measured(lambda: invert(g, y))
    exact = invert(*in_float64(NUMPY, g, y), rtol=1e-14, atol=0.0, on_failure="return").value
    return (
        str(answer.iterations.max()),
        f"{np.max(answer.error_bound / lengths(exact)):.0e}",
        f"{relative(answer.value - exact, exact):.0e}",
        f"{milliseconds:.0f}",
    )


def flows(case, g, x):
    """Four such blocks with an ActNorm before each: the way back, and the density."""
    tenth = np.full(case.shape[0], 0.1, dtype=x.dtype)
    flow = Flow([ActNorm(tenth, tenth), ResidualBlock(g)] * BLOCKS, case.shape)
    z = flow.forward(x, method="arnoldi", terms=1, errors=False).value
    answer = flow.inverse(z)
    exact = flow.astype(np.float64).inverse(z.astype(np.float64), rtol=1e-13, on_failure="return").value
    return (
        str(answer.iterations.max()),
        f"{np.max(answer.error_bound / lengths(exact)):.0e}",
        f"{relative(answer.value - exact, exact):.0e}",
        str(flow.log_prob(x, rng=0).products.max()),
    )


def row(case):
    """All columns of a case."""
    g, x = branch(NUMPY, case), samples(NUMPY, case, 2)
    about = (case.size, f"{case.c:g}", case.weights)
    return (*about, *norms(g), *log_determinants(case, g, x), *inverses(g, x), *flows(case, g, x))


def main():
    """Print the table as Markdown, line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the six cases that CI tests")
    parser.add_argument("--size", action="append", choices=tuple(SIZES))
    parser.add_argument("--c", action="append", type=float)
    parser.add_argument("--weights", action="append", choices=("at their caps", "trained"))
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--layers", type=int, choices=(2, 3, 4), default=3)
    parser.add_argument("--markdown", type=Path, help="write the table here as well")
    options = parser.parse_args()
    cases = FEW
    if not options.quick:
        cases = [
            Case(size, c, options.dtype, options.layers, weights)
            for size in options.size or SIZES
            for c in options.c or CONSTANTS
            for weights in options.weights or ("at their caps", "trained")
        ]
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    print("\n".join(lines))
    with threadpool_limits(1):
        for case in cases:
            lines.append("| " + " | ".join(row(case)) + " |")
            print(lines[-1], flush=True)
            if options.markdown:
                options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
