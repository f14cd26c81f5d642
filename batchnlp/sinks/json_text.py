"""JSON text of nested columns, without a Python object a value: each value becomes text, and texts are joined.

NaN and infinity are null, as in JSON they must be. Binary values are base64. NUL is the replacement character: JSON could
say it, but PostgreSQL refuses it.
"""

from __future__ import annotations

import base64
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CONTROL = {"\0": REPLACEMENT} | {chr(code): json.dumps(chr(code))[1:-1] for code in range(1, 32)}
NULL = pa.scalar("null", pa.string())


def to_json(array: pa.Array) -> pa.Array:
    """The JSON of each value, as strings; null where the value is null."""
    kind = array.type
    if pt.is_struct(kind):
        return _struct(array)
    if pt.is_map(kind):
        entries = array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
        return _joined(entries, _members(*entries.flatten().flatten()), "{}")
    if pt.is_fixed_size_list(kind):
        return to_json(array.cast(pa.list_(kind.value_type)))
    if pt.is_list(kind) or pt.is_large_list(kind):
        return _joined(array, _or_null(to_json(array.flatten())), "[]")
    return _scalar(array)


def _scalar(array: pa.Array) -> pa.Array:
    kind = array.type
    if pt.is_boolean(kind) or pt.is_integer(kind) or pt.is_decimal(kind):
        return array.cast(pa.string())
    if pt.is_floating(kind):
        return pc.if_else(pc.is_finite(array), array.cast(pa.string()), pa.scalar(None, pa.string()))
    if pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_fixed_size_binary(kind):
        texts = [None if value is None else base64.b64encode(value).decode() for value in array.to_pylist()]
        return _quote(pa.array(texts, pa.string()))
    return _quote(array.cast(pa.string()))


def _struct(array: pa.Array) -> pa.Array:
    if not array.type.num_fields:
        texts = pa.repeat("{}", len(array))
    else:
        members = [
            pc.binary_join_element_wise(json.dumps(field.name, ensure_ascii=False), _or_null(to_json(child)), ":")
            for field, child in zip(array.type.fields, array.flatten(), strict=True)
        ]
        texts = pc.binary_join_element_wise("{", pc.binary_join_element_wise(*members, ","), "}", "")
    return pc.if_else(array.is_valid(), texts, pa.scalar(None, pa.string()))


def _members(keys: pa.Array, values: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(_quote(keys.cast(pa.string())), _or_null(to_json(values)), ":")


def _joined(array: pa.Array, texts: pa.Array, brackets: str) -> pa.Array:
    """The texts of each list's values with commas between; `texts` has those of lists that are not null, in order."""
    lists = pa.ListArray.from_arrays(list_offsets(array), texts, mask=array.is_null())
    return pc.binary_join_element_wise(brackets[0], pc.binary_join(lists, ","), brackets[1], "")


def list_offsets(array: pa.Array) -> pa.Array:
    """Where each list begins in the array's flattened values, and where the last one ends."""
    lengths = np.asarray(array.value_lengths().fill_null(0))
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _or_null(texts: pa.Array) -> pa.Array:
    return texts.fill_null(NULL)


def _quote(texts: pa.Array) -> pa.Array:
    """JSON strings. Control characters are rare, and looked for once before each of them is replaced."""
    texts = pc.replace_substring(pc.replace_substring(texts, "\\", "\\\\"), '"', '\\"')
    if pc.any(pc.match_substring_regex(texts, "[\\x00-\\x1f]")).as_py():
        for character, escaped in CONTROL.items():
            texts = pc.replace_substring(texts, character, escaped)
    return pc.binary_join_element_wise('"', texts, '"', "")
