"""Runs of characters cut out of Arrow texts, without a Python string a run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchnlp.text.encode import offsets, ranges
from batchnlp.types import Int32, Int64

BLOCK_BYTES = 4 << 20  # of text; the place of each of its characters takes eight more


def surfaces(texts: pa.Array, row: Int32, start: Int32, end: Int32) -> pa.Array:
    """`texts[row][start:end]` of each run as strings, like Python's slices of characters; rows must not decrease.

    `texts` is large_string; a text that has a run is not null.
    """
    if not len(row):
        return pa.array([], pa.string())
    _, places, data = texts.buffers()
    borders = np.frombuffer(places, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    flat = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    begin, length = np.empty(len(row), np.int64), np.empty(len(row), np.int64)
    at = 0
    while at < len(row):  # a block of whole texts
        low = borders[row[at]]
        last = max(int(np.searchsorted(borders, low + BLOCK_BYTES, side="right")) - 1, int(row[at]) + 1)
        stop = int(np.searchsorted(row, last))
        lead = _characters(flat[low : borders[last]])
        first = np.searchsorted(lead, borders[row[at:stop]] - low)  # the text's first character in the block
        begin[at:stop] = low + lead[first + start[at:stop]]
        length[at:stop] = low + lead[first + end[at:stop]] - begin[at:stop]
        at = stop
    starts, chosen = offsets(length).astype(np.int32), flat[ranges(begin, length)]
    return pa.StringArray.from_buffers(len(row), pa.py_buffer(starts), pa.py_buffer(chosen))


def _characters(utf8: npt.NDArray[np.uint8]) -> Int64:
    """[characters + 1] where each begins, and the end."""
    return np.asarray(np.r_[np.flatnonzero((utf8 & 0xC0) != 0x80), len(utf8)], np.int64)
