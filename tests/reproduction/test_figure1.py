"""Figure 1 at a tiny size: paths that cross and paths that cannot, the certificates, and who accepts a plain block."""

import numpy as np
import pytest

from iresnet_core.errors import InvalidArgumentError, UnknownLipschitzError
from iresnet_core.reproduction import Request, find_target

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from iresnet_core.reproduction import figure1  # noqa: E402


@pytest.fixture
def tiny(monkeypatch):
    """Networks of six blocks, thirty steps."""
    small = {"half": 3, "width": 8, "steps": 30, "starts": 21, "lr": 0.03}
    monkeypatch.setattr(figure1, "_SETTINGS", {**figure1._SETTINGS, **small})
    monkeypatch.setattr(figure1.os, "cpu_count", lambda: 1)


def test_the_order_is_kept_by_ours_and_found_again_backward(tiny, tmp_path):
    said = []
    record = find_target("figure1")(Request(tmp_path, say=said.append))
    assert [row[0] for row in record.rows] == ["ResNet, without a cap", "i-ResNet (ours)"]
    plain, ours = record.details
    assert ours["crossings"] == ours["crossings_backward"] == 0
    assert 0.19 < ours["certified_slope"] <= ours["smallest_slope"]
    assert ours["difference"] <= ours["error_bound"] < 1e-6
    assert plain["parameters"] == ours["parameters"]
    assert (tmp_path / "figure1.png").stat().st_size > 1000
    said.clear()
    assert find_target("figure1")(Request(tmp_path, say=said.append)).details == record.details
    assert any("not computed again" in line for line in said)


def test_crossings_are_counted_by_pair_and_block():
    apart = np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0]])
    assert figure1.crossings(apart) == 0
    assert figure1.crossings(np.stack([apart[0], apart[0][::-1]])) == 3
    # A pair that meets, and behind the next block has parted in the other order, has crossed; one that meets has not.
    assert figure1.crossings(np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])) == 1
    assert figure1.crossings(np.array([[0.0, 1.0], [0.5, 0.5], [0.0, 1.0]])) == 0


def test_blocks_without_a_cap_are_accepted_nowhere_else():
    import iresnet_core as core
    from iresnet_core.adapters.torch import Flow, InvertibleResidual
    from iresnet_core.adapters.torch.peers.plain_resnet import plain_blocks

    (block,) = plain_blocks(1, 4, "relu", 0)
    with pytest.raises(InvalidArgumentError, match="no layer"):
        core.Flow([block], (1,))
    with pytest.raises(InvalidArgumentError):
        Flow([block], event_shape=1)
    with pytest.raises((InvalidArgumentError, UnknownLipschitzError)):
        InvertibleResidual(block)
    with pytest.raises(UnknownLipschitzError):
        core.invert(block, torch.zeros(1, 1, dtype=torch.float64))


def test_an_unknown_activation_is_refused():
    from iresnet_core.adapters.torch.peers.plain_resnet import plain_blocks

    with pytest.raises(InvalidArgumentError, match="relu"):
        plain_blocks(1, 4, "none", 0)
