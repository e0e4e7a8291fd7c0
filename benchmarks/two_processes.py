"""Two processes beside one: steps of `iresnet train` under torchrun, and rows of `iresnet score --dask`.

    pip install ".[cli,torch,dask]"
    python benchmarks/two_processes.py [--batches 2048 8192] [--samples 400000] [--rows 40000] [--markdown FILE]

d = 64, eight blocks of 128 units, one thread for each process. Seconds of training are those that the run's result
holds, one evaluation among them; those of scoring are wall time, the start of the workers among them. Two trainings of
half the batch that know nothing of each other, at the same time, say what two cores of the machine can gain at most.
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


def run(*commands):
    """Run Python with the arguments of each command, all at the same time; return the wall time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    begin = time.perf_counter()
    started = [
        subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, stdout=subprocess.DEVNULL)
        for arguments in commands
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit("a command failed, see above")
    return time.perf_counter() - begin


def training(folder, name, batch, steps, processes=1):
    """Return the command of a training in so many processes, whose run folder has this name."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}") if processes > 1 else ()
    return (
        *(*launcher, *COMMAND, "train", folder / "x.npy", "--out", folder / name, "--no-tensorboard"),
        *("--steps", steps, "--batch", batch, "--blocks", 8, "--hidden", 128, "--threads", 1),
        *("--evaluate-every", 10**6, "--checkpoint-every", 10**6),
    )


def training_seconds(folder, batch, samples):
    """Return the seconds of one process, of two that share its batches, and of two that do not know of each other."""
    names = [f"{kind}-{batch}" for kind in ("one", "two", "first", "second")]
    steps = max(1, samples // batch)
    run(training(folder, names[0], batch, steps))
    run(training(folder, names[1], batch, steps, processes=2))
    run(*(training(folder, name, batch // 2, steps) for name in names[2:]))
    one, two, *apart = (json.loads((folder / name / "result.json").read_text())["seconds"] for name in names)
    return one, two, max(apart)


def scoring_seconds(folder, workers, chosen):
    """Wall time of scoring by so many workers."""
    scored, model = folder / f"scores{workers}.npy", folder / f"one-{chosen.batches[0]}"
    command = (*COMMAND, "score", model, folder / "x.npy", "--samples", chosen.rows, "--chunk", 1950)
    return run((*command, "--dask", workers, "--out", scored))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--samples", type=int, default=400_000, help="of a training, all steps together")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--markdown")
    chosen = parser.parse_args()
    report = Report(chosen.markdown)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n = max(50_000, chosen.rows)
        np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((n, D), dtype="float32"))
        seconds = {batch: training_seconds(folder, batch, chosen.samples) for batch in chosen.batches}
        scoring = [scoring_seconds(folder, n, chosen) for n in (1, 2)]
        same = (folder / "scores1.npy").read_bytes() == (folder / "scores2.npy").read_bytes()
    rows = [
        (
            f"{chosen.samples // batch} steps of {batch} samples with `torchrun`",
            *(f"{value:.1f}" for value in (one, two)),
            *(f"{value / one:.2f}" for value in (two, apart)),
        )
        for batch, (one, two, apart) in seconds.items()
    ]
    both = [f"{value:.1f}" for value in scoring]
    rows.append((f"`iresnet score --dask` of {chosen.rows} samples", *both, f"{scoring[1] / scoring[0]:.2f}", "-"))
    heads = ["what", "one, s", "two, s", "two / one", "two apart, of half the batch / one"]
    report.table("Two processes beside one", heads, rows)
    report.note(f"Both scorings wrote the same bytes: {'yes' if same else 'NO'}.")
    report.write()


if __name__ == "__main__":
    main()
