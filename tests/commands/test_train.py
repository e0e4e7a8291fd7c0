"""The commands train, sample, score, plot and info: exit status, output, files."""

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from frameworks_for_tests import without_notices
from runs_for_tests import iresnet, random_flow, untrained

import iresnet_core
from iresnet_core.commands.flow_plots import Window, density_figure
from iresnet_core.commands.plots_of_a_run import grid_density
from iresnet_core.training import loop as training
from iresnet_core.training.datasets import dequantized
from iresnet_core.training.run import TrainingRun

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("matplotlib")

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("moons") / "run", "moons")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("digits") / "run", "digits", None)


# --- sample ---


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_samples_are_those_of_the_core(moons, tmp_path, suffix):
    run, _, flow = moons
    out = tmp_path / f"x{suffix}"
    result = iresnet("sample", run.folder, "-n", 20, "--out", out, "--seed", 3)
    assert result.exit_code == 0, result.output
    z = np.random.default_rng(3).standard_normal((20, 2))
    exact = flow.astype(np.float64).inverse(z, rtol=0.0, atol=0.0).value
    values = np.loadtxt(out, delimiter=",") if suffix == ".csv" else np.load(out)
    values = values["x"] if suffix == ".npz" else values
    estimate, bound = map(float, re.search(r"about (\S+), certainly at most (\S+);", result.stdout).groups())
    assert 0 < estimate <= bound
    assert 0 < bound < 1e-9
    assert float(re.search(r"back within (\S+)$", result.stdout, re.MULTILINE)[1]) < 1e-12
    assert np.max(np.linalg.norm(values - exact, axis=1)) <= 2 * bound
    back = flow.astype(np.float64)(values)
    assert np.allclose(back, z, atol=1e-6)


def test_samples_of_images_have_their_shape_and_a_picture(digits, tmp_path):
    run, _, _ = digits
    result = iresnet("sample", run.folder, "-n", 9, "--picture", tmp_path / "new" / "x.png")
    assert result.exit_code == 0, result.output
    samples = np.load(run.folder / "samples.npy")
    assert samples.shape == (9, 1, 8, 8)
    assert -0.06 < samples.min() < samples.max() < 1.06
    assert (tmp_path / "new" / "x.png").read_bytes().startswith(PNG)


def test_a_model_file_alone_is_enough_to_sample_and_score(moons, tmp_path):
    run, _, flow = moons
    result = iresnet("sample", run.model_path, "-n", 5, "--out", tmp_path / "x.npy", "--picture", tmp_path / "x.png")
    assert result.exit_code == 0, result.output
    result = iresnet("score", run.model_path, tmp_path / "x.npy", "--out", tmp_path / "s.json")
    assert result.exit_code == 0, result.output
    exact = flow.astype(np.float64).log_prob(np.load(tmp_path / "x.npy")).value
    assert json.loads((tmp_path / "s.json").read_text())["log_prob"] == pytest.approx(list(exact), abs=1e-9)
    assert iresnet("score", run.model_path).exit_code == 2


@pytest.mark.parametrize("name", ["torch", "tensorflow", "jax"])
def test_every_backend_gives_the_same_samples_and_scores(moons, tmp_path, name):
    pytest.importorskip(name)
    run, _, _ = moons
    outputs = []
    for backend in ("numpy", name):
        out = tmp_path / f"{backend}.npy"
        result = iresnet("sample", run.folder, "-n", 7, "--out", out, "--backend", backend)
        assert result.exit_code == 0, result.output
        score = iresnet("score", run.folder, out, "--backend", backend, "--out", tmp_path / f"{backend}.json")
        assert score.exit_code == 0, score.output
        outputs.append((np.load(out), json.loads((tmp_path / f"{backend}.json").read_text())["log_prob"]))
    assert outputs[0][0].dtype == outputs[1][0].dtype == np.float64
    assert np.allclose(outputs[0][0], outputs[1][0], atol=1e-6)
    assert np.allclose(outputs[0][1], outputs[1][1], atol=1e-6)


