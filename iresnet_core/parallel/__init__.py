"""Work in chunks, on many workers and on arrays larger than memory: every chunk is a function of its number alone."""

from iresnet_core.parallel.chunk_store import ChunkStore
from iresnet_core.parallel.chunked_output import OUTPUT_SUFFIXES, require_output, write_chunks
from iresnet_core.parallel.held_out_rows import HeldOutRows
from iresnet_core.parallel.jobs import Chunk, Job, SampleJob, ScoreJob, rows_of_a_chunk
from iresnet_core.parallel.workers import Workers, open_workers, own_process

__all__ = [
    "OUTPUT_SUFFIXES",
    "Chunk",
    "ChunkStore",
    "HeldOutRows",
    "Job",
    "SampleJob",
    "ScoreJob",
    "Workers",
    "open_workers",
    "own_process",
    "require_output",
    "rows_of_a_chunk",
    "write_chunks",
]
