"""Figure 1 at a tiny size: paths that cross and paths that cannot, the certificates, and who accepts a plain block."""

import numpy as np
import pytest

from iresnet_core.errors import InvalidArgumentError, MissingDependencyError, UnknownLipschitzError
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
    request = Request(tmp_path, models=("plain", "ours"), say=said.append)
    record = find_target("figure1")(request)
    assert [row[0] for row in record.rows] == ["ResNet, without a cap", "i-ResNet (ours)"]
    plain, ours = record.details
    assert ours["crossings"] == ours["crossings_backward"] == 0
    assert 0.19 < ours["certified_slope"] <= ours["smallest_slope"]
    assert ours["difference"] <= ours["error_bound"] < 1e-6
    assert plain["parameters"] == ours["parameters"]
    assert (tmp_path / "figure1.png").stat().st_size > 1000
    said.clear()
    assert find_target("figure1")(request).details == record.details
    assert any("not computed again" in line for line in said)


def test_a_neural_ode_does_not_cross_and_is_as_large_as_the_others(tiny, tmp_path):
    pytest.importorskip("torchdiffeq")
    record = find_target("figure1")(Request(tmp_path, models=("plain", "neuralode")))
    assert [row[0] for row in record.rows] == ["ResNet, without a cap", "neural ODE"]
    plain, ode = record.details
    row = dict(zip(record.columns, record.rows[1], strict=True))
    assert row["crossings of paths"] == 0
    assert row["certified smallest slope"] is None
    assert row["smallest slope of a block between neighbours"] == ode["smallest_slope"] > 0
    assert row["parameters"] == pytest.approx(plain["parameters"], rel=0.05)
    data = figure1._data(record.settings)
    assert ode["error_full"] < np.mean((data["x"] - data["full"]) ** 2) + 1  # that of doing nothing is the noise
    assert ode["error_half"] < np.mean((data["x"] - data["half"]) ** 2)
    (note,) = (note for note in record.notes if "cannot cross in one dimension" in note)
    counts = ode["evaluations"]
    assert counts["evaluation"] > counts["training"] > 10
    assert f"{counts['training']} evaluations of f in training and {counts['evaluation']} for the paths" in note
    assert "1e-05 in training and 1e-09 for the paths" in note
    assert record.settings["smooth_activation"] == "tanh"
    assert (tmp_path / "figure1.png").stat().st_size > 1000


def test_a_neural_ode_solves_its_equation():
    pytest.importorskip("torchdiffeq")
    from iresnet_core.adapters.torch.peers import torchdiffeq as peer

    ode = peer.neural_ode(4, 100, "elu", 0, (1e-6, 1e-10))

    class Product(torch.nn.Module):
        def forward(self, both):
            return both[:, :1] * both[:, 1:]

    ode.network = Product()  # dx/dt = t x
    x = np.linspace(-2, 2, 5)[:, None]
    states = peer.states_at_depths(ode, x)
    np.testing.assert_allclose(states, x.T * np.exp((np.arange(5) / 4)[:, None] ** 2 / 2), rtol=1e-8, atol=1e-12)
    fine = peer.neural_ode(40, 100, "elu", 0, (1e-1, 1e-1))
    peer.states_at_depths(fine, x)
    assert fine.evaluations["evaluation"] >= 6 * 40  # a step ends at each of the times, so that none is interpolated
    with pytest.raises(InvalidArgumentError, match="softplus"):
        peer.neural_ode(4, 100, "relu", 0, (1e-6, 1e-10))


def test_without_its_package_the_neural_ode_is_left_out(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(figure1._SETTINGS, "steps", 1)
    monkeypatch.setitem(figure1._PEERS, "neuralode", ("a_module_of_peers", ("a_package_that_is_not_there",)))
    said = []
    record = find_target("figure1")(Request(tmp_path, say=said.append))
    assert [row[0] for row in record.rows] == ["ResNet, without a cap", "i-ResNet (ours)"]
    assert "smooth_activation" not in record.settings
    assert any("left out" in line and line.endswith("neural ODE") for line in said)
    assert record.notes[-1] == "Left out, since their packages were missing: neural ODE."
    assert not any("an ODE" in note for note in record.notes)
    with pytest.raises(MissingDependencyError, match=r"neuralode .*iresnet-core\[peers\]"):
        find_target("figure1")(Request(tmp_path, models=("neuralode",)))


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
