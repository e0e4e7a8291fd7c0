"""Memory of scoring and of training on a file that is larger than the memory they are given.

    pip install ".[cli,torch,dask]" psutil
    python benchmarks/memory_of_scoring.py [--rows 10000000] [--chunk 100000] [--workers 2] [--markdown FILE]

The file has d = 64 in float32. It is scored by `iresnet score --dask` with a flow of one block, and trained on by
`iresnet train --memory`, eight blocks of 128 units. The memory is the largest resident set of each process, with its
modules and the part of the mapped file that it has touched, looked at every 50 ms.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from report_tables import Report

D, AT_ONCE = 64, 100_000
COMMAND = (sys.executable, "-m", "iresnet_core")


def write_samples(path, rows):
    """Write rows of a normal distribution, a part at a time."""
    rng = np.random.default_rng(0)
    array = np.lib.format.open_memmap(path, mode="w+", dtype="float32", shape=(rows, D))
    for begin in range(0, rows, AT_ONCE):
        part = array[begin : begin + AT_ONCE]
        part[:] = rng.standard_normal(part.shape, dtype="float32")
    array.flush()


def largest_memory(*arguments):
    """Run a command; return the largest MiB of itself, the largest of a process that it started, and its seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    begin = time.perf_counter()
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], env=environment, stdout=subprocess.DEVNULL)
    own = others = 0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            own = max(own, watched.memory_info().rss)
            for child in watched.children(recursive=True):
                others = max(others, child.memory_info().rss)
        except psutil.NoSuchProcess:  # it has just ended
            pass
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} failed, see above")
    return own / 2**20, others / 2**20, time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--chunk", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--markdown")
    chosen = parser.parse_args()
    report = Report(chosen.markdown)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, model = folder / "x.npy", folder / "model"
        write_samples(file, chosen.rows)
        first = folder / "first.npy"
        np.save(first, np.load(file, mmap_mode="r")[:10_000])
        largest_memory(
            *("train", first, "--out", model, "--no-tensorboard", "--steps", 20, "--batch", 256, "--blocks", 1)
        )
        command = ("score", model, file, "--chunk", chosen.chunk, "--out", folder / "scores.npy")
        own, worker, seconds = largest_memory(*command, "--dask", chosen.workers)
        label = f"`iresnet score --dask {chosen.workers} --chunk {chosen.chunk}`"
        rows.append((label, f"{own:.0f}", f"{worker:.0f}", f"{seconds:.0f}"))
        for memory in (256, 1024):
            out = folder / f"run{memory}"
            own, _, seconds = largest_memory(
                *("train", file, "--out", out, "--no-tensorboard", "--memory", memory, "--batch", 1024),
                *("--steps", 200, "--blocks", 8, "--hidden", 128, "--threads", 1, "--evaluate-every", 100),
            )
            rows.append((f"200 steps of `iresnet train --memory {memory}`", f"{own:.0f}", "-", f"{seconds:.0f}"))
        size = file.stat().st_size / 2**30
    heads = ["command", "its MiB", "MiB of a worker", "s"]
    report.table(f"{chosen.rows} samples of d = {D}, a file of {size:.1f} GiB", heads, rows)
    report.write()


if __name__ == "__main__":
    main()
