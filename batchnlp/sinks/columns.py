"""Columns as a warehouse takes them. What it has no type for becomes the nearest one that loses nothing, or text.

Fractions of a microsecond are cut off; it is the finest unit that all warehouses share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from batchnlp.errors import OutputError
from batchnlp.sinks.json_text import REPLACEMENT, list_offsets, to_json

DIGITS = 38  # of the decimals that every warehouse has
WIDER = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.decimal128(20, 0)}


@dataclass(frozen=True, slots=True)
class Types:
    """How the types of a warehouse differ from those of the others. Filled by its sink."""

    fixed_lists: bool = False  # it has vectors of a fixed length
    small_ints: bool = True  # it has int8 and int16
    times: bool = True  # it has times of day
    json: bool = False  # structs, maps and lists of them are JSON
    nul: bool = True  # its text may hold NUL; else the replacement character stands for it


def fit_schema(schema: pa.Schema, types: Types) -> pa.Schema:
    """The schema that the warehouse gets, all columns nullable."""
    return pa.schema([pa.field(field.name, fit_type(field.type, types)) for field in schema])


def fit_type(kind: pa.DataType, types: Types) -> pa.DataType:
    """The type that stands for another one in a warehouse."""
    if isinstance(kind, pa.BaseExtensionType):
        return fit_type(kind.storage_type, types)
    if pt.is_nested(kind):
        return _fit_nested(kind, types)
    if kind in WIDER:
        return fit_type(WIDER[kind], types)
    if pt.is_integer(kind):
        return kind if types.small_ints or kind.bit_width > 16 else pa.int32()
    if pt.is_floating(kind):
        return pa.float32() if pt.is_float16(kind) else kind
    if pt.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= DIGITS else pa.string()
    if pt.is_temporal(kind):
        return _fit_temporal(kind, types)
    if pt.is_boolean(kind):
        return kind
    return pa.binary() if _is_binary(kind) else pa.string()


def _is_binary(kind: pa.DataType) -> bool:
    checks = pt.is_binary, pt.is_large_binary, pt.is_fixed_size_binary, pt.is_binary_view
    return any(check(kind) for check in checks)


def _fit_temporal(kind: pa.DataType, types: Types) -> pa.DataType:
    if pt.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if pt.is_time(kind):
        return pa.time64("us") if types.times else pa.string()
    return pa.date32() if pt.is_date(kind) else pa.int64()  # a duration in microseconds


def _fit_nested(kind: pa.DataType, types: Types) -> pa.DataType:
    if pt.is_dictionary(kind):
        return fit_type(kind.value_type, types)
    if types.json and not (_is_list(kind) and not pt.is_nested(kind.value_type)):
        return pa.json_()
    if pt.is_struct(kind):
        return pa.struct([pa.field(f.name, fit_type(f.type, types)) for f in kind.fields])
    if pt.is_map(kind):
        return pa.map_(fit_type(kind.key_type, types), fit_type(kind.item_type, types))
    if types.fixed_lists and pt.is_fixed_size_list(kind):
        return pa.list_(fit_type(kind.value_type, types), kind.list_size)
    return pa.list_(fit_type(kind.value_type, types))


def _is_list(kind: pa.DataType) -> bool:
    return any(check(kind) for check in (pt.is_list, pt.is_large_list, pt.is_fixed_size_list))


def fit(batch: pa.RecordBatch, schema: pa.Schema, types: Types) -> pa.RecordBatch:
    """The batch in a schema that `fit_schema` made of its own."""
    columns = [_fit_array(batch.column(field.name), field.type, types) for field in schema]
    return pa.record_batch(columns, schema=schema)


def _fit_array(array: pa.Array, kind: pa.DataType, types: Types) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if kind == pa.json_():
        return pa.ExtensionArray.from_storage(kind, to_json(array))
    if pt.is_duration(array.type):
        array = array.cast(pa.duration("us"), safe=False)
    array = array.cast(kind, safe=False)
    return array if types.nul else without_nul(array)


def without_nul(array: pa.Array) -> pa.Array:
    """The array of strings, or of lists of them, with another character in the place of every NUL."""
    if pt.is_string(array.type):
        return pc.replace_substring(array, "\0", REPLACEMENT) if _has_nul(array) else array
    if pt.is_list(array.type):
        values = without_nul(array.flatten())
        return pa.ListArray.from_arrays(list_offsets(array), values, mask=array.is_null())
    return array


def _has_nul(array: pa.StringArray) -> bool:
    """One look at all bytes: NUL is rare, and text much."""
    _, offsets, data = array.buffers()
    if not len(array) or data is None:
        return False
    ends = np.frombuffer(offsets, np.int32)[array.offset :]
    return bool(np.frombuffer(data, np.uint8)[ends[0] : ends[len(array)]].min(initial=1) == 0)


def spelling(kind: pa.DataType) -> str:
    """A type's name without what writers and readers change: the names of a list's values, and what may be null."""
    if pt.is_struct(kind):
        return f"struct<{', '.join(f'{f.name}: {spelling(f.type)}' for f in kind.fields)}>"
    if pt.is_map(kind):
        return f"map<{spelling(kind.key_type)}, {spelling(kind.item_type)}>"
    if _is_list(kind):
        return f"list<{spelling(kind.value_type)}>"
    return str(kind).removeprefix("large_")


def new_columns(held: Mapping[str, object], wanted: Mapping[str, object], where: str) -> list[str]:
    """The columns that a table lacks, from the types it has and those it is to get; OutputError where one changed."""
    for name, kind in wanted.items():
        if name in held and held[name] != kind:
            message = f"the column {name} of {where} is {held[name]}, and {kind} in the results"
            raise OutputError(message, "load into another table, or change the column's type there first")
    return [name for name in wanted if name not in held]
