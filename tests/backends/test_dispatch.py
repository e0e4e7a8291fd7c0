"""How the backend of an array is found."""

import re
import subprocess
import sys

import numpy as np
import pytest
from branches_for_tests import of_another
from capabilities import TABLE

from iresnet_core import backends
from iresnet_core.backends import available_backends, get_backend
from iresnet_core.backends import backend as find_backend
from iresnet_core.backends.base import Backend
from iresnet_core.errors import (
    InvalidArgumentError,
    MissingDependencyError,
    MixedBackendsError,
    UnknownArrayError,
)


@pytest.fixture
def forgetful(monkeypatch):
    """Dispatch without its memory, which is put back afterwards."""
    monkeypatch.setattr(backends, "_backend_of_type", {})
    monkeypatch.setattr(backends, "_BACKENDS", dict(backends._BACKENDS))
    return monkeypatch


def test_table_of_capabilities_has_every_backend():
    assert [row.backend for row in TABLE] == list(available_backends())


def test_backend_of_its_own_arrays(backend):
    x = backend.xp.zeros((2, 3))
    assert get_backend(x) is backend
    assert get_backend(x, x) is backend
    assert find_backend(backend.name) is backend
    assert isinstance(backend, Backend)
    assert backend.owns(type(x))
    assert not backend.owns(list)


def test_numpy_scalars_and_memory_maps_are_numpy(tmp_path):
    mapped = np.memmap(tmp_path / "data", dtype=np.float64, mode="w+", shape=(3,))
    assert get_backend(np.float32(1), mapped, np.zeros(3)).name == "numpy"


@pytest.mark.parametrize(
    "other", [np.ma.masked_array([1.0]), np.zeros((2, 2)).view(np.matrix)], ids=["masked", "matrix"]
)
def test_arrays_that_compute_differently_are_refused(other):
    with pytest.raises(UnknownArrayError, match=type(other).__qualname__):
        get_backend(other)


def test_type_is_looked_up_once(backend, forgetful):
    x = backend.xp.zeros(1)
    assert get_backend(x) is backend
    forgetful.setattr(backends, "_load", lambda kind: pytest.fail(f"{kind} was looked up again"))
    assert get_backend(x) is backend


def test_a_miss_is_not_remembered(forgetful):
    class Later:
        pass

    with pytest.raises(UnknownArrayError):
        get_backend(Later())
    find_backend("numpy")
    forgetful.setattr(backends, "_load", lambda kind: "numpy" if kind is Later else None)
    assert get_backend(Later()).name == "numpy"


def test_mixed_arrays_are_refused_with_both_types(backend):
    first, second = backend.from_numpy(np.zeros(1)), of_another(backend, np.zeros(1))
    named = [f"{type(x).__name__} ({get_backend(x).name})" for x in (first, second)]
    for arrays, names in [((first, second), named), ((first, first, second), named), ((second, first), named[::-1])]:
        with pytest.raises(MixedBackendsError, match=".*".join(map(re.escape, names))):
            get_backend(*arrays)


@pytest.mark.parametrize("other", [[1.0, 2.0], (1.0,), 1.0, "x", None], ids=repr)
def test_what_is_no_array_is_refused_with_advice(other):
    with pytest.raises(UnknownArrayError, match=rf"builtins\.{type(other).__name__}.*asarray"):
        get_backend(other)
    with pytest.raises(UnknownArrayError):
        get_backend(np.zeros(1), other)


def test_no_array_at_all():
    with pytest.raises(UnknownArrayError, match="no array"):
        get_backend()


def test_unknown_name_is_refused_with_the_names():
    with pytest.raises(InvalidArgumentError, match=r"'nunpy'.*numpy, .*array_api_strict"):
        find_backend("nunpy")


def test_missing_framework_is_named_with_the_way_to_install_it(forgetful):
    forgetful.setitem(
        backends._BACKENDS, "absent", ("Absent", "iresnet_absent_framework", "pip install absent-framework")
    )
    with pytest.raises(
        MissingDependencyError, match=r"'absent'.*iresnet_absent_framework.*pip install absent-framework"
    ):
        find_backend("absent")
    assert issubclass(MissingDependencyError, ImportError)
    # It concerns nobody who does not ask for it.
    assert get_backend(np.zeros(1)).name == "numpy"
    with pytest.raises(UnknownArrayError):
        get_backend([1.0])


def test_dispatch_imports_no_framework(tmp_path):
    code = """
import sys
import numpy as np
from iresnet_core import backends
backends._BACKENDS["colorsys"] = ("Colours", "colorsys", "")
before = set(sys.modules)
assert backends.get_backend(np.zeros(1)).name == "numpy"
try:
    backends.get_backend([1.0])
except TypeError:
    pass
else:
    raise SystemExit("a list went through")
assert "array_api_strict" not in sys.modules
assert "colorsys" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
