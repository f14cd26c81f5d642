"""One table in input order from the parts of a run: few large files for a reader, a spreadsheet or a pipe.

Reads the commits, never a glob. Works on a run that is not complete, and says so.
"""

from __future__ import annotations

import base64
import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import IO, Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchnlp.data.deletes import deletes
from batchnlp.data.ledger import Ledger, open_ledgers
from batchnlp.data.parts import DEAD_SCHEMA, ROW_GROUP
from batchnlp.data.store import explain_full, fsync, temporary_in
from batchnlp.errors import CorruptError, OutputError
from batchnlp.types import Part, PartFile, Retried

Format = Literal["parquet", "csv", "jsonl"]
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet recognises a formula
TABLE_BYTES = 64 << 20  # tables are gathered up to this size before they are written


def read_part(ledger: Ledger, part: Part) -> pa.Table | None:
    """The results of one shard in input order; None where all its rows are dead letters."""
    if not isinstance(part, Retried):
        return _read_rows(ledger, part)
    first, retries = part.layers[0], part.layers[1:]
    orders = [_read(ledger, layer, file) for layer in retries for file in layer.files if file.kind == "order"]
    letters = sum(file.rows for file in first.files if file.kind == "dead")  # one may stand for several lost rows
    untouched = np.ones(first.ok + letters, bool)
    for order in orders:
        untouched[np.asarray(order["place"])] = False
    found = [np.flatnonzero(untouched), *(np.asarray(o["place"])[np.asarray(o["file"]) >= 0] for o in orders)]
    tables = [table for layer in part.layers if (table := _read_rows(ledger, layer)) is not None]
    return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(found)))) if tables else None


def _read_rows(ledger: Ledger, part: Part) -> pa.Table | None:
    """Those of a part that is not put together."""
    tables = [_read(ledger, part, f) for f in part.files if f.kind == "rows"]
    order = next((f for f in part.files if f.kind == "order"), None)
    if not tables:
        return None
    if order is None or len(tables) == 1:
        return tables[0]
    which = np.asarray(_read(ledger, part, order)["file"])
    which = which[which >= 0]
    back = np.empty(len(which), np.int64)
    back[np.argsort(which, kind="stable")] = np.arange(len(which))
    return pa.concat_tables(tables).take(pa.array(back))


def read_dead(ledger: Ledger, part: Part) -> pa.Table | None:
    """The dead letters of one shard in input order; None where it has none."""
    table = next((_read(ledger, part, f) for f in part.files if f.kind == "dead"), None)
    if table is not None and "rows" not in table.column_names:  # written before letters stood for several rows
        table = table.append_column(DEAD_SCHEMA.field("rows"), pa.array([1] * len(table), pa.int64()))
    return table


def read_deletes(ledger: Ledger) -> Iterator[pa.Table]:
    """Of a log of changes the rows that a run takes away; they come before those that it brings."""
    hint = f"remove {ledger.store.path(ledger.control)}/manifest.json and run the job again; it is written anew"
    return (_whole(ledger, file, hint) for file in deletes(ledger))


def read_columns(ledger: Ledger, part: Part, columns: Sequence[str], rows: int | None = None) -> Iterator[pa.Table]:
    """Some columns (or leaves of them, as entities.list.element.label) of the results of a shard, a file at a time, in no
    order; of each file the first `rows`, without it all."""
    return (_read(ledger, part, file, columns, rows) for file in part.files if file.kind == "rows")


def _read(
    ledger: Ledger, part: Part, file: PartFile, columns: Sequence[str] | None = None, rows: int | None = None
) -> pa.Table:
    return _whole(ledger, file, ledger.redo_hint(part.shard), columns, rows)


def _whole(
    ledger: Ledger, file: PartFile, hint: str, columns: Sequence[str] | None = None, rows: int | None = None
) -> pa.Table:
    path = ledger.store.path(file.name)
    if damage := ledger.damage(file):
        raise CorruptError(f"{path} {damage}", hint)
    try:
        # Not as a data set: the key=value folders are columns in the file already.
        with ledger.store.open(file.name) as handle, pq.ParquetFile(handle, page_checksum_verification=True) as parquet:
            wanted = None if columns is None else list(columns)
            if rows is None:
                return parquet.read(wanted)
            batches = list(islice(parquet.iter_batches(rows, columns=wanted), 1))
            return pa.Table.from_batches(batches, None if parquet.metadata.num_rows else parquet.schema_arrow)
    except PermissionError:
        raise OutputError(f"{path} cannot be read: permission denied", "make it readable") from None
    except (OSError, pa.ArrowException) as error:
        raise CorruptError(f"{path} cannot be read: {' '.join(str(error).split())}", hint) from None


