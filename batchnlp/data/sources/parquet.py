"""Parquet: cut at row groups, pruned by their statistics, read with page checksums verified."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batchnlp.data.sources.columnar import BATCH, ColumnarReader, Cursor, Span, group_of
from batchnlp.data.sources.filters import expression
from batchnlp.data.sources.storage import broken
from batchnlp.types import InputFile, Int64


class ParquetReader(ColumnarReader):
    """Parquet files."""

    def inspect(self, file: InputFile) -> pa.Schema:
        """See `Reader`."""
        with broken(file.name), self._open(file) as parquet:
            return parquet.schema_arrow

    def spans(self, file: InputFile) -> Iterator[Span]:
        """The row groups that may hold selected rows."""
        with broken(file.name):
            with self._open(file) as parquet:
                meta, arrow = parquet.metadata, parquet.schema_arrow
            groups = self._matching(file, arrow, meta.num_row_groups)
        borders = _borders(meta)
        paths = [meta.schema.column(i).path for i in range(meta.num_columns)]
        text = paths.index(self.config.text) if self.config.text in paths else 0
        for group in groups:
            size = meta.row_group(group).column(text).total_uncompressed_size
            yield Span(int(borders[group]), int(borders[group + 1]), size)

    def cursor(self, file: InputFile, columns: tuple[str, ...], row: int) -> Cursor:
        """See `ColumnarReader`."""
        parquet = self._open(file)
        borders = _borders(parquet.metadata)
        first = group_of(borders, row)
        groups = range(first, parquet.metadata.num_row_groups)
        # One group at a time: a batch over two groups would lose the sound one to the damage of the other.
        batches = (
            batch
            for group in groups
            for batch in parquet.iter_batches(batch_size=BATCH, row_groups=[group], columns=list(columns))
        )
        return Cursor(file, columns, borders, first, batches)

    def _open(self, file: InputFile) -> pq.ParquetFile:
        return pq.ParquetFile(self.store.open(file), page_checksum_verification=True)

    def _matching(self, file: InputFile, arrow: pa.Schema, groups: int) -> list[int]:
        known = tuple(part for part in self.config.filter if part[0] in arrow.names)
        if not known or not groups:
            return list(range(groups))
        fragment = ds.ParquetFileFormat().make_fragment(self.store.open(file))
        try:
            return [group.id for group in fragment.subset(expression(known, arrow)).row_groups]
        except (pa.ArrowNotImplementedError, pa.ArrowTypeError):
            return list(range(groups))  # a file whose type has yet to be widened cannot be asked


def _borders(meta: pq.FileMetaData) -> Int64:
    """[groups + 1] first row of each group, and the number of rows."""
    sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
