"""A process that looks into a cache and adds to it, with room for a few blocks. Light, because several are started."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchnlp.data.cache import ResultCache
from batchnlp.data.hashing import hash_rows

SCHEMA = pa.schema([("label", pa.string()), ("vector", pa.list_(pa.float32(), 8))])
LIMIT = 60_000


def keys(some: range) -> pa.Array:
    return hash_rows([pa.array([f"text {i}" for i in some])], 16)


def results(some: range) -> pa.Table:
    vectors = np.array([[i] * 8 for i in some], np.float32).ravel()
    return pa.table([[str(i) for i in some], pa.FixedSizeListArray.from_arrays(vectors, 8)], schema=SCHEMA)


def opened(root: Path, recipe: str = "r" * 64, limit: int = 10**9) -> ResultCache:
    return ResultCache(str(root), recipe, SCHEMA, limit)


def found(cache: ResultCache, some: range) -> dict[int, str]:
    where, rows = cache.find(keys(some))
    assert [row[0] for row in rows["vector"].to_pylist()] == [float(label) for label in rows["label"].to_pylist()]
    return dict(sorted(zip(where.tolist(), rows["label"].to_pylist(), strict=True)))


def churn(root: str, seed: int, problems: Any) -> None:
    generator = random.Random(seed)
    try:
        for _ in range(40):
            cache = opened(Path(root), limit=LIMIT)
            first = generator.randrange(40) * 100
            for where, label in found(cache, range(first, first + 100)).items():
                assert label == str(first + where)
            cache.add(keys(range(first, first + 100)), results(range(first, first + 100)))
            assert not cache.note, cache.note
    except BaseException as error:
        problems.put(repr(error))
        raise
