"""JSON lines: pyarrow reads clean runs; a run with an oddity is read line by line, so that only bad lines fail."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.types as pt

from batchnlp.data.sources import base
from batchnlp.data.sources.base import Bad, Rows, lines_from
from batchnlp.data.sources.columns import MISFIT, halve
from batchnlp.data.sources.infer import infer
from batchnlp.data.sources.lines import FIRST, NEWLINE, LineReader, Records, find_lines, is_utf8, split_rows
from batchnlp.data.sources.storage import broken
from batchnlp.types import InputFile, Segment

TWO_ON_A_LINE = re.compile(rb"\}[ \t\r]*\{")  # which pyarrow would take for two rows
BLOCK = 4 << 20  # bytes that pyarrow parses at a time


class JsonlReader(LineReader):
    """JSON lines files."""

    def inspect(self, file: InputFile) -> pa.Schema | None:
        """See `Reader`."""
        values: dict[str, list[Any]] = {}
        with broken(file.name), self.store.stream(file) as stream:
            found = next((some for block in find_lines(stream) if (some := _loadable(block)) is not None), None)
        if found is None:
            return None
        start, stop = int(found.starts[0]), int(found.stops[:FIRST][-1])
        with broken(file.name):
            raw = self.store.bytes_at(file, start, stop - start)
        for _, line in split_rows(raw):
            for name, value in (_object(line)[0] or {}).items():
                values.setdefault(name, []).append(value)
        types = {name: infer(column, name == self.config.text) for name, column in values.items()}
        return pa.schema(list(types.items()))

    def parse(self, file: InputFile, segment: Segment, raw: bytes, schema: pa.Schema) -> Rows:
        """See `LineReader`."""
        table = _fast(raw, segment.stop - segment.start, schema)
        if table is not None:
            return Rows(table, (), lines_from(segment.line, lambda: [number for number, _ in split_rows(raw)]))
        return self._slow(segment, raw, schema)

    def _slow(self, segment: Segment, raw: bytes, schema: pa.Schema) -> Rows:
        lines = split_rows(raw)
        parsed = [_object(line) for _, line in lines]
        bad = [Bad(at, *problem, judged=False) for at, (_, problem) in enumerate(parsed) if problem]
        filtered = {column for column, _, _ in self.config.filter}
        columns: list[pa.ChunkedArray] = []
        for field in schema:
            values = [value.get(field.name) if value is not None else None for value, _ in parsed]
            if field.name == self.config.text and not pt.is_nested(field.type):
                judged = field.name not in filtered
                problems = [_text_problem(value) for value in values]
                bad += [Bad(at, *problem, judged) for at, problem in enumerate(problems) if problem]
                values = [None if problem else value for value, problem in zip(values, problems, strict=True)]
            column, wrong = _column(values, field.type)
            message = f"the value of {field.name} is not {field.type}"
            bad += [Bad(at, "bad_value", message, field.name not in filtered) for at in wrong]
            columns.append(column)
        numbers = [number for number, _ in lines]
        return Rows(pa.table(columns, schema=schema), tuple(bad), lines_from(segment.line, lambda: numbers))


def _loadable(block: Records) -> Records | None:
    """The lines of a block less the first one if it is huge; others cannot be, as they begin in the block too."""
    skip = 1 if len(block.starts) and block.stops[0] - block.starts[0] > base.MAX_RECORD else 0
    return Records(*(part[skip:] for part in block)) if len(block.starts) > skip else None


def _column(values: list[Any], kind: pa.DataType) -> tuple[pa.ChunkedArray, list[int]]:
    def convert(part: list[Any]) -> pa.Array:
        if pt.is_floating(kind):  # as pyarrow reads it: rounded, not refused
            part = [float(value) if type(value) is int else value for value in part]
        return pa.array(part, kind)

    chunks, wrong = halve(values, convert, kind)
    return pa.chunked_array(chunks, kind), wrong


def _fast(raw: bytes, rows: int, schema: pa.Schema) -> pa.Table | None:
    """All rows at once; None unless it is certain that they are what the lines say."""
    if TWO_ON_A_LINE.search(raw) or not is_utf8(raw):
        return None
    ends = np.flatnonzero(np.frombuffer(raw, np.uint8) == NEWLINE)
    longest = int(np.diff(ends, prepend=-1, append=len(raw)).max())
    try:
        table = pj.read_json(
            pa.BufferReader(raw),
            read_options=pj.ReadOptions(block_size=min(max(BLOCK, longest + 1), len(raw) + 1)),
            parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        table = table.select(schema.names).cast(schema)
        table.validate(full=True)
    except MISFIT:
        return None
    return table if table.num_rows == rows else None


def _object(line: bytes) -> tuple[dict[str, Any] | None, tuple[str, str] | None]:
    """The object on a line, or what is wrong with it as code and message."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return None, ("invalid_utf8", "the line is not valid UTF-8")
    except (ValueError, RecursionError):
        return None, ("malformed_json", "the line is not valid JSON")
    if not isinstance(value, dict):
        return None, ("not_an_object", f"the line holds a JSON {type(value).__name__}, not an object")
    return value, None


def _text_problem(value: object) -> tuple[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return "not_text", f"the text is a JSON {type(value).__name__}, not a string"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return "invalid_unicode", "the text has half of a surrogate pair"
    return None
