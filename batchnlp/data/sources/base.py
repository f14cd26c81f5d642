"""What the readers of all formats have in common: the protocol, and the nouns that travel between them and `Source`.

A reader knows one format and no corpus. It says which columns a file has (`inspect`), where a file can be cut (`scan`),
and reads a run of rows into columns of declared types (`read`). Filters, partitions, ids, shards are not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from batchnlp.types import InputFile, Int64, Segment

MAX_RECORD = 64 << 20  # bytes of one line or record, its line end included; a longer one is a failure
BLOCK = 8 << 20  # bytes read at a time while a file is scanned
GRAINS = 16  # runs that a shard is put together from, so that shards of one file can be made of near-equal size


class Bad(NamedTuple):
    """A value or a record that could not be read. Filled by a reader."""

    at: int  # row inside what was read
    code: str
    message: str
    judged: bool = True  # False when the filter cannot be asked, because its columns are unknown
    lost: bool = False  # it stands for all rows of what was read that are lost


class Run(NamedTuple):
    """A piece of a file that is never cut further. Filled by a reader's scan."""

    segment: Segment
    size: int  # bytes of text, roughly


@dataclass(frozen=True, slots=True)
class Rows:
    """One segment as read: an entry a row, in the declared types, null where it could not be read."""

    table: pa.Table
    bad: tuple[Bad, ...] = ()
    line: Callable[[int], int] = lambda at: -1  # row inside what was read → line from 1; asked for failures only
    places: Int64 | None = None  # [rows] where they were in the segment, if some of it is lost


def lines_from(first: int, find: Callable[[], Sequence[int]]) -> Callable[[int], int]:
    """`Rows.line` where `find` tells the lines of the rows, from 0 at `first`; it is asked once, if at all."""
    found = cache(find)
    return lambda at: first + 1 + found()[at]


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a shard may be."""

    rows: int
    size: int  # bytes of text
    exact: bool = False  # cut at every `rows` rows of a file, whatever their size

    def cut(self, start: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Rows `start` to `stop` as near-equal parts (first, end, size) within the limits."""
        rows = stop - start
        if self.exact:
            inner = range((start // self.rows + 1) * self.rows, stop, self.rows)
            bounds = [start, *inner, stop]
        else:
            parts = min(rows, max(1, -(-rows // self.rows), -(-size // self.size)))
            bounds = [start + rows * i // parts for i in range(parts + 1)]
        for first, end in pairwise(bounds):
            yield first, end, size * (end - first) // rows

    def bounds(self, starts: Int64, stops: Int64, row: int) -> Int64:
        """[runs + 1] where records (bytes `starts` to `stops`, counted from `row`) are cut into small runs."""
        rows = np.arange(row, row + len(starts))
        cut = np.diff(rows // (self.rows if self.exact else max(1, self.rows // GRAINS))) != 0
        if not self.exact:
            cut |= np.diff(starts // max(1, self.size // GRAINS)) != 0
        huge = stops - starts > MAX_RECORD
        cut |= huge[1:] | huge[:-1]  # so that nobody has to read it together with others
        return np.concatenate([[0], np.flatnonzero(cut) + 1, [len(rows)]]).astype(np.int64)


def too_large(segment: Segment) -> bool:
    """Whether the segment is one record that must not be loaded."""
    return segment.length > MAX_RECORD and segment.stop - segment.start == 1


class Reader(Protocol):
    """One format."""

    columnar: bool  # single columns can be read cheaply

    def inspect(self, file: InputFile) -> pa.Schema | None:
        """The columns of a file and their types; None without rows, no columns when no row is readable."""

    def scan(self, index: int, file: InputFile, limits: Limits) -> Iterator[Run]:
        """All rows of the file once and in order, as runs."""

    def read(self, file: InputFile, segment: Segment, schema: pa.Schema) -> Rows:
        """The rows of `segment` with the columns of `schema`."""

    def probe(self, index: int, file: InputFile, part: float, rows: int, after: Segment | None) -> Segment | None:
        """Up to `rows` rows near `part` (0 to 1) of the file and not before the end of `after`, for a sample."""
