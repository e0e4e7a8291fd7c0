"""The classifier's features as plain data: order of stages, channels, refusals."""

import pytest

from iresnet_core.errors import InvalidArgumentError
from iresnet_core.training.classifier_plan import planned_features
from iresnet_core.training.plans import ActNormPlan, ConvolutionBlockPlan, InjectivePadPlan, SqueezePlan

SOUND = {"classes": 3, "padding": 1, "widths": (4, 5), "blocks": (2, 0), "coeff": 0.8, "activation": "elu"}


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_channels_grow_by_what_a_squeeze_takes_from_the_pixels(axes):
    plan, channels = planned_features(2, axes, **{**SOUND, "blocks": (2, 1)})
    assert channels == 3 * 2**axes

    def block(n, width):
        return ConvolutionBlockPlan((n, width, width, n), (3, 1, 3), "elu", 0.8, axes, activation_first=True)

    first, last = (ActNormPlan(3), block(3, 4)), (ActNormPlan(channels), block(channels, 5))
    assert plan == (InjectivePadPlan(1), *first, *first, SqueezePlan(), *last)


def test_a_stage_may_be_without_blocks():
    plan, channels = planned_features(2, 2, **{**SOUND, "padding": 0, "blocks": (0, 1)})
    assert [type(layer) for layer in plan] == [SqueezePlan, ActNormPlan, ConvolutionBlockPlan]
    assert channels == 8


@pytest.mark.parametrize(
    ("axes", "change", "message"),
    [
        (4, {}, "1, 2 or 3 spatial axes"),
        (0, {}, "1, 2 or 3 spatial axes"),
        (2, {"blocks": (1,)}, "one number a stage"),
        (2, {"widths": (), "blocks": ()}, "one number a stage"),
        (2, {"widths": (0, 1)}, "at least 1"),
        (2, {"blocks": (-1, 1)}, "at least 1"),
        (2, {"classes": 0}, "classes=0"),
        (2, {"padding": -1}, "padding=-1"),
    ],
)
def test_refusals(axes, change, message):
    with pytest.raises(InvalidArgumentError, match=message):
        planned_features(1, axes, **{**SOUND, **change})
