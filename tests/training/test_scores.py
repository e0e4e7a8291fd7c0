"""Scores of many samples: the same in every run, whatever the method draws."""

import numpy as np
import pytest

from iresnet_core import Flow, ResidualBlock
from iresnet_core.determinant import METHODS
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
