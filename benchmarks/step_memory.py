"""Peak memory of a training step, and the time until the first one, each in a process of its own."""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time

import torch
from step_models import Levers, Setting, stepper

STEPS = 4


def _status(key):
    """A figure of this process in MiB, as the kernel has it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def _growth(step):
    """Growth (MiB) of the peak of resident memory over some steps, beyond what stays between two steps."""
    for _ in range(2):
        step()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is that from now on
    for _ in range(STEPS):
        step()
    return _status("VmHWM") - before


def _growth_on_gpu(step):
    """The same of the memory that PyTorch has given out on a GPU."""
    for _ in range(2):
        step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(STEPS):
        step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _first(step):
    """Seconds until the first step is done, with the compiler's where there is one."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def _in_own_process(figure, name, setting, levers):
    """A figure from a fresh process; one that was forked has its parent's peak, and so have those of `resource`.

    Arrays of 64 kB and more go back to the kernel when they are freed, so that what is resident is what is used.
    Programs that were compiled before are not found.
    """
    arguments = json.dumps([figure, name, setting, levers])
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "TORCHINDUCTOR_CACHE_DIR": cache}
        ran = subprocess.run(
            [sys.executable, __file__, arguments], capture_output=True, text=True, env=environment, check=False
        )
    if ran.returncode:
        raise RuntimeError(f"{name}, {setting}: {ran.stderr}")
    return float(ran.stdout.split()[-1])


def peak(name, setting, levers):
    """MiB by which a step grows the process beyond weights, gradients and the state of the optimiser."""
    return _in_own_process("peak", name, setting, levers)


def first_step(name, setting, levers):
    """Seconds until the first step is done."""
    return _in_own_process("first", name, setting, levers)


def main():
    figure, name, (shape, *sizes), levers = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    setting = Setting(tuple(shape), *sizes)
    growth = _growth if setting.device == "cpu" else _growth_on_gpu
    print((growth if figure == "peak" else _first)(stepper(name, setting, Levers(*levers))))


if __name__ == "__main__":
    main()
