"""Random layers and flows for the tests; the same numbers on every backend."""

import json
import math
import struct

import numpy as np
from safetensors.numpy import load_file, save_file

from iresnet_core.backends import get_backend
from iresnet_core.branches.activations import Activation
from iresnet_core.branches.chain import Chain
from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.condition import Condition
from iresnet_core.flows.factor_out import FactorOut
from iresnet_core.flows.flow import Flow
from iresnet_core.flows.inverted import Inverted
from iresnet_core.flows.logit import Logit
from iresnet_core.flows.pointwise import Pointwise
from iresnet_core.flows.reshaping import Squeeze
from iresnet_core.flows.residual_block import ResidualBlock
from iresnet_core.flows.standardize import Standardize
from iresnet_core.flows.wrap import Wrap
from iresnet_core.operators.convolution import Convolution
from iresnet_core.operators.dense import Dense

# Smooth ones, so that numerical Jacobians can be trusted.
ACTIVATIONS = ("lipswish", "tanh", "sin", "softplus")


def array(backend, values, dtype="float64"):
    return backend.from_numpy(np.asarray(values, dtype=dtype))


def host(x):
    """An array of any backend as NumPy's."""
    return get_backend(x).to_numpy(x)


def actnorm(backend, rng, channels, dtype="float64", spread=0.7):
    return ActNorm(
        array(backend, rng.normal(0, spread, channels), dtype), array(backend, rng.normal(0, 1, channels), dtype)
    )


def dense_block(backend, rng, d, coeff=0.7, width=None, dtype="float64", activation="lipswish"):
    """A block of two dense layers of norm sqrt(coeff) each."""
    width = width or d + 2
    layers = []
    for out, into in ((width, d), (d, width)):
        weight = rng.normal(0, 1, (out, into))
        weight *= 0.999 * math.sqrt(coeff) / np.linalg.norm(weight, 2)
        layers.append(Dense(array(backend, weight, dtype), array(backend, rng.normal(0, 1, out), dtype)))
    return ResidualBlock(Chain([layers[0], Activation(activation), layers[1]]))


def conv_block(backend, rng, shape, coeff=0.7, dtype="float64"):
    """A block of a 3x3 and a 1x1 convolution of bound sqrt(coeff) each."""
    layers = []
    for window in (3, 1):
        kernel = rng.normal(0, 1, (shape[0], shape[0], window, window))
        # The norms of the taps, added up, bound that of the convolution.
        kernel *= 0.999 * math.sqrt(coeff) / np.linalg.norm(kernel.transpose(2, 3, 0, 1), 2, axis=(2, 3)).sum()
        bias = array(backend, rng.normal(0, 1, shape[0]), dtype)
        layers.append(Convolution(array(backend, kernel, dtype), bias, input_shape=shape, padding="same"))
    return ResidualBlock(Chain([layers[0], Activation("lipswish"), layers[1]]))


def vector_flow(backend, seed, d=3, blocks=2, coeff=0.7, dtype="float64"):
    """ActNorm and residual block, several times over."""
    rng = np.random.default_rng(seed)
    layers = []
    for k in range(blocks):
        layers.append(actnorm(backend, rng, d, dtype))
        layers.append(dense_block(backend, rng, d, coeff, dtype=dtype, activation=ACTIVATIONS[k % len(ACTIVATIONS)]))
    return Flow(layers, (d,))


def a_map(backend, rng, into, out, dtype="float64"):
    """A map of a condition, of any constant."""
    layers = [(6, into), (out, 6)]
    dense = [Dense(*(array(backend, rng.normal(0, 0.5, n), dtype) for n in (size, size[0]))) for size in layers]
    return Chain([dense[0], Activation("relu"), dense[1]])


