"""Table 1 at a tiny size: every row of its record, the picture, and that finished trainings are kept."""

import numpy as np
import pytest

from iresnet_core.errors import InvalidArgumentError
from iresnet_core.reproduction import TARGETS, Request, table1

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture
def tiny(monkeypatch):
    small = {"padding": 1, "widths": (4, 4), "blocks": (1, 1), "steps": 4, "batch": 32, "lr": 0.02, "crop": 0}
    monkeypatch.setitem(table1._SETTINGS, "digits", small)
    monkeypatch.setattr(table1, "_RESNET", {"padding": 0, "widths": (2, 2), "blocks": (1, 1)})
    monkeypatch.setattr(table1, "_REPEATS", {})
    # In this process, where the small sizes are.
    monkeypatch.setattr(table1.os, "cpu_count", lambda: 1)


def test_every_row(tmp_path, tiny):
    said = []
    request = Request(out=tmp_path, data=("digits",), models=("resnet", "vanilla", "0.9", "0.5"), say=said.append)
    record = table1.reproduce(request)
    assert [row[1] for row in record.rows] == ["plain ResNet", "vanilla, no cap", "c = 0.9", "c = 0.5"]
    assert all(len(row) == len(record.columns) for row in record.rows)
    named = [dict(zip(record.columns, row, strict=True)) for row in record.rows]
    for row, cap in zip(named[2:], (0.9, 0.5), strict=True):
        assert float(row["largest c"]) <= cap
        assert row["within bound"] == "all"
        assert row["images inverted"] == 180
    assert [row["within bound"] for row in named[:2]] == [None, None]
    assert (tmp_path / "table1.png").stat().st_size > 5000
    assert any("percentage points from vanilla" in note for note in record.notes)
    assert any("within its certified bound, at every c" in note for note in record.notes)
    again = table1.reproduce(request)
    assert again.rows == record.rows
    assert any("not computed again" in line for line in said)


def test_a_file_that_is_missing_is_said_before_any_training(tmp_path, monkeypatch):
    """With the places that are looked at and the variable that names another one."""
    monkeypatch.setattr(table1, "compute_cells", lambda *arguments, **options: pytest.fail("a training began"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IRESNET_SHARED_DATA", str(tmp_path / "named"))
    with pytest.raises(InvalidArgumentError) as caught:
        table1.reproduce(Request(out=tmp_path, data=("digits", "mnist")))
    for part in ("mnist.npz", str(tmp_path / "named"), ".keras", "IRESNET_SHARED_DATA", "`train` and `classify`"):
        assert part in str(caught.value)


def test_the_epochs_of_the_paper_are_those_of_the_data(tmp_path, monkeypatch):
    """Of digits there are 1437 images to train on, which are 12 batches of 128; of CIFAR-10 50 000."""
    cells = []

    def kept(request, chosen, processes):
        cells.extend(chosen)
        raise KeyboardInterrupt

    monkeypatch.setattr(table1, "compute_cells", kept)
    with pytest.raises(KeyboardInterrupt):
        table1.reproduce(Request(out=tmp_path, data=("digits",), models=("resnet", "0.9"), paper=True))
    assert [cell.settings["asked"]["steps"] for cell in cells] == [2246, 2246]  # 200 * 1437 / 128
    published = table1._settings(Request(out=tmp_path, paper=True), "cifar10", "0.9", 0, 50_000)
    assert published["asked"]["steps"] == 200 * 50_000 // 128


def test_trainings_with_other_seeds_are_counted_together():
    def one(error, n, bound):
        rest = {"parameters": 5, "steps": 1, "lipschitz": 0.9, "iterations": 7, "mean_iterations": 6.0, "inverted": n}
        return {
            "error": error,
            "samples": n,
            "wrong": list(range(round(error * n))),
            "cross_entropy": error,
            "cross_entropy_std": 0.01,
            "inverse_error": 0.0,
            "inverse_bound": bound,
            "within_bound": True,
            **rest,
        }

    joined = table1._joined([one(0.1, 100, 1e-6), one(0.3, 300, 1e-5)])
    assert joined["error"] == pytest.approx(0.25)
    assert joined["error_std"] == pytest.approx(np.sqrt(0.25 * 0.75 / 399))
    assert joined["cross_entropy"] == pytest.approx(0.25)
    assert joined["cross_entropy_std"] == pytest.approx(0.01 * np.hypot(100, 300) / 400)
    assert len(joined["wrong"]) == 100
    assert (joined["inverse_bound"], joined["inverted"]) == (1e-5, 400)
    assert not table1._joined([one(0.1, 100, 1.0), {**one(0.1, 100, 1.0), "within_bound": False}])["within_bound"]


def test_errors_are_compared_image_by_image():
    """As the mean of one indicator less the other over the same images, and its standard error."""
    rng = np.random.default_rng(0)
    hard = rng.random(1000) < 0.1
    ours, theirs = (hard ^ (rng.random(1000) < 0.02) for _ in range(2))
    as_results = [{"samples": 1000, "wrong": set(np.flatnonzero(one).tolist())} for one in (ours, theirs)]
    difference, spread = table1._difference(*as_results)
    paired = 100 * (ours.astype(float) - theirs)
    assert difference == pytest.approx(paired.mean())
    assert spread == pytest.approx(paired.std() / np.sqrt(1000))
    assert table1._difference(as_results[0], as_results[0]) == (0, pytest.approx(0.1))  # no lower than one image


def test_the_target_is_in_the_table():
    assert TARGETS["table1"][0] == table1.__name__
    assert (table1._published("mnist", "0.5"), table1._published("cifar10", "resnet")) == (0.86, 5.50)