# --- score ---


def test_scores_come_with_their_errors(moons, tmp_path):
    run, dataset, flow = moons
    np.savetxt(tmp_path / "x.csv", dataset.test, delimiter=",", header="a,b", comments="")
    result = iresnet("score", run.folder, tmp_path / "x.csv", "--out", tmp_path / "s.csv")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert list(rows[0]) == ["sample", "log_prob", "std_error", "bias_bound"]
    exact = flow.astype(np.float64).log_prob(dataset.test)
    assert [float(row["log_prob"]) for row in rows] == pytest.approx(list(exact.value), abs=1e-9)
    assert all(0 <= float(row["bias_bound"]) < 1e-9 for row in rows)
    assert f"{len(rows)} samples" in result.stdout
    mean, error = np.mean(exact.value), np.std(exact.value, ddof=1) / np.sqrt(len(rows))
    assert f"log-density {mean:.4f} ± {error:.4f} nats" in result.stdout
    assert iresnet("score", run.folder).stdout.splitlines()[1:] == result.stdout.splitlines()[1:3]


def test_images_are_scored_in_bits_per_dimension(digits, tmp_path):
    run, dataset, _ = digits
    np.save(tmp_path / "x.npy", dataset.test[:30, 0])
    result = iresnet("score", run.folder, tmp_path / "x.npy", "--out", tmp_path / "s.json")
    assert result.exit_code == 0, result.output
    node = json.loads((tmp_path / "s.json").read_text())
    expected = np.log2(17) - np.array(node["log_prob"]) / (64 * np.log(2))
    assert node["bits_per_dim"] == pytest.approx(list(expected))
    assert f"{np.mean(expected):.4f} ± " in result.stdout
    # Dequantised by hand, with the same noise, the score is the same; in a row as well as as images.
    x = dequantized(dataset.test[:30], 17, np.random.default_rng([0, 5]))
    for shape in ((30, 64), (30, 1, 8, 8)):
        np.save(tmp_path / "x.npy", x.reshape(shape))
        again = iresnet("score", run.folder, tmp_path / "x.npy", "--out", tmp_path / "t.json")
        assert again.exit_code == 0, again.output
        assert json.loads((tmp_path / "t.json").read_text())["log_prob"] == pytest.approx(node["log_prob"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([[1.0, np.nan]]), "NaN in sample 0"),
        (np.zeros((4, 3)), "(3,); the model takes (2,)"),
        (np.zeros((0, 2)), "no sample"),
    ],
)
def test_samples_that_cannot_be_scored_give_status_2(moons, tmp_path, content, message):
    np.save(tmp_path / "x.npy", content)
    result = iresnet("score", moons[0].folder, tmp_path / "x.npy")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_levels_beyond_those_of_the_run_are_refused(digits, tmp_path):
    np.save(tmp_path / "x.npy", np.full((3, 8, 8), 17, dtype=np.uint8))
    result = iresnet("score", digits[0].folder, tmp_path / "x.npy")
    assert result.exit_code == 2
    assert "0 to 16" in result.stderr


# --- plot and info ---


def test_pictures_of_points_in_the_plane(moons, tmp_path):
    result = iresnet("plot", moons[0].folder, "--out", tmp_path / "p")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "p").iterdir()}
    assert names == {"samples.png", "density.png", "transport.png", "training.png"}
    assert all(path.read_bytes().startswith(PNG) for path in (tmp_path / "p").iterdir())


def test_pictures_of_images(digits):
    result = iresnet("plot", digits[0].folder)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (digits[0].folder / "plots").iterdir()} == {"samples.png", "training.png"}