def conditional_flow(backend, seed, features=2, dtype="float64", **condition):
    """A flow whose layers take a condition each in another way: at one place, at all of them, and as two numbers."""
    rng = np.random.default_rng(seed)
    norm = actnorm(backend, rng, 3, dtype)
    first, second = (dense_block(backend, rng, 3, dtype=dtype, activation=name).branch for name in ("lipswish", "sin"))
    longer = Chain([*first.layers, Activation("tanh"), *second.layers])
    entering = 4
    layers = [
        ActNorm(norm.log_scale, norm.bias, condition=Condition(a_map(backend, rng, entering, 6, dtype))),
        ResidualBlock(first, condition=a_map(backend, rng, entering, 5, dtype)),
        ResidualBlock(longer, condition=a_map(backend, rng, entering, 13, dtype)),
        actnorm(backend, rng, 3, dtype),
    ]
    encoded = condition.get("classes", features)
    return Flow(layers, (3,), condition=Condition(a_map(backend, rng, encoded, entering, dtype), **condition))


def image_flow(backend, seed, coeff=0.7, dtype="float64"):
    """Images of shape (1, 4, 4) through every kind of layer but InjectivePad, with one FactorOut inside another."""
    rng = np.random.default_rng(seed)
    innermost = [actnorm(backend, rng, 1, dtype)]
    inner = [
        actnorm(backend, rng, 2, dtype),
        conv_block(backend, rng, (2, 2, 2), coeff, dtype),
        FactorOut(1, innermost),
    ]
    layers = [
        Logit(0.05),
        Squeeze(2),
        actnorm(backend, rng, 4, dtype),
        conv_block(backend, rng, (4, 2, 2), coeff, dtype),
        FactorOut(2, inner),
    ]
    return Flow(layers, (1, 4, 4))


def images(backend, seed, batch=3, dtype="float64"):
    return array(backend, np.random.default_rng(seed).random((batch, 1, 4, 4)), dtype)


def vectors(backend, seed, batch=3, d=3, dtype="float64", scale=2.0):
    return array(backend, np.random.default_rng(seed).normal(0, scale, (batch, d)), dtype)


def every_layer(backend, dtype="float64"):
    """One of each kind, with the shape of a sample that fits."""
    rng = np.random.default_rng(11)
    return [
        (dense_block(backend, rng, 3, dtype=dtype), (3,)),
        (conv_block(backend, rng, (2, 2, 2), dtype=dtype), (2, 2, 2)),
        (actnorm(backend, rng, 3, dtype), (3,)),
        (actnorm(backend, rng, 2, dtype), (2, 3, 3)),
        (Squeeze(2), (1, 4, 4)),
        (Squeeze(2, basis="haar"), (2, 4, 2)),
        (Logit(0.1), (2, 2)),
        (Standardize([2.5, -0.75], [0.5, 3.0]), (2, 3)),
        (FactorOut(1, Flow([actnorm(backend, rng, 1, dtype)], (1, 2))), (3, 2)),
        (vector_flow(backend, 5, dtype=dtype), (3,)),
        (Pointwise(vector_flow(backend, 6, dtype=dtype)), (5, 3)),
        (Wrap(-20.0, 40.0, entries=[0, 2]), (3,)),  # a turn that holds all samples, so that none comes back elsewhere
        (Inverted(vector_flow(backend, 5, blocks=1, dtype=dtype), rtol=1e-15), (3,)),  # as exact as the others
    ]


def distances(x, y):
    """Euclidean distance of every pair of samples, in float64."""
    difference = host(x).astype(np.float64) - host(y).astype(np.float64)
    return np.linalg.norm(difference.reshape(len(difference), -1) if len(difference) else np.zeros((0, 1)), axis=1)


def contents_of_file(path):
    """Tensors and description of a file, by the format's own definition, without its hash: what forgers write."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    description = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["iresnet-core"])
    del description["sha256"]
    return load_file(path), description


def write_file(path, tensors, description):
    text = description if isinstance(description, str) else json.dumps(description)
    save_file(tensors, path, metadata={"iresnet-core": text})
