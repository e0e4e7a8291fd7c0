"""A model for every class that can be stored, and what it means that two of them are the same."""

import math

import numpy as np
from activation_cases import other_parameters
from flow_examples import (
    a_map,
    actnorm,
    array,
    conditional_flow,
    conv_block,
    dense_block,
    host,
    image_flow,
    vector_flow,
)

from iresnet_core.branches.activation_functions import ACTIVATIONS
from iresnet_core.branches.activations import Activation
from iresnet_core.branches.concatenation import DenseConcatenation
from iresnet_core.branches.fixed_layers import Fixed, FourierFeatures, Reshape
from iresnet_core.branches.learned_activations import PReLU, ScaledActivation
from iresnet_core.files.description import STORABLE
from iresnet_core.flows.actnorm import ActNorm
from iresnet_core.flows.base_densities import DiagonalNormal, FullNormal, NormalMixture, StudentT, Uniform
from iresnet_core.flows.condition import Condition
from iresnet_core.flows.factor_out import FactorOut
from iresnet_core.flows.flow import Flow
from iresnet_core.flows.inverted import Inverted
from iresnet_core.flows.logit import Logit
from iresnet_core.flows.pointwise import Pointwise
from iresnet_core.flows.product_base import ProductBase
from iresnet_core.flows.reshaping import InjectivePad, Squeeze
from iresnet_core.flows.residual_block import ResidualBlock
from iresnet_core.flows.standardize import Standardize
from iresnet_core.flows.von_mises import VonMises
from iresnet_core.flows.wrap import Wrap
from iresnet_core.operators.convolution import Convolution
from iresnet_core.operators.dense import Dense
from iresnet_core.operators.transposed_convolution import ConvolutionTranspose


def normal(backend, dtype, *shape, seed=0):
    return array(backend, np.random.default_rng(seed).normal(0, 0.1, shape), dtype)


def block(backend, dtype):
    return dense_block(backend, np.random.default_rng(1), 3, dtype=dtype)


