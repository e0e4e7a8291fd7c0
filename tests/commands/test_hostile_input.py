"""What a hostile user gives the command line: one line and exit status 2, or an answer, and never a traceback."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from runs_for_tests import iresnet, untrained

from iresnet_core import cli


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("moons") / "run", "moons")


def test_the_score_of_one_sample_is_valid_json(moons, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 2)))
    assert iresnet("score", moons[0].folder, tmp_path / "x.npy", "--out", tmp_path / "s.json").exit_code == 0
    node = json.loads((tmp_path / "s.json").read_text(), parse_constant=pytest.fail)
    assert node["mean"]["sampling_error"] is None
    assert len(node["log_prob"]) == node["mean"]["n"] == 1


@pytest.mark.parametrize("options", [("--chunk", 5), ()])
def test_scores_are_not_written_over_the_samples(moons, tmp_path, options):
    name = "x.npy" if options else "x.csv"
    x = np.arange(20.0).reshape(10, 2)
    np.save(tmp_path / name, x) if options else np.savetxt(tmp_path / name, x, delimiter=",")
    before = (tmp_path / name).read_bytes()
    (tmp_path / "folder").mkdir()
    out = tmp_path / "folder" / ".." / name
    result = iresnet("score", moons[0].folder, tmp_path / name, "--out", out, *options)
    assert result.exit_code == 2, result.output
    assert "over the samples" in result.output
    assert (tmp_path / name).read_bytes() == before


def test_a_test_set_of_one_sample(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((10, 2)))
    run, small = tmp_path / "run", ("--steps", 1, "--batch", 5, "--hidden", 2, "--blocks", 1)
    result = iresnet("train", tmp_path / "x.npy", "--out", run, *small)
    assert result.exit_code == 0, result.output
    node = json.loads(iresnet("info", run, "--json").stdout, parse_constant=pytest.fail)
    assert node["result"]["sampling_error"] is None
    assert "± inf nats" in iresnet("info", run).stdout


def test_a_score_that_overflows_gives_status_2_and_no_file(moons, tmp_path):
    np.save(tmp_path / "x.npy", np.array([[0.0, 0.0], [1e25, 0.0]]))
    out = tmp_path / "s.json"
    result = iresnet("score", moons[0].folder, tmp_path / "x.npy", "--out", out, "--dtype", "float32")
    assert result.exit_code == 2
    assert result.stderr.startswith("iresnet: the log-density of sample 1 of the batch is below the range of float32")
    assert not out.exists()


@pytest.mark.parametrize(("options", "status"), [([], 2), (["--no-standardize"], 1)])
def test_an_entry_of_a_missing_value_is_not_trained_on(tmp_path, options, status):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    x = np.random.default_rng(0).standard_normal((400, 2))
    x[::50] = -1e30
    np.save(tmp_path / "x.npy", x)
    result = iresnet("train", tmp_path / "x.npy", "--steps", 5, "--out", tmp_path / "run", *options)
    assert result.exit_code == status
    assert "an entry of -1e+30" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--hidden", 99999999999],
        ["--blocks", 99999999999],
        ["--layers", 10**30],
        ["--samples", 10**14],
        ["--seed", 2**64],
        ["--seed", -1],
        ["--lr", 1e300],
        ["--batch", 10**12],
    ],
)
def test_numbers_beyond_all_that_can_be_trained(tmp_path, options):
    result = iresnet("train", "moons", "--steps", 1, "--out", tmp_path / "run", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith("iresnet: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("n", [10**13, 10**30])
def test_more_samples_than_memory_holds(moons, n):
    result = iresnet("sample", moons[0].folder, "-n", n)
    assert result.exit_code == 2
    assert "draw them in parts" in result.stderr


def squeezed(flag=0, damage=b""):
    """A .npz file, with flags of its entries set or some bytes overwritten."""
    file = io.BytesIO()
    np.savez_compressed(file, x=np.random.default_rng(0).standard_normal((50, 2)))
    content = bytearray(file.getvalue())
    content[100 : 100 + len(damage)] = damage
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= flag
    return bytes(content)


def header(shape):
    """A .npy file that says it holds an array of this shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(16)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("huge_number.csv", b"1,2\n3," + b"9" * 10_000_000),
        ("huge_word.csv", b"1,2\n3,'" + b"x" * 100_000),
        ("nul.csv", b"1,2\n3,\x004\n"),
        ("empty.csv", b""),
        ("empty.npy", b""),
        ("empty.npz", b""),
        ("tebibytes.npy", header((10**11, 2))),
        ("torn.npy", header((1, 2))[:40] + b"\xff" * 40),
        ("torn.npz", squeezed(damage=b"\xff" * 60)),
        ("encrypted.npz", squeezed(flag=1)),
        ("patched.npz", squeezed(flag=32)),
        ("open.npy", header((1, 2)).replace(b"}", b" ")),
    ],
)
def test_files_that_hold_no_samples(moons, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    result = iresnet("score", moons[0].folder, tmp_path / name)
    assert result.exit_code == 2
    assert result.stderr.startswith("iresnet: ")
    assert name in result.stderr
    assert len(result.stderr) < 500


def test_memory_that_cannot_be_had_is_one_line(moons, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.zeros((1, 2)))
    kinds = (MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    for error in kinds:

        def fail(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr("iresnet_core.commands.score.scores", fail)
        result = iresnet("score", moons[0].folder, tmp_path / "x.npy")
        assert result.exit_code == 2
        assert result.stderr.startswith("iresnet: this takes more memory than there is")


def process(folder, *arguments, **environment):
    """The command line in a process of its own."""
    code = "from iresnet_core.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_terminal_that_knows_ascii_alone(moons, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    run = process(tmp_path, "score", moons[0].folder, "x.npy", PYTHONIOENCODING="ascii")
    out, errors = run.communicate()
    assert run.returncode == 0, errors
    assert b" +- " in out
    np.save(tmp_path / "name_\xb1_\u4e00.npy", np.zeros((2, 3)))
    run = process(tmp_path, "score", moons[0].folder, "name_\xb1_\u4e00.npy", PYTHONIOENCODING="ascii")
    assert b"name_+-_?.npy holds samples of shape (3,)" in run.communicate()[1]
    assert run.returncode == 2


def test_a_reader_that_has_seen_enough(moons, tmp_path):
    with process(tmp_path, "info", moons[0].folder, "--json") as run:
        run.stdout.close()
        assert b"iresnet:" not in run.stderr.read()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk to write to")
def test_an_output_that_is_full_is_one_line(tmp_path):
    with open("/dev/full", "wb") as full:
        code = "from iresnet_core.cli import main; main()"
        run = subprocess.run([sys.executable, "-c", code, "--help"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert run.returncode == 2
    assert run.stderr.decode().startswith("iresnet: ")


def test_ctrl_c_before_a_command_has_begun(monkeypatch):
    def interrupted(commands):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build_app", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130
