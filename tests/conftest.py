"""Options, hypothesis profiles and the fixtures that all tests share."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")  # read when JAX is imported; the tests compare float64
if "IRESNET_JAX_PROGRAMS" in os.environ:
    # JAX compiles every operation for every shape; what it keeps in a folder serves the next run. A folder for each
    # worker, because JAX would read what another process has half written.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(os.environ["IRESNET_JAX_PROGRAMS"], worker))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import capabilities
import pytest
from hypothesis import HealthCheck, settings

import iresnet_core
from iresnet_core.backends import backend as find_backend

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = "IRESNET_SHARED_DATA"

# The same examples on every run, so that a change and nothing else turns a test red.
settings.register_profile(
    "ci",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
# For the backends that compile every operation for every shape; the same properties on fewer examples and shapes.
settings.register_profile("few", parent=settings.get_profile("ci"), max_examples=4)
settings.register_profile(
    "strict",
    max_examples=2000,
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def pytest_addoption(parser):
    group = parser.getgroup("iresnet-core")
    group.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="run the tests of this backend only (repeatable); one that is not installed is an error",
    )
    group.addoption(
        "--device",
        metavar="NAME",
        help="where the tests of PyTorch make their tensors, such as cuda; CuPy and JAX choose a GPU by themselves",
    )
    group.addoption(
        "--strict-suite",
        action="store_true",
        help="hypothesis profile 'strict' (2000 examples a property, random) and the tests marked strict_suite",
    )


def pytest_configure(config):
    if config.getoption("--strict-suite"):
        settings.load_profile("strict")
    elif not config.getoption("--hypothesis-profile"):
        settings.load_profile("ci")
    known = [entry.backend for entry in capabilities.TABLE]
    for name in config.getoption("--backend") or ():
        if name not in known:
            raise pytest.UsageError(f"--backend {name}: there is no such backend; the table has {', '.join(known)}")
        if not _installed(name):
            raise pytest.UsageError(f"--backend {name}: {capabilities.row(name).framework} is not installed")
    if config.getoption("--device"):
        _make_tensors_on(config.getoption("--device"))


def _make_tensors_on(device):
    try:
        import torch

        torch.empty(1, device=device)
    except (ImportError, AssertionError, RuntimeError) as error:
        raise pytest.UsageError(f"--device {device}: {error}") from error
    torch.set_default_device(device)


def pytest_report_header(config):
    absent = [entry.backend for entry in capabilities.TABLE if not _installed(entry.backend)]
    return [
        f"iresnet_core: {Path(iresnet_core.__file__).parent}",
        f"backends: {', '.join(_chosen(config))}" + (f" (not installed: {', '.join(absent)})" if absent else ""),
    ]


def _installed(name):
    framework = capabilities.row(name).framework
    if importlib.util.find_spec(framework) is None:
        return False
    return name != "cupy" or importlib.import_module(framework).is_available()


def _chosen(config):
    asked = config.getoption("--backend")
    return [
        entry.backend
        for entry in capabilities.TABLE
        if (entry.backend in asked if asked else _installed(entry.backend))
    ]


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", _chosen(metafunc.config), indirect=True, scope="module")


def pytest_collection_modifyitems(config, items):
    strict = config.getoption("--strict-suite")
    for item in items:
        if not strict and item.get_closest_marker("strict_suite"):
            item.add_marker(pytest.mark.skip(reason="thousands of cases; runs with --strict-suite"))
        for marker in item.iter_markers("needs"):
            reason = capabilities.missing(item.callspec.params["backend"], marker.args)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


# Module scope, because hypothesis refuses function-scoped fixtures; a backend has no state.
@pytest.fixture(scope="module")
def backend(request):
    """Each backend that is installed, or those named by --backend."""
    backend = find_backend(request.param)
    yield backend
    if backend.name == "jax":
        sys.modules["jax"].clear_caches()  # the programs of thousands of shapes, several gigabytes of them


@pytest.fixture(scope="session")
def shared_data():
    """Folder of the data shared between checkouts: ../shared/data, or what IRESNET_SHARED_DATA names."""
    if SHARED_DATA in os.environ:
        folder = Path(os.environ[SHARED_DATA])
        if not folder.is_dir():
            pytest.fail(f"{SHARED_DATA}={folder} is not a folder")
        return folder
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data beside the checkout, and {SHARED_DATA} is not set")
    return folder
