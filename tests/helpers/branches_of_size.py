"""Branches at the size of the work, images and long vectors, with what an estimate has to be compared with."""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np
from branches_for_tests import array, host

from iresnet_core import Activation, Chain, Convolution, Dense, normalize
from iresnet_core.backends import backend as find_backend

__all__ = [
    "CONSTANTS",
    "DTYPES",
    "FEW",
    "GRID",
    "LAYERS",
    "SIZES",
    "Case",
    "Counting",
    "branch",
    "exact_logdet",
    "form",
    "in_float64",
    "samples",
]

# Shape of a sample and width of the hidden layers.
SIZES = {
    "1x28x28": ((1, 28, 28), 16),
    "3x32x32": ((3, 32, 32), 16),
    "12x16x16": ((12, 16, 16), 16),
    "48x8x8": ((48, 8, 8), 48),
    "300": ((300,), 300),
    "1500": ((1500,), 1500),
}
CONSTANTS = (0.5, 0.8, 0.9, 0.95, 0.98)
DTYPES = ("float32", "float64")
LAYERS = (2, 3, 4)
WINDOWS = {2: (3, 3), 3: (3, 1, 3), 4: (3, 1, 1, 3)}


class Case(NamedTuple):
    """A branch of the grid. `weights` are random and scaled to their caps, or trained for some steps."""

    size: str
    c: float
    dtype: str = "float32"
    layers: int = 3
    weights: str = "at their caps"

    def __str__(self):
        return f"{self.size}, c={self.c:g}, {self.dtype}, {self.layers} layers, {self.weights}"

    @property
    def shape(self):
        return SIZES[self.size][0]

    @property
    def d(self):
        return math.prod(self.shape)


GRID = tuple(
    Case(size, c, dtype, layers, weights)
    for size in SIZES
    for c in CONSTANTS
    for dtype in DTYPES
    for layers in LAYERS
    for weights in ("at their caps", "trained")
)
# Every size once, and every constant, dtype and number of layers.
FEW = (
    Case("1x28x28", 0.95),
    Case("3x32x32", 0.9, layers=2),
    Case("12x16x16", 0.98, "float64", 4),
    Case("48x8x8", 0.5),
    Case("300", 0.98),
    Case("1500", 0.8, layers=2),
)


@functools.lru_cache(maxsize=8)
def _weights(size, c, layers, kind):
    """Weights and biases of every layer, NumPy float64."""
    if kind == "trained":
        return _trained(size, c, layers)
    rng = np.random.default_rng(0)
    found = []
    for before, after, window in _plan(size, layers):
        weight = 3 * rng.standard_normal((after, before, *window)) / math.sqrt(before * math.prod(window))
        found.append((weight, 0.3 * rng.standard_normal(after)))
    return found


def _plan(size, layers):
    """Channels (or features) before and after each layer, and its window."""
    shape, hidden = SIZES[size]
    widths = (shape[0], *[hidden] * (layers - 1), shape[0])
    windows = [(k, k) for k in WINDOWS[layers]] if len(shape) > 1 else [()] * layers
    return list(zip(widths[:-1], widths[1:], windows, strict=True))


def _trained(size, c, layers, steps=30):
    """Weights of a block that was fitted to smooth samples with PyTorch, from which the test is skipped if absent."""
    import pytest

    torch = pytest.importorskip("torch", reason="the trained branches are trained with PyTorch")
    from iresnet_core.adapters.torch import ActNorm, Flow, InvertibleResidual

    shape = SIZES[size][0]
    modules = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for before, after, window in _plan(size, layers):
            linear = (
                torch.nn.Conv2d(before, after, window, padding="same") if window else torch.nn.Linear(before, after)
            )
            modules += [linear, torch.nn.ELU()]
        block = InvertibleResidual(torch.nn.Sequential(*modules[:-1]), coeff=c)
        flow = Flow([ActNorm(shape[0]), block], event_shape=shape)
        optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
        x = torch.from_numpy(_smooth(shape, 8)).float()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = -flow.log_prob(x).mean() / math.prod(shape)
            loss.backward()
            optimizer.step()
        core = flow.eval().to_core()
    operators = core.layers[-1].branch.operators
    return [
        tuple(np.asarray(p.detach().cpu(), dtype=np.float64) for p in (operator.weight, operator.bias))
        for operator in operators
    ]