@pytest.mark.parametrize("d", [1, 3])
def test_pictures_of_vectors(tmp_path, d):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((200, d)))
    run, _, _ = untrained(tmp_path / "run", str(tmp_path / "x.npy"), None)
    result = iresnet("plot", run.folder)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (run.folder / "plots").iterdir()} == {"samples.png", "training.png"}


def test_the_density_on_a_grid_has_its_mass(moons):
    density, mass = grid_density(moons[2].astype(np.float64), Window(-20, 20, -20, 20), cells=150)
    assert mass == pytest.approx(1, abs=1e-3)
    # The lowest row first, x along the columns.
    grid = -20 + 40 * (np.arange(150) + 0.5) / 150
    at = np.array([[grid[80], grid[70]]])
    assert density[70, 80] == pytest.approx(np.exp(moons[2].astype(np.float64).log_prob(at).value[0]))


@pytest.mark.parametrize("n", [200, 20000])
def test_the_colours_of_a_density_do_not_depend_on_how_many_samples_there_are(n):
    """Single counts in fine cells would make the density of the flow black."""
    data = np.random.default_rng(0).standard_normal((n, 2))
    axis = np.linspace(-4, 4, 60)
    density = np.exp(-0.5 * (axis[:, None] ** 2 + axis**2)) / (2 * np.pi)
    figure = density_figure(density, data, Window(-4, 4, -4, 4), "flow")
    for axes in figure.axes[:2]:
        assert 0.9 * density.max() < axes.images[0].get_clim()[1] < 1.5 * density.max()


def test_info_lists_layers_with_their_constants(moons):
    run, _, _ = moons
    flow = iresnet_core.load(run.model_path)
    for path in (run.folder, run.model_path):
        node = json.loads(iresnet("info", path, "--json").stdout)
        blocks = [row for row in node["layers"] if row["name"] == "ResidualBlock"]
        assert [row["lipschitz"] for row in blocks] == [flow.layers[1].lipschitz, flow.layers[3].lipschitz]
        assert node["largest_constant"] == max(row["lipschitz"] for row in blocks)
        assert node["parameters"] == sum(array.size for array in flow.arrays)
        dense = [row for row in node["layers"] if row["name"] == "Dense"]
        assert [(row["input_shape"], row["output_shape"], row["parameters"]) for row in dense[:2]] == [
            ([2], [8], 16),
            ([8], [2], 16),
        ]
    words = iresnet("info", run.folder).stdout
    assert "…" not in words
    assert f"{blocks[0]['lipschitz']:.6f}" in words
    assert "exported at 10" in words


# --- what is wrong ---


@pytest.mark.parametrize("command", ["sample", "score", "plot", "info"])
def test_what_is_no_run_gives_status_2(command, tmp_path):
    for place in (tmp_path / "absent", tmp_path):
        result = iresnet(command, place)
        assert result.exit_code == 2
        assert "no run folder" in result.stderr
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    result = iresnet(command, tmp_path / "x.safetensors")
    assert result.exit_code == 2
    assert "x.safetensors" in result.stderr
    assert "Traceback" not in result.output


