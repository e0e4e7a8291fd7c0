"""The command line: exit status, output, files."""

import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
from frameworks_for_tests import without_notices

import iresnet_core
from iresnet_core import backends, cli, validation
from iresnet_core.backends import get_backend
from iresnet_core.commands import validate as cli_validate
from iresnet_core.errors import MissingDependencyError
from iresnet_core.validation import agreement as validation_agreement
from iresnet_core.validation import checks as validation_checks
from iresnet_core.validation.problem import Problem

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("matplotlib")

CASE = "d2_c0.5"


def iresnet(*arguments):
    return typer_testing.CliRunner().invoke(cli.build_app(), list(arguments), prog_name="iresnet")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One run with every output: result, JSON file, report."""
    folder = tmp_path_factory.mktemp("validate")
    json_file, report = folder / "new" / "out.json", folder / "report"
    result = iresnet("validate", "--case", CASE, "--json", str(json_file), "--report", str(report))
    return result, json_file, report


def test_success(done):
    result, _, _ = done
    assert result.exit_code == 0, result.output
    assert CASE in result.stdout
    assert re.search(r"All \d+ certified bounds held", " ".join(result.stdout.split()))
    for method in ("power", "cholesky", "anderson, rtol 1e-12", "exact, narrow width", "arnoldi", "roulette"):
        assert method in result.stdout


def test_output_is_whole_at_80_columns(done):
    result, _, _ = done
    assert "…" not in result.stdout
    lines = [line for line in result.stdout.splitlines() if not line.startswith(("Records:", "Report:"))]
    assert max(map(len, lines)) <= 80


def test_json_is_a_list_of_records(done):
    _, json_file, _ = done
    text = json_file.read_text(encoding="utf-8")
    records = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert isinstance(records, list)
    needed = "backend case primitive method samples max_abs_error rmse max_bound bound_violations products seconds"
    for record in records:
        assert set(needed.split()) <= set(record)
        assert set(record) == set(validation.FIELDS)
    assert {record["primitive"] for record in records} == {"spectral_norm", "lipschitz_bound", "inverse", "logdet"}


def test_report_is_one_page_with_its_plots(done):
    _, _, report = done
    assert [path.name for path in report.iterdir()] == ["index.html"]
    page = (report / "index.html").read_text(encoding="utf-8")
    for name in ("spectral", "inverse", "logdet"):
        assert f'<figure id="{name}"><img alt=' in page
    assert page.count("data:image/svg+xml;base64,") == 3
    assert iresnet_core.__version__ in page
    assert "certified bounds held" in page
    assert "anderson, rtol 1e-06" in page
    # Nothing is loaded from elsewhere.
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:)", page)
    assert "url(" not in page


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_files_have_the_usual_mode(done):
    _, json_file, report = done
    mask = os.umask(0)
    os.umask(mask)
    for path in (json_file, report / "index.html"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_violated_bound_gives_status_1(monkeypatch, tmp_path):
    sound = validation_checks.invert

    def lying(*args, **options):
        result = sound(*args, **options)
        return result._replace(error_bound=0 * result.error_bound)

    monkeypatch.setattr(validation_checks, "invert", lying)
    json_file = tmp_path / "out.json"
    result = iresnet("validate", "--case", CASE, "--json", str(json_file))
    assert result.exit_code == 1
    words = " ".join(result.stdout.split())
    assert " NO " in words
    assert "VIOLATED" in words
    assert f"violated: {CASE} numpy float64 inverse picard, rtol 1e-06, 64 of 64" in words
    assert sum(record["bound_violations"] for record in json.loads(json_file.read_text())) >= 64


def test_a_failing_method_gives_status_1(monkeypatch):
    def failing(*args, **options):
        raise iresnet_core.IResNetError("it did not work")

    monkeypatch.setattr(validation_checks, "spectral_norm", failing)
    result = iresnet("validate", "--case", CASE)
    assert result.exit_code == 1
    assert "it did not work" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "d3"], "d64_c0.97"),
        (["--backend", "fortran"], "numpy"),
        (["--dtype", "float16"], "float32"),
        (["--seed", "-3"], "-3"),
        (["--seed", "x"], "seed"),
        (["--nothing"], "--nothing"),
    ],
)
def test_usage_errors_name_the_choices_and_give_status_2(arguments, message):
    result = iresnet("validate", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_places_that_cannot_be_written_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "run", lambda *_: pytest.fail("it ran"))
    (tmp_path / "file").write_text("")
    for arguments in (["--json", str(tmp_path)], ["--report", str(tmp_path / "file")]):
        result = iresnet("validate", *arguments)
        assert result.exit_code == 2
        assert str(tmp_path) in result.stderr.replace("\n", "")


def test_backend_all_takes_those_that_run_here(monkeypatch):
    asked = {}

    def run(backends, cases, seed, progress, dtypes):
        asked.update(backends=backends, cases=cases, seed=seed, dtypes=dtypes)
        return []

    def agreement(backends, cases, seed, progress):
        asked.update(agreement=backends)
        return []

    sound = cli_validate.backend

    def find(name):
        if name == "cupy":
            raise MissingDependencyError("backend 'cupy' needs a GPU")
        return sound(name)

    monkeypatch.setattr(validation, "run", run)
    monkeypatch.setattr(validation, "compare_backends", agreement)
    monkeypatch.setattr(cli_validate, "backend", find)
    result = iresnet("validate", "--backend", "all", "--case", CASE, "--case", CASE, "--seed", "7")
    assert result.exit_code == 0
    assert "numpy" in asked["backends"]
    assert "array_api_strict" not in asked["backends"]
    assert asked["agreement"] == asked["backends"]
    assert "cupy" not in asked["backends"]
    assert "left out: backend 'cupy' needs a GPU" in result.stderr
    assert asked["cases"] == [CASE]
    assert asked["seed"] == 7
    assert asked["dtypes"] == ["float64"]


@pytest.mark.parametrize("name", ["torch", "tensorflow", "jax", "cupy"])
def test_a_missing_backend_is_answered_with_the_command_that_installs_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(backends, "_in_use", SimpleNamespace())  # forget what was found before
    result = iresnet("validate", "--backend", name)
    assert result.exit_code == 2
    assert f"pip install 'iresnet-core[{name}]'" in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output


@pytest.fixture(scope="module")
def other():
    """The first installed backend that is not NumPy."""
    for name in ("torch", "tensorflow", "jax"):
        if importlib.util.find_spec(name) is not None:
            return name
    return pytest.skip("NumPy is the only backend here")


def one_check(monkeypatch):
    """Leave one quick check of accuracy; the agreement is the subject."""
    monkeypatch.setattr(Problem, "checks", ("spectral norm",))


def test_agreement_is_printed_and_stored(other, monkeypatch, tmp_path):
    one_check(monkeypatch)
    json_file, report = tmp_path / "out.json", tmp_path / "report"
    result = iresnet("validate", "--case", CASE, "--backend", other, "--json", str(json_file), "--report", str(report))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    begin = lines.index(next(line for line in lines if line.startswith("Largest relative disagreement with numpy")))
    table = lines[begin + 1 :]
    assert table[0].split() == ["primitive", "backend", "float64", "counts", "float32", "counts", "held"]
    assert table[1].split() == ["limit", "1.0e-10", "equal", "1.0e-04", "-"]
    rows = [line for line in table[2:8] if f" {other} " in line]
    assert len(rows) == 6
    assert all(row.rstrip().endswith("yes") for row in rows)
    assert f"{other} agree with numpy within the limits" in " ".join(result.stdout.split())
    records = json.loads(json_file.read_text())
    assert {record["kind"] for record in records} == {"accuracy", "agreement"}
    assert all(set(record) == set(validation.FIELDS) for record in records)
    assert {record["backend"] for record in records} == {other}
    page = (report / "index.html").read_text(encoding="utf-8")
    assert '<table id="agreement">' in page
    assert "within the limits" in page


def test_backends_that_disagree_give_status_1(other, monkeypatch):
    one_check(monkeypatch)
    sound = validation_agreement.invert

    def drifting(g, y, **options):
        result = sound(g, y, **options)
        return result if get_backend(y).name == "numpy" else result._replace(value=result.value + 0.01)

    monkeypatch.setattr(validation_agreement, "invert", drifting)
    result = iresnet("validate", "--case", CASE, "--backend", other)
    assert result.exit_code == 1
    words = " ".join(result.stdout.split())
    assert f"disagrees: {CASE} {other} float64 inverse picard, value" in words
    assert "6 of " in words  # values of three solvers at two tolerances
    assert "DISAGREE with numpy" in words


def test_numpy_alone_prints_no_agreement(done):
    result, _, report = done
    assert "disagreement" not in result.stdout
    assert "agreement" not in (report / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["tensorflow", "jax"])
def test_backends_in_a_process_of_their_own(name, tmp_path):
    """JAX needs 64-bit arrays, and TensorFlow logs; the command sees to both."""
    pytest.importorskip(name)
    code = (
        "from iresnet_core import cli\n"
        "from iresnet_core.validation.problem import Problem\n"
        "Problem.checks, Problem.primitives = ('spectral norm',), ('branch',)\n"
        "cli.main()"
    )
    quiet = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "TF_"))}
    command = [sys.executable, "-c", code, "validate", "--case", CASE, "--backend", name]
    done = subprocess.run(command, cwd=tmp_path, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert without_notices(done.stderr) == ""
    assert "within the limits" in " ".join(done.stdout.split())


def test_version_and_help():
    result = iresnet("--version")
    assert result.exit_code == 0
    assert result.stdout.strip() == f"iresnet-core {iresnet_core.__version__}"
    assert "validate" in iresnet("--help").stdout
    assert "--report" in re.sub(r"\x1b\[[0-9;]*m", "", iresnet("validate", "--help").stdout)


@pytest.mark.parametrize("absent", ["typer", "rich", "matplotlib"])
def test_a_missing_extra_is_answered_with_the_command_that_installs_it(absent, monkeypatch, capsys):
    sound = cli.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == absent else sound(name))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert absent in message
    assert 'pip install "iresnet-core[cli]"' in message


def test_the_installed_script_is_main():
    scripts = [entry for entry in entry_points(group="console_scripts") if entry.name == "iresnet"]
    assert [script.value for script in scripts] == ["iresnet_core.cli:main"]


def test_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-c", "from iresnet_core.cli import main; main()", "validate", "--case", CASE]
    environment = {**os.environ, "COLUMNS": "40"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "…" not in done.stdout
    assert "\x1b" not in done.stdout
    assert list(tmp_path.iterdir()) == []
