"""Speed on a GPU: power iteration against the memory's bandwidth, and 64 branches at once.

``python benchmarks/gpu.py [cupy] [torch] [jax]`` prints for each backend the time of one step of the power iteration on
a 4096 x 4096 float32 matrix, next to the time of reading the matrix twice at the bandwidth that a copy has in the same
run; and the time of the norms of one layer 512 x 512 of each of 64 branches, in one call next to 64 calls. Medians over
the repetitions, after a warm-up, each measurement closed by a synchronisation. Without a GPU it says so and stops with
status 2.
"""

import statistics
import sys
import time
import warnings
from importlib import import_module

import numpy as np

from iresnet_core import spectral_norm
from iresnet_core.backends import backend
from iresnet_core.errors import MissingDependencyError

N, STACK, SMALL = 4096, 64, 512
FEW, MANY = 8, 64
REPETITIONS = 20


class NoGPUError(Exception):
    """The framework is there and sees no GPU."""


def on_cupy():
    """CuPy's own device."""
    cupy = import_module("cupy")
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return name, cupy.asarray, lambda _: cupy.cuda.get_current_stream().synchronize()


def on_torch():
    """The current CUDA device."""
    torch = import_module("torch")
    if not torch.cuda.is_available():
        raise NoGPUError("torch.cuda.is_available() is False")
    return torch.cuda.get_device_name(), lambda x: torch.tensor(x, device="cuda"), lambda _: torch.cuda.synchronize()


def on_jax():
    """The default device."""
    jax = import_module("jax")
    if jax.default_backend() != "gpu":
        raise NoGPUError(f"jax.default_backend() is {jax.default_backend()!r}")
    return jax.devices()[0].device_kind, jax.numpy.asarray, jax.block_until_ready


DEVICES = {"cupy": on_cupy, "torch": on_torch, "jax": on_jax}


def median(call, wait, repetitions=REPETITIONS):
    """Median time of a call, after two to warm up."""
    spent = []
    for repetition in range(-2, repetitions):
        begin = time.perf_counter()
        wait(call())
        if repetition >= 0:
            spent.append(time.perf_counter() - begin)
    return statistics.median(spent)


def power(A, steps):
    """A fixed number of steps."""
    return spectral_norm(A, method="power", rtol=0.0, max_iter=steps).value


def measure(name):
    """Print the figures of one found."""
    found = backend(name)
    device, array, wait = DEVICES[name]()
    print(f"{name} on {device}")
    rng = np.random.default_rng(0)
    A = array(rng.standard_normal((N, N), dtype=np.float32))
    # A copy reads and writes its array; of 1 GiB, so that no cache holds it.
    large = array(np.zeros(2**28, dtype=np.float32))
    bandwidth = 2 * 4 * 2**28 / median(lambda: found.xp.asarray(large, copy=True), wait)
    step = (median(lambda: power(A, MANY), wait) - median(lambda: power(A, FEW), wait)) / (MANY - FEW)
    least = 2 * 4 * N * N / bandwidth
    print(f"  bandwidth of a copy                    {bandwidth / 1e9:9.0f} GB/s")
    print(f"  power step, {N} x {N}, eager        {1e6 * step:9.0f} us")
    compiled = {k: found.jit(lambda A, k=k: power(A, k)) for k in (FEW, MANY)}
    if found.differentiates:  # those without have no compiler either
        fast = median(lambda: compiled[MANY](A), wait) - median(lambda: compiled[FEW](A), wait)
        print(f"  power step, {N} x {N}, compiled     {1e6 * fast / (MANY - FEW):9.0f} us")
    print(f"  two reads of the matrix take           {1e6 * least:9.0f} us")
    stack = array(rng.standard_normal((STACK, SMALL, SMALL), dtype=np.float32))
    together = median(lambda: power(stack, MANY), wait)
    apart = median(lambda: [power(stack[i, ...], MANY) for i in range(STACK)], wait, 3)
    print(f"  {STACK} norms {SMALL} x {SMALL}, {MANY} steps, together {1e3 * together:9.2f} ms")
    print(f"  {STACK} norms {SMALL} x {SMALL}, {MANY} steps, apart    {1e3 * apart:9.2f} ms")


def main(names):
    # That TF32 is off, which a bound relies on.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    unknown = sorted(set(names) - set(DEVICES))
    if unknown:
        print(f"there is no {', '.join(unknown)} here; choose from {', '.join(DEVICES)}", file=sys.stderr)
        return 2
    measured = 0
    for name in names or DEVICES:
        try:
            measure(name)
        except (MissingDependencyError, NoGPUError) as error:
            print(f"{name}: not measured: {error}", file=sys.stderr)
        else:
            measured += 1
    if not measured:
        print("No GPU was found, so nothing was measured.", file=sys.stderr)
    return 0 if measured else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
