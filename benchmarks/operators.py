"""log det(I + A) of implicit Euler steps: products against error, beside matfree's stochastic Lanczos quadrature.

    python benchmarks/operators.py [--seeds 30] [--path folder-with-matfree] [--markdown operators.md]

The operators are sparse, d = 2000, of norm 50: second differences on a line and on a grid, without and with upwind
advection. The exact value is that of dense LU factors. Every row runs `logdet` for many seeds, and then matfree
(0.6.3; it needs JAX) with as many probes as the same root-mean-square error takes: SLQ of I + A where that is
symmetric, of (I + A)^T (I + A), as half the logarithm, where it is not. matfree is given what nobody knows beforehand:
the number of steps at which it is cheapest for that error, found from its variance, and from its bias with the same
probes. All products are counted, also those with the transpose, with which bounds are found, and those that look
whether the operator is linear.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import aslinearoperator

from iresnet_core import as_operator, logdet

NORM, SHAPE = 50.0, (40, 50)
# Steps of Lanczos' and of Golub and Kahan's method to choose from; the last ones leave no bias to speak of.
STEPS, PRODUCT_STEPS = (3, 4, 6, 8, 10, 12, 16, 32), (8, 12, 16, 24, 32, 64)
CHUNK, SAMPLE = 50, 200


def on_line(n, advection):
    """Second differences, and backward differences for the advection."""
    A = sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(n, n))
    return A + advection * sparse.diags_array([-1.0, 1.0], offsets=[-1, 0], shape=(n, n))


def operators():
    """Names and operators."""
    d = SHAPE[0] * SHAPE[1]
    for name, advection in (("diffusion", 0.0), ("diffusion and advection", 0.5)):
        grid = sparse.kron(on_line(SHAPE[0], advection), sparse.eye_array(SHAPE[1]))
        grid = grid + sparse.kron(sparse.eye_array(SHAPE[0]), on_line(SHAPE[1], advection))
        for where, A in (("line", on_line(d, advection)), ("grid", grid)):
            yield f"{name}, {where}", (A * (NORM / np.linalg.norm(A.toarray(), 2))).tocsr()


class Slq:
    """matfree's estimator for one operator: forms of probes, (probes,), and the products of each."""

    def __init__(self, A, symmetric):
        import jax
        from matfree import decomp, funm, stochtrace

        jax.config.update("jax_enable_x64", True)
        self.jax, self.decomp, self.funm, self.stochtrace = jax, decomp, funm, stochtrace
        # The diagonals of the matrix, by which JAX multiplies.
        M = (sparse.eye_array(A.shape[0]) + A).todia()
        self.offsets, data = tuple(int(k) for k in M.offsets), jax.numpy.asarray(M.data)
        self.d, self.symmetric, self.compiled = A.shape[0], symmetric, {}
        self.moments, self.limit = {}, None

        def matvec(v):
            total = 0.0
            for k, row in zip(self.offsets, data, strict=True):
                total = total + jax.numpy.roll(row * v, -k)
            return total

        for k, row in zip(self.offsets, M.data, strict=True):  # rolled entries have to be zero at the ends
            assert not np.any(row[:k] if k > 0 else row[self.d + k :] if k < 0 else 0)
        self.matvec = matvec

    def forms(self, steps, probes, seed):
        """Estimates of log det(I + A), one per probe."""
        if steps not in self.compiled:
            if self.symmetric:
                integrand = self.funm.monte_carlo_funm_sym_logdet(self.decomp.tridiag_sym(steps))
            else:
                integrand = self.funm.monte_carlo_funm_product_logdet(self.decomp.bidiag(steps))
            sampler = self.stochtrace.sampler_signs(self.jax.numpy.ones(self.d), num=1)
            estimate = self.stochtrace.estimator_monte_carlo(integrand, sampler=sampler)
            self.compiled[steps] = self.jax.jit(self.jax.vmap(lambda key: estimate(self.matvec, key)))
        keys, values = self.jax.random.split(self.jax.random.PRNGKey(seed), probes), []
        for begin in range(0, probes, CHUNK):
            part = keys[begin : begin + CHUNK]
            filled = self.jax.numpy.concatenate([part, keys[: CHUNK - len(part)]]) if len(part) < CHUNK else part
            filled = self.jax.numpy.resize(filled, (CHUNK, *keys.shape[1:]))
            values.append(np.asarray(self.compiled[steps](filled))[: len(part)])
        return np.concatenate(values) * (1.0 if self.symmetric else 0.5)

    def products(self, steps):
        """Products of one probe."""
        return steps if self.symmetric else 2 * steps

    def cheapest(self, error):
        """The number of steps and probes that reach a root-mean-square error with the fewest products."""
        best, choices = None, STEPS if self.symmetric else PRODUCT_STEPS
        for steps in choices:
            if steps not in self.moments:
                if self.limit is None:
                    self.limit = self.forms(choices[-1], SAMPLE, 10_000)
                sample = self.forms(steps, SAMPLE, 10_000)
                self.moments[steps] = np.mean(sample - self.limit), np.var(sample, ddof=1)
            bias, variance = self.moments[steps]
            left = error**2 - bias**2
            if left > 0:
                probes = int(np.ceil(variance / left))
                cost = probes * self.products(steps)
                best = min(best or (cost, steps, probes), (cost, steps, probes))
        return best


