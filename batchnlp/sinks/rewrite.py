"""Taking rows out of files: copy on write for tables that are files and have no engine to do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.data.hashing import joined_rows

File = TypeVar("File")
ROWS = 4_000_000  # whose values are compared at a time


class Matcher:
    """The rows that make way: those which agree with one of `rows` in all its columns."""

    def __init__(self, rows: pa.Table) -> None:
        self.columns = rows.column_names
        self._values = _joined(rows) if self.columns else None

    def stays(self, rows: pa.Table) -> pa.ChunkedArray:
        """Whether each row stays; `rows` has the columns."""
        return pc.invert(pc.is_in(_joined(rows.select(self.columns)), value_set=self._values))


def rewritten(
    files: Iterable[tuple[File, int]], read: Callable[[File, Sequence[str] | None], pa.Table], gone: Matcher
) -> Iterator[tuple[File, pa.Table | None]]:
    """Of some files, with the rows they have, those which do not stay whole, and what is left of each, if anything is.

    Only the compared columns are read of the others. Files are compared together, because the values that make way may be
    many, and each comparison goes through all of them.
    """
    if not gone.columns:
        yield from ((file, None) for file, _ in files)
        return
    for group in _groups(files):
        keys = [read(file, gone.columns) for file in group]
        stays = gone.stays(pa.concat_tables(keys))
        start = 0
        for file, rows in zip(group, map(len, keys), strict=True):
            mask = stays.slice(start, rows)
            start += rows
            if not pc.all(mask, min_count=0).as_py():
                yield file, read(file, None).filter(mask) if pc.any(mask).as_py() else None


def _groups(files: Iterable[tuple[File, int]]) -> Iterator[list[File]]:
    group: list[File] = []
    total = 0
    for file, rows in files:
        group.append(file)
        total += rows
        if total >= ROWS:
            yield group
            group, total = [], 0
    if group:
        yield group


def _joined(rows: pa.Table) -> pa.ChunkedArray:
    """One value a row that is the same where all columns are."""
    columns = rows.columns
    return columns[0] if len(columns) == 1 else joined_rows(columns)
