"""Results by content, for any job and any run: the same text, model and parameters are computed once.

    CACHE/<recipe>/<sha256>.arrow      a block: keys and results of some rows, named after its own bytes

A block is written beside its name, fsynced and renamed, and never changes. So nobody needs a lock: two runs that write the
same block write the same bytes, a reader sees a whole block or none, and one that is removed while it is read stays until
it is closed. Blocks are found damaged by their name when they are first read, and removed. What is over the limit goes by
blocks, those that were used longest ago first.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.data.store import TEMPORARY, fsync, temporary_in
from batchnlp.errors import SpecError
from batchnlp.types import Int64

KEY = 16  # bytes
ENTRIES = 8_000_000  # keys that a worker holds, of the newest blocks: 16 bytes each
OPEN = 64  # blocks mapped into memory at a time
LOOK_AGAIN = 64 << 20  # bytes written until the sizes of all blocks are added up again, for what others have written
OLD = 3600.0  # seconds after which nobody writes a temporary file any more


class ResultCache:
    """The results of one recipe, in a directory that it shares with those of others.

    `schema` is that of the results. Raises SpecError where the directory cannot be used. A disk that fills up ends the
    writing, not the run: `note` says so.
    """

    def __init__(self, root: str, recipe: str, schema: pa.Schema, limit: int) -> None:
        self._root, self._folder, self._limit = os.path.abspath(root), os.path.join(root, recipe[:32]), limit
        self._schema = pa.schema([pa.field("key", pa.binary(KEY)), *schema])
        self._open: dict[str, pa.Table] = {}
        self._unseen = LOOK_AGAIN
        self.note = ""
        try:
            os.makedirs(self._folder, exist_ok=True)
            self._names, self._keys, self._block, self._row = self._index()
        except OSError as error:
            raise SpecError(
                f"cache.path: {self._folder} cannot be used: {error.strerror}", "name another directory"
            ) from None

    def find(self, keys: pa.Array) -> tuple[Int64, pa.Table]:
        """(which of the keys are known, their results, one a row). `keys` are binary of 16 bytes."""
        wanted = _short(keys)
        at = np.minimum(np.searchsorted(self._keys, wanted), max(len(self._keys) - 1, 0))
        like = np.flatnonzero(self._keys[at] == wanted) if len(self._keys) else np.zeros(0, np.int64)
        found, tables = [np.zeros(0, np.int64)], [self._schema.empty_table()]
        blocks = self._block[at[like]]
        for block in np.unique(blocks):
            mine = like[blocks == block]
            table = self._table(self._names[block])
            if table is None:
                continue
            rows = table.take(pa.array(self._row[at[mine]]))
            same = pc.equal(rows["key"], keys.take(pa.array(mine)))  # of which half a key was compared
            found.append(mine[np.asarray(same)])
            tables.append(rows.filter(same))
        return np.concatenate(found), pa.concat_tables(tables).drop_columns(["key"])

    def add(self, keys: pa.Array, results: pa.Table) -> None:
        """Remember results, one a key."""
        if not len(keys) or self.note:
            return
        table = pa.table([keys, *results.columns], names=self._schema.names).cast(self._schema).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, self._schema) as file:
            file.write_table(table)
        data = sink.getvalue()
        try:
            self._write(data)
        except OSError as error:
            self.note = f"the cache takes no more results: {error.strerror}"

    def _write(self, data: pa.Buffer) -> None:
        if data.size > self._limit:
            return
        self._unseen += data.size
        if self._unseen >= min(LOOK_AGAIN, self._limit // 8):
            self._unseen = 0
            sweep(self._root, self._limit - max(data.size, min(LOOK_AGAIN, self._limit // 8)))
        path = os.path.join(self._folder, f"{sha256(data).hexdigest()}.arrow")
        if os.path.exists(path):
            return
        temporary = temporary_in(self._folder)
        try:
            with open(temporary, "xb") as handle:
                handle.write(data)
            fsync(temporary)
            os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def _index(self) -> tuple[list[str], npt.NDArray[np.uint64], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """(names of blocks; the first half of each key in order, its block, its row in that), the newest blocks first."""
        names, keys, sizes, total = [], [], [], 0
        for _, _, path in sorted(_blocks(self._folder), reverse=True):
            with suppress(OSError, pa.ArrowException):
                column = _read(path)["key"].combine_chunks()
                names.append(path)
                keys.append(_short(column))
                sizes.append(len(column))
                total += len(column)
            if total >= ENTRIES:
                break
        every = np.concatenate([np.zeros(0, np.uint64), *keys])
        block = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        row = np.concatenate([np.zeros(0, np.int32), *(np.arange(size, dtype=np.int32) for size in sizes)])
        order = np.argsort(every, kind="stable")
        return names, every[order], block[order], row[order]

    def _table(self, path: str) -> pa.Table | None:
        """A block, mapped; None where it is gone, or damaged and now removed."""
        if (table := self._open.get(path)) is not None:
            return table
        try:
            with open(path, "rb") as handle:
                whole = f"{sha256(handle.read()).hexdigest()}.arrow" == os.path.basename(path)
            table = _read(path) if whole else None
            if table is None or table.schema != self._schema:
                os.unlink(path)
                return None
            os.utime(path)  # used now: by it those that go are chosen
        except (OSError, pa.ArrowException):
            return None
        while len(self._open) >= OPEN:
            del self._open[next(iter(self._open))]
        self._open[path] = table
        return table


def sweep(root: str, limit: int) -> None:
    """Remove the blocks that were used longest ago, until no more than `limit` bytes are left."""
    found = [block for folder in os.scandir(root) if folder.is_dir() for block in _blocks(folder.path, clean=True)]
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        with suppress(FileNotFoundError):  # another run's sweep was faster
            os.unlink(path)
        total -= size


def _blocks(folder: str, *, clean: bool = False) -> list[tuple[float, int, str]]:
    """(when it was used, bytes, path) of each block in a folder; `clean` removes what crashes left."""
    found = []
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            state = entry.stat()
            if entry.name.endswith(".arrow"):
                found.append((state.st_mtime, state.st_size, entry.path))
            elif clean and entry.name.startswith(TEMPORARY) and time.time() - state.st_mtime > OLD:
                os.unlink(entry.path)
    return found


def _read(path: str) -> pa.Table:
    with pa.memory_map(path) as source:
        return pa.ipc.open_file(source).read_all()


def _short(keys: pa.Array) -> npt.NDArray[np.uint64]:
    """[rows] the first half of each key."""
    both = np.frombuffer(keys.buffers()[1], np.uint64)[2 * keys.offset : 2 * (keys.offset + len(keys))]
    return both[::2].copy()
