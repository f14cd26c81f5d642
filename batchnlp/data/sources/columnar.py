"""What Parquet and Arrow files share: record batches in order, and a cursor, so that nothing is decoded twice."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from batchnlp.data.remote import reason
from batchnlp.data.sources.base import Bad, Limits, Rows, Run
from batchnlp.data.sources.columns import fit, is_string, nulls
from batchnlp.data.sources.storage import Store, broken, is_damage
from batchnlp.errors import CorruptError
from batchnlp.types import InputFile, Int64, Segment, SourceConfig

BATCH = 4096  # rows decoded at a time


class Cursor:
    """An open file, read up to some row."""

    def __init__(
        self,
        file: InputFile,
        columns: tuple[str, ...],
        borders: Int64,
        first: int,
        batches: Iterator[pa.RecordBatch],
    ) -> None:
        self.file = file
        self.columns = columns
        self.row = int(borders[first])  # the next row
        self._borders = borders  # first rows of the groups that can be jumped to, and the end
        self._batches = batches
        self._rest: pa.RecordBatch | None = None

    def take(self, rows: int) -> list[pa.RecordBatch]:
        """The next rows; fewer at the end of the file."""
        out: list[pa.RecordBatch] = []
        while rows > 0 and (part := self.step(rows)) is not None:
            rows -= part.num_rows
            out.append(part)
        return out

    def step(self, rows: int) -> pa.RecordBatch | None:
        """At most so many rows of the next batch; None at the end of the file."""
        batch = self._rest if self._rest is not None else next(self._batches, None)
        if batch is None:
            return None
        part = batch.slice(0, rows)
        self._rest = batch.slice(rows) if batch.num_rows > rows else None
        self.row += part.num_rows
        return part

    def group(self, row: int) -> int:
        """The group that `row` is in."""
        return group_of(self._borders, row)

    def near(self, row: int) -> bool:
        """Whether going on is the best way to `row`: groups in between are better jumped over than decoded."""
        return self.row == row or (self.row < row and self.group(self.row) == self.group(row))

    def border(self) -> int:
        """The first row behind the group that it is in."""
        return int(self._borders[self.group(self.row) + 1])

    def place(self) -> str:
        """Where it stands, for an error message."""
        return f"row group {self.group(self.row)}" if len(self._borders) > 2 else f"from row {self.row} on"

    def skip(self, row: int) -> None:
        """Goes on to `row`, batch by batch."""
        while self.row < row and self.take(min(row - self.row, BATCH)):
            pass


def group_of(borders: Int64, row: int) -> int:
    """The group whose rows include `row`, the last one for rows beyond the end."""
    return min(int(np.searchsorted(borders, row, side="right")) - 1, len(borders) - 2)


def _fit(chunks: list[pa.Array], kind: pa.DataType) -> tuple[pa.ChunkedArray, list[int]]:
    """The chunks as `kind`, each by itself: that of a lost row has another type than the file's."""
    done: list[pa.Array] = []
    bad: list[int] = []
    at = 0
    for chunk in chunks:
        column, wrong = fit(pa.chunked_array([chunk]), kind)
        done += column.chunks
        bad += [at + one for one in wrong]
        at += len(chunk)
    return pa.chunked_array(done, kind), bad


class Span(NamedTuple):
    """A run of rows that the file stores together: a row group or a record batch."""

    start: int
    stop: int
    size: int


@dataclasses.dataclass(slots=True)
class _Found:
    """What of a segment is whole."""

    batches: list[pa.RecordBatch] = dataclasses.field(default_factory=list)
    runs: list[Int64] = dataclasses.field(default_factory=list)  # where the rows of each batch are in the segment
    lost: int | None = None  # the position of the row that stands for those that are lost
    why: str = ""

    def add(self, batch: pa.RecordBatch, at: int) -> None:
        """A batch that is whole, at row `at` of the segment."""
        self.batches.append(batch)
        self.runs.append(np.arange(at, at + batch.num_rows))

    def lose(self, schema: pa.Schema, at: int, why: str) -> None:
        """Some rows from `at` on are lost."""
        if self.lost is None:
            self.lost, self.why = sum(map(len, self.runs)), why
            self.add(nulls(schema, 1).to_batches()[0], at)

    @property
    def places(self) -> Int64:
        """[rows] of all batches."""
        return np.concatenate(self.runs).astype(np.int64)


