"""The tables that results become: the main one, and one for each column that is unnested."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from batchnlp.data.parts import is_log
from batchnlp.errors import SpecError
from batchnlp.job.sinks import SinkSpec
from batchnlp.types import OP, REVISION
from batchnlp.words import nearest

POSITION = "position"


@dataclass(frozen=True, slots=True)
class Shape:
    """One table. Filled from the sink's section and the schema of the results."""

    table: str
    columns: tuple[str, ...]  # of the results that it is made of
    schema: pa.Schema
    make: Callable[[pa.RecordBatch], pa.RecordBatch]
    main: bool  # a row a document


def shapes(spec: SinkSpec, schema: pa.Schema, partition_by: tuple[str, ...]) -> list[Shape]:
    """The tables, the main one last: where each is a commit of its own, a document that is there has its rows elsewhere.

    Raises SpecError where the section names columns that the results do not have, or not so.
    """
    check_names(schema, spec.keys, "key")
    check_names(schema, partition_by, "partition_by")
    check_names(schema, spec.unnest, "unnest")
    own = dict.fromkeys((*spec.keys, *(partition_by if spec.mode == "replace_partition" else ())))
    if within := [name for name in (*own, *partition_by) if name in spec.unnest]:
        raise SpecError(f"sinks.unnest names {within[0]!r}, which the table needs", "leave it out")
    children = [_child(spec.table, name, schema, tuple(own)) for name in spec.unnest]
    # A column without a type yet is made when it has one: it could not change it later.
    # What a log says of its changes is done in an upsert, not kept.
    done = (REVISION, OP) if is_log(schema) and spec.mode == "upsert" else ()
    left_out = {*spec.unnest, *done}
    kept = tuple(field.name for field in schema if field.name not in left_out and not pt.is_null(field.type))
    main = Shape(spec.table, kept, pa.schema([schema.field(name) for name in kept]), _same, main=True)
    return [*children, main]


def check_names(schema: pa.Schema, names: tuple[str, ...] | list[str], key: str) -> None:
    """Refuse names that are no columns."""
    for name in names:
        if name not in schema.names:
            near = nearest(name, schema.names)
            hint = f"did you mean {near}?" if near else "keep it with source.keep"
            raise SpecError(f"sinks.{key} names {name!r}, which the results do not have", hint)
        if pt.is_null(schema.field(name).type):
            raise SpecError(f"sinks.{key} names {name!r}, which is null in every row", "name another column")


def _same(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


def _child(table: str, column: str, schema: pa.Schema, own: tuple[str, ...]) -> Shape:
    kind = schema.field(column).type
    if not (pt.is_list(kind) or pt.is_large_list(kind)):
        raise SpecError(f"sinks.unnest names {column!r}, which is {kind}", "only lists can be unnested")
    if not re.fullmatch(r"[\w-]+", column):  # it would name a schema, or a directory elsewhere
        raise SpecError(f"sinks.unnest names {column!r}, after which no table can be named", "rename it in the source")
    item = kind.value_type
    fields = list(item.fields) if pt.is_struct(item) else [pa.field(column, item)]
    taken = {*own, POSITION}
    fields = [pa.field(f"{column}_{f.name}" if f.name in taken else f.name, f.type) for f in fields]
    made = pa.schema([*(schema.field(name) for name in own), pa.field(POSITION, pa.int32()), *fields])

    def unnest(batch: pa.RecordBatch) -> pa.RecordBatch:
        lists = batch.column(column)
        lengths = np.asarray(lists.value_lengths().fill_null(0)).astype(np.int64)
        parent = np.repeat(np.arange(len(lists)), lengths)
        position = np.arange(len(parent)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        values = lists.flatten()
        items = values.flatten() if pt.is_struct(item) else [values]
        keys = [batch.column(name).take(pa.array(parent)) for name in own]
        return pa.record_batch([*keys, pa.array(position, pa.int32()), *items], schema=made)

    return Shape(f"{table}_{column}", (*own, column), made, unnest, main=False)
