"""One schema for all files of the corpus, or an error that says which file is different."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.types as pt

from batchnlp.data.sources import filters, partitions
from batchnlp.data.sources.columns import is_string, is_text, is_turns, plain
from batchnlp.errors import SourceError
from batchnlp.types import InputFile, SourceConfig
from batchnlp.words import nearest

EXTRA = b"batchnlp.filter_columns"
THREADS = 8  # a footer or a first block a file: waiting, mostly


def agree(
    config: SourceConfig, files: tuple[InputFile, ...], inspect: Callable[[InputFile], pa.Schema | None]
) -> tuple[tuple[InputFile, ...], pa.Schema]:
    """The files (less the partition keys that are columns too) and the schema of the columns that the job names.

    Columns that only the filter needs are no part of the schema, but travel in its metadata.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        schemas = list(pool.map(inspect, files))
    unreadable = next((file for file, schema in zip(files, schemas, strict=True) if schema is not None), None)
    if unreadable and not any(schema is not None and len(schema) for schema in schemas):
        raise SourceError(f"{unreadable.name}: none of the first rows can be read", "check source.format")
    keys = partitions.types(files)
    kept = tuple(_own_columns_first(file, schema) for file, schema in zip(files, schemas, strict=True))
    found: dict[str, tuple[pa.DataType, InputFile]] = {}
    for file, schema in zip(kept, schemas, strict=True):
        if schema is not None and len(schema):
            _add(config, file, schema, keys, found)
    selected = [pa.field(name, _final(config, name, found)) for name in _columns(config)]
    extra = [pa.field(name, _final(config, name, found)) for name in _filter_columns(config)]
    filters.check(config.filter, pa.schema(selected + extra))
    return kept, pa.schema(selected, {EXTRA: pa.schema(extra).serialize().to_pybytes()} if extra else None)


def wanted(schema: pa.Schema) -> pa.Schema:
    """All columns to read: those of the schema, and those that only the filter needs."""
    extra = (schema.metadata or {}).get(EXTRA)
    fields = pa.ipc.read_schema(pa.py_buffer(extra)) if extra else []
    return pa.schema([*schema, *fields])


def _columns(config: SourceConfig) -> list[str]:
    return list(dict.fromkeys([config.text, *([config.id] if config.id else []), *config.keep, *config.columns]))


def _filter_columns(config: SourceConfig) -> list[str]:
    return [name for name in dict.fromkeys(part[0] for part in config.filter) if name not in _columns(config)]


def _own_columns_first(file: InputFile, schema: pa.Schema | None) -> InputFile:
    names = schema.names if schema is not None else []
    return dataclasses.replace(file, partitions=tuple(pair for pair in file.partitions if pair[0] not in names))


def _add(
    config: SourceConfig,
    file: InputFile,
    schema: pa.Schema,
    keys: dict[str, pa.DataType],
    found: dict[str, tuple[pa.DataType, InputFile]],
) -> None:
    """Merges the columns of one file into `found`."""
    own = {key: keys[key] for key, _ in file.partitions}
    for name in _columns(config) + _filter_columns(config):
        kind = own.get(name) or _type_in(file, schema, name, own)
        turns = config.turns and is_turns(kind)
        if name == config.text and not turns and not is_text(kind):
            raise SourceError(f"{file.name}: the text column {name} is {kind}, not text", "choose another source.text")
        if name == config.id and (pt.is_nested(kind) or _is_binary(plain(kind))):
            raise SourceError(f"{file.name}: the id column {name} is {kind}", "choose numbers or strings as source.id")
        kind = pa.large_string() if name == config.text and not turns else plain(kind)
        before, first = found.get(name, (kind, file))
        merged = _merge(before, kind, name == config.id)
        if merged is None:
            raise SourceError(
                f"{file.name}: column {name} is {kind}, but {before} in {first.name}",
                "make the types the same, or process the files in two jobs",
            )
        found[name] = (merged, first)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_fixed_size_binary(kind))


def _type_in(file: InputFile, schema: pa.Schema, name: str, own: dict[str, pa.DataType]) -> pa.DataType:
    count = schema.names.count(name)
    if count == 1:
        return schema.field(name).type
    if count:
        raise SourceError(f"{file.name} has {count} columns named {name}", "rename all but one")
    there = list(dict.fromkeys([*schema.names, *own]))
    near = nearest(name, there)
    which = "name the one with the documents in source.text (--text-column)" if name == "text" else "name one of these"
    hint = f"did you mean {near}?" if near else f"{which}, or leave the file out"
    raise SourceError(f"{file.name} has no column {name}, only {', '.join(there) or 'none'}", hint)


def _merge(one: pa.DataType, two: pa.DataType, identity: bool) -> pa.DataType | None:
    """The type that holds all values of both; None when there is none. An id must look the same afterwards."""
    if one == two or pt.is_null(two):
        return one
    if pt.is_null(one):
        return two
    if is_string(one) and is_string(two):
        return pa.large_string()
    numbers = pt.is_integer(one) and pt.is_integer(two)
    if pa.uint64() in (one, two) or pt.is_nested(one) or is_string(one) or is_string(two) or (identity and not numbers):
        return None
    try:
        pair = [pa.schema([("x", kind)]) for kind in (one, two)]
        return pa.unify_schemas(pair, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _final(config: SourceConfig, name: str, found: dict[str, tuple[pa.DataType, InputFile]]) -> pa.DataType:
    """A column in which no file has a value is made of strings."""
    kind = found[name][0] if name in found else pa.null()
    if pt.is_null(kind):
        return pa.large_string() if name == config.text else pa.string()
    return kind