def _smooth(shape, n):
    """Samples whose entries depend on each other, as those of images do."""
    z = np.random.default_rng(2).standard_normal((n, *shape))
    for axis in range(1, len(shape) + 1):
        if shape[axis - 1] > 3:
            z = sum(np.roll(z, k, axis) for k in range(4)) / 2
    return z


@functools.lru_cache(maxsize=4)
def branch(backend, case):
    """The chain of a case on a backend; its certified constant is `c`, or a little below where it was trained."""
    activation, layers = Activation("elu" if case.weights == "trained" else "lipswish"), []
    for weight, bias in _weights(case.size, case.c, case.layers, case.weights):
        weight, bias = array(backend, weight, case.dtype), array(backend, bias, case.dtype)
        if weight.ndim == 2:
            linear = Dense(weight, bias)
        else:
            linear = Convolution(weight, bias, input_shape=(weight.shape[1], *case.shape[1:]), padding="same")
        layers += [linear, activation]
    return normalize(Chain(layers[:-1]), case.c)


def samples(backend, case, n, seed=1):
    """Samples of the shape of a case."""
    x = np.random.default_rng(seed).standard_normal((n, *case.shape))
    return array(backend, x, case.dtype)


class Counting:
    """A branch that counts the evaluations and Jacobian products per sample that are asked of it."""

    def __init__(self, g):
        self.g, self.evaluations, self.products = g, 0, 0
        self.lipschitz, self.input_shape, self.output_shape = g.lipschitz, g.input_shape, g.output_shape

    def __call__(self, x):
        self.evaluations += 1
        return self.g(x)

    def linearize(self, x):
        self.evaluations += 1
        at = self.g.linearize(x)
        return dataclasses.replace(at, vjp=self._counted(at.vjp, x), jvp=self._counted(at.jvp, x))

    def _counted(self, product, x):
        def counted(v):
            self.products += math.prod(v.shape) // math.prod(x.shape)
            return product(v)

        return counted


def in_float64(backend, g, x):
    """The same branch and samples on NumPy in float64."""
    numpy = find_backend("numpy")
    layers = []
    for layer in g.layers:
        if isinstance(layer, Activation):
            layers.append(layer)
            continue
        weight, bias = (array(numpy, host(backend, p)) for p in (layer.weight, layer.bias))
        if isinstance(layer, Convolution):
            layers.append(Convolution(weight, bias, input_shape=layer.input_shape, padding="same"))
        else:
            layers.append(Dense(weight, bias))
    return Chain(layers), host(backend, x)


def exact_logdet(backend, g, x):
    """log|det(I + J)| from the explicit Jacobians in float64, row by row."""
    g, x = in_float64(backend, g, x)
    d, values = math.prod(x.shape[1:]), []
    for i in range(len(x)):
        at = g.linearize(x[i : i + 1])
        stacks = [part.reshape(-1, 1, *x.shape[1:]) for part in np.array_split(np.eye(d), math.ceil(d / 128))]
        rows = [at.vjp(stack).reshape(-1, d) for stack in stacks]
        values.append(np.linalg.slogdet(np.eye(d) + np.concatenate(rows))[1])
    return np.array(values)


def form(backend, g, x, v):
    """v^T log(I + J) v for probes v (probes, batch, ...), by the power series in float64, as far as it goes."""
    g, x = in_float64(backend, g, x)
    v = host(backend, v)
    at, flat = g.linearize(x), v.reshape(*v.shape[:2], -1)
    total, w = np.zeros(v.shape[:2]), v
    for k in range(1, 5000):
        w = at.vjp(w)
        image = w.reshape(flat.shape)
        total += (-1) ** (k + 1) * np.sum(flat * image, axis=-1) / k
        if np.max(np.linalg.norm(image, axis=-1) * np.linalg.norm(flat, axis=-1)) < 1e-9 * k:
            return np.mean(total, axis=0)
    raise AssertionError("the series did not end: is g a contraction?")
