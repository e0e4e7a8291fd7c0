"""Models in one file: tensors in safetensors, and in its header a JSON description of what they belong to.

The description is data: a tree of known types with numbers, names and shapes, checked field by field. Nothing of a
file is executed, and no certificate is read from one: Lipschitz constants are computed from the weights that were
loaded. The one exception is a constant that the caller declared to a `ResidualBlock`, which is kept as the declaration
it is (`declared_lipschitz`). A hash of description and tensors tells a file that was damaged on its way.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from iresnet_core.backends import Array, Backend, get_backend
from iresnet_core.backends import backend as find_backend
from iresnet_core.errors import StorageError
from iresnet_core.files.atomic_write import write_bytes
from iresnet_core.files.description import brief, build, describe, some
from iresnet_core.files.digests import HASH_KEY, digest_of

__all__ = ["load", "save"]

FORMAT = "iresnet-core"
VERSION = 1
# The one key of the header's metadata. One key, because the order of several is not fixed, and with it the bytes.
KEY = "iresnet-core"
DTYPES = ("bfloat16", "float16", "float32", "float64")
# The names that safetensors has for them; bfloat16, which NumPy lacks, is stored as its bits.
STORED = {"U16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a model to one safetensors file, which `load` reads on any backend.

    Parameters
    ----------
    model : Flow, any layer of a flow, Chain, Dense, Convolution or Activation
        Arrays of any backend; bfloat16, float16, float32 or float64, stored bit by bit.
    path : str or path
        The file; one that exists is replaced, as a whole or not at all.

    Raises
    ------
    StorageError
        If a part cannot be described, such as a branch that is a plain callable; the message names it.
    OSError
        If the file cannot be written.

    Notes
    -----
    The file is first written under another name in the same folder and flushed to the disk. The same model gives the
    same bytes.
    """
    tensors = _Tensors()
    description = {"format": FORMAT, "version": VERSION, "model": describe(model, "", tensors)}
    description[HASH_KEY] = digest_of(description, sorted(tensors.arrays.items()))
    content = to_bytes(tensors.arrays, metadata={KEY: json.dumps(description)})
    write_bytes(Path(os.path.realpath(path)), content)


def load(path: str | os.PathLike[str], backend: str = "numpy") -> Any:
    """Read a model from a file that `save` wrote, on whichever backend is asked for.

    Nothing of the file is executed, and Lipschitz constants are computed from the weights that were loaded.

    Parameters
    ----------
    path : str or path
        The file.
    backend : str
        The backend of its arrays, whichever backend wrote them.

    Returns
    -------
    Flow, layer, Chain, Dense, Convolution or Activation
        The model, with the dtypes and bits that were saved; bfloat16 becomes float32, with the same numbers, where the
        backend does not have it.

    Raises
    ------
    StorageError
        If the file is damaged or no model of this format, is of a newer version, if description and tensors do not
        agree, or if it asks for more than `LARGEST` numbers in one sample.
    OSError
        If there is no such file, or it cannot be read.
    InvalidArgumentError, MissingDependencyError
        If there is no such backend, or its framework is not installed.
    """
    found = find_backend(backend)
    source = f"{os.fspath(path)!r}"
    if os.path.isdir(path):
        raise StorageError(f"{source} is a folder, not a file.")
    try:
        with safe_open(path, framework="numpy") as file:
            model = _model_node(file, source)
            tensors = _StoredTensors(file, found, source)
            result = build(model, "", tensors)
    except SafetensorError as error:
        raise StorageError(
            f"{source} is not an intact safetensors file, as save and iresnet train write: {error}"
        ) from error
    if tensors.unread:
        raise StorageError(f"{source} holds tensors that its description does not name: {some(tensors.unread)}.")
    return result


class _Tensors:
    """The arrays of a model as NumPy's, by their names."""

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}

    def put(self, name: str, array: Array) -> tuple[str, tuple[int, ...]]:
        """Keep a copy in C order, which is what the writer takes its memory for."""
        narrow = _is_bfloat16(array)
        host = _to_bits(array) if narrow else get_backend(array).to_numpy(array)
        dtype = "bfloat16" if narrow else host.dtype.name
        if dtype not in DTYPES:
            raise StorageError(f"{name} has dtype {dtype}; files hold {', '.join(DTYPES)}.")
        self.arrays[name] = np.array(host, order="C")
        return dtype, tuple(host.shape)


