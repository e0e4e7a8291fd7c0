"""The plans of flows and of the classifier's features: order of layers, channels, refusals."""

import pytest

from iresnet_core.errors import InvalidArgumentError, ShapeError
from iresnet_core.training.plans import (
    ActivationPlan,
    ActNormPlan,
    ConvolutionPlan,
    FactorOutPlan,
    InjectivePadPlan,
    ModelSettings,
    ResidualPlan,
    SqueezePlan,
    planned_features,
    planned_layers,
    widest_array,
)

SOUND = {"classes": 3, "padding": 1, "widths": (4, 5), "blocks": (2, 0), "coeff": 0.8, "activation": "elu"}


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_channels_grow_by_what_a_squeeze_takes_from_the_pixels(axes):
    plan, channels = planned_features(2, axes, **{**SOUND, "blocks": (2, 1)})
    assert channels == 3 * 2**axes

    def block(n, width):
        shapes = ((n, width, 3), (width, width, 1), (width, n, 3))
        between = (layer for shape in shapes for layer in (ActivationPlan("elu"), ConvolutionPlan(*shape, axes)))
        return ResidualPlan(tuple(between), 0.8)

    first, last = (ActNormPlan(3), block(3, 4)), (ActNormPlan(channels), block(channels, 5))
    assert plan == (InjectivePadPlan(1), *first, *first, SqueezePlan(), *last)


def test_a_stage_may_be_without_blocks():
    plan, channels = planned_features(2, 2, **{**SOUND, "padding": 0, "blocks": (0, 1)})
    assert [type(layer) for layer in plan] == [SqueezePlan, ActNormPlan, ResidualPlan]
    assert channels == 8


@pytest.mark.parametrize(
    ("axes", "change", "message"),
    [
        (4, {}, "1, 2 or 3 spatial axes"),
        (0, {}, "1, 2 or 3 spatial axes"),
        (2, {"blocks": (1,)}, "one number per stage"),
        (2, {"widths": (), "blocks": ()}, "one number per stage"),
        (2, {"widths": (0, 1)}, "at least 1"),
        (2, {"blocks": (-1, 1)}, "at least 1"),
        (2, {"classes": 0}, "classes=0"),
        (2, {"padding": -1}, "padding=-1"),
    ],
)
def test_refusals(axes, change, message):
    with pytest.raises(InvalidArgumentError, match=message):
        planned_features(1, axes, **{**SOUND, **change})


@pytest.mark.parametrize(("layers", "kernels"), [(1, [3, 3]), (2, [3, 1, 3]), (4, [3, 1, 1, 1, 3])])
def test_further_layers_are_1x1_convolutions(layers, kernels):
    plan = planned_layers(ModelSettings("conv", 1, 8, layers, "elu", 0.9, scales=1), (1, 8, 8))
    (block,) = (layer for layer in plan if isinstance(layer, ResidualPlan))
    convolutions = [layer for layer in block.branch if isinstance(layer, ConvolutionPlan)]
    assert [layer.kernel for layer in convolutions] == kernels
    assert [layer.inputs for layer in convolutions] == [4, *[8] * layers]


def test_convolutions_have_two_scales():
    settings = ModelSettings("conv", 1, 8, 2, "elu", 0.9, 0.05)
    plan = planned_layers(settings, (1, 28, 28))
    inner = plan[-1]
    assert isinstance(inner, FactorOutPlan)
    assert isinstance(inner.layers[0], SqueezePlan)
    assert not any(isinstance(layer, FactorOutPlan) for layer in inner.layers)
    assert not any(isinstance(layer, FactorOutPlan) for layer in planned_layers(settings, (1, 6, 6)))
    for shape in ((2,), (1, 7, 8)):
        with pytest.raises(ShapeError, match="--model mlp"):
            planned_layers(settings, shape)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_an_activation_stands_in_front_where_asked_for(kind):
    for first in (False, True):
        plan = planned_layers(ModelSettings(kind, 2, 8, 2, "elu", 0.9, activation_first=first), (1, 6, 6))
        branches = [layer.branch for layer in plan if isinstance(layer, ResidualPlan)]
        assert len(branches) == 2
        for branch in branches:
            assert isinstance(branch[0], ActivationPlan) is first
            assert len(branch) == 5 + first


@pytest.mark.parametrize(
    ("kind", "shape", "hidden", "entries"),
    [
        ("mlp", (2,), 64, 64),
        ("mlp", (1, 8, 8), 32, 64),
        ("conv", (1, 28, 28), 32, 32 * 14 * 14),
        ("conv", (3, 32, 32), 512, 512 * 16 * 16),
        ("conv", (3, 32, 32), 8, 3 * 32 * 32),
    ],
)
def test_the_widest_array_is_that_of_the_hidden_layers_or_of_the_sample(kind, shape, hidden, entries):
    assert widest_array(ModelSettings(kind, 4, hidden, 2, "elu", 0.9), shape) == entries
