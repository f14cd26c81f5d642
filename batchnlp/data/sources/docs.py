"""Turns what readers read into `Docs`: the one place where ids are made and failures get their document."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.data.sources.base import Rows
from batchnlp.types import Docs, Failure, InputFile, Int64, SourceConfig


class Piece(NamedTuple):
    """The selected rows of one segment."""

    at: int  # index of the file
    file: InputFile
    start: int  # row of the segment's first row in the file
    rows: Rows  # with a table of the selected rows alone
    chosen: Int64  # where these are in what was read
    lost: int = 0  # selected rows that the entry of lost ones stands for


def documents(config: SourceConfig, schema: pa.Schema, pieces: list[Piece]) -> Docs:
    """All pieces of a shard, one after the other."""
    tables = [piece.rows.table.select(schema.names) for piece in pieces]
    chosen = [piece.chosen for piece in pieces]
    bare = schema.remove_metadata()
    table = pa.concat_tables([t.cast(bare) for t in tables]) if tables else bare.empty_table()
    rows = [p.start + (c if p.rows.places is None else p.rows.places[c]) for p, c in zip(pieces, chosen, strict=True)]
    row = np.concatenate([np.zeros(0, np.int64), *rows])
    piece = np.repeat(np.arange(len(pieces)), np.array([len(c) for c in chosen], np.int64))  # [rows] which it is of
    ids = _flat(table.column(config.id)) if config.id else _generated(pieces, row, piece)
    failures = _failures(pieces, chosen, ids)
    lines, starts = [p.rows.line for p in pieces], [p.start for p in pieces]  # the rest of the pieces need not stay

    def line(doc: int) -> int:
        at = int(piece[doc])
        return lines[at](int(row[doc]) - starts[at])

    text = _flat(table.column(config.text))
    if failures:
        broken = np.zeros(len(text), bool)
        broken[[failure.doc for failure in failures]] = True
        text = pc.if_else(pa.array(broken), pa.scalar(None, text.type), text)
    return Docs(
        ids=ids,
        text=text,
        keep=table.select(list(dict.fromkeys(config.keep))),
        columns=table.select(list(dict.fromkeys(config.columns))),
        file=np.array([p.at for p in pieces], np.int32)[piece],
        row=row,
        failures=failures,
        line=line,
    )


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _generated(pieces: list[Piece], row: Int64, piece: Int64) -> pa.Array:
    names = pa.array([piece.file.name for piece in pieces], pa.string()).take(pa.array(piece))
    return pc.binary_join_element_wise(names, pa.array(row).cast(pa.string()), "#")


def _failures(pieces: list[Piece], chosen: list[Int64], ids: pa.Array) -> tuple[Failure, ...]:
    """One failure a document, the first that was found, in the order of the documents."""
    missing = np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False)) if ids.null_count else np.zeros(0, np.int64)
    found: list[Failure] = []
    offset = 0
    for piece, rows in zip(pieces, chosen, strict=True):
        reasons = {bad.at: (bad.code, bad.message) for bad in reversed(piece.rows.bad)}
        lost = {bad.at for bad in piece.rows.bad if bad.lost}
        for doc in missing[(missing >= offset) & (missing < offset + len(rows))]:
            reasons.setdefault(int(rows[doc - offset]), ("null_id", "the id is null"))
        for at in sorted(reasons):
            position = int(np.searchsorted(rows, at))
            if position < len(rows) and rows[position] == at:
                code, message = reasons[at]
                found.append(Failure(offset + position, "read", code, message, rows=piece.lost if at in lost else 1))
        offset += len(rows)
    return tuple(found)
