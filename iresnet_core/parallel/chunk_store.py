"""The finished chunks of a job in a folder, so that a command that was interrupted does not compute them again."""

import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np

from iresnet_core.errors import RunError
from iresnet_core.files import write_bytes, write_text
from iresnet_core.parallel.jobs import Chunk, Job
from iresnet_core.training import locked_folder

__all__ = ["ChunkStore"]

_PLAN = "plan.json"
_PART = re.compile(r"(\d{9})\.npz")
_DRAFT = re.compile(r"\..*\.tmp")
# What NumPy and zipfile raise for a file that is damaged.
_DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class ChunkStore:
    """A folder with plan.json, which says of which job the chunks are, and one .npz file for each finished chunk.

    Files are written under a temporary name and renamed, by one process, which holds the lock of the folder.

    Attributes
    ----------
    folder : Path
        Where it is.
    """

    folder: Path

    @classmethod
    @contextmanager
    def of(cls, job: Job[Chunk], folder: Path) -> Iterator[Self]:
        """Open the folder for a job, inside under its lock.

        Raises
        ------
        RunError
            If another command is using the folder, or it holds chunks of another job; the message says what differs.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with locked_folder(folder):
            store = cls(folder)
            store._take(json.loads(json.dumps(job.identity())))
            yield store

    def _take(self, identity: dict[str, Any]) -> None:
        plan = self.folder / _PLAN
        if plan.is_file():
            try:
                known = json.loads(plan.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RunError(f"{plan} is damaged: {error}. Delete {self.folder} to begin anew.") from error
            # A plan without chunks is of a command that failed before the first one.
            if known != identity and self._holds_chunks():
                names = sorted(name for name in {*known, *identity} if known.get(name) != identity.get(name))
                raise RunError(
                    f"{self.folder} holds chunks of another command; {', '.join(names)} "
                    f"differ{'s' if len(names) == 1 else ''}. Go on with that one, delete the folder, or give another "
                    "--out."
                )
        elif self._holds_chunks():
            raise RunError(f"{self.folder} holds chunks and no {_PLAN}. Delete it, or give another --out.")
        for path in self.folder.iterdir():
            if _DRAFT.fullmatch(path.name):
                path.unlink()
        write_text(plan, json.dumps(identity, indent=1) + "\n")

    def _holds_chunks(self) -> bool:
        return any(_PART.fullmatch(path.name) for path in self.folder.iterdir())

    def done(self) -> frozenset[int]:
        """Return the numbers of the finished chunks; those whose files are damaged are to be computed again."""
        found = (_PART.fullmatch(path.name) for path in self.folder.iterdir())
        return frozenset(int(match[1]) for match in found if match and self._is_whole(int(match[1])))

    def write(self, k: int, chunk: Chunk) -> None:
        """Keep chunk k."""
        buffer = BytesIO()
        np.savez(buffer, allow_pickle=False, **chunk)
        write_bytes(self._path(k), buffer.getvalue())

    def read(self, k: int) -> Chunk:
        """Return chunk k."""
        with np.load(self._path(k), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def remove(self) -> None:
        """Remove the folder, once all of it is written somewhere else."""
        shutil.rmtree(self.folder)

    def _path(self, k: int) -> Path:
        return self.folder / f"{k:09d}.npz"

    def _is_whole(self, k: int) -> bool:
        try:
            with zipfile.ZipFile(self._path(k)) as archive:
                return archive.testzip() is None
        except _DAMAGE:
            return False
