"""The corpus as planner and worker see it: one table of documents over many files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import pyarrow as pa

from batchnlp.data.sources import filters, partitions, selection
from batchnlp.data.sources.base import Limits, Reader, Rows, Run
from batchnlp.data.sources.docs import Piece, documents
from batchnlp.data.sources.formats import READERS
from batchnlp.data.sources.listing import list_files
from batchnlp.data.sources.schema import agree, wanted
from batchnlp.data.sources.shards import pack
from batchnlp.data.sources.storage import Store
from batchnlp.errors import CorruptError, SourceError
from batchnlp.types import Docs, InputFile, Int64, Segment, Shard, SourceConfig

SPOTS = (16, 64)  # places that a sample comes from, at least and at most


class Source:
    """The files of a corpus and the columns that matter. Cheap to make; files are opened when they are read."""

    def __init__(
        self, config: SourceConfig, files: tuple[InputFile, ...], schema: pa.Schema, spool: str | None = None
    ) -> None:
        self.config = config
        self.files = files
        self.schema = schema
        self._store = Store(spool)
        self._readers: dict[str, Reader] = {name: make(self._store, config) for name, make in READERS.items()}

    @classmethod
    def open(cls, config: SourceConfig, output: str | None = None) -> Source:
        """Lists the files, less those in `output`, and checks their columns; writes nothing. Every problem is a
        `SourceError`."""
        listed = list_files(config, output)
        store = Store()
        readers = {name: make(store, config) for name, make in READERS.items()}
        files, schema = agree(config, listed, lambda file: readers[file.format].inspect(file))
        return cls(config, files, schema)

    def __reduce__(self) -> tuple[type[Source], tuple[SourceConfig, tuple[InputFile, ...], pa.Schema, str | None]]:
        return Source, (self.config, self.files, self.schema, self._store.spool)

    @property
    def id_type(self) -> pa.DataType:
        """The type of `Docs.ids`."""
        return self.schema.field(self.config.id).type if self.config.id else pa.string()

    def shards(self, rows_per_shard: int | None, max_rows: int, max_bytes: int) -> list[Shard]:
        """All selected rows, once and in order.

        `rows_per_shard` is exact, in rows before the filter, and never joins files. Without it a shard has at most
        `max_rows` rows and about `max_bytes` of text, unless a single row is larger.
        """
        limits = Limits(rows_per_shard or max_rows, max_bytes, exact=rows_per_shard is not None)
        return pack((self._runs(index, limits) for index in range(len(self.files))), limits)

    def spool_into(self, directory: str) -> None:
        """Decompresses every compressed file into `directory`, once; `read` uses the copies from then on."""
        self._store.spool = directory
        for file in self.files:
            self._store.check(file)
            self._store.decompress(file)

    def read(self, shard: Shard) -> Docs:
        """The selected rows of the shard, good and bad."""
        pieces = [self._piece(segment) for segment in shard.segments]
        return documents(self.config, self.schema, pieces)

    def sample(self, rows: int) -> Docs:
        """Up to `rows` documents, the same ones every time, spread over the corpus."""
        spots = min(max(len(self.files), SPOTS[0]), SPOTS[1])
        each = max(rows // spots, 1)
        pieces: list[Piece] = []
        after: Segment | None = None
        for index, part in self._spots(spots):
            reader, file = self._readers[self.files[index].format], self.files[index]
            last = after if after and after.file == index else None
            segment = reader.probe(index, file, part, each, last)
            if segment is not None:
                after = segment
                pieces.append(self._piece(segment))
        return documents(self.config, self.schema, pieces)

    def _spots(self, count: int) -> Iterator[tuple[int, float]]:
        """File and place in it (0 to 1) of `count` points at equal distances in the bytes of the corpus."""
        total = sum(file.size for file in self.files)
        index, before = 0, 0
        for spot in range(count):
            point = total * spot // count
            while index < len(self.files) - 1 and point >= before + self.files[index].size:
                before += self.files[index].size
                index += 1
            yield index, (point - before) / max(1, self.files[index].size)

    @cached_property
    def _wanted(self) -> pa.Schema:
        return wanted(self.schema)

    def _runs(self, index: int, limits: Limits) -> Iterator[Run]:
        """The runs of one file with the number of their selected rows, less those without any."""
        file = self.files[index]
        reader = self._readers[file.format]
        if self._excluded(file):
            return
        for segment, size in reader.scan(index, file, limits):
            rows = self._count(segment) if self.config.filter else segment.rows
            if rows:
                share = rows / (segment.stop - segment.start)
                yield Run(dataclasses.replace(segment, rows=rows), int(size * share))

    def _excluded(self, file: InputFile) -> bool:
        """Whether the path alone says that no row is selected."""
        keys = dict(file.partitions)
        parts = tuple(part for part in self.config.filter if part[0] in keys)
        if not parts:
            return False
        schema = pa.schema([self._wanted.field(name) for name in dict.fromkeys(part[0] for part in parts)])
        return not len(filters.matching(parts, partitions.add(pa.table({}), 1, file, schema), ()))

    def _count(self, segment: Segment) -> int:
        """Selected rows. Line formats are read as they will be later, so that bad rows are the same ones."""
        file = self.files[segment.file]
        schema = self._wanted
        if self._readers[file.format].columnar:
            asked = {part[0] for part in self.config.filter}
            schema = pa.schema([field for field in schema if field.name in asked])
        if not len(partitions.without(schema, file)):
            return segment.stop - segment.start
        try:
            chosen = self._chosen(self._rows(segment, schema))
        except CorruptError as error:
            raise SourceError(error.message, error.hint) from error  # nothing has been started yet
        return segment.stop - segment.start if chosen is None else len(chosen)

    def _piece(self, segment: Segment) -> Piece:
        file = self.files[segment.file]
        self._store.check(file)
        rows = self._rows(segment, self._wanted)
        chosen = self._chosen(rows)
        if segment.selected:
            at = selection.positions(segment.selected)
            chosen = at if chosen is None else chosen[at]
        table = rows.table.select(self.schema.names)
        if chosen is None:
            chosen = np.arange(table.num_rows)
        else:
            table = table.take(chosen)  # at once: of many segments only these rows are held together
        return Piece(segment.file, file, segment.start, Rows(table, rows.bad, rows.line), chosen)

    def _rows(self, segment: Segment, schema: pa.Schema) -> Rows:
        file = self.files[segment.file]
        count = segment.stop - segment.start
        rows = self._readers[file.format].read(file, segment, partitions.without(schema, file))
        if rows.table.num_rows != count:
            message = f"{file.name} has {rows.table.num_rows} rows where {count} were planned"
            raise CorruptError(message, "restore it, or start a new run")
        return Rows(partitions.add(rows.table, count, file, schema), rows.bad, rows.line)

    def _chosen(self, rows: Rows) -> Int64 | None:
        if not self.config.filter:
            return None
        return filters.matching(self.config.filter, rows.table, (bad.at for bad in rows.bad if not bad.judged))
