"""Write a file whole or not at all."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

__all__ = ["write_bytes", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text`; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to a new file beside `path`, flush it, and put it in the place of `path`.

    Nobody ever reads half a file, and a write that fails leaves the old one as it was.

    Raises
    ------
    OSError
        If the folder does not exist or cannot be written, or the disk is full; it names the file.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(draft, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException as error:
        with suppress(OSError):  # what went wrong first is what matters
            draft.unlink(missing_ok=True)
        # A full disk is reported without a name.
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a power failure, where the system lets a folder be flushed."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse; the file itself is complete
    finally:
        os.close(descriptor)
