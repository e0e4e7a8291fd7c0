"""Scores of many samples: the same in every run, whatever the method draws."""

import numpy as np
import pytest

from iresnet_core import ActNorm, Flow, ResidualBlock
from iresnet_core.determinant import METHODS
from iresnet_core.errors import NonFiniteError
from iresnet_core.example_data import load_case
from iresnet_core.training import scores

SETTINGS = [{"method": name} for name in METHODS] + [{"method": "arnoldi", "unbiased": True}]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda options: "-".join(map(str, options.values())))
def test_scores_repeat(options):
    chain, x = load_case("d64_c0.9")
    flow = Flow([ResidualBlock(chain)] * 2, event_shape=(64,))
    first, second = (scores(flow, x[:6], **options) for _ in range(2))
    np.testing.assert_array_equal(first.log_prob, second.log_prob)
    np.testing.assert_array_equal(first.std_error, second.std_error)


def test_another_seed_gives_other_scores():
    chain, x = load_case("d64_c0.9")
    flow = Flow([ResidualBlock(chain)], event_shape=(64,))
    first, second = (scores(flow, x[:6], method="roulette", seed=seed).log_prob for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_score_that_overflows_is_located_in_the_file():
    flow = Flow([ActNorm(np.zeros(2, "float32"), np.zeros(2, "float32"))], event_shape=(2,))
    x = np.zeros((8000, 2))
    x[7000] = 1e25
    with pytest.raises(NonFiniteError, match="sample 750 of the batch") as caught:
        scores(flow, x)
    assert caught.value.__notes__ == ["the batch begins with sample 6250 of 8000"]
