"""Arrow IPC, the file format and the stream format (which `datasets` writes), memory-mapped where the file is local."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from batchnlp.data.sources.columnar import ColumnarReader, Cursor, Span
from batchnlp.data.sources.storage import broken
from batchnlp.types import InputFile

MAGIC = b"ARROW1"


class ArrowReader(ColumnarReader):
    """Arrow files and streams. A record batch is not a place to jump to: reading over one costs next to nothing."""

    def inspect(self, file: InputFile) -> pa.Schema:
        """See `Reader`."""
        with broken(file.name):
            return self._open(file).schema

    def spans(self, file: InputFile) -> Iterator[Span]:
        """The record batches."""
        row = 0
        with broken(file.name):
            for batch in self._batches(file, (self.config.text,)):
                yield Span(row, row + batch.num_rows, batch.nbytes)
                row += batch.num_rows

    def cursor(self, file: InputFile, columns: tuple[str, ...], row: int) -> Cursor:
        """See `ColumnarReader`."""
        end = np.iinfo(np.int64).max
        return Cursor(file, columns, np.array([0, end], np.int64), 0, self._batches(file, columns))

    def _open(
        self, file: InputFile, columns: tuple[str, ...] | None = None
    ) -> pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader:
        options = None
        if columns is not None:
            names = self._open(file).schema.names
            wanted = [names.index(column) for column in columns if column in names]
            options = pa.ipc.IpcReadOptions(included_fields=wanted)
        handle = self.store.open(file)
        magic = handle.read(len(MAGIC))
        handle.seek(0)
        is_file = magic == MAGIC
        return pa.ipc.open_file(handle, options=options) if is_file else pa.ipc.open_stream(handle, options=options)

    def _batches(self, file: InputFile, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        reader = self._open(file, columns)
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            yield from reader
