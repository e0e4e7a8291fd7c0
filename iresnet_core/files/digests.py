"""Hashes by which a file knows its content again."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["HASH_KEY", "digest_of"]

HASH_KEY = "sha256"  # under this name a description keeps the hash of all the rest


def digest_of(node: Any, arrays: Iterable[tuple[str, np.ndarray]] = ()) -> str:
    """Return the SHA-256 of plain data and of arrays with their names, dtypes and shapes, in hexadecimal digits.

    It tells damage by accident, not forgery: whoever changes a file on purpose can change the hash too.

    Examples
    --------
    >>> digest_of({"a": 1, "b": [0.5]}) == digest_of({"b": [0.5], "a": 1})
    True
    """
    digest = hashlib.sha256(json.dumps(node, sort_keys=True).encode())
    for name, array in arrays:
        stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))  # as it stands in the file
        digest.update(f"{name} {stored.dtype.name} {array.shape}\n".encode())
        digest.update(stored.data)
    return digest.hexdigest()
