"""Types of columns, learned from the first rows of files that do not say them. Dates stay strings."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from batchnlp.data.sources.columns import MISFIT, is_string

NULLS = ("", "NA", "N/A", "null", "NULL", "NaN", "nan")  # in columns that are not strings
CODE = re.compile(r"[+-]?0[0-9]|[0-9]{16}")  # begins like a number, but is a name: as a number it would look different


def infer(values: list[Any], text: bool) -> pa.DataType:
    """The type of JSON values: that of the first one that is not null; a text column is text if any value is."""
    some = [value for value in values if value is not None]
    if not some:
        return pa.null()
    if text and any(isinstance(value, str) for value in some):
        return pa.string()
    if isinstance(some[0], str):
        return pa.string()
    kinds: tuple[type, ...] = (type(some[0]),)
    if kinds[0] in (int, float):
        kinds = (int, float) if any(type(value) is float for value in some) else (int,)
    alike = [value for value in some if type(value) in kinds]
    if kinds == (int, float):
        return pa.float64()
    for candidates in (alike, alike[:1]):
        try:
            return _without_nulls(pa.array(candidates).type)
        except MISFIT:
            continue
    return pa.string()


def infer_strings(values: list[str], identity: bool) -> pa.DataType:
    """The type of a CSV column: integer, number, boolean or string; an id is never a number with a point."""
    array = pa.array(values, pa.large_string())
    if not any(value not in NULLS for value in values):
        return pa.null()
    kinds = [pa.int64()] if identity else [pa.int64(), pa.float64(), pa.bool_()]
    for kind in kinds:
        if kind == pa.float64() and any(CODE.match(value) for value in values):
            continue
        try:
            parse(array, kind)
        except MISFIT:
            continue
        return kind
    return pa.string()


def parse(strings: pa.Array, kind: pa.DataType) -> pa.Array:
    """CSV values as `kind`; fails when one does not fit, or would not look the same as an integer ("007")."""
    if is_string(kind):
        return strings.cast(kind)
    blank = pc.is_in(strings, pa.array(NULLS, strings.type))
    known = pc.if_else(blank, pa.scalar(None, strings.type), strings)
    values = known.cast(kind)
    if pt.is_integer(kind) and not pc.all(pc.equal(values.cast(strings.type), known), min_count=0).as_py():
        raise pa.ArrowInvalid("not a plain integer")
    return values


def _without_nulls(kind: pa.DataType) -> pa.DataType:
    """Empty lists are lists of strings, so that a result file can hold them."""
    if pt.is_null(kind):
        return pa.string()
    if pt.is_list(kind):
        return pa.list_(_without_nulls(kind.value_type))
    if pt.is_struct(kind):
        return pa.struct([(field.name, _without_nulls(field.type)) for field in kind])
    return kind
