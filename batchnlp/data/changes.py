"""What has changed in a corpus since a run before: a hash-partitioned join, of which memory holds one partition.

every row of the corpus → Spill: files by the first bits of the key → a partition after the other, beside the same
partition of the rows that are known → a reason for each row, a bit for those to compute; those that are gone
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.data.known import KnownRows
from batchnlp.data.ledger import Ledger
from batchnlp.data.parts import is_log
from batchnlp.data.store import explain_full
from batchnlp.errors import CorruptError, OutputError, SourceError
from batchnlp.types import Int64, Plan

PARTITION = 200_000  # rows, roughly
FLUSH = 500_000  # rows that wait in memory for their partitions


@dataclass(slots=True)
class Changes:
    """The rows of a corpus by what has become of them since the last good run. Filled by `compare`."""

    rows: int = 0  # of the corpus: all of the next five together
    new: int = 0
    changed: int = 0  # text, what the task reads beside it, or kept columns
    previously_failed: int = 0
    model_changed: int = 0  # or anything else of the recipe
    unchanged: int = 0
    deleted: int = 0

    @property
    def computed(self) -> int:
        """The rows that must be."""
        return self.rows - self.unchanged


def changes_of(ledger: Ledger) -> Changes | None:
    """What the plan of an incremental run says of its rows; None of another run."""
    tree = (ledger.plan_tree() or {}).get("changes")
    return None if tree is None else Changes(**tree)


def in_log(ledger: Ledger) -> bool:
    """Whether a run is a part of a log of changes; of one whose plan is damaged nobody knows, and others tell that."""
    with suppress(CorruptError, OutputError):
        return is_log(ledger.plan()[0].schema)
    return False


def rows_of(ledger: Ledger, plan: Plan) -> int:
    """The rows of the corpus: with those that stand, which a plan leaves out. Limits go by them, because each run tries all
    again that fails."""
    found = changes_of(ledger)
    return plan.rows + (found.unchanged if found is not None else 0)


class Bits:
    """A bit for each row of the corpus."""

    def __init__(self, count: int) -> None:
        self._bytes = np.zeros(-(-count // 8), np.uint8)

    def set(self, at: Int64) -> None:
        """These rows."""
        np.bitwise_or.at(self._bytes, at >> 3, np.left_shift(1, at & 7).astype(np.uint8))

    def between(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """[stop - start] of a run of rows."""
        some = np.unpackbits(self._bytes[start >> 3 : (stop + 7) >> 3], bitorder="little")
        return some[start & 7 :][: stop - start].astype(np.bool_)


class Spill:
    """Rows with a `key`, in a file for each partition of the keys; the files are streams, one after the other in each."""

    def __init__(self, folder: str, rows: int) -> None:
        """`rows` that are to be expected."""
        self.bits = max(0, (max(rows, 1) - 1) // PARTITION).bit_length()
        self._folder = folder
        self._waiting: list[pa.Table] = []
        with explain_full(folder):
            os.makedirs(folder, exist_ok=True)

    def add(self, rows: pa.Table) -> None:
        """Some more rows."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= FLUSH:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        rows = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting = []
        order = np.argsort(rows["key"].to_numpy(), kind="stable")
        rows = rows.take(pa.array(order))
        cuts = np.searchsorted(rows["key"].to_numpy(), np.array(self._borders(), np.uint64))
        ends = [0, *cuts.tolist(), len(rows)]
        with explain_full(self._folder):
            for partition, (start, stop) in enumerate(pairwise(ends)):
                if stop > start:
                    self._append(partition, rows.slice(start, stop - start))

    def partitions(self) -> Iterator[tuple[pa.Table | None, int | None]]:
        """(the rows of a partition in the order of their keys, None where there are none; where its keys end), in order."""
        self.flush()
        for partition, bound in enumerate([*self._borders(), None]):
            yield self._read(partition), bound

    def _borders(self) -> list[int]:
        return [i << (64 - self.bits) for i in range(1, 1 << self.bits)]

    def _path(self, partition: int) -> str:
        return os.path.join(self._folder, f"{partition:05d}.arrows")

    def _append(self, partition: int, rows: pa.Table) -> None:
        with open(self._path(partition), "ab") as file, pa.ipc.new_stream(file, rows.schema) as stream:
            stream.write_table(rows)

    def _read(self, partition: int) -> pa.Table | None:
        path, found = self._path(partition), []
        if not os.path.exists(path):
            return None
        with pa.OSFile(path) as file:
            while file.tell() < file.size():
                found.append(pa.ipc.open_stream(file).read_all())
        os.unlink(path)
        rows = pa.concat_tables(found)
        return rows.take(pa.array(np.argsort(rows["key"].to_numpy(), kind="stable"))).combine_chunks()


