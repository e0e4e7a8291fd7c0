"""Trained residual branches with their inputs, shipped in the package.

One block of each of eight trained flows: d = 2 (two moons) and d = 64 (8 x 8 digits), at
the block constants .5, .7, .9 and .97. Of each flow it is the block with the largest mean ||J_g(x)||_2 at its own
inputs, since small Jacobians are too easy a test. Each has three dense layers and one activation, and comes with 64
inputs: data sent through the blocks before it. Everything is rounded to float32, so that the same numbers are exact in
float32 and float64. Built by ``benchmarks/make_example_data.py``. The digits are those of E. Alpaydin and C.
Kaynak; see examples/LICENSE-digits.txt.
"""

from importlib.resources import files
from typing import Any

import numpy as np

from iresnet_core import backends
from iresnet_core.backends import Array
from iresnet_core.branches import Activation, Chain
from iresnet_core.errors import InvalidArgumentError
from iresnet_core.operators import Dense

__all__ = ["cases", "load_case", "load_digits", "nominal_constant"]

_CASES = tuple(f"d{d}_c{c}" for d in (2, 64) for c in ("0.5", "0.7", "0.9", "0.97"))
_LAYERS = 3


def cases() -> tuple[str, ...]:
    """Return the names of the branches, ``d<dimension>_c<constant>``.

    Examples
    --------
    >>> cases()[:2]
    ('d2_c0.5', 'd2_c0.7')
    """
    return _CASES


def _require_case(name: str) -> None:
    if name not in _CASES:
        raise InvalidArgumentError(f"there is no case {name!r}; the cases are {', '.join(_CASES)}.")


def nominal_constant(name: str) -> float:
    """Return the constant the block was trained under; the rounded weights exceed it by up to 1e-6.

    Examples
    --------
    >>> nominal_constant("d64_c0.97")
    0.97
    """
    _require_case(name)
    return float(name.split("_c")[1])


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Load the 1797 handwritten digits that ship with the package, and their labels.

    Returns
    -------
    images, labels : arrays (1797, 1, 8, 8) and (1797,)
        Grey levels 0 to 16 as uint8, and the digits 0 to 9. Source: E. Alpaydin and C. Kaynak (1998); see
        examples/LICENSE-digits.txt.

    Examples
    --------
    >>> images, labels = load_digits()
    >>> images.shape, images.max(), labels[:3]
    ((1797, 1, 8, 8), np.uint8(16), array([0, 1, 2], dtype=uint8))
    """
    with files("iresnet_core").joinpath("examples", "digits.npz").open("rb") as file, np.load(file) as archive:
        return archive["x"][:, None], archive["y"]


def load_case(name: str, *, dtype: str = "float64", backend: str = "numpy") -> tuple[Chain, Array]:
    """Load a trained branch and its inputs.

    Parameters
    ----------
    name : str
        One of `cases()`.
    dtype : {"float64", "float32"}
        Dtype of weights and inputs; the values are the same.
    backend : str
        Backend of the arrays.

    Returns
    -------
    chain : Chain
        Three dense layers with an activation between them; its constant is certified from the weights.
    x : array (64, d)
        Inputs.

    Raises
    ------
    InvalidArgumentError
        For an unknown case, dtype or backend.
    MissingDependencyError
        If the backend's framework is not installed.

    Examples
    --------
    >>> chain, x = load_case("d2_c0.9")
    >>> x.shape, round(chain.lipschitz, 4)
    ((64, 2), 0.9)
    """
    _require_case(name)
    if dtype not in ("float64", "float32"):
        raise InvalidArgumentError(f"dtype must be 'float64' or 'float32', got {dtype!r}.")
    found = backends.backend(backend)

    def read(key: str) -> Any:
        return found.from_numpy(archive[f"{name}/{key}"].astype(dtype))

    path = files("iresnet_core").joinpath("examples", "trained_branches.npz")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        activation = Activation(str(archive[f"{name}/activation"]))
        layers: list[Any] = []
        for i in range(_LAYERS):
            layers += [Dense(read(f"weight{i}"), read(f"bias{i}")), activation]
        return Chain(layers[:-1]), read("inputs")
