"""The training loss of the core in compiled programs, of images and with log-determinants of a part of the batch."""

import math

import numpy as np
import pytest
from branches_for_tests import array, host
from frameworks_for_tests import COMPILERS, compiled_once

from iresnet_core import Activation, ActNorm, Chain, Convolution, Flow, ResidualBlock, training_loss

SHAPE = (2, 5, 5)  # 50 entries, so that training is not exact
BATCH = (8, *SHAPE)
KERNELS = ((4, 2, 3, 3), (4, 4, 1, 1), (2, 4, 3, 3))


def flow_of(backend, kernels):
    """A block that begins with a convolution and one that begins with an activation, of kernels that are small."""
    layers = []
    for kernel in kernels:
        layers += [Convolution(kernel, input_shape=(kernel.shape[1], *SHAPE[1:]), padding="same"), Activation("elu")]
    scale = array(backend, np.full(SHAPE[0], 0.3))
    branches = [Chain(layers[:-1]), Chain([Activation("elu"), *layers[:-1]])]
    return Flow([ActNorm(scale, scale), *(ResidualBlock(branch, lipschitz=0.9) for branch in branches)], SHAPE)


@pytest.mark.needs("compile")
@pytest.mark.needs("autodiff")
def test_one_program_for_all_steps(backend):
    """Its losses, and gradients by samples and kernels, are those of eager calls."""
    if backend.name == "torch":
        pytest.skip("tests/adapters/test_torch_compiled_evaluation.py compiles that of PyTorch")
    rng = np.random.default_rng(0)
    xp, weights = backend.xp, array(backend, rng.uniform(0, 2, BATCH[0]))
    kernels = [0.25 * rng.standard_normal(shape) for shape in KERNELS]
    steps = [
        array(backend, np.concatenate([part.ravel() for part in (rng.standard_normal(BATCH), *kernels)]))
        for _ in range(3)
    ]

    def loss(flat):
        parts, begin = [], 0
        for shape in (BATCH, *KERNELS):
            end = begin + math.prod(shape)
            parts.append(xp.reshape(flat[begin:end], shape))
            begin = end
        return training_loss(flow_of(backend, parts[1:]), parts[0], weights=weights, share=0.25, rng=3)

    def step(flat):
        value, pullback = backend.vjp(loss, flat)
        return value, pullback(xp.ones_like(value))

    eager = [[host(backend, part) for part in step(flat)] for flat in steps]
    for compiler in COMPILERS[backend.name]:
        with compiled_once(backend, compiler, step) as program:
            found = [[host(backend, part) for part in program(flat)] for flat in steps]
        for (value, gradient), (expected, direction) in zip(found, eager, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-9)
            np.testing.assert_allclose(gradient, direction, rtol=1e-7, atol=1e-9 * np.abs(direction).max())
    assert len({float(value) for value, _ in eager}) == len(steps)
    assert np.abs(eager[0][1][math.prod(BATCH) :]).max() > 1e-3  # by the kernels