class ColumnarReader(ABC):
    """A format with typed columns."""

    columnar = True

    def __init__(self, store: Store, config: SourceConfig) -> None:
        self.store = store
        self.config = config
        self._cursor: Cursor | None = None

    @abstractmethod
    def inspect(self, file: InputFile) -> pa.Schema | None:
        """See `Reader`."""

    @abstractmethod
    def spans(self, file: InputFile) -> Iterator[Span]:
        """How the file stores its rows, in order; those that the filter excludes at once may be left out."""

    @abstractmethod
    def cursor(self, file: InputFile, columns: tuple[str, ...], row: int) -> Cursor:
        """A cursor at the start of the group of `row`."""

    def scan(self, index: int, file: InputFile, limits: Limits) -> Iterator[Run]:
        """See `Reader`."""
        for span in self.spans(file):
            if span.stop > span.start:
                for start, stop, size in limits.cut(*span):
                    yield Run(Segment(index, start, stop, stop - start), size)

    def read(self, file: InputFile, segment: Segment, schema: pa.Schema) -> Rows:
        """See `Reader`."""
        if self.config.on_bad_file == "salvage":
            found = self._salvage(file, schema, segment)
            if found.lost is not None:
                return self._rows(schema, found.batches, found)
            return self._rows(schema, found.batches)
        return self._rows(schema, self._take(file, tuple(schema.names), segment))

    def _rows(self, schema: pa.Schema, batches: list[pa.RecordBatch], found: _Found | None = None) -> Rows:
        columns: list[pa.ChunkedArray] = []
        bad: list[Bad] = []
        filtered = {column for column, _, _ in self.config.filter}
        for field in schema:
            column, wrong = _fit([batch.column(field.name) for batch in batches], field.type)
            columns.append(column)
            code = "invalid_utf8" if is_string(field.type) else "bad_value"
            message = f"the value of {field.name} is not {'valid UTF-8' if is_string(field.type) else field.type}"
            bad += [Bad(at, code, message, field.name not in filtered) for at in wrong]
        if found is None or found.lost is None:
            return Rows(pa.table(columns, schema=schema), tuple(bad))
        lost = Bad(found.lost, "lost_rows", found.why, judged=False, lost=True)
        return Rows(pa.table(columns, schema=schema), (lost, *bad), places=found.places)

    def probe(self, index: int, file: InputFile, part: float, rows: int, after: Segment | None) -> Segment | None:
        """See `Reader`."""
        spans = [span for span in self.spans(file) if span.stop > span.start]
        if not spans:
            return None
        span = spans[min(int(part * len(spans)), len(spans) - 1)]
        start = span.start
        if len(spans) == 1:
            start += int(part * (span.stop - span.start))
        start = max(start, after.stop if after else 0)
        stop = min(start + rows, spans[-1].stop)
        return Segment(index, start, stop, stop - start) if stop > start else None

    def _salvage(self, file: InputFile, schema: pa.Schema, segment: Segment) -> _Found:
        """Batches that are whole; of a damaged group what is before the damage, and a row in the place of all that is lost."""
        found, row, columns = _Found(), segment.start, tuple(schema.names)
        while row < segment.stop:
            cursor, self._cursor = self._cursor, None
            try:
                if cursor is None or (cursor.file, cursor.columns) != (file, columns) or not cursor.near(row):
                    cursor = None
                    cursor = self.cursor(file, columns, row)
                cursor.skip(row)
                while row < segment.stop and (batch := cursor.step(segment.stop - row)) is not None:
                    found.add(batch, row - segment.start)
                    row += batch.num_rows
                self._cursor = cursor
                why = "the file ends before them"
            except (OSError, EOFError, pa.ArrowException) as error:
                if not is_damage(error):
                    raise
                why = reason(error)
            if row < segment.stop:
                self.store.check(file)  # a file that was changed is not to be salvaged
                behind = segment.stop if cursor is None or self._cursor is not None else max(cursor.border(), row + 1)
                place = cursor.place() if cursor is not None else "all of it"
                found.lose(schema, row - segment.start, f"{place} cannot be read: {why}")
                row = min(behind, segment.stop)
        return found

    def _take(self, file: InputFile, names: tuple[str, ...], segment: Segment) -> list[pa.RecordBatch]:
        cursor, self._cursor = self._cursor, None  # a cursor that failed is not used again
        with broken(file.name, CorruptError):
            if cursor is None or (cursor.file, cursor.columns) != (file, names) or not cursor.near(segment.start):
                cursor = self.cursor(file, names, segment.start)
        try:
            cursor.skip(segment.start)
            batches = cursor.take(segment.stop - segment.start)
        except (OSError, pa.ArrowException) as error:
            with broken(f"{file.name}, {cursor.place()}", CorruptError):
                raise error
        self._cursor = cursor
        return batches
