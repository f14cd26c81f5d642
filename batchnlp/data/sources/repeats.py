"""Ids that are there more than once, found before anything is computed, in bounded memory.

Ids are hashed to 128 bits, so that one of any length takes 28 bytes. Where there are many, they are parted by their hash into
files on disk, each of which fits into memory: two that are the same are in the same one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchnlp.data.store import Store, explain_full
from batchnlp.types import Docs, Failure, InputFile, Int64, OnDuplicateId

IN_MEMORY = 4 << 20  # ids that are looked through together
BLOCK = 4 << 20  # bytes of ids that are hashed at a time
ROW_BITS = 40  # of a row's number; the file's is above them
MARK = "~"  # between an id and the number of its repetition
UInt64 = npt.NDArray[np.uint64]
ENTRY = np.dtype([("a", np.uint64), ("b", np.uint64), ("file", np.int32), ("row", np.int64)])
Entries = npt.NDArray[np.void]

SCHEMA = pa.schema([
    pa.field("file", pa.int32()),
    pa.field("row", pa.int64()),
    pa.field("nth", pa.int64()),  # from 2: the first one is none
    pa.field("first_file", pa.int32()),
    pa.field("first_row", pa.int64()),
])  # fmt: skip


class Ids(NamedTuple):
    """The ids of some rows of a file."""

    file: int
    rows: Int64
    ids: pa.Array  # nulls are no ids, and never the same


def find_repeats(blocks: Iterable[Ids], rows: int) -> pa.Table:
    """All rows but the first of each id, in the order of the corpus, of `rows` rows; columns as in `SCHEMA`."""
    parts = max(1, -(-rows // IN_MEMORY))
    if parts == 1:
        held = [_entries(block) for block in blocks]
        return _ordered([_repeated(np.concatenate(held))] if held else [])
    with tempfile.TemporaryDirectory(prefix="batchnlp-ids-") as folder, explain_full(folder):
        paths = [os.path.join(folder, str(i)) for i in range(parts)]
        for block in blocks:
            entries = _entries(block)
            which = entries["a"] % np.uint64(parts)
            for i in np.unique(which):
                with open(paths[int(i)], "ab") as out:
                    entries[which == i].tofile(out)
        return _ordered([_repeated(np.fromfile(path, ENTRY)) for path in paths if os.path.exists(path)])


def place_of(file: npt.ArrayLike, row: npt.ArrayLike) -> Int64:
    """A number for each row, in the order of the corpus."""
    return np.asarray(file).astype(np.int64) << ROW_BITS | np.asarray(row).astype(np.int64)


def numbered(ids: pa.Array, nth: Iterable[tuple[int, int]]) -> pa.Array:
    """The ids as strings, those at the given positions with their number."""
    values = ids.cast(pa.string()).to_pylist()
    for at, n in nth:
        values[at] = f"{values[at]}{MARK}{n}"
    return pa.array(values, pa.string())


def _repeated(entries: Entries) -> pa.Table:
    """Those of the entries, in any order, whose hash is there before them."""
    entries = entries[np.lexsort((entries["row"], entries["file"], entries["b"], entries["a"]))]
    same = (entries["a"][1:] == entries["a"][:-1]) & (entries["b"][1:] == entries["b"][:-1])
    fresh = np.concatenate([[True], ~same])[: len(entries)]
    first = np.maximum.accumulate(np.where(fresh, np.arange(len(entries)), 0))
    again = np.flatnonzero(~fresh)
    found, before = entries[again], entries[first[again]]
    columns = [found["file"], found["row"], again - first[again] + 1, before["file"], before["row"]]
    return pa.table([pa.array(np.ascontiguousarray(column)) for column in columns], schema=SCHEMA)


def _ordered(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables([SCHEMA.empty_table(), *tables]).sort_by([("file", "ascending"), ("row", "ascending")])


def _entries(block: Ids) -> Entries:
    there = np.flatnonzero(block.ids.is_valid().to_numpy(zero_copy_only=False))
    texts = block.ids.drop_null().cast(pa.large_string())
    entries = np.empty(len(there), ENTRY)
    entries["file"], entries["row"] = block.file, block.rows[there]
    entries["a"], entries["b"] = hashes(texts)
    return entries


def hashes(texts: pa.LargeStringArray) -> tuple[UInt64, UInt64]:
    """Two 64-bit hashes of each text: sums of its bytes, each times a random number of its place."""
    found = [_hashed(part) for part in _blocks(texts)] or [np.zeros((2, 0), np.uint64)]
    a, b = np.concatenate(found, axis=1)
    return a, b


def _blocks(texts: pa.LargeStringArray) -> Iterator[pa.LargeStringArray]:
    """Runs of about `BLOCK` bytes, or one text."""
    lengths = np.concatenate([[0], np.cumsum(np.asarray(pc.binary_length(texts)))])
    start = 0
    while start < len(texts):
        stop = max(start + 1, int(np.searchsorted(lengths, lengths[start] + BLOCK, side="right")) - 1)
        yield texts.slice(start, stop - start)
        start = stop


def _hashed(texts: pa.LargeStringArray) -> UInt64:
    """[2, texts]"""
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    raw = texts.buffers()[2]
    data = np.frombuffer(raw, np.uint8)[first:last].astype(np.uint64) if raw else np.zeros(0, np.uint64)
    starts, lengths = offsets[:-1] - first, np.diff(offsets)
    place = np.arange(len(data)) - np.repeat(starts, lengths)  # of each byte in its text
    longest = int(lengths.max(initial=0))
    out = np.empty((2, len(texts)), np.uint64)
    for i in range(2):
        weights = np.random.Generator(np.random.PCG64(i)).integers(1, 2**64, longest, np.uint64)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((data + np.uint64(1)) * weights[place])])
        out[i] = sums[starts + lengths] - sums[starts]
    return out


class Repeats:
    """What `find_repeats` found, in a Parquet file of a store, read a run of rows at a time."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name

    def of(self, file: int, start: int, stop: int) -> pa.Table:
        """Those of the rows `start` to `stop` of a file."""
        asked = [("file", "==", file), ("row", ">=", start), ("row", "<", stop)]
        with self._store.open(self._name) as handle:
            return pq.read_table(handle, schema=SCHEMA, filters=asked)


def settle(docs: Docs, found: pa.Table, files: Sequence[InputFile], how: OnDuplicateId) -> Docs:
    """The documents with the repeats among them as dead letters, or with a number in their id."""
    at = np.searchsorted(place_of(docs.file, docs.row), place_of(found["file"], found["row"]))
    if how == "suffix":
        return replace(docs, ids=numbered(docs.ids, zip(at.tolist(), found["nth"].to_pylist(), strict=True)))
    first = zip(found["first_file"].to_pylist(), found["first_row"].to_pylist(), strict=True)
    letters = {
        doc: Failure(doc, "read", "duplicate_id", f"row {row} of {files[file].name} has the same id")
        for doc, (file, row) in zip(at.tolist(), first, strict=True)
    }
    for failure in docs.failures:
        letters.setdefault(failure.doc, failure)
    dropped = np.zeros(len(docs), bool)
    dropped[at] = True
    text = pc.if_else(pa.array(dropped), pa.scalar(None, docs.text.type), docs.text)
    return replace(docs, text=text, failures=tuple(letters[doc] for doc in sorted(letters)))
