"""What Parquet and Arrow files share: record batches in order, and a cursor, so that nothing is decoded twice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from batchnlp.data.sources.base import Bad, Limits, Rows, Run
from batchnlp.data.sources.columns import fit, is_string
from batchnlp.data.sources.storage import Store, broken
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
        while rows > 0:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                break
            part = batch.slice(0, rows)
            self._rest = batch.slice(rows) if batch.num_rows > rows else None
            self.row += part.num_rows
            rows -= part.num_rows
            out.append(part)
        return out

    def group(self, row: int) -> int:
        """The group that `row` is in."""
        return group_of(self._borders, row)

    def near(self, row: int) -> bool:
        """Whether going on is the best way to `row`: groups in between are better jumped over than decoded."""
        return self.row == row or (self.row < row and self.group(self.row) == self.group(row))

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


class Span(NamedTuple):
    """A run of rows that the file stores together: a row group or a record batch."""

    start: int
    stop: int
    size: int


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
        names = tuple(schema.names)
        batches = self._take(file, names, segment)
        columns: list[pa.ChunkedArray] = []
        bad: list[Bad] = []
        filtered = {column for column, _, _ in self.config.filter}
        for field in schema:
            raw = [batch.column(field.name) for batch in batches]
            column, wrong = fit(pa.chunked_array(raw), field.type)
            columns.append(column)
            code = "invalid_utf8" if is_string(field.type) else "bad_value"
            message = f"the value of {field.name} is not {'valid UTF-8' if is_string(field.type) else field.type}"
            bad += [Bad(at, code, message, field.name not in filtered) for at in wrong]
        return Rows(pa.table(columns, schema=schema), tuple(bad))

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
