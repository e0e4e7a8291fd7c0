"""What the core adds to the lines that one would write directly against a framework: ratios, from one run.

``python benchmarks/overhead.py [backend ...]`` times, for every backend that runs here (``--help``: more options),

- a step of the power iteration on a 512 x 512 matrix, ``spectral_norm(A, method="power", rtol=0, max_iter=k)``;
- a term of the series of the log-determinant of a chain 64-128-128-64 with lipswish at 500 inputs, one probe,
  ``logdet(g, x, method="series", terms=k)``;

both in float32, eager and compiled. The cost of one step is the difference between two k, divided by the difference of
the k, so that what a call costs once is not in it; that is printed as well ("once": core, direct). Core and direct
lines run in turn; medians over the repetitions, after a warm-up. "direct" are the same lines: product, norm, running
sum. For the series "bare" leaves out what only the error bars need (norms and the running vector) and keeps products
and dot products. On a busy machine ``--clock cpu`` counts this process's own time.
"""

import argparse
import itertools
import statistics
import time
from functools import partial
from importlib import import_module

import numpy as np

from iresnet_core import Activation, Chain, Dense, logdet, normalize, spectral_norm
from iresnet_core.backends import available_backends, backend
from iresnet_core.errors import MissingDependencyError

N, BATCH, WIDTHS = 512, 500, (64, 128, 128, 64)
STEPS = {"power step": (10, 60), "series term": (6, 26)}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FOR_TESTS = ("array_api_strict",)


class Direct:
    """The lines written against one framework; `xp` is its own namespace, under its own names."""

    def __init__(self, name):
        self.name = name
        self.xp = import_module({"jax": "jax.numpy"}.get(name, name))
        if name == "torch":
            self.norm, self.dot = partial(self.xp.linalg.vector_norm, dim=-1), self.xp.linalg.vecdot
            self.transposed = lambda A: A.T
        elif name == "tensorflow":
            tf = self.xp
            self.norm = partial(tf.norm, axis=-1)
            self.dot = lambda a, b: tf.reduce_sum(a * b, axis=-1)
            self.transposed = tf.transpose
        else:
            self.norm = partial(self.xp.linalg.norm, axis=-1)
            self.dot = getattr(self.xp, "vecdot", lambda a, b: (a * b).sum(-1))
            self.transposed = lambda A: A.T

    def matvec(self, A, v):
        """A v."""
        return self.xp.linalg.matvec(A, v) if self.name == "tensorflow" else A @ v

    def rmatvec(self, A, u):
        """A^T u."""
        return self.xp.linalg.matvec(A, u, transpose_a=True) if self.name == "tensorflow" else u @ A

    def power(self, k, A, u):
        """Take k steps of the power iteration."""
        sigma = self.norm(u)
        for _ in range(k):
            v = self.rmatvec(A, u)
            v = v / self.norm(v)
            u = self.matvec(A, v)
            sigma = self.norm(u)
            u = u / sigma
        return sigma

    def _linearized(self, x, weights, slope):
        """The product u -> J^T u at x."""
        W1, b1, W2, b2, W3, _ = weights
        a = x @ self.transposed(W1) + b1
        h, first = slope(a)
        _, second = slope(h @ self.transposed(W2) + b2)
        return lambda u: (((u @ W3) * second) @ W2 * first) @ W1

    def series(self, k, x, v, weights, slope):
        """Sum k terms of the series, with what the error bars need."""
        product = self._linearized(x, weights, slope)
        w, total, image, lengths = v, 0, 0, self.norm(v)
        for j in range(1, k + 1):
            w = product(w)
            length = self.norm(w)
            lengths = lengths + length
            weight = (-1.0) ** (j + 1) / j
            total = total + weight * self.dot(v, w)
            image = image + weight * w
        return total, self.dot(image, image), lengths

    def bare_series(self, k, x, v, weights, slope):
        """Sum k terms of the series: products and dot products alone."""
        product = self._linearized(x, weights, slope)
        w, total = v, 0
        for j in range(1, k + 1):
            w = product(w)
            total = total + (-1.0) ** (j + 1) / j * self.dot(v, w)
        return total


def compilers(name):
    """How functions are compiled: name -> decorator; "eager" is none."""
    ways = {"eager": lambda fn: fn}
    if name == "torch":
        torch = import_module("torch")
        torch.compiler.reset()  # programs of partial functions count as recompilations of one
        ways["torch.compile"] = partial(torch.compile, fullgraph=True)
    elif name == "tensorflow":
        tf = import_module("tensorflow")
        ways["tf.function"] = tf.function
        ways["tf.function, XLA"] = partial(tf.function, jit_compile=True)
    elif name == "jax":
        ways["jax.jit"] = import_module("jax").jit
    return ways


