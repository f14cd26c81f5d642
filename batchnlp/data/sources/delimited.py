"""CSV and TSV: the csv module finds records, as quoted fields may hold line ends; pyarrow reads clean runs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv

from batchnlp.data.sources import base
from batchnlp.data.sources.base import Bad, Rows, lines_from
from batchnlp.data.sources.columns import fit, halve
from batchnlp.data.sources.infer import infer_strings, parse
from batchnlp.data.sources.lines import BOM, FIRST, LineReader, Records, is_utf8
from batchnlp.data.sources.salvage import Damaged
from batchnlp.data.sources.storage import Store, broken
from batchnlp.errors import CorruptError, SourceError
from batchnlp.types import InputFile, Segment, SourceConfig

LONE_RETURN = re.compile(rb"\r(?!\n)")  # a line end for pyarrow, but not for us
TOGETHER = 8192  # records that the scan hands on at a time


class Record(NamedTuple):
    """One record: bytes, first line from 0, and its fields as raw bytes, unless it has none to speak of."""

    start: int
    stop: int
    line: int
    fields: list[bytes] | None
    problem: str = ""


class _TooLong(Exception):
    """A line was passed over because it is too long to hold."""


class _Lines:
    """Lines as latin-1, so that characters are bytes, with the place they end at."""

    def __init__(self, stream: IO[bytes] | pa.NativeFile, *, whole: bool) -> None:
        """`whole`: from the file's beginning, where there may be a byte order mark; anywhere else that is text."""
        self._stream = io.BufferedReader(stream, 1 << 20)  # type: ignore[type-var]
        self.offset = self.number = 0
        self._mark = BOM if whole else b""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(base.MAX_RECORD + 1)
        if not line:
            raise StopIteration
        bom = len(self._mark) if self.offset == 0 and line.startswith(self._mark) else 0
        self.offset += len(line)
        self.number += 1
        if len(line) > base.MAX_RECORD and not line.endswith(b"\n"):
            while rest := self._stream.readline(base.BLOCK):
                self.offset += len(rest)
                if rest.endswith(b"\n"):
                    break
            raise _TooLong
        return line[bom:].decode("latin-1")


def find_records(stream: IO[bytes] | pa.NativeFile, delimiter: str, *, whole: bool = True) -> Iterator[Record]:
    """All records that are not empty of a stream, which is a whole file or some of its lines."""
    csv.field_size_limit(base.MAX_RECORD)
    lines = _Lines(stream, whole=whole)
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        start, line = lines.offset, lines.number
        fields, problem = None, ""
        try:
            fields = [field.encode("latin-1") for field in next(reader)]
        except StopIteration:
            return
        except _TooLong:
            problem = "the record is too long"
        except csv.Error:
            problem = "the record is not valid CSV"
        if fields is None or fields:
            yield Record(start, lines.offset, line, fields, problem)


class CsvReader(LineReader):
    """CSV files with a header. Columns are integers, numbers, booleans or strings."""

    def __init__(self, store: Store, config: SourceConfig) -> None:
        super().__init__(store, config)
        self._headers: dict[InputFile, list[str]] = {}

    def inspect(self, file: InputFile) -> pa.Schema | None:
        """See `Reader`."""
        with broken(file.name), self.store.stream(file) as stream:
            records = find_records(stream, _delimiter(file))
            header = next(records, None)
            if header is None:
                return None
            names = self._headers[file] = _names(file, header)
            first = [record.fields for record in islice(records, FIRST) if record.fields]
        rows = [row for row in first if len(row) == len(names)]
        columns = [[row[at].decode("utf-8", "replace") for row in rows] for at in range(len(names))]
        return pa.schema([(name, self._type(name, column)) for name, column in zip(names, columns, strict=True)])

    def records(self, file: InputFile, stream: IO[bytes] | pa.NativeFile) -> Iterator[Records]:
        """See `LineReader`."""
        found = find_records(stream, _delimiter(file))
        next(found, None)
        return _blocks(found)

    def probed(self, file: InputFile, offset: int, raw: bytes) -> Iterator[Records]:
        """See `LineReader`. Inside a quoted field this goes wrong: most of what it finds is ragged, and left out."""
        found = find_records(io.BytesIO(raw), _delimiter(file), whole=offset == 0)
        if offset == 0:
            next(found, None)
        return _blocks(found)

    def parse(self, file: InputFile, segment: Segment, raw: bytes, schema: pa.Schema) -> Rows:
        """See `LineReader`."""
        names = self._header(file)
        bad: list[Bad] = []
        table = _fast(raw, segment.stop - segment.start, names, schema.names, _delimiter(file))
        if table is None:
            table, bad = _slow(raw, names, schema.names, _delimiter(file))
        failed = {problem.at for problem in bad}
        filtered = {column for column, _, _ in self.config.filter}
        columns: list[pa.ChunkedArray] = []
        for field in schema:
            column, wrong = _convert(table.column(field.name), field.type)
            columns.append(column)
            message = f"the value of {field.name} is not {field.type}"
            bad += [Bad(at, "bad_value", message, field.name not in filtered) for at in wrong if at not in failed]
        lines = lines_from(segment.line, lambda: _lines(raw, file))
        return Rows(pa.table(columns, schema=schema), tuple(bad), lines)

    def _header(self, file: InputFile) -> list[str]:
        if file not in self._headers:
            with broken(file.name, CorruptError), self.store.stream(file) as stream:
                self._headers[file] = _names(file, next(find_records(stream, _delimiter(file))))
        return self._headers[file]

    def _type(self, name: str, values: list[str]) -> pa.DataType:
        return pa.string() if name == self.config.text else infer_strings(values, name == self.config.id)


