"""The corpus as planner and worker see it: one table of documents over many files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from batchnlp.data.sources import filters, partitions, selection
from batchnlp.data.sources.base import Bad, Limits, Reader, Rows, Run
from batchnlp.data.sources.columns import nulls
from batchnlp.data.sources.docs import Piece, documents
from batchnlp.data.sources.formats import READERS
from batchnlp.data.sources.listing import list_files
from batchnlp.data.sources.repeats import MARK, SCHEMA, Ids, Repeats, find_repeats, hashes, numbered, place_of, settle
from batchnlp.data.sources.schema import agree, wanted
from batchnlp.data.sources.shards import pack
from batchnlp.data.sources.storage import Store, is_damage
from batchnlp.errors import CorruptError, SourceError
from batchnlp.types import Docs, InputFile, Int64, Segment, Shard, SourceConfig, many

SPOTS = (16, 64)  # places that a sample comes from, at least and at most


class Source:
    """The files of a corpus and the columns that matter. Cheap to make; files are opened when they are read."""

    def __init__(
        self, config: SourceConfig, files: tuple[InputFile, ...], schema: pa.Schema, spool: str | None = None
    ) -> None:
        self.config = config
        self.files = files
        self.schema = schema
        self._store = Store(spool, salvage=config.on_bad_file == "salvage")
        self._readers: dict[str, Reader] = {name: make(self._store, config) for name, make in READERS.items()}
        self._cut_off: set[int] = set()  # damaged files whose beginning can be read all the same
        self.repeats: Repeats | None = None  # where the plan has found that ids are repeated

    @classmethod
    def open(cls, config: SourceConfig, output: str | None = None) -> Source:
        """Lists the files, less those in `output`, and checks their columns; writes nothing. Every problem is a
        `SourceError`."""
        listed = list_files(config, output)
        store = Store(salvage=config.on_bad_file == "salvage")
        readers = {name: make(store, config) for name, make in READERS.items()}
        damage: dict[str, str] = {}

        def inspect(file: InputFile) -> pa.Schema | None:
            try:
                return readers[file.format].inspect(file)
            except SourceError as error:
                if not store.salvage or not is_damage(error.__cause__) or len(damage) == len(listed) - 1:
                    raise
                damage[file.path] = error.message
                return None

        files, schema = agree(config, listed, inspect)
        return cls(config, tuple(replace(f, damage=damage.get(f.path, "")) for f in files), schema)

    def __reduce__(self) -> tuple[type[Source], tuple[SourceConfig, tuple[InputFile, ...], pa.Schema, str | None]]:
        return Source, (self.config, self.files, self.schema, self._store.spool)

    @property
    def id_type(self) -> pa.DataType:
        """The type of `Docs.ids`."""
        if self.config.on_duplicate_id == "suffix":
            return pa.string()
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
        docs = documents(self.config, self.schema, pieces)
        if self.repeats is not None:
            found = [self.repeats.of(s.file, s.start, s.stop) for s in shard.segments if not s.lost]
            docs = settle(
                docs, pa.concat_tables([SCHEMA.empty_table(), *found]), self.files, self.config.on_duplicate_id
            )
        suffixed = self.config.on_duplicate_id == "suffix"
        return replace(docs, ids=docs.ids.cast(self.id_type)) if suffixed else docs

    def find_repeats(self, shards: Sequence[Shard]) -> pa.Table:
        """The rows whose id a row before them has, as `repeats.SCHEMA` says; SourceError where that is not allowed."""
        if not self.config.id:
            return SCHEMA.empty_table()
        found = find_repeats(self._ids(shards), sum(shard.rows for shard in shards))
        if len(found) and self.config.on_duplicate_id == "fail":
            one = found.slice(0, 1).to_pylist()[0]
            file, first = self.files[one["file"]].name, self.files[one["first_file"]].name
            what = f"{file}: row {one['row']} has the id of row {one['first_row']} of {first}"
            hint = "set source.on_duplicate_id to keep_first or suffix, or name another source.id"
            raise SourceError(f"{what}; {many(len(found), 'row')} of the corpus repeat an id", hint)
        if len(found) and self.config.on_duplicate_id == "suffix":
            self._check_numbered(found, shards)
        return found

    def _ids(self, shards: Iterable[Shard]) -> Iterator[Ids]:
        """The ids of all selected rows, a run at a time."""
        asked = {self.config.id, *(part[0] for part in self.config.filter)}
        for segment in (segment for shard in shards for segment in shard.segments if not segment.lost):
            schema = pa.schema([field for field in self._wanted if field.name in asked])
            if not len(partitions.without(schema, self.files[segment.file])):
                schema = self._wanted  # all that is asked for stands in the path
            try:
                rows = self._rows(segment, schema)
            except CorruptError as error:
                raise SourceError(error.message, error.hint) from error  # nothing has been started yet
            chosen, places = self._chosen(rows), rows.places
            chosen = np.arange(rows.table.num_rows) if chosen is None else chosen
            ids = rows.table.column(self.config.id).combine_chunks().take(pa.array(chosen))
            yield Ids(segment.file, segment.start + (chosen if places is None else places[chosen]), ids)

    def _check_numbered(self, found: pa.Table, shards: Sequence[Shard]) -> None:
        """That no id is one that a repeat would get."""
        given = pa.chunked_array(self._numbered(found, shards), pa.string()).cast(pa.large_string())
        taken = np.concatenate([hashes(chunk)[0] for chunk in given.chunks])
        for block in self._ids(shards):
            a, _ = hashes(block.ids.drop_null().cast(pa.large_string()))
            if np.isin(a, taken).any():
                what = f"{self.files[block.file].name} has an id that a repeated one would get, as x{MARK}2 for x"
                raise SourceError(what, "use source.on_duplicate_id=keep_first, or mend the ids")

    def _numbered(self, found: pa.Table, shards: Sequence[Shard]) -> Iterator[pa.Array]:
        places, numbers = place_of(found["file"], found["row"]), np.asarray(found["nth"])
        for block in self._ids(shards):
            at = place_of(np.full(len(block.rows), block.file), block.rows)
            which = np.flatnonzero(np.isin(at, places))
            nth = numbers[np.searchsorted(places, at[which])]
            yield numbered(block.ids.take(pa.array(which)), enumerate(nth.tolist()))

    def sample(self, rows: int) -> Docs:
        """Up to `rows` documents, the same ones every time, spread over the corpus."""
        spots = min(max(len(self.files), SPOTS[0]), SPOTS[1])
        each = max(rows // spots, 1)
        pieces: list[Piece] = []
        after: Segment | None = None
        for index, part in self._spots(spots):
            reader, file = self._readers[self.files[index].format], self.files[index]
            if file.damage:
                continue
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
        if self._excluded(self.files[index]):
            return
        for segment, size in self._scan(index, limits):
            rows = self._count(segment) if self.config.filter else segment.rows
            if rows:
                share = rows / (segment.stop - segment.start)
                yield Run(replace(segment, rows=rows), int(size * share))

    def _scan(self, index: int, limits: Limits) -> Iterator[Run]:
        """All rows of a file; where it is damaged and to be salvaged, at last a row for those that nobody can count."""
        file, last = self.files[index], None
        try:
            if not file.damage or index in self._cut_off:
                for run in self._readers[file.format].scan(index, file, limits):
                    last = run.segment
                    yield run
        except SourceError as error:
            if not self._store.salvage or not is_damage(error.__cause__):
                raise
            file = replace(file, damage=error.message)
            self.files = (*self.files[:index], file, *self.files[index + 1 :])
            self._cut_off.add(index)
        if file.damage:
            row, end = (last.stop, last.offset + last.length) if last else (0, 0)
            yield Run(Segment(index, row, row + 1, 1, end, lost=True), 0)

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
        if segment.lost:
            return 1
        if self._readers[file.format].columnar:
            asked = {part[0] for part in self.config.filter}
            schema = pa.schema([field for field in schema if field.name in asked])
        if not len(partitions.without(schema, file)):
            return segment.stop - segment.start
        try:
            rows = self._rows(segment, schema)
            chosen = self._chosen(rows)
        except CorruptError as error:
            raise SourceError(error.message, error.hint) from error  # nothing has been started yet
        count = segment.stop - segment.start
        lost = count - rows.table.num_rows  # less the one that stands for them
        return count if chosen is None else len(chosen) + lost

    def _piece(self, segment: Segment) -> Piece:
        file = self.files[segment.file]
        self._store.check(file)
        rows = self._rows(segment, self._wanted)
        chosen = self._chosen(rows)
        if segment.selected:
            at = selection.positions(segment.selected)
            chosen = at if chosen is None else chosen[at]
        table, lost = rows.table.select(self.schema.names), 0
        damaged = next((bad.at for bad in rows.bad if bad.lost), None)
        if chosen is None:
            chosen = np.arange(table.num_rows)
        if damaged is not None:
            lost = segment.rows - (len(chosen) - 1)
            if lost < 1:  # the filter wants none of them
                chosen = chosen[chosen != damaged]
        if len(chosen) < table.num_rows:
            table = table.take(chosen)  # at once: of many segments only these rows are held together
        return Piece(segment.file, file, segment.start, replace(rows, table=table), chosen, lost)

    def _rows(self, segment: Segment, schema: pa.Schema) -> Rows:
        file = self.files[segment.file]
        count = segment.stop - segment.start
        if segment.lost:
            message = f"{file.damage}; nobody knows how many rows are lost"
            return Rows(nulls(schema, 1), (Bad(0, "lost_rows", message, judged=False, lost=True),))
        rows = self._readers[file.format].read(file, segment, partitions.without(schema, file))
        if rows.table.num_rows != count and rows.places is None:
            message = f"{file.name} has {rows.table.num_rows} rows where {count} were planned"
            raise CorruptError(message, "restore it, or start a new run")
        return replace(rows, table=partitions.add(rows.table, rows.table.num_rows, file, schema))

    def _chosen(self, rows: Rows) -> Int64 | None:
        if not self.config.filter:
            return None
        return filters.matching(self.config.filter, rows.table, (bad.at for bad in rows.bad if not bad.judged))
