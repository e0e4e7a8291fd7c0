"""The CuPy backend where there is no GPU; with one, the tests with the `backend` fixture run on it."""

import subprocess
import sys

# A CuPy that is installed and finds no device.
STAND_IN = """
__version__ = "0.0"
class ndarray: pass
def is_available(): return False
"""

CODE = """
import cupy, numpy as np
from iresnet_core.backends import backend, get_backend
from iresnet_core.errors import MissingDependencyError, UnknownArrayError
for _ in range(2):
    try:
        backend("cupy")
    except MissingDependencyError as error:
        assert "needs a GPU" in str(error) and "nvidia-smi" in str(error), error
    else:
        raise SystemExit("a backend without a device")
assert get_backend(np.zeros(1)).name == "numpy"
import array_api_strict
assert get_backend(array_api_strict.zeros(1)).name == "array_api_strict"
try:
    get_backend(cupy.ndarray())
except UnknownArrayError:
    pass
"""


def test_without_a_device(tmp_path):
    (tmp_path / "cupy.py").write_text(STAND_IN, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