class _StoredTensors:
    """The tensors of an open file, handed out as arrays of one backend."""

    def __init__(self, file: Any, backend: Backend, source: str) -> None:
        self.file, self.backend, self.source = file, backend, source
        self.names = set(file.keys())
        self.unread = set(self.names)

    def take(self, name: str, dtype: str, shape: tuple[int, ...]) -> Any:
        """Return one tensor after comparing it with its description."""
        if name not in self.names:
            raise StorageError(f"{self.source} lacks the tensor {name}; it holds {some(self.names)}.")
        found = self.file.get_slice(name)
        kind = STORED.get(found.get_dtype(), found.get_dtype())
        if kind != dtype or tuple(found.get_shape()) != shape:
            raise StorageError(
                f"{self.source}: {name} is described as {dtype} of shape {shape}, but stored as {kind} of shape "
                f"{tuple(found.get_shape())}."
            )
        self.unread.discard(name)
        try:
            host = self.file.get_tensor(name)
            return _from_bits(self.backend, host) if kind == "bfloat16" else self.backend.from_numpy(host)
        except (TypeError, ValueError) as error:
            raise StorageError(
                f"{self.source}: {name} is {dtype}, which the backend {self.backend.name} does not have ({error})."
            ) from error


def _model_node(file: Any, source: str) -> Any:
    """Return the description of the model, after a look at format, version and hash."""
    metadata: dict[str, str] | None = file.metadata()
    if not metadata or KEY not in metadata:
        raise StorageError(f"{source} is a safetensors file without a description of an {FORMAT} model.")
    try:
        description = json.loads(metadata[KEY], parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{source}: the description is no valid JSON ({error}).") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        seen = description.get("format") if isinstance(description, dict) else description
        raise StorageError(f"{source} has the format {brief(seen)}, expected {FORMAT!r}.")
    version = description.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise StorageError(f"{source} has the version {brief(version)}, expected a whole number from 1 to {VERSION}.")
    if version > VERSION:
        raise StorageError(
            f"{source} was written in version {version} of the format; this iresnet-core reads up to {VERSION}. "
            "Upgrade it: pip install --upgrade iresnet-core"
        )
    kept = description.pop(HASH_KEY, None)  # files that were written before there were hashes have none
    if set(description) != {"format", "version", "model"}:
        raise StorageError(f"{source}: the description has the fields {some(set(description))}.")
    if kept is not None and kept != _digest(file, description, source):
        raise StorageError(
            f"{source} is damaged: description and tensors are not those that were written (SHA-256 differs). Copy or "
            "save it again."
        )
    return description["model"]


def _digest(file: Any, description: Any, source: str) -> str:
    """Return the hash of what a file holds, one tensor after another."""
    try:
        return digest_of(description, ((name, file.get_tensor(name)) for name in sorted(file.keys())))
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise StorageError(f"{source} holds what no model does: {error}.") from error


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


# NumPy has no bfloat16: what is such in a file or in a backend passes through the host as its bits.


def _has_bfloat16(backend: Backend) -> bool:
    """Say whether the backend has the dtype."""
    return hasattr(backend.xp, "bfloat16")


def _is_bfloat16(x: Array) -> bool:
    """Say whether an array is of it."""
    backend = get_backend(x)
    return _has_bfloat16(backend) and bool(x.dtype == backend.xp.bfloat16)


def _to_bits(x: Array) -> Any:
    """Return bfloat16 numbers as the whole numbers of their 16 bits, the upper half of those of a float32."""
    backend = get_backend(x)
    wide = np.ascontiguousarray(backend.to_numpy(backend.xp.astype(x, backend.xp.float32)))
    return (wide.view(np.uint32) >> 16).astype(np.uint16)


def _from_bits(backend: Backend, bits: Any) -> Array:
    """Return the numbers as bfloat16, or, where the backend lacks it, as float32."""
    wide = backend.from_numpy((bits.astype(np.uint32) << 16).view(np.float32))
    return backend.xp.astype(wide, backend.xp.bfloat16) if _has_bfloat16(backend) else wide