def test_a_model_of_another_run_is_noticed(tmp_path, moons):
    run, _, _ = untrained(tmp_path / "run", "circles")
    x = np.random.default_rng(0).random((9, 3), dtype="float32")
    iresnet_core.save(random_flow(3).initialize(x), run.model_path)
    result = iresnet("score", run.folder)
    assert result.exit_code == 2
    assert "model of another run" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "train on what?"),
        (["train", "moon"], "Did you mean moons?"),
        (["train", "moons", "--framework", "fortran"], "torch, keras"),
        (["train", "moons", "--model", "conv"], "--model mlp"),
        (["train", "moons", "--steps", "5", "--minutes", "1"], "not both"),
        (["train", "moons", "--blocks", "0"], "blocks must be at least 1"),
        (["train", "moons", "--activation", "swish"], "swish"),
        (["train", "moons", "--levels", "4"], "levels does not apply"),
        (["train", "moons", "--checkpoint", "some"], "all, input or inverse"),
        (["train", "moons", "--checkpoint", "input", "--recompute"], "not both"),
        (["train", "moons", "--checkpoint", "inverse", "--compile"], "leave out --compile"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["sample", "RUN", "--out", "x.txt"], ".npy or .npz or .csv"),
        (["sample", "RUN", "--backend", "fortran"], "fortran"),
        (["sample", "RUN", "--dtype", "float16"], "float16"),
        (["score", "RUN", "--out", "x.txt"], ".csv or .json"),
        (["score", "RUN", "--method", "guess"], "guess"),
    ],
)
def test_usage_errors_give_status_2_and_leave_nothing(arguments, message, tmp_path, monkeypatch, moons):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    result = iresnet(*(str(moons[0].folder) if word == "RUN" else word for word in arguments))
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_framework_that_is_missing_is_answered_before_the_folder_is_made(framework, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, framework, None)
    result = iresnet("train", "moons", "--framework", framework, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert f"pip install 'iresnet-core[{framework}" in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


# --- train ---

QUICK = ("--blocks", 2, "--hidden", 8, "--samples", 500, "--batch", 50, "--steps", 12, "--evaluate-every", 6)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_train_from_the_first_step_to_the_picture(framework, tmp_path):
    for module in {"torch": ["torch"], "keras": ["keras", "tensorflow"]}[framework]:
        pytest.importorskip(module)
    run = tmp_path / "run"
    result = iresnet("train", "circles", "--framework", framework, "--out", run, *QUICK)
    assert result.exit_code == 0, result.output
    assert "log-density: mean of log p(x) over samples x, in nats; more is better\n" in result.stdout
    lines = [line for line in result.stdout.splitlines() if re.match(r"step +\d+ ", line)]
    assert len(lines) == 2
    assert re.search(r"log-density: train -\d\.\d{4}  validation -\d\.\d{4} ± 0\.\d{4}  c 0\.\d{4}$", lines[-1])
    test = re.search(r"test log-density (\S+) ± (\S+) nats", result.stdout)
    node = json.loads((run / "result.json").read_text())
    assert f"{node['log_prob']:.4f}" == test[1]
    assert -5 < node["log_prob"] < -2
    assert iresnet("info", run).exit_code == 0
    # The test set of the run, scored later, has the same score.
    score = iresnet("score", run)
    assert f"log-density {test[1]} ± {test[2]} nats" in score.stdout
    again = iresnet("train", "--resume", run)
    assert again.exit_code == 0, again.output
    assert "12 steps" in again.stdout


def test_train_on_a_file_with_torch(tmp_path):
    pytest.importorskip("torch")
    np.savetxt(tmp_path / "x.csv", np.random.default_rng(0).standard_normal((200, 3)), delimiter=",")
    run = tmp_path / "run"
    quick = [word for word in QUICK if word not in ("--samples", 500)]
    assert iresnet("train", tmp_path / "x.csv", "--out", run, *quick).exit_code == 0
    assert iresnet("sample", run).exit_code == 0
    assert np.load(run / "samples.npy").shape == (1000, 3)
    result = iresnet("train", tmp_path / "x.csv", "--out", run, "--blocks", 5)
    assert result.exit_code == 2
    assert "blocks 2 instead of 5" in result.stderr
    (tmp_path / "folder").mkdir()
    for same in (tmp_path / "folder" / ".." / "x.csv", os.path.relpath(tmp_path / "x.csv")):
        assert iresnet("train", same, "--out", run).exit_code == 0
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    result = iresnet("train", tmp_path / "loop", "--out", run)
    assert result.exit_code == 2
    assert "holds a training on" in result.stderr
    result = iresnet("train", "moons", "--out", run)
    assert result.exit_code == 2
    assert "not on moons" in result.stderr
    np.savetxt(tmp_path / "x.csv", np.random.default_rng(9).standard_normal((200, 3)), delimiter=",")
    result = iresnet("train", "--resume", run, "--steps", 20)
    assert result.exit_code == 2
    assert "not those" in result.stderr


def test_training_on_images_says_what_the_loss_and_the_logit_are_with_torch(tmp_path):
    pytest.importorskip("torch")
    x = np.random.default_rng(0).integers(0, 256, (200, 4, 4)).astype(np.uint8)
    x[:, :3] = 0
    np.save(tmp_path / "x.npy", x)
    quick = [word for word in QUICK if word not in ("--samples", 500)]
    result = iresnet("train", tmp_path / "x.npy", "--out", tmp_path / "run", *quick)
    assert result.exit_code == 0, result.output
    assert "bits per dimension: mean of -log2 p(x) / dimensions, for 256 grey levels; fewer is better" in result.stdout
    assert re.search(r"logit with alpha 0.000391 in front: 7\d% of the pixels are black or white", result.stdout)
    assert re.search(r"^logit +alpha 0.000391$", iresnet("info", tmp_path / "run").stdout, re.MULTILINE)
    assert TrainingRun(tmp_path / "run").read_config().settings.model.alpha == 0.1 / 256
    again = iresnet("train", "--resume", tmp_path / "run", "--steps", 18)
    assert "logit with alpha 0.000391" in again.stdout, again.output


def test_a_failing_training_gives_status_1_with_torch(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    trainer = training.find_trainer("torch")
    monkeypatch.setattr(trainer, "step", lambda self, x, lr: training.StepResult(float("nan"), 1.0))
    result = iresnet("train", "moons", "--out", tmp_path / "run", *QUICK)
    assert result.exit_code == 1
    assert "the loss is nan" in result.stderr
    assert "Traceback" not in result.output


def test_a_full_disk_gives_one_line_and_status_2_with_torch(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    sound = os.fsync

    def full(descriptor):
        if (tmp_path / "run" / "log.csv").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        sound(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = iresnet("train", "moons", "--out", tmp_path / "run", *QUICK)
    assert result.exit_code == 2, result.output
    assert re.fullmatch(r"iresnet: \[Errno 28\] No space left on device.*\n", result.stderr)
    resumed = iresnet("train", "--resume", tmp_path / "run")
    assert resumed.exit_code == 0, resumed.output
    assert [row["step"] for row in TrainingRun(tmp_path / "run").read_log()] == [6, 12]


def test_a_folder_in_use_gives_status_2_with_torch(tmp_path):
    pytest.importorskip("torch")
    run = tmp_path / "run"
    assert iresnet("train", "moons", "--out", run, *QUICK).exit_code == 0
    (run / "training.lock").write_text('{"pid": 4, "host": "elsewhere"}')
    before = (run / "config.json").read_bytes()
    result = iresnet("train", "--resume", run, "--steps", 20)
    assert result.exit_code == 2
    assert re.fullmatch(r"iresnet: .* in use by .* process 4 on elsewhere.*\n", result.stderr)
    assert (run / "config.json").read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_control_c_says_how_to_resume_with_torch(tmp_path):
    """In a process of its own; what it left is resumed."""
    pytest.importorskip("torch")
    run = tmp_path / "run"
    small = [str(word) for word in ("train", "moons", *QUICK)]
    steps = [*small[:-3], "3000", *small[-2:]]
    command = [sys.executable, "-c", "from iresnet_core.cli import main; main()", *steps, "--out", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (run / "log.csv").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert without_notices(err) == ""
    step = int(re.search(r"Interrupted at step (\d+); everything is saved", out)[1])
    assert f"iresnet train --resume {run}" in out
    assert step >= 6
    resumed = iresnet("train", "--resume", run, "--steps", step + 3)
    assert resumed.exit_code == 0
    assert "going on from its checkpoint" in resumed.stdout
    assert f"Done: {step + 3} steps" in resumed.stdout
