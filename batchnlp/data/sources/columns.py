"""Columns into their declared types, with the values that do not fit set aside instead of failing the whole read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))  # what a conversation looks like
MISFIT = (ValueError, TypeError, OverflowError, RecursionError, pa.ArrowNotImplementedError)


def plain(kind: pa.DataType) -> pa.DataType:
    """The type that a column of type `kind` has once it is carried along: no dictionary, view or extension."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain(kind.storage_type)
    if pt.is_dictionary(kind):
        return plain(kind.value_type)
    if kind == pa.string_view():
        return pa.string()
    return pa.binary() if kind == pa.binary_view() else kind


def is_text(kind: pa.DataType) -> bool:
    """Whether documents may come from a column of this type; a column of nulls has none, and that is allowed."""
    if pt.is_dictionary(kind):
        return is_text(kind.value_type) and not pt.is_null(kind.value_type)
    strings = (pa.string(), pa.large_string(), pa.string_view())
    return kind in (*strings, pa.binary(), pa.large_binary(), pa.binary_view(), pa.null())


def is_turns(kind: pa.DataType) -> bool:
    """Whether values of this type are conversations: lists of structs with a role and a content."""
    if not (pt.is_list(kind) or pt.is_large_list(kind)) or not pt.is_struct(kind.value_type):
        return False
    turn = kind.value_type
    return all(turn.get_field_index(name) >= 0 and is_string(turn.field(name).type) for name in ("role", "content"))


def is_string(kind: pa.DataType) -> bool:
    """Whether values of this type are text."""
    return bool(pt.is_string(kind) or pt.is_large_string(kind))


def halve(
    values: Sequence[Any] | pa.Array, convert: Callable[[Any], pa.Array], kind: pa.DataType, at: int = 0
) -> tuple[list[pa.Array], list[int]]:
    """`values` converted, in chunks, and the positions of those that cannot be, which become nulls.

    Halving finds one bad value in n with log n conversions, and costs nothing when all are good.
    """
    try:
        array = convert(values)
        array.validate(full=True)
    except MISFIT:
        if len(values) == 1:
            return [pa.nulls(1, kind)], [at]
        middle = len(values) // 2
        left, bad_left = halve(values[:middle], convert, kind, at)
        right, bad_right = halve(values[middle:], convert, kind, at + middle)
        return left + right, bad_left + bad_right
    return [array], []


def cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """`column` as `kind`; fails when a value does not fit, or is no UTF-8."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    return column if column.type == kind else column.cast(kind)


def fit(column: pa.ChunkedArray, kind: pa.DataType) -> tuple[pa.ChunkedArray, list[int]]:
    """`column` as `kind`, and the positions of the values that do not fit."""
    chunks: list[pa.Array] = []
    bad: list[int] = []
    at = 0
    for chunk in column.chunks:
        done, wrong = halve(chunk, lambda part: cast(part, kind), kind, at)
        chunks += done
        bad += wrong
        at += len(chunk)
    return pa.chunked_array(chunks, kind), bad


def nulls(schema: pa.Schema, rows: int) -> pa.Table:
    """A table of `rows` rows without any value."""
    return pa.table([pa.nulls(rows, field.type) for field in schema], schema=schema)
