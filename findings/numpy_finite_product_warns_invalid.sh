#!/usr/bin/env bash
# Version: numpy 2.4.6 (its OpenBLAS 0.3.31.188), on a processor with AVX-512.
# Behaviour: the product of a finite float32 matrix with five columns and a finite vector warns "invalid value
#   encountered in matmul", or raises under `np.errstate(all="raise")`, although its result is right and finite. Whether
#   it does depends on what was computed before: the kernel reads a register's width of memory that it never wrote and
#   throws the result away, but the bits of a signalling NaN found there raise the flag that NumPy reports. The low
#   halves of ordinary doubles can be such bits.
# Guess: finite arguments with a finite result never warn, and the same call always behaves alike.
# Output: the product is silent before, and warns after a product of doubles near one; both results are equal.
# Exit status: 0 as described, 1 if that has changed, 77 where NumPy finds no AVX-512. Everything is installed and run
#   in a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6
OPENBLAS_NUM_THREADS=1 "$work/venv/bin/python" - <<'PYTHON'
import sys
import warnings

import numpy as np

if "X86_V4" not in np.show_config(mode="dicts")["SIMD Extensions"]["found"]:
    sys.exit(77)
generator = np.random.default_rng(0)
matrix = generator.standard_normal((6, 5)).astype(np.float32)
vector = generator.standard_normal(5).astype(np.float32)
# Doubles between 1 and 1 + 2^-20 whose low halves, read as float32, are signalling NaN.
doubles = np.full(200, 0x3FF00000_7FA00001, np.uint64).view(np.float64)


def product():
    """Product of the finite matrix and vector, and the text of the warning that came with it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = matrix @ vector
    return value, [str(warning.message) for warning in caught]


product()
before, silent = product()
for columns in range(20, 100):
    np.ones((6, columns)) @ doubles[: 2 * columns : 2]
    after, warned = product()
    if warned:
        break
print(np.__version__, "before:", silent, "after:", warned, "all finite:", bool(np.isfinite(after).all()))
same = np.isfinite(doubles).all() and np.array_equal(before, after) and np.isfinite(after).all()
sys.exit(0 if same and not silent and warned == ["invalid value encountered in matmul"] else 1)
PYTHON
