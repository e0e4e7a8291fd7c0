"""Models on disk: safetensors files with a description, written under a temporary name and renamed."""

from iresnet_core.files.array_files import SUFFIXES, opened_table, read_array, read_arrays, write_array
from iresnet_core.files.atomic_write import write_bytes, write_text
from iresnet_core.files.cifar_files import CIFAR, CifarArrays, read_cifar
from iresnet_core.files.digests import HASH_KEY, digest_of
from iresnet_core.files.plain_data import as_plain_data, from_plain_data
from iresnet_core.files.row_files import ROW_SUFFIXES, RowFile, open_rows, zarr_module
from iresnet_core.files.storage import load, save
from iresnet_core.files.tables import TABLE_SUFFIXES, Table, as_table, pyarrow

__all__ = [
    "CIFAR",
    "HASH_KEY",
    "ROW_SUFFIXES",
    "SUFFIXES",
    "TABLE_SUFFIXES",
    "CifarArrays",
    "RowFile",
    "Table",
    "as_plain_data",
    "as_table",
    "digest_of",
    "from_plain_data",
    "load",
    "open_rows",
    "opened_table",
    "pyarrow",
    "read_array",
    "read_arrays",
    "read_cifar",
    "save",
    "write_array",
    "write_bytes",
    "write_text",
    "zarr_module",
]
