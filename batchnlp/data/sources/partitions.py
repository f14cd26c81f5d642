"""Hive partitions: columns whose values stand in the path, as in `lang=de/part-0.parquet`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

import pyarrow as pa

from batchnlp.types import InputFile

NULL = "__HIVE_DEFAULT_PARTITION__"
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # what comes back the same from int64; "01" does not


def of_path(path: str) -> tuple[tuple[str, str], ...]:
    """The keys and values in the directories of `path`."""
    parts = [part.partition("=") for part in path.split("/")[:-1]]
    return tuple((unquote(key), unquote(value)) for key, equals, value in parts if key and equals)


def types(files: Iterable[InputFile]) -> dict[str, pa.DataType]:
    """int64 for the keys whose values are all integers, string for the others."""
    values: dict[str, set[str]] = {}
    for file in files:
        for key, value in file.partitions:
            values.setdefault(key, set()).add(value)
    return {key: pa.int64() if _integers(found) else pa.string() for key, found in values.items()}


def add(table: pa.Table, rows: int, file: InputFile, schema: pa.Schema) -> pa.Table:
    """`table` with the columns of `schema` in its order, those of the path included."""
    path = dict(file.partitions)
    made = {name: _column(value, rows, schema.field(name).type) for name, value in path.items() if name in schema.names}
    return pa.table([made[name] if name in made else table.column(name) for name in schema.names], schema=schema)


def without(schema: pa.Schema, file: InputFile) -> pa.Schema:
    """The fields of `schema` that are in the file itself."""
    keys = {key for key, _ in file.partitions}
    return pa.schema([field for field in schema if field.name not in keys])


def _column(value: str, rows: int, kind: pa.DataType) -> pa.Array:
    scalar = pa.scalar(None if value == NULL else value, pa.string()).cast(kind)
    return pa.repeat(scalar, rows)


def _integers(values: set[str]) -> bool:
    found = values - {NULL}
    return bool(found) and all(INTEGER.fullmatch(value) for value in found)
