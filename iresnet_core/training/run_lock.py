"""The lock of a run folder: one training at a time.

The lock is held by the operating system for as long as the file is open, so that a process that died holds none. The
file itself, `training.lock`, says who the owner is. A file that is left over was written by a process that was killed:
on the same host it is taken over. On another host the file system may not tell (many network file systems lock within
one host only), so that the file is believed until somebody deletes it.
"""

import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iresnet_core.errors import RunError

__all__ = ["LOCK_NAME", "locked_folder"]

LOCK_NAME = "training.lock"
# What a file system answers that knows no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


_held: dict[Path, int] = {}  # folders that are locked, and the threads of this process that did so


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder inside; a thread that holds it already goes on.

    Raises
    ------
    RunError
        If another training holds it; the message names its process and host.
    OSError
        If the file of the lock cannot be written.
    """
    path = folder.resolve() / LOCK_NAME
    if _held.get(path) == threading.get_ident():
        yield
        return
    descriptor = _acquired(path)
    _held[path] = threading.get_ident()
    try:
        yield
    finally:
        del _held[path]
        if sys.platform == "win32":  # an open file cannot be removed there
            os.close(descriptor)
            path.unlink(missing_ok=True)
        else:
            # While the lock is still held: nobody else's file goes.
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _acquired(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _lock(descriptor):
                raise RunError(f"{path.parent} is in use by {_owner(descriptor)}. Wait for its end, or stop it.")
            if not _is_still(path, descriptor):  # its owner removed it in between
                os.close(descriptor)
                continue
            owner = _read(descriptor)
            if owner is not None and owner.get("host", socket.gethostname()) != socket.gethostname():
                raise RunError(
                    f"{path.parent} is in use by {_named(owner)}, which cannot be asked from this host "
                    f"({socket.gethostname()}). If it has ended, delete {path}."
                )
            content = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, content)
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    """Take the operating system's lock of an open file; say whether it was free."""
    if sys.platform == "win32":
        import msvcrt

        try:
            os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the content, which others may read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        # Without locks the file says who is there, and the process table whether it is still alive.
        owner = _read(descriptor)
        return owner is None or owner.get("host") != socket.gethostname() or not _is_alive(owner.get("pid"))
    return True


def _is_alive(pid: Any) -> bool:
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 2**31 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def _read(descriptor: int) -> dict[str, Any] | None:
    """Return what the file says of its owner; None for an empty or damaged one."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        owner = json.loads(os.read(descriptor, 4096))
    except ValueError:
        return None
    return owner if isinstance(owner, dict) else None


def _owner(descriptor: int) -> str:
    return _named(_read(descriptor) or {})


def _named(owner: dict[str, Any]) -> str:
    return f"another command, process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"
