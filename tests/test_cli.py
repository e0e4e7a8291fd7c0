"""The command line: exit status, output, files."""

import json
import os
import re
import stat
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import iresnet_core
from iresnet_core import cli, validate, validation_checks

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
        assert set(record) == set(validate.FIELDS)
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
    monkeypatch.setattr(validate, "run", lambda *_: pytest.fail("it ran"))
    (tmp_path / "file").write_text("")
    for arguments in (["--json", str(tmp_path)], ["--report", str(tmp_path / "file")]):
        result = iresnet("validate", *arguments)
        assert result.exit_code == 2
        assert str(tmp_path) in result.stderr.replace("\n", "")


def test_backend_all_takes_the_installed_ones(monkeypatch):
    asked = {}

    def run(backends, cases, seed, progress, dtypes):
        asked.update(backends=backends, cases=cases, seed=seed, dtypes=dtypes)
        return []

    monkeypatch.setattr(validate, "run", run)
    result = iresnet("validate", "--backend", "all", "--case", CASE, "--case", CASE, "--seed", "7")
    assert result.exit_code == 0
    assert "numpy" in asked["backends"]
    assert "array_api_strict" not in asked["backends"]
    assert asked["cases"] == [CASE]
    assert asked["seed"] == 7
    assert asked["dtypes"] == ["float64"]


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