def waiting(name):
    """Wait until a result has been computed."""
    if name == "jax":
        return import_module("jax").block_until_ready
    if name == "cupy":
        return lambda _: import_module("cupy").cuda.get_current_stream().synchronize()
    if name == "torch" and import_module("torch").cuda.is_available():
        return lambda _: import_module("torch").cuda.synchronize()
    return lambda _: None


def tasks(name, device):
    """For each task: the arguments, and label -> function of (k, *arguments)."""
    found, direct = backend(name), Direct(name)
    rng = np.random.default_rng(0)

    def array(*shape):
        made = found.from_numpy(rng.standard_normal(shape).astype("float32"))
        return made.to(device) if name == "torch" and device else made

    A, start = array(N, N), array(N)
    activation = Activation("lipswish")
    layers = []
    for n, m in itertools.pairwise(WIDTHS):
        layers += [Dense(array(m, n), array(m)), activation]
    g = normalize(Chain(layers[:-1]), 0.9)
    constant = g.lipschitz
    weights = [part for operator in g.operators for part in (operator.weight, operator.bias)]
    x, v = array(BATCH, WIDTHS[0]), array(1, BATCH, WIDTHS[0])

    def slope(a):
        value, jacobian = activation.linearize(a)
        return value, jacobian.slope

    def core_power(k, A, u):
        return spectral_norm(A, method="power", start=u, rtol=0.0, max_iter=k).value

    def core_series(k, x, v):
        answer = logdet(g, x, method="series", terms=k, noise=v, control_variate="none", lipschitz=constant)
        return answer.value, answer.std_error, answer.bias_bound

    return {
        "power step": ((A, start), {"core": core_power, "direct": direct.power}),
        "series term": (
            (x, v),
            {
                "core": core_series,
                "direct": lambda k, x, v: direct.series(k, x, v, weights, slope),
                "bare": lambda k, x, v: direct.bare_series(k, x, v, weights, slope),
            },
        ),
    }


def medians(functions, arguments, wait, repetitions, clock):
    """Median time of every function, in turn, after two calls each to warm up."""
    times = {label: [] for label in functions}
    for repetition in range(-2, repetitions):
        for label, function in functions.items():
            begin = clock()
            wait(function(*arguments))
            if repetition >= 0:
                times[label].append(clock() - begin)
    return {label: statistics.median(spent) for label, spent in times.items()}


def compare(name, repetitions, clock, eager, device=None):
    """Print the rows of one backend."""
    wait = waiting(name)
    for task, (arguments, functions) in tasks(name, device).items():
        few, many = STEPS[task]
        for way, compiled in compilers(name).items():
            if eager and way != "eager":
                continue
            ready = {
                (label, k): compiled(partial(function, k)) for label, function in functions.items() for k in STEPS[task]
            }
            try:
                spent = medians(ready, arguments, wait, repetitions, clock)
            except Exception as error:  # noqa: BLE001  # whatever a compiler raises is the answer, and printed
                reason = " ".join(str(error).split())[:90]
                print(f"{name:11} {way:17} {task:12} skipped: {type(error).__name__}: {reason}", flush=True)
                continue
            step = {label: (spent[label, many] - spent[label, few]) / (many - few) for label in functions}
            once = {label: spent[label, few] - few * step[label] for label in functions}
            bare = f"{step['core'] / step['bare']:9.2f}" if "bare" in step else " " * 9
            print(
                f"{name:11} {way:17} {task:12} {1e6 * step['core']:9.1f} {1e6 * step['direct']:9.1f} "
                f"{step['core'] / step['direct']:9.2f} {bare} {1e6 * once['core']:9.0f} {1e6 * once['direct']:9.0f}",
                flush=True,
            )


def limit_threads(backends, threads):
    """Keep every framework to a number of threads, which makes small ratios repeatable."""
    for name in backends:
        if name == "torch":
            import_module("torch").set_num_threads(threads)
        elif name == "tensorflow":
            import_module("tensorflow").config.threading.set_intra_op_parallelism_threads(threads)
    return import_module("threadpoolctl").threadpool_limits(limits=threads)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backends", nargs="*", help="default: all that run here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--device", help="of PyTorch's tensors, such as cuda")
    options = parser.parse_args()
    backends = []
    for name in options.backends or (name for name in available_backends() if name not in FOR_TESTS):
        try:
            backends.append(backend(name).name)
        except MissingDependencyError as error:
            print(f"left out: {error}")
    print(f"{'':42} {'us per step or term':>19} {'ratio to':>19} {'us once':>19}")
    heads = ("core", "direct", "direct", "bare", "core", "direct")
    print(f"{'backend':11} {'':17} {'':12} {' '.join(f'{head:>9}' for head in heads)}")
    with limit_threads(backends, options.threads):
        for name in backends:
            with backend(name).full_precision():
                compare(name, options.repetitions, CLOCKS[options.clock], options.eager, options.device)


if __name__ == "__main__":
    main()
