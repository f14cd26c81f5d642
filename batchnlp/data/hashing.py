"""Hashes of rows: the same where all columns are the same."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt


def hash_rows(columns: Sequence[pa.Array | pa.ChunkedArray], size: int) -> pa.Array:
    """[rows] a hash of `size` bytes of each row, as fixed-size binary."""
    joined = joined_rows(columns)
    if isinstance(joined, pa.ChunkedArray):
        joined = joined.combine_chunks()
    _, offsets, data = joined.buffers()
    ends: list[int] = []
    if len(joined):
        ends = np.frombuffer(offsets, np.int64)[joined.offset : joined.offset + len(joined) + 1].tolist()
    view = memoryview(data) if data is not None else memoryview(b"")
    hashes = b"".join(blake2b(view[a:b], digest_size=size).digest() for a, b in pairwise(ends))
    return pa.Array.from_buffers(pa.binary(size), len(joined), [None, pa.py_buffer(hashes)])


def id_keys(ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """[rows] where each id has its place among all: 64 bits, spread evenly."""
    hashes = hash_rows([ids.cast(pa.large_string())], 8)
    return np.frombuffer(hashes.buffers()[1], "<u8")[: len(hashes)].astype(np.uint64, copy=False)


def joined_rows(columns: Sequence[pa.Array | pa.ChunkedArray]) -> pa.Array | pa.ChunkedArray:
    """One value a row, as large binary: each column with its length before it, so that none runs into the next."""
    return pc.binary_join_element_wise(*map(_framed, columns), pa.scalar(b"", pa.large_binary()))


def _framed(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    data = _bytes(column)
    length = pc.binary_length(data).cast(pa.large_string()).cast(pa.large_binary())
    colon, null = (pa.scalar(text, pa.large_binary()) for text in (b":", b"-"))
    return pc.binary_join_element_wise(length, data, colon).fill_null(null)


def _bytes(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    kind = column.type
    if pt.is_dictionary(kind):
        return _bytes(column.cast(kind.value_type))
    if pt.is_nested(kind):  # rare, and only Python knows how to write every one of them
        values = (None if value is None else repr(value).encode() for value in column.to_pylist())
        return pa.array(values, pa.large_binary())
    if pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_fixed_size_binary(kind):
        return column.cast(pa.large_binary())
    return column.cast(pa.large_string()).cast(pa.large_binary())
