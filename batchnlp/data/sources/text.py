"""Plain text: a line is a document, or a whole file is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from batchnlp.data.sources import base
from batchnlp.data.sources.base import Bad, Limits, Rows, Run, lines_from
from batchnlp.data.sources.columns import fit
from batchnlp.data.sources.lines import BOM, NEWLINE, RETURN, LineReader, split_rows
from batchnlp.data.sources.storage import broken
from batchnlp.types import InputFile, Segment


class TextReader(LineReader):
    """Text files. They have one column, which goes by whatever name the job gives to the text."""

    def inspect(self, file: InputFile) -> pa.Schema:
        """See `Reader`."""
        return pa.schema([(self.config.text, pa.large_string())])

    def scan(self, index: int, file: InputFile, limits: Limits) -> Iterator[Run]:
        """See `Reader`. As a whole, an empty file is a document too: an empty one."""
        if self.config.unit == "line":
            yield from super().scan(index, file, limits)
            return
        length = 0
        with broken(file.name), self.store.stream(file) as stream:
            while block := stream.read(base.BLOCK):
                length += len(block)
        yield Run(Segment(index, 0, 1, 1, 0, length), length)

    def probe(self, index: int, file: InputFile, part: float, rows: int, after: Segment | None) -> Segment | None:
        """See `Reader`."""
        if self.config.unit == "line":
            return super().probe(index, file, part, rows, after)
        return None if after else next(self.scan(index, file, Limits(1, 1))).segment

    def parse(self, file: InputFile, segment: Segment, raw: bytes, schema: pa.Schema) -> Rows:
        """See `LineReader`."""
        whole = self.config.unit == "file"
        lines = pa.array([raw.removeprefix(BOM)], pa.large_binary()) if whole else _lines(raw)
        column, wrong = fit(pa.chunked_array([lines]), pa.large_string())
        bad = tuple(Bad(at, "invalid_utf8", "the text is not valid UTF-8", judged=False) for at in wrong)
        table = pa.table([column], schema=pa.schema([schema.field(self.config.text)]))
        find = lambda: [0] if whole else [number for number, _ in split_rows(raw)]  # noqa: E731
        return Rows(table, bad, lines_from(segment.line, find))


def _lines(raw: bytes) -> pa.Array:
    """[rows] the lines that are rows, as large_binary, without an object a line."""
    data = np.frombuffer(raw, np.uint8)
    ends = np.flatnonzero(data == NEWLINE)
    if not len(data) or data[-1] != NEWLINE:
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1])
    returns = ends[(ends > starts) & (data[np.maximum(ends, 1) - 1] == RETURN)] - 1
    keep = data != NEWLINE
    keep[returns] = False
    lengths = ends - starts
    lengths[np.searchsorted(ends, returns)] -= 1
    offsets = np.concatenate([[0], np.cumsum(lengths[lengths > 0])]).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data[keep])]
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
