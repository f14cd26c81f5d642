"""What a sink is: start, write a table, write another, finalize. All of it is one transaction where the warehouse has them.

    start()        connect, lock, begin
    held(table)    which of some runs the table holds already: the warehouse itself keeps the account
    write(load)    bring a table to where it holds the runs of the load, and note them in the same transaction
    finalize()     commit
    close()        give everything back; what was not committed is gone

Delta and Iceberg commit one table at a time, so there `write` is a commit and `finalize` has nothing to do. A load that
was noted is never written again, and one that was not left nothing behind; that is what makes loads repeatable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import pyarrow as pa

from batchnlp.sinks.columns import Types
from batchnlp.sinks.gone import Gone

Mode = Literal["append", "upsert", "replace"]  # upsert: one row for each value of the key; replace: any number
Held = dict[tuple[str, str], int]  # (job, run) → the generation that the table holds


@dataclass(frozen=True, slots=True)
class Load:
    """What a table is to get in one go. Filled by `load`."""

    table: str
    runs: Held  # that it holds afterwards
    mode: Mode
    schema: pa.Schema  # as the sink's types have it
    by: tuple[str, ...]  # unless it appends: the columns that tell which rows make way; all rows without any
    gone: Gone  # their values
    partition_by: tuple[str, ...]  # of a table that is made now
    rows: int  # documents, and of a log also deletes
    batches: Callable[[], Iterator[pa.RecordBatch]]  # the rows; at their end bad keys are refused
    files: (
        Callable[[], list[str]] | None
    )  # Parquet files with just these columns among theirs, compared with their checksums

    def reader(self) -> pa.RecordBatchReader:
        """The rows as a stream."""
        return pa.RecordBatchReader.from_batches(self.schema, self.batches())

    def tables(self, size: int = 128 << 20) -> Iterator[pa.Table]:
        """The rows in tables of about so many bytes."""
        held: list[pa.RecordBatch] = []
        bytes_ = 0
        for batch in self.batches():
            if not len(batch):  # unnested lists may all be empty
                continue
            held.append(batch)
            bytes_ += batch.nbytes
            if bytes_ >= size:
                yield pa.Table.from_batches(held)
                held, bytes_ = [], 0
        if held:
            yield pa.Table.from_batches(held)


class Sink(Protocol):
    """A warehouse. Built from the job's sink section; building it imports its driver and does nothing else."""

    types: Types
    errors: tuple[type[Exception], ...]  # of its driver: what they say is the warehouse's answer

    def start(self) -> None:
        """Connect, lock, begin."""

    def held(self, table: str, runs: Sequence[tuple[str, str]]) -> Held:
        """Which of the runs (job, run) a table holds; none where there is no such table."""

    def write(self, load: Load) -> None:
        """Write a table."""

    def finalize(self) -> None:
        """Commit."""

    def close(self) -> None:
        """Give everything back. What was not committed is gone."""
