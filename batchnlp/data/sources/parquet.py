"""Parquet: cut at row groups, pruned by their statistics, read with page checksums verified."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchnlp.data.sources.base import Rows
from batchnlp.data.sources.columnar import BATCH, ColumnarReader, Cursor, Span
from batchnlp.data.sources.filters import group_may_match
from batchnlp.data.sources.storage import broken, reason
from batchnlp.errors import CorruptError
from batchnlp.types import InputFile, Int64, Segment


class ParquetReader(ColumnarReader):
    """Parquet files."""

    def inspect(self, file: InputFile) -> pa.Schema:
        """See `Reader`."""
        with broken(file.name), self._open(file) as parquet:
            return parquet.schema_arrow

    def spans(self, file: InputFile) -> Iterator[Span]:
        """The row groups that may hold selected rows."""
        with broken(file.name), self._open(file) as parquet:
            meta, arrow = parquet.metadata, parquet.schema_arrow
        starts = _starts(meta)
        for group in range(meta.num_row_groups):
            columns = [meta.row_group(group).column(i) for i in range(meta.num_columns)]
            if group_may_match(self.config.filter, columns, arrow):
                size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == self.config.text)
                yield Span(int(starts[group]), int(starts[group + 1]), size)

    def cursor(self, file: InputFile, columns: tuple[str, ...], row: int) -> Cursor:
        """A cursor at the start of the row group of `row`."""
        parquet = self._open(file)
        starts = _starts(parquet.metadata)
        first = _group(starts, row)
        groups = list(range(first, parquet.metadata.num_row_groups))
        batches = parquet.iter_batches(batch_size=BATCH, row_groups=groups, columns=list(columns))
        return Cursor(file, columns, int(starts[first]), batches)

    def ahead(self, file: InputFile, row: int, wanted: int) -> bool:
        """Groups in between are better jumped over than decoded."""
        if row >= wanted:
            return row == wanted
        with self._open(file) as parquet:
            starts = _starts(parquet.metadata)
        return _group(starts, row) == _group(starts, wanted)

    def read(self, file: InputFile, segment: Segment, schema: pa.Schema) -> Rows:
        """See `Reader`; damage is reported with the row group."""
        try:
            return super().read(file, segment, schema)
        except (ConnectionError, TimeoutError):
            raise
        except (OSError, pa.ArrowException) as error:
            where = self.place(file, segment.start)
            hint = "create the file again, or leave it out"
            raise CorruptError(f"{where} cannot be read: {reason(error)}", hint) from error
