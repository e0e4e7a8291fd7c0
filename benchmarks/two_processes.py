"""Two processes beside one: steps of `iresnet train` under torchrun, and rows of `iresnet score --dask`.

    pip install ".[cli,torch,dask]"
    python benchmarks/two_processes.py [--batch 2048] [--steps 150] [--rows 40000] [--markdown FILE]

d = 64, eight blocks of 128 units, one thread for each process. Seconds of training are those that the run's result
holds, one evaluation among them; those of scoring are wall time, the start of the workers among them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from report_tables import Report

D = 64
COMMAND = ("-m", "iresnet_core")


def run(*arguments):
    """Run Python with these arguments; return its wall time."""
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - begin


def training_seconds(folder, processes, chosen):
    """Seconds of a training in so many processes."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}") if processes > 1 else ()
    out = folder / f"run{processes}"
    run(
        *(*launcher, *COMMAND, "train", folder / "x.npy", "--out", out, "--no-tensorboard"),
        *("--steps", chosen.steps, "--batch", chosen.batch, "--blocks", 8, "--hidden", 128, "--threads", 1),
        *("--evaluate-every", 10**6, "--checkpoint-every", 10**6),
    )
    return json.loads((out / "result.json").read_text())["seconds"]


def scoring_seconds(folder, workers, chosen):
    """Wall time of scoring by so many workers."""
    return run(
        *(*COMMAND, "score", folder / "run1", folder / "x.npy", "--samples", chosen.rows, "--chunk", 1950),
        *("--dask", workers, "--out", folder / f"scores{workers}.npy"),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--markdown")
    chosen = parser.parse_args()
    report = Report(chosen.markdown)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n = max(50_000, chosen.rows)
        np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((n, D), dtype="float32"))
        training = [training_seconds(folder, n, chosen) for n in (1, 2)]
        scoring = [scoring_seconds(folder, n, chosen) for n in (1, 2)]
        same = (folder / "scores1.npy").read_bytes() == (folder / "scores2.npy").read_bytes()
    rows = [
        (name, *(f"{seconds:.1f}" for seconds in both), f"{both[1] / both[0]:.2f}")
        for name, both in (
            (f"{chosen.steps} steps of {chosen.batch} samples with `torchrun`", training),
            (f"`iresnet score --dask` of {chosen.rows} samples", scoring),
        )
    ]
    report.table("Two processes beside one", ["what", "one, s", "two, s", "two / one"], rows)
    report.note(f"Both scorings wrote the same bytes: {'yes' if same else 'NO'}.")
    report.write()


if __name__ == "__main__":
    main()
