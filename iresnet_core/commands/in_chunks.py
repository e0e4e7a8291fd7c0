"""What `score` and `sample` have in common where they work chunk by chunk: options, progress, and going on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from iresnet_core.commands import INTERRUPTED
from iresnet_core.commands.terminal import progress_bar
from iresnet_core.parallel import (
    Chunk,
    ChunkStore,
    Job,
    SampleJob,
    ScoreJob,
    open_workers,
    require_output,
    write_chunks,
)

__all__ = ["ChunkOption", "DaskOption", "compute_in_chunks"]

DaskOption = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="WORKERS",
        help="A number of worker processes, or the address of a Dask scheduler, as tcp://host:8786.",
        show_default=False,
    ),
]
ChunkOption = Annotated[
    int | None, typer.Option("--chunk", metavar="ROWS", help="Rows of a chunk.", min=1, show_default=False)
]
Summary = TypeVar("Summary")


def compute_in_chunks(
    job: ScoreJob | SampleJob,
    where: str | None,
    out: Path | None,
    columns: Callable[[Chunk], Chunk],
    summary: Callable[[Chunk], Summary],
    label: str,
) -> list[Summary]:
    """Compute all chunks of a job, write their `columns` to `out`, and return a summary of each in their order.

    Finished chunks are kept in a folder beside `out` until all of them are written; the same job goes on from there.
    Where no row is left of them, nothing is written.
    """
    if out is None:
        found = {}
        with open_workers(where) as they, progress_bar() as progress:
            for k, chunk in they.chunks(job, range(job.count)):
                found[k] = summary(chunk)
                progress(len(found), job.count, f"{label}, chunks")
        return [found[k] for k in range(job.count)]
    require_output(out)
    with ChunkStore.of(job, out.with_name(f"{out.name}.chunks")) as store:
        with _going_on(store, job):
            _compute(job, where, store, label)
        chunks = map(store.read, range(job.count))
        summaries, n = [], 0
        for chunk in chunks:
            summaries.append(summary(chunk))
            n += len(next(iter(columns(chunk).values())))
        if n:  # else every row was left out, which the caller says
            write_chunks(out, (columns(store.read(k)) for k in range(job.count)), n, job.rows)
        store.remove()
    return summaries


def _compute(job: Job[Chunk], where: str | None, store: ChunkStore, label: str) -> None:
    done = store.done()
    todo = [k for k in range(job.count) if k not in done]
    if not todo:
        return
    if done:
        Console(stderr=True).print(f"going on: {len(done)} of {job.count} chunks are done", soft_wrap=True)
    with open_workers(where) as they, progress_bar() as progress:
        for count, (k, chunk) in enumerate(they.chunks(job, todo), start=len(done) + 1):
            store.write(k, chunk)
            progress(count, job.count, f"{label}, chunks")


@contextmanager
def _going_on(store: ChunkStore, job: Job[Chunk]) -> Iterator[None]:
    """Say after an interruption what is there, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print(
            f"Interrupted: {len(store.done())} of {job.count} chunks are in {store.folder}. The same command goes on.",
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None
