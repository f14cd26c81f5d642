"""What an incremental run knows of the rows of its corpus: their ids and a hash of all that their results depend on.

One Parquet file, ordered by 64-bit hashes of the ids, so that it is partitioned by their first bits into as many parts as
whoever reads it likes:

    key      uint64    where the row has its place
    id                 in the type of the source
    content  16 bytes  a hash of the text, of what the task reads beside it, and of the kept columns
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchnlp.data.hashing import hash_rows, id_keys
from batchnlp.data.store import Store
from batchnlp.errors import CorruptError
from batchnlp.types import Docs

CONTENT = 16  # bytes
BATCH = 32_768  # rows read at a time


def known_schema(id_type: pa.DataType) -> pa.Schema:
    """The columns of the file."""
    return pa.schema([("key", pa.uint64()), ("id", id_type), ("content", pa.binary(CONTENT))])


def known_rows(docs: Docs) -> pa.Table:
    """The rows of some documents, in their order."""
    content = hash_rows([docs.text, *docs.columns.columns, *docs.keep.columns], CONTENT)
    return pa.table([pa.array(id_keys(docs.ids)), docs.ids, content], names=["key", "id", "content"])


@contextmanager
def parquet_writer(store: Store, name: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Writes a file that appears when it is whole."""
    with (
        store.writing(name) as path,
        pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        yield writer


class KnownRows:
    """Reads the file from its beginning to its end, a partition after the other."""

    def __init__(self, path: str, hint: str) -> None:
        self._path, self._hint = path, hint
        with self._whole():
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        self.rows = self._file.metadata.num_rows
        self.id_type = self._file.schema_arrow.field("id").type
        # One group at a time: over all of them the reader would hold the whole file in the end.
        groups = range(self._file.metadata.num_row_groups)
        self._batches = (batch for group in groups for batch in self._file.iter_batches(BATCH, [group]))
        self._rest: pa.RecordBatch | None = None

    def below(self, bound: int | None) -> pa.Table:
        """The next rows, up to those whose key is `bound`; all that are left without one."""
        found: list[pa.RecordBatch] = []
        while (batch := self._next()) is not None:
            keys = batch.column("key").to_numpy()
            cut = len(batch) if bound is None else int(np.searchsorted(keys, np.uint64(bound)))
            found.append(batch.slice(0, cut))
            if cut < len(batch):
                self._rest = batch.slice(cut)
                break
        return pa.Table.from_batches(found, self._file.schema_arrow)

    def ids(self, keys: pa.Array) -> Iterator[pa.Array]:
        """The ids whose keys are among these, from the row groups that may hold them. `keys` is sorted and has no nulls."""
        wanted = keys.to_numpy()
        for group in range(self._file.metadata.num_row_groups):
            ends = self._file.metadata.row_group(group).column(0).statistics
            if np.searchsorted(wanted, np.uint64(ends.min)) == np.searchsorted(wanted, np.uint64(ends.max), "right"):
                continue
            with self._whole():
                rows = self._file.read_row_group(group, ["key", "id"])
            yield rows.filter(pc.is_in(rows["key"], value_set=keys))["id"].combine_chunks()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _next(self) -> pa.RecordBatch | None:
        batch, self._rest = self._rest, None
        if batch is None:
            with self._whole():
                batch = next(self._batches, None)
        return batch

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            what = " ".join(str(error).split())
            raise CorruptError(f"{self._path} cannot be read: {what}", self._hint) from None