def tables(root: str, read: Callable[[Ledger, Part], pa.Table | None] = read_part) -> Iterator[pa.Table]:
    """The results (or what else `read` finds in a shard) of all live runs of an output, in input order, a shard at a
    time."""
    return tables_of(open_ledgers(root), read)


def tables_of(
    ledgers: Iterable[Ledger], read: Callable[[Ledger, Part], pa.Table | None] = read_part
) -> Iterator[pa.Table]:
    """The same of some runs."""
    for ledger in ledgers:
        if read is read_part:
            yield from read_deletes(ledger)
        commits = ledger.commits()
        for index in sorted(commits):
            table = read(ledger, commits[index])
            if table is not None:
                yield table


def schema_of(root: str) -> pa.Schema:
    """The schema of the results, without metadata that differs between runs."""
    ledgers = open_ledgers(root)
    schemas = [ledger.plan()[0].schema.remove_metadata() for ledger in ledgers]
    if any(not schema.equals(schemas[0]) for schema in schemas[1:]):
        raise OutputError(f"{root} holds runs with different columns", "collect them from outputs of their own")
    return schemas[0] if len(ledgers) > 1 else ledgers[0].plan()[0].schema


def collect(root: str, target: str, format: Format, *, dead: bool = False) -> int:
    """Write all results, or all dead letters, to the file `target` ("-" is stdout); the number of rows.

    The file appears when it is whole. CorruptError names a part that is not.
    """
    schema = DEAD_SCHEMA if dead else schema_of(root)
    rows = 0
    with _open(target, format, schema) as sink:
        for table in _gather(tables(root, read_dead if dead else read_part), schema):
            sink.write(table)
            rows += len(table)
    return rows


def _gather(parts: Iterator[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of about a row group, so that the file has few large ones whatever the shards were."""
    held: list[pa.Table] = []
    for part in parts:
        held.append(part.cast(schema.remove_metadata()).replace_schema_metadata(schema.metadata))
        if sum(map(len, held)) >= ROW_GROUP or sum(t.nbytes for t in held) >= TABLE_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


class _Sink(Protocol):
    def write(self, table: pa.Table) -> None: ...


@contextmanager
def _open(target: str, format: Format, schema: pa.Schema) -> Iterator[_Sink]:
    if target == "-":
        if format == "parquet":
            raise OutputError("Parquet cannot go to stdout", "use -o FILE, or --format jsonl or csv")
        yield _SINKS[format](sys.stdout, schema)
        return
    folder = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(folder) or os.path.isdir(target):
        raise OutputError(f"cannot write {target}", "it must be a file in a directory that exists")
    temporary = temporary_in(folder)
    try:
        with explain_full(folder):
            if format == "parquet":
                options = {"compression": "zstd", "write_page_checksum": True}
                with pq.ParquetWriter(temporary, schema, **options) as writer:
                    yield _ParquetSink(writer)
            else:
                with open(temporary, "w", encoding="utf-8", newline="") as handle:
                    yield _SINKS[format](handle, schema)
            fsync(temporary)
            os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


class _ParquetSink:
    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=ROW_GROUP)


class _CsvSink:
    """Cells that a spreadsheet would run as formulas get a leading apostrophe; nested values are JSON."""

    def __init__(self, handle: IO[str], schema: pa.Schema) -> None:
        self._writer = csv.writer(handle, lineterminator="\r\n")  # with "\n" a bare "\r" goes unquoted
        self._writer.writerow([_cell(name) for name in schema.names])

    def write(self, table: pa.Table) -> None:
        self._writer.writerows(zip(*map(_cells, table.columns), strict=True))


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return "'" + value if value.startswith(FORMULA) else value
    if isinstance(value, list | dict):
        return _json(value)
    if isinstance(value, bytes):
        return _cell(_other(value))
    return value


def _json(value: Any) -> str:
    """JSON that every reader takes: what is no number is null, bytes are base64."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_other)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_other)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _other(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


class _JsonlSink:
    def __init__(self, handle: IO[str], schema: pa.Schema) -> None:
        self._handle = handle

    def write(self, table: pa.Table) -> None:
        for batch in table.to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                self._handle.write(_json(row) + "\n")


_SINKS: dict[str, Any] = {"csv": _CsvSink, "jsonl": _JsonlSink}


def _cells(column: pa.ChunkedArray) -> list[Any]:
    """float32 as the shortest text that reads back as the same (0.1, not 0.10000000149011612); no formula can be in it."""
    if column.type == pa.float32():
        return list(pc.cast(column, pa.string()).to_pylist())
    return [_cell(value) for value in column.to_pylist()]