@dataclass(slots=True)
class Before:
    """What the last good run left. Filled from its output."""

    rows: KnownRows
    failed: pa.Table  # key, id (as string) of its dead letters, in the order of the keys
    same_recipe: bool

    def failed_below(self, start: int, bound: int | None) -> pa.Array:
        """The ids of dead letters whose keys lie there, as strings."""
        ends = np.array([start, 2**64 - 1 if bound is None else bound], np.uint64)
        first, last = np.searchsorted(self.failed["key"].to_numpy(), ends)
        stop = len(self.failed) if bound is None else int(last)
        return self.failed["id"].slice(int(first), stop - int(first)).combine_chunks()


@dataclass(frozen=True, slots=True)
class Record:
    """Where a comparison puts what outlives it."""

    rows: Callable[[pa.Table], None] = lambda rows: None  # all of the corpus, in the order of their keys
    gone: Callable[[pa.Array], None] = lambda ids: None  # ids that are known, and not in the corpus


def compare(
    corpus: Spill, before: Before | None, found: Changes, select: Callable[[Int64], None], record: Record
) -> None:  # fmt: skip
    """Count every row of the corpus into `found`, and select those to compute by their `at`.

    Rows that have no id are not in `corpus`. SourceError where two rows have the same id.
    """
    start = 0
    for rows, bound in corpus.partitions():
        known = before.rows.below(bound) if before is not None else None
        if rows is not None:
            _check_unique(rows)
            record.rows(rows)
            reasons = _reasons(rows, known, before, start, bound)
            for reason in ("new", "changed", "previously_failed", "model_changed", "unchanged"):
                setattr(found, reason, getattr(found, reason) + int((reasons == reason).sum()))
            select(rows["at"].to_numpy()[reasons != "unchanged"])
        if known is not None and len(known):
            ids = known["id"].combine_chunks()
            if rows is not None:
                ids = ids.filter(pc.invert(pc.is_in(ids, value_set=rows["id"].combine_chunks())))
            found.deleted += len(ids)
            record.gone(ids)
        start = bound or 0


def _check_unique(rows: pa.Table) -> None:
    if len(pc.unique(rows["id"])) == len(rows):
        return
    counts = pc.value_counts(rows["id"])
    double = next(one["values"] for one in counts.to_pylist() if one["counts"] > 1)
    message = f"the id {double!r} is there more than once, so nobody can tell which row has changed"
    raise SourceError(message, "make source.id unique, or use another output.mode")


def _reasons(
    rows: pa.Table, known: pa.Table | None, before: Before | None, start: int, bound: int | None
) -> npt.NDArray[np.str_]:
    """[rows] why each row is computed, or unchanged; the first that holds."""
    if known is None or before is None:
        return np.full(len(rows), "new", "<U20")
    ids = rows["id"].combine_chunks()
    at = pc.index_in(ids, value_set=known["id"].combine_chunks())
    there = np.asarray(at.is_valid())
    same = pc.equal(known["content"].combine_chunks().take(at), rows["content"].combine_chunks())
    failed = pc.is_in(ids.cast(pa.large_string()), value_set=before.failed_below(start, bound))
    conditions = [
        ~there,
        ~np.asarray(same.fill_null(False)),
        np.asarray(failed),
        np.full(len(rows), not before.same_recipe),
    ]
    reasons = ["new", "changed", "previously_failed", "model_changed"]
    return np.select(conditions, reasons, "unchanged")