def _delimiter(file: InputFile) -> str:
    return "\t" if ".tsv" in file.name.lower()[-8:] else ","


def _names(file: InputFile, header: Record) -> list[str]:
    if header.fields is None:
        raise SourceError(f"{file.name}: its header cannot be read: {header.problem}", "check source.format")
    return [field.decode("utf-8", "replace") for field in header.fields]


def _lines(raw: bytes, file: InputFile) -> list[int]:
    return [record.line for record in find_records(io.BytesIO(raw), _delimiter(file), whole=False)]


def _blocks(found: Iterator[Record]) -> Iterator[Records]:
    """Some at a time; all that come before an error."""
    block: list[tuple[int, int, int]] = []
    try:
        for record in found:
            block.append(record[:3])
            if len(block) == TOGETHER:
                yield Records(*np.array(block, np.int64).T)
                block = []
    except Damaged:
        if block:
            yield Records(*np.array(block, np.int64).T)
        raise
    if block:
        yield Records(*np.array(block, np.int64).T)


def _fast(raw: bytes, rows: int, names: list[str], columns: list[str], delimiter: str) -> pa.Table | None:
    """The columns as strings; None unless it is certain that they are what the csv module would find."""
    if raw.startswith(BOM) or LONE_RETURN.search(raw) or not is_utf8(raw):
        return None
    places = [str(at) for at in range(len(names))]  # a file may have two columns of one name
    wanted = [places[names.index(column)] for column in columns]
    try:
        table = pcsv.read_csv(
            pa.BufferReader(raw),
            read_options=pcsv.ReadOptions(column_names=places, block_size=min(len(raw) + 1, 1 << 30)),
            parse_options=pcsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pcsv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(places, pa.large_string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    return table.rename_columns(columns) if table.num_rows == rows else None


def _slow(raw: bytes, names: list[str], columns: list[str], delimiter: str) -> tuple[pa.Table, list[Bad]]:
    """The same, record by record."""
    rows: list[list[bytes] | None] = []
    bad: list[Bad] = []
    for at, record in enumerate(find_records(io.BytesIO(raw), delimiter, whole=False)):
        problem = _problem(record, len(names))
        rows.append(None if problem else record.fields)
        if problem:
            bad.append(Bad(at, *problem, judged=False))
    places = [names.index(column) for column in columns]
    values = [pa.array([row[at] if row else None for row in rows], pa.large_binary()) for at in places]
    strings = [fit(pa.chunked_array([column]), pa.large_string())[0] for column in values]
    return pa.table(strings, names=columns), bad


def _problem(record: Record, columns: int) -> tuple[str, str] | None:
    if record.fields is None:
        return "malformed_csv", record.problem
    if len(record.fields) != columns:
        return "ragged_row", f"the record has {len(record.fields)} fields, the header {columns}"
    if not is_utf8(b"".join(record.fields)):
        return "invalid_utf8", "the record is not valid UTF-8"
    return None


def _convert(column: pa.ChunkedArray, kind: pa.DataType) -> tuple[pa.ChunkedArray, list[int]]:
    whole = column.combine_chunks()
    strings = whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
    chunks, wrong = halve(strings, lambda part: parse(part, kind), kind)
    return pa.chunked_array(chunks, kind), wrong
