"""What line formats share: one scan for line ends, in blocks, and reading a run of lines by its place in bytes.

Only "\\n" ends a line. An empty line, or one with nothing but "\\r", is no row; one of blanks is.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa

from batchnlp.data.sources import base
from batchnlp.data.sources.base import Bad, Limits, Rows, Run
from batchnlp.data.sources.columns import nulls
from batchnlp.data.sources.storage import Store, broken
from batchnlp.errors import CorruptError
from batchnlp.types import InputFile, Int64, Segment, SourceConfig

BOM = b"\xef\xbb\xbf"
PROBE = 1 << 20  # bytes of a sample's place
FIRST = 1000  # rows from which the types of columns are learned
NEWLINE, RETURN = 10, 13


class Records(NamedTuple):
    """Some records of a file: where they begin, where they end (line end included), on which line, from 0."""

    starts: Int64
    stops: Int64
    numbers: Int64


def find_lines(stream: IO[bytes] | pa.NativeFile) -> Iterator[Records]:
    """The lines of a stream that are rows, a block at a time; nothing longer than a block is held."""
    base_at = begin = number = 0
    lead = b""  # first byte of the line that the block before left open
    while block := stream.read(base.BLOCK):
        if base_at == 0 and block.startswith(BOM):
            begin = len(BOM)
        data = np.frombuffer(block, np.uint8)
        stops = np.flatnonzero(data == NEWLINE) + base_at + 1
        if len(stops):
            starts = np.concatenate([[begin], stops[:-1]])
            leads = data[np.maximum(starts - base_at, 0)]
            if begin < base_at:
                leads[0] = lead[0]
            yield _rows(starts, stops, leads, number)
            number += len(stops)
            begin = int(stops[-1])
        if base_at <= begin < base_at + len(block):
            lead = block[begin - base_at : begin - base_at + 1]
        base_at += len(block)
    if begin < base_at and not (base_at - begin == 1 and lead == b"\r"):
        yield Records(np.array([begin]), np.array([base_at]), np.array([number]))


def _rows(starts: Int64, stops: Int64, leads: Any, number: int) -> Records:
    length = stops - starts
    full = np.flatnonzero((length > 2) | ((length == 2) & (leads != RETURN)))
    return Records(starts[full], stops[full], full + number)


def cut_runs(index: int, blocks: Iterable[Records], limits: Limits) -> Iterator[Run]:
    """The records as runs, small enough for shards of near-equal size to be made of them."""
    row = 0
    for starts, stops, numbers in blocks:
        bounds = limits.bounds(starts, stops, row) if len(starts) else np.zeros(0, np.int64)
        for a, b in pairwise(bounds):
            offset, end = int(starts[a]), int(stops[b - 1])
            first, last = row + int(a), row + int(b)
            yield Run(Segment(index, first, last, last - first, offset, end - offset, int(numbers[a])), end - offset)
        row += len(starts)


def split_rows(raw: bytes) -> list[tuple[int, bytes]]:
    """Number and content of the lines of `raw` that are rows."""
    lines = ((number, line.removesuffix(b"\r")) for number, line in enumerate(raw.split(b"\n")))
    return [(number, line) for number, line in lines if line]


def is_utf8(raw: bytes) -> bool:
    """Whether all of `raw` is UTF-8, without a copy of it."""
    offsets = pa.py_buffer(np.array([0, len(raw)], np.int64))
    try:
        pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(raw)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


class LineReader(ABC):
    """A format whose records are found by reading bytes."""

    columnar = False

    def __init__(self, store: Store, config: SourceConfig) -> None:
        self.store = store
        self.config = config

    @abstractmethod
    def inspect(self, file: InputFile) -> pa.Schema | None:
        """See `Reader`."""

    @abstractmethod
    def parse(self, file: InputFile, segment: Segment, raw: bytes, schema: pa.Schema) -> Rows:
        """The records in `raw`, which are those of the segment."""

    def records(self, file: InputFile, stream: IO[bytes] | pa.NativeFile) -> Iterator[Records]:
        """Where the records of a stream are."""
        return find_lines(stream)

    def scan(self, index: int, file: InputFile, limits: Limits) -> Iterator[Run]:
        """See `Reader`."""
        with broken(file.name), self.store.stream(file) as stream:
            yield from cut_runs(index, self.records(file, stream), limits)

    def read(self, file: InputFile, segment: Segment, schema: pa.Schema) -> Rows:
        """See `Reader`."""
        if base.too_large(segment):
            message = f"the record has {segment.length} bytes, more than {base.MAX_RECORD}"
            bad = Bad(0, "record_too_large", message, judged=False)
            return Rows(nulls(schema, 1), (bad,), lambda _: segment.line + 1)
        with broken(file.name, CorruptError):
            raw = self.store.bytes_at(file, segment.offset, segment.length)
        return self.parse(file, segment, raw, schema)

    def probe(self, index: int, file: InputFile, part: float, rows: int, after: Segment | None) -> Segment | None:
        """See `Reader`. A compressed file without a copy in the spool is only looked at from its start."""
        with broken(file.name):
            plain = self.store.plain(file)
            offset = int(part * plain.size()) if plain is not None else 0
            done = after.offset + after.length if after else 0
            offset = max(offset, done)
            raw = self.store.bytes_at(file, max(offset - 1, 0), PROBE)
        if plain is None and after:
            return None
        skipped = raw.find(b"\n") + 1 if offset else 0  # the byte before may end a line
        whole = raw if len(raw) < PROBE else raw[: raw.rfind(b"\n") + 1]
        if (offset and not skipped) or skipped >= len(whole):
            return None
        return self._segment(index, file, max(offset - 1, 0) + skipped, whole[skipped:], rows)

    def _segment(self, index: int, file: InputFile, offset: int, raw: bytes, rows: int) -> Segment | None:
        found = next(iter(self.probed(file, offset, raw)), None)
        if found is None or not len(found.starts):
            return None
        count = min(rows, len(found.starts))
        start = int(found.starts[0])
        return Segment(index, 0, count, count, offset + start, int(found.stops[count - 1]) - start)

    def probed(self, file: InputFile, offset: int, raw: bytes) -> Iterator[Records]:
        """The records of a piece out of a file."""
        return find_lines(io.BytesIO(raw))
