"""The command `iresnet classify`."""

import json

import numpy as np
import pytest
from runs_for_tests import iresnet

from iresnet_core.commands import classify

pytest.importorskip("torch", reason="PyTorch is not installed")

SMALL = "--samples 200 --widths 4,4 --blocks 1,1 --padding 1 --batch 20 --steps 6 --evaluate-every 3 --threads 1"


def classified(folder, *more, data="digits"):
    return iresnet("classify", data, "--out", folder / "run", *SMALL.split(), "--no-tensorboard", *more)


def test_trains_scores_saves_and_goes_on(tmp_path):
    found = classified(tmp_path)
    assert found.exit_code == 0, found.output
    assert "200" not in found.output.splitlines()[0]
    assert "160 images of shape 1 x 8 x 8 in 10 classes" in found.output
    assert "every image is within its bound" in found.output
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["within_bound"] is True
    assert (result["samples"], result["inverted"], result["steps"]) == (20, 20, 6)
    assert 0 <= result["error"] <= 1
    assert result["lipschitz"] <= 0.9
    names = {"config.json", "checkpoint.safetensors", "model.safetensors", "log.csv", "result.json"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == names
    again = iresnet("classify", "--resume", tmp_path / "run", "--steps", 9, "--no-invert", "--no-tensorboard")
    assert again.exit_code == 0, again.output
    assert "going on from its checkpoint" in again.output
    assert "inverted" not in json.loads((tmp_path / "run" / "result.json").read_text())


def test_without_a_cap_nothing_is_inverted(tmp_path):
    found = classified(tmp_path, "--vanilla")
    assert found.exit_code == 0, found.output
    assert "without a cap, for comparison" in found.output
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["lipschitz"] is None
    assert "within_bound" not in result
    for command in ("info", "score", "sample", "plot", "train --resume"):
        refused = iresnet(*command.split(), tmp_path / "run")
        assert refused.exit_code == 2, (command, refused.output)
        assert "classif" in refused.output, command


def test_an_interrupted_training_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(self, step, seconds, loss):
        import signal

        if step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(classify.ClassifierDisplay, "stepped", interrupted)
    found = classified(tmp_path)
    assert found.exit_code == 130
    assert f"Interrupted at step 2; everything is saved. Resume: iresnet classify --resume {tmp_path}" in found.output


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--framework", "keras"], "classifiers are trained with torch"),
        (["--vanilla", "--coeff", "0.9"], "cap"),
        (["--vanilla", "--invert"], "--invert"),
        (["--widths", "4,x"], "--widths"),
        (["--precision", "float8"], "precision"),
        (["--coeff", "1.5"], "coeff"),
        (["--epochs", "1"], "epochs"),
    ],
)
def test_refusals(tmp_path, more, words):
    found = classified(tmp_path, *more)
    assert found.exit_code == 2
    assert words in found.output
    assert not (tmp_path / "run").exists()


def test_images_of_a_file(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "own.npz", pictures=rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), kinds=np.arange(60) % 4
    )
    names = ["--key", "pictures", "--label-key", "kinds", "--samples", "60"]
    found = classified(tmp_path, *names, data=tmp_path / "own.npz")
    assert found.exit_code == 0, found.output
    assert "shape 3 x 8 x 8 in 4 classes" in found.output
    for data in (tmp_path / "nothing.npz", "moons"):
        refused = classified(tmp_path / "other", data=data)
        assert refused.exit_code == 2
        assert "to classify" in refused.output