def measured(A, truth, seeds, **options):
    """Root-mean-square error, mean products, the share within two standard errors and the bias bound, and the bars."""
    results = [logdet(A, rng=seed, **options) for seed in range(seeds)]
    off = np.array([float(r.value) - truth for r in results])
    bars = np.array([2 * float(r.std_error) + float(r.bias_bound) for r in results])
    bars += 1e-12 * abs(truth)
    spent = np.mean([int(r.products) for r in results])
    return np.sqrt(np.mean(off**2)), spent, np.mean(np.abs(off) <= bars), np.mean([float(r.std_error) for r in results])


CASES = {
    "by colours": {"exact_up_to": 0},
    "tol=10": {"tol": 10.0, "exact_up_to": 0},
    "tol=1": {"tol": 1.0, "exact_up_to": 0},
    "products only, tol=10": {"tol": 10.0},
}
# With more products than this, in a single run, matfree's error is taken from its variance at fewer probes.
MOST_PRODUCTS = 40_000


def row(name, A, truth, label, options, slq, seeds):
    """One line of the table."""
    symmetric = slq.symmetric
    if label.startswith("products"):
        d = A.shape[0]
        A = as_operator((aslinearoperator(A).matvec, aslinearoperator(A).rmatvec), shape=(d, d))
        options = options | ({"spectrum": (0.0, None)} if symmetric else {"disc": (NORM / 2, None)})
    error, spent, covered, stated = measured(A, truth, seeds, **options)
    cost, steps, probes = slq.cheapest(error)
    if cost <= MOST_PRODUCTS:
        runs = max(8, min(seeds, 2 * MOST_PRODUCTS // cost))
        means = [np.mean(slq.forms(steps, probes, seed)) for seed in range(runs)]
        theirs = f"{np.sqrt(np.mean((np.array(means) - truth) ** 2)):.3g}"
    else:
        theirs = f"{error:.3g} (by its variance)"
    values = [name, label, f"{spent:.0f}", f"{error:.3g}", f"{stated:.3g}", f"{covered:.0%}"]
    return [*values, f"{probes} x {slq.products(steps)} = {cost}", theirs, f"{cost / spent:.1f}"]


HEAD = (
    *("operator", "logdet", "products", "RMSE", "mean std_error", "within two"),
    *("matfree: probes x products", "its RMSE", "times the products"),
)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--only", default="", help="the operators whose names contain this")
    parser.add_argument("--path", help="a folder with matfree, where it is not installed")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    if arguments.path:
        sys.path.append(arguments.path)
    lines = ["| " + " | ".join(HEAD) + " |", "| --- | --- |" + " ---: |" * (len(HEAD) - 2)]
    print("\n".join(lines))
    for name, A in operators():
        if arguments.only not in name:
            continue
        truth = np.linalg.slogdet(np.eye(A.shape[0]) + A.toarray())[1]
        slq = Slq(A, symmetric=(abs(A - A.T)).max() == 0)
        for label, options in CASES.items():
            lines.append("| " + " | ".join(row(name, A, truth, label, options, slq, arguments.seeds)) + " |")
            print(lines[-1], flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