# Every kind of part, with every option away from its default somewhere.
MODELS = {
    "flow": lambda e, t: vector_flow(e, 1, dtype=t),
    "multiscale flow": lambda e, t: image_flow(e, 1, dtype=t),
    "flow without arrays": lambda e, t: Flow([Squeeze(), InjectivePad(1)], (1, 2, 2)),
    "conditional flow": lambda e, t: conditional_flow(e, 1, dtype=t, mean=[0.1, 2.0], std=[1e-8, 3.0]),
    "flow of classes": lambda e, t: conditional_flow(e, 1, dtype=t, classes=3),
    "condition": lambda e, t: Condition(a_map(e, np.random.default_rng(4), 4, 2, t), labels=[None, (0.5, 7, -1)]),
    "condition without net": lambda e, t: Condition(mean=[0.0], std=[0.1]),
    "block": block,
    "declared block": lambda e, t: ResidualBlock(block(e, t).branch, lipschitz=0.875),
    "convolutional block": lambda e, t: conv_block(e, np.random.default_rng(2), (2, 3, 3), dtype=t),
    "actnorm": lambda e, t: actnorm(e, np.random.default_rng(3), 3, t),
    "actnorm without parameters": lambda e, t: ActNorm(axis=-1),
    "squeeze": lambda e, t: Squeeze(3, "channels_last"),
    "squeeze to wavelets": lambda e, t: Squeeze(2, "channels_last", "haar"),
    "pad": lambda e, t: InjectivePad(2, axis=-1),
    "logit": lambda e, t: Logit(0.1),
    "standardize": lambda e, t: Standardize([1e8, 0.1], [1e-8, 3.0], axis=-1),
    "wrap": lambda e, t: Wrap(-math.pi, 7.0, entries=(0, -1)),
    "pointwise": lambda e, t: Pointwise(vector_flow(e, 1, dtype=t)),
    "factor out": lambda e, t: FactorOut(1, [Logit(), ActNorm()], axis=2),
    "placed factor out": lambda e, t: FactorOut(2, Flow([actnorm(e, np.random.default_rng(3), 2, t)], (2, 3))),
    "inverted": lambda e, t: Inverted(block(e, t), solver="newton", rtol=1e-6, atol=1e-7, max_iter=99),
    "inverted flow": lambda e, t: Flow([Inverted(vector_flow(e, 1, dtype=t))], (3,)),
    "diagonal normal": lambda e, t: DiagonalNormal(normal(e, t, 2, 3), e.xp.abs(normal(e, t, 2, 3))),
    "full normal": lambda e, t: FullNormal(normal(e, t, 2), array(e, [[1.0, 0.0], [0.5, 2.0]], t)),
    "mixture": lambda e, t: NormalMixture(normal(e, t, 4), normal(e, t, 4, 3), e.xp.abs(normal(e, t, 4, 3))),
    "student": lambda e, t: StudentT(2.5, normal(e, t, 3), e.xp.abs(normal(e, t, 3))),
    "von mises": lambda e, t: VonMises(array(e, [0.5, -1.0], t), array(e, [3.0, 0.0], t)),
    "product of bases": lambda e, t: ProductBase(
        [VonMises(array(e, [0.5], t), array(e, [3.0], t)), DiagonalNormal(normal(e, t, 2), e.xp.abs(normal(e, t, 2)))],
        [[1], [2, 0]],
    ),
    "uniform": lambda e, t: Uniform([0.0, -1.0], [1.0, 2.0], periodic=True),
    "flow with a base": lambda e, t: Flow(
        [block(e, t)], (3,), base=StudentT(3.0, normal(e, t, 3), e.xp.abs(normal(e, t, 3)))
    ),
    "chain": lambda e, t: block(e, t).branch,
    "dense": lambda e, t: Dense(normal(e, t, 2, 5)),
    "convolution": lambda e, t: Convolution(
        normal(e, t, 3, 2, 4),
        normal(e, t, 4),
        input_shape=(9, 4),
        stride=2,
        padding=[(1, 2)],
        dilation=2,
        groups=2,
        data_format="channels_last",
    ),
    "transposed convolution": lambda e, t: ConvolutionTranspose(
        normal(e, t, 3, 2, 4),
        normal(e, t, 4),
        output_shape=(9, 4),
        stride=2,
        padding=[(1, 2)],
        dilation=2,
        groups=2,
        data_format="channels_last",
    ),
    "fixed": lambda e, t: Fixed(Dense(normal(e, t, 2, 5))),
    "reshape": lambda e, t: Reshape((2, 3), (3, 2, 1)),
    "fourier features": lambda e, t: FourierFeatures(normal(e, t, 2, 5), [3, 0]),
    "prelu": lambda e, t: PReLU(normal(e, t, 4), axis=-1),
    "scaled activation": lambda e, t: ScaledActivation(Activation("celu", alpha=2.0), normal(e, t, 3)),
    "dense concatenation": lambda e, t: DenseConcatenation(
        [Dense(normal(e, t, 2, 5)), PReLU(normal(e, t, 1)), Dense(normal(e, t, 3, 2))], normal(e, t, 1)
    ),
    "circular convolution": lambda e, t: Convolution(
        normal(e, t, 2, 2, 3), input_shape=(2, 7), padding=1, padding_mode="circular"
    ),
    **{name: lambda e, t, name=name: Activation(name, **other_parameters(name)) for name in ACTIVATIONS},
}

ROWS = {row.kind: row for row in STORABLE}


def assert_same(found, expected):
    """Types and fields, bit by bit, part by part."""
    assert type(found) is type(expected)
    row = ROWS.get(type(expected))
    if row is not None:
        theirs, mine = row.values_of(expected), row.values_of(found)
        for name in row.fields:
            assert_same(mine[name], theirs[name])
    elif isinstance(expected, list | tuple):
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    elif hasattr(expected, "dtype"):
        a, b = host(found), host(expected)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    else:
        assert found == expected
