"""Which pieces are the same, token for token, so that the model is asked once. Pure numpy, no Python object a piece.

A piece's key is two sums over its tokens of (a random number of the token) x (a random odd number of its place), modulo 2^64.
Different pieces share a key with a chance of about 2^-128 a pair.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from batchnlp.types import Int64, Pieces

Keys = npt.NDArray[np.uint64]  # [pieces, 2]


def keys(pieces: Pieces) -> Keys:
    """[pieces, 2] equal for pieces whose tokens, segments and words are equal."""
    if not len(pieces):
        return np.empty((0, 2), np.uint64)
    lengths = pieces.lengths
    tokens = pieces.ids.astype(np.uint64)
    for column, shift in ((pieces.type_ids, 32), (pieces.word, 40)):
        if column is not None:
            tokens |= column.astype(np.uint64) << np.uint64(shift)
    place = np.arange(len(tokens)) - np.repeat(pieces.starts[:-1], lengths)
    weights = np.arange(1, int(lengths.max(initial=0)) + 1, dtype=np.uint64)
    out = np.empty((len(pieces), 2), np.uint64)
    for i, salt in enumerate((0x9E3779B97F4A7C15, 0xD1B54A32D192ED03)):
        odd = _scattered(weights * np.uint64(salt)) | np.uint64(1)
        out[:, i] = np.add.reduceat(_scattered(tokens + np.uint64(salt)) * odd[place], pieces.starts[:-1])
    return out


def first_alike(keys: Keys) -> Int64:
    """[pieces] the first piece with the same key."""
    if not len(keys):
        return np.empty(0, np.int64)
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable, so that the first of equals stays the first
    ordered = keys[order]
    begins = np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)]
    out = np.empty(len(keys), np.int64)
    out[order] = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return out


def _scattered(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The mixing steps of splitmix64: neighbours become unlike."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


class Known:
    """Answers [pieces, W] of earlier shards by key, the newest that fit into `limit` bytes."""

    def __init__(self, limit: int = 64 << 20, rows: int = 200_000) -> None:
        self._limit, self._most = limit, rows  # sorting more rows for each shard would show
        self._keys: Keys = np.empty((0, 2), np.uint64)
        self._values = np.empty((0, 0), np.float32)
        self._order = np.empty(0, np.int64)  # by the first half of the key

    def find(self, keys: Keys) -> Int64:
        """[pieces] the row of the answer, -1 where there is none."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        at = np.searchsorted(self._keys[self._order, 0], keys[:, 0])
        row = self._order[np.minimum(at, len(self._order) - 1)]
        return np.where((self._keys[row] == keys).all(axis=1), row, -1)

    def values(self, rows: Int64) -> npt.NDArray[np.float32]:
        """The answers in these rows."""
        return np.asarray(self._values[rows])

    def add(self, keys: Keys, values: npt.NDArray[np.float32]) -> None:
        """Remember answers that are not known yet; those that failed (NaN) are left out."""
        good = ~np.isnan(values).any(axis=1)
        most = min(self._most, self._limit // max(values.shape[1] * values.itemsize, 1))
        old = self._values if self._values.size else values[:0]
        self._keys = np.concatenate([self._keys, keys[good]])[-most:] if most else self._keys
        self._values = np.concatenate([old, values[good]])[-most:] if most else self._values
        self._order = np.argsort(self._keys[:, 0], kind="stable")
