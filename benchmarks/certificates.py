"""Certified bounds on the spectral norm: how tight, and at what fraction of the time of an SVD.

``python benchmarks/certificates.py [n ...]`` times every method on Gaussian matrices n x n (default 128, 512, 1024) in
one run, the methods in turn and the median of the repetitions, and prints ratios. On real weights the spectrum decays
faster and Lanczos needs fewer steps: the last rows are the widest layers of the trained example branches.
"""

import statistics
import sys
import time

import numpy as np

from iresnet_core import example_data, lipschitz_bound

METHODS = ("svd", "cholesky", "gram", "lanczos", "frobenius", "holder")
REPETITIONS = 9


def measure(A):
    """Return for each method its excess over the norm and the median of its time, all in seconds."""
    exact = np.linalg.norm(A, 2)
    times = {method: [] for method in (*METHODS, "numpy svd")}
    excess = {"numpy svd": 0.0}
    for _ in range(REPETITIONS):
        for method in METHODS:
            begin = time.perf_counter()
            bound = lipschitz_bound(A, method=method, rng=0)
            times[method].append(time.perf_counter() - begin)
            excess[method] = float(bound.value) / exact - 1
        begin = time.perf_counter()
        np.linalg.svd(A, compute_uv=False)
        times["numpy svd"].append(time.perf_counter() - begin)
    return {method: (excess[method], statistics.median(times[method])) for method in times}


def main(sizes):
    matrices = [(f"Gaussian {n} x {n}", np.random.default_rng(n).standard_normal((n, n))) for n in sizes]
    matrices.append(("trained d64_c0.9, 128 x 128", example_data.load_case("d64_c0.9")[0].operators[1].weight))
    print(f"{'matrix':30} {'method':10} {'above the norm':>15} {'time, ms':>10} {'of NumPy SVD':>13}")
    for name, A in matrices:
        results = measure(A)
        _, reference = results["numpy svd"]
        for method, (excess, seconds) in results.items():
            print(f"{name:30} {method:10} {excess:15.2e} {1e3 * seconds:10.2f} {seconds / reference:12.0%}")


if __name__ == "__main__":
    main([int(n) for n in sys.argv[1:]] or [128, 512, 1024])
