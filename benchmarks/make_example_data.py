"""Build the example branches that ship in the package from the blocks of trained flows.

    python benchmarks/make_example_data.py trained_branches.npz

The source holds eight trained flows, d2_c0.5 to d64_c0.97: six blocks each at d = 2 (two moons), four at d = 64 (8 x 8
digits), three dense layers a block, normalised to the block constant in the name.

Of each flow one block is kept: the one with the largest mean ||J_g(x)||_2 over its own inputs, since small Jacobians
are too easy a test (random weights have ||J|| of .1 to .3). Its inputs are the first 64 of the data, sent through the
blocks before it by x <- x + g(x).

Weights and inputs are rounded to float32, so that the file stays small and the same numbers are exact in float32 and in
float64. Rounding moves a norm by up to 1e-7, so nothing here claims a constant: the loaded chain certifies its own.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.linalg import svdvals

from iresnet_core import Activation, Chain, Dense, reference

CASES = [f"d{d}_c{c}" for d in (2, 64) for c in ("0.5", "0.7", "0.9", "0.97")]
SAMPLES = 64
LAYERS = 3
OUTPUT = Path(__file__).resolve().parent.parent / "iresnet_core" / "examples" / "trained_branches.npz"


def read_block(source, case, k):
    """Return the weights and biases of block k, rounded to float32; None past the last block."""
    if f"{case}/block{k}/weight0" not in source.files:
        return None
    return {
        f"{kind}{i}": source[f"{case}/block{k}/{kind}{i}"].astype(np.float32)
        for i in range(LAYERS)
        for kind in ("weight", "bias")
    }


def as_chain(arrays, activation):
    """Return the block as a float64 chain."""
    layers = []
    for i in range(LAYERS):
        layers += [
            Dense(arrays[f"weight{i}"].astype(np.float64), arrays[f"bias{i}"].astype(np.float64)),
            Activation(activation),
        ]
    return Chain(layers[:-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()

    chosen = {}
    with np.load(arguments.source, allow_pickle=False) as source:
        for case in CASES:
            activation = str(source[f"{case}/activation"])
            x = source[f"{case}/inputs"][:SAMPLES].astype(np.float32)
            best = -1.0
            k = 0
            while (arrays := read_block(source, case, k)) is not None:
                chain = as_chain(arrays, activation)
                J = reference.jacobian(chain, x)
                mean_norm = float(np.mean([svdvals(matrix)[0] for matrix in J]))
                print(f"{case} block {k}: constant {chain.lipschitz:.7f}, mean ||J||_2 {mean_norm:.4f}")
                if mean_norm > best:
                    best = mean_norm
                    chosen |= {f"{case}/{name}": value for name, value in arrays.items()}
                    chosen[f"{case}/inputs"] = x
                    chosen[f"{case}/block"] = np.int64(k)
                    chosen[f"{case}/activation"] = np.array(activation)
                x = (x + chain(x.astype(np.float64))).astype(np.float32)
                k += 1
            print(f"{case}: kept block {int(chosen[f'{case}/block'])}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.output, **chosen)
    print(f"{arguments.output.name}: {arguments.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
