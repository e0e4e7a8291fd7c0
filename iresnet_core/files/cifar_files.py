"""CIFAR-10 and CIFAR-100 as their authors publish them: Python pickles or binary files, in a folder or a .tar.gz.

A pickle is a program, which may do anything when it is loaded. Here it may make dictionaries, lists, numbers, text and
arrays of whole numbers: the names of the three functions of NumPy that such an array needs stand for objects of ours,
and every other name is refused before anything is called.
"""

import io
import math
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from iresnet_core.errors import DataFileError, InvalidArgumentError

__all__ = ["CIFAR", "CifarArrays", "read_cifar"]

_SHAPE = (3, 32, 32)
_PIXELS = math.prod(_SHAPE)
_LARGEST = 400_000_000  # bytes of one file; the largest of the originals has 155 million
_CODES = {"u1": np.uint8, "i4": np.int32, "i8": np.int64}
_DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError)


class CifarArrays(NamedTuple):
    """Images and labels.

    Attributes
    ----------
    x_train, x_test : uint8 array (n, 3, 32, 32)
        Channels red, green, blue.
    y_train, y_test : int64 array (n,)
        Labels from 0.
    names : tuple of str, or None
        The names of the classes, where they are beside the images.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    names: tuple[str, ...] | None


@dataclass(frozen=True)
class _Layout:
    """Names of the files, and what is in them."""

    train: tuple[str, ...]
    test: str
    folders: tuple[str, ...]  # as they are called in the archives, and the archives themselves
    labels: Mapping[str, tuple[str, str, str, int]]  # kind -> keys of labels and of names, text file, byte of a row
    meta: str
    label_bytes: int


CIFAR: dict[str, _Layout] = {
    "cifar10": _Layout(
        train=tuple(f"data_batch_{k}" for k in range(1, 6)),
        test="test_batch",
        folders=("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-10-python", "cifar-10-binary"),
        labels={"fine": ("labels", "label_names", "batches.meta.txt", 0)},
        meta="batches.meta",
        label_bytes=1,
    ),
    "cifar100": _Layout(
        train=("train",),
        test="test",
        folders=("cifar-100-python", "cifar-100-binary"),
        labels={
            "fine": ("fine_labels", "fine_label_names", "fine_label_names.txt", 1),
            "coarse": ("coarse_labels", "coarse_label_names", "coarse_label_names.txt", 0),
        },
        meta="meta",
        label_bytes=2,
    ),
}


def read_cifar(path: str | Path, kind: str, labels: str = "fine") -> CifarArrays:
    """Read CIFAR-10 or CIFAR-100.

    Parameters
    ----------
    path : str or path
        The archive, such as cifar-10-python.tar.gz or cifar-100-binary.tar.gz, or a folder with what is in it. An
        archive is read where it is; nothing is unpacked to the disk.
    kind : {"cifar10", "cifar100"}
        Which of both.
    labels : {"fine", "coarse"}
        Of CIFAR-100 the 100 classes, or the 20 groups of them.

    Raises
    ------
    DataFileError
        If files are missing, damaged, or hold something else; also if a pickle asks for anything but plain data.
    InvalidArgumentError
        For coarse labels of CIFAR-10.
    """
    layout = CIFAR[kind]
    if labels not in layout.labels:
        raise InvalidArgumentError(f"{kind} has the labels {' and '.join(layout.labels)}, got {labels!r}.")
    path = Path(path)
    found = _files(path, layout)
    needed = (*layout.train, layout.test)
    for suffix, read in (("", _read_pickle), (".bin", _read_binary)):
        if all(f"{name}{suffix}" in found for name in needed):
            parts = {
                name: read(found[f"{name}{suffix}"](), f"{path}: {name}{suffix}", layout, labels) for name in needed
            }
            break
    else:
        raise DataFileError(
            f"{path} does not hold {kind}: expected the files {', '.join(needed)}, or the same with .bin; found "
            f"{', '.join(sorted(found)) or 'none of them'}."
        )
    names = _names(found, f"{path}", layout, labels)
    train = [parts[name] for name in layout.train]
    return CifarArrays(
        np.concatenate([x for x, _ in train]), np.concatenate([y for _, y in train]), *parts[layout.test], names
    )


def _files(path: Path, layout: _Layout) -> dict[str, Callable[[], bytes]]:
    """Return how to read each file of the data, by its name."""
    texts = [text for _, _, text, _ in layout.labels.values()]
    known = {*layout.train, layout.test, layout.meta, *texts}
    known |= {f"{name}.bin" for name in (*layout.train, layout.test)}
    if path.is_dir():
        for folder in (path, *(path / name for name in layout.folders)):
            here = {name: folder / name for name in known if (folder / name).is_file()}
            if here:
                for file in here.values():
                    _require_size(file.stat().st_size, f"{file}")
                return {name: file.read_bytes for name, file in here.items()}
        return {}
    if not path.is_file():
        raise DataFileError(f"there is no file or folder {path}.")
    try:
        with tarfile.open(path, "r:*") as archive:
            kept: dict[str, bytes] = {}
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if member.isfile() and name in known and name not in kept:
                    _require_size(member.size, f"{path}: {name}")
                    content = archive.extractfile(member)
                    assert content is not None
                    kept[name] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataFileError(f"{path} cannot be read as a .tar.gz: {error}.") from error
    return {name: lambda content=content: content for name, content in kept.items()}  # type: ignore[misc]


def _require_size(size: int, name: str) -> None:
    if size > _LARGEST:
        raise DataFileError(f"{name} has {size} bytes; no file of these data has more than {_LARGEST}.")


def _names(
    found: Mapping[str, Callable[[], bytes]], where: str, layout: _Layout, labels: str
) -> tuple[str, ...] | None:
    _, key, text, _ = layout.labels[labels]
    if layout.meta in found:
        listed = _entry(_plain_pickle(found[layout.meta](), f"{where}: {layout.meta}"), key)
        if isinstance(listed, list) and all(isinstance(name, bytes | str) for name in listed):
            return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in listed)
    if text in found:
        return tuple(found[text]().decode("utf-8", "replace").split())
    return None


def _read_binary(content: bytes, name: str, layout: _Layout, labels: str) -> tuple[np.ndarray, np.ndarray]:
    row = layout.label_bytes + _PIXELS
    if not content or len(content) % row:
        raise DataFileError(f"{name} has {len(content)} bytes, expected a multiple of {row}, which is one image.")
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, row)
    images = rows[:, layout.label_bytes :].reshape(-1, *_SHAPE)
    return images.copy(), rows[:, layout.labels[labels][3]].astype(np.int64)


def _read_pickle(content: bytes, name: str, layout: _Layout, labels: str) -> tuple[np.ndarray, np.ndarray]:
    node = _plain_pickle(content, name)
    key = layout.labels[labels][0]
    images, found = _entry(node, "data"), _entry(node, key)
    images = images.value if isinstance(images, _Array) else None
    found = found.value if isinstance(found, _Array) else found
    if images is None or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != _PIXELS:
        raise DataFileError(f"{name}: data is not an array (n, {_PIXELS}) of uint8.")
    if isinstance(found, list) and not all(type(label) is int and 0 <= label < 2**31 for label in found):
        raise DataFileError(f"{name}: {key} are no whole numbers from 0.")
    if not isinstance(found, list | np.ndarray) or np.shape(found) != (len(images),):
        raise DataFileError(f"{name}: {key} is not one number for each of the {len(images)} images.")
    return images.reshape(-1, *_SHAPE), np.asarray(found, dtype=np.int64)


def _entry(node: Any, key: str) -> Any:
    """Return an entry of a dictionary whose keys are bytes or text."""
    if not isinstance(node, dict):
        return None
    return node.get(key.encode(), node.get(key))


def _plain_pickle(content: bytes, name: str) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    except MemoryError as error:
        raise DataFileError(f"{name} asks for more memory than there is; it may be damaged.") from error
    except _DAMAGE as error:
        raise DataFileError(f"{name} cannot be read: {str(error)[:300]}") from error


class _Dtype:
    """What stands for numpy.dtype in a pickle."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode("ascii", "replace") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("|", "<", "=", b"|", b"<", b"="):
            raise pickle.UnpicklingError("an array has another byte order, or a dtype with parts")


class _Array:
    """What stands for numpy.ndarray in a pickle: its bytes are read as plain numbers."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, in_columns, raw = state
        code = getattr(dtype, "code", None)
        if not isinstance(dtype, _Dtype) or code not in _CODES or not isinstance(raw, bytes) or in_columns:
            raise pickle.UnpicklingError(f"an array is of dtype {code!r}, expected whole numbers {', '.join(_CODES)}")
        self.value = np.frombuffer(raw, dtype=np.dtype(_CODES[code]).newbyteorder("<")).reshape(shape)


def _reconstructed(kind: Any, *_: Any) -> _Array:
    if kind is not _Array:
        raise pickle.UnpicklingError("an array is of a class of its own")
    return _Array()


def _encoded(text: Any, encoding: Any = None) -> bytes:
    if encoding not in ("latin1", b"latin1") or not isinstance(text, str | bytes):
        raise pickle.UnpicklingError("bytes are written in an unknown way")
    return text if isinstance(text, bytes) else text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that knows four names, for which it has functions of its own."""

    known: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstructed,
        ("numpy._core.multiarray", "_reconstruct"): _reconstructed,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encoded,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no file of these data needs. It was refused, and nothing was run"
            )
        return self.known[module, name]
