"""Figures and tables of the literature made again: targets, cells, records, timed comparisons, the page."""

from iresnet_core.reproduction.cells import Cell, CellResult, compute_cells, in_progress
from iresnet_core.reproduction.contender import PEERS, Contender, Task, find_peer, peer_names
from iresnet_core.reproduction.ours import Ours
from iresnet_core.reproduction.page import docs_folder, keep_record, page_text, write_page
from iresnet_core.reproduction.published import PUBLISHED, Published
from iresnet_core.reproduction.record import Record, read_record, write_record
from iresnet_core.reproduction.request import Request
from iresnet_core.reproduction.targets import TARGETS, find_target
from iresnet_core.reproduction.timed_training import Prepared, TimedOutcome, TimedTraining, train_for
from iresnet_core.reproduction.unfinished import Unfinished

__all__ = [
    "PEERS",
    "PUBLISHED",
    "TARGETS",
    "Cell",
    "CellResult",
    "Contender",
    "Ours",
    "Prepared",
    "Published",
    "Record",
    "Request",
    "Task",
    "TimedOutcome",
    "TimedTraining",
    "Unfinished",
    "compute_cells",
    "docs_folder",
    "find_peer",
    "find_target",
    "in_progress",
    "keep_record",
    "page_text",
    "peer_names",
    "read_record",
    "train_for",
    "write_page",
    "write_record",
]
