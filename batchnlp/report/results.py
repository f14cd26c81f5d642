"""The results at a glance, from the parts: only the columns that are looked at, and of many rows a sample.

A sample is whole shards, evenly spread over the corpus, so that it is the same one whenever it is taken of the same run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from batchnlp.data.collect import read_columns
from batchnlp.data.ledger import Ledger
from batchnlp.data.status import read
from batchnlp.report.measures import Cosines, measures, own_fields
from batchnlp.report.page import Bars, Histogram, Number, Results, Samples
from batchnlp.types import Int64

SAMPLE = 500_000  # rows: shares are right to a fifth of a percent, in seconds
SHARDS = 2_000  # that are opened, where they are small
SHOWN = 8  # sample rows
PLACES = 4  # shards that they come from
LONGEST = 240  # characters of a cell
LISTED = 6  # values of a list


def sample(rows: Int64) -> Int64:
    """Indices of the shards to look at, of shards with so many rows: all, or evenly spread ones."""
    there = np.flatnonzero(rows)
    total = int(rows.sum())
    share = min(1.0, SAMPLE / max(total, 1), SHARDS / max(len(there), 1))
    count = max(math.floor(len(there) * share), min(len(there), 1))
    return evenly(there, count)


def evenly(values: Int64, count: int) -> Int64:
    """At most `count` of the values, from the first to the last."""
    count = min(count, len(values))
    return np.asarray(values[np.linspace(0, max(len(values) - 1, 0), count).round().astype(np.int64)], np.int64)


def summarise(
    ledger: Ledger, kind: str, schema: pa.Schema, kept: Sequence[str], rows: Int64, unread: list[str]
) -> Results:
    """Measure a sample of the results; `rows` are those of each shard, and what cannot be read is told in `unread`."""
    told = measures(kind, schema, kept)
    columns = list(dict.fromkeys(column for measure in told for column in measure.columns))
    chosen, looked_at = sample(rows), 0
    for shard in chosen.tolist():
        for table in _tables(ledger, shard, columns, unread):
            looked_at += len(table)
            for measure in told:
                measure.add(table)
    for field in own_fields(schema, kept):
        if pt.is_fixed_size_list(field.type):
            told.append(_look_at_vectors(ledger, Cosines(field.name), chosen, unread))
    found = [fact for measure in told if (fact := measure.told()) is not None]
    return Results(
        tuple(f for f in found if isinstance(f, Bars)), tuple(f for f in found if isinstance(f, Histogram)),
        tuple(f for f in found if isinstance(f, Number)), looked_at, int(rows.sum()),
    )  # fmt: skip


def _look_at_vectors(ledger: Ledger, measure: Cosines, shards: Int64, unread: list[str]) -> Cosines:
    few = evenly(shards, PLACES)
    for shard in few.tolist():
        for table in _tables(ledger, shard, measure.columns, unread, measure.room // len(few) + 1):
            measure.add(table)
    return measure


def _tables(
    ledger: Ledger, shard: int, columns: Sequence[str], unread: list[str], rows: int | None = None
) -> list[pa.Table]:
    """The columns of a shard's results; nothing, and a word in `unread`, where they are damaged."""
    found = read(lambda: list(read_columns(ledger, ledger.committed(shard), columns, rows)), unread)
    return [table for table in found or () if len(table)]


def samples(
    ledger: Ledger, schema: pa.Schema, kept: Sequence[str], rows: Int64, shown: Sequence[str], unread: list[str]
) -> Samples:
    """Some rows from all over the results: ids and the task's own columns, and of the source's those in `shown`."""
    names = ["id", *shown, *(field.name for field in own_fields(schema, kept))]
    places = evenly(np.flatnonzero(rows), PLACES).tolist()
    each = -(-SHOWN // max(len(places), 1))
    found: list[tuple[str, ...]] = []
    for shard in places:
        for table in _tables(ledger, shard, names, unread, each)[:1]:
            cells = [
                [cell(value, column.type) for value in column.to_pylist()] for column in table.select(names).columns
            ]
            found += zip(*cells, strict=True)
    return Samples(tuple(names), tuple(found[:SHOWN]))


def cell(value: Any, kind: pa.DataType) -> str:
    """A value as a person reads it, and not longer than that."""
    text = _text(value, kind)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _text(value: Any, kind: pa.DataType) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value[: LONGEST + 1]
    if isinstance(value, float):
        return f"{value:.3g}"
    if pt.is_fixed_size_list(kind):
        return f"{len(value):,} numbers: " + ", ".join(f"{number:.3g}" for number in value[:3]) + ", …"
    if isinstance(value, list):
        more = [f"and {len(value) - LISTED:,} more"] * (len(value) > LISTED)
        return "; ".join([*(_text(inner, kind.value_type) for inner in value[:LISTED]), *more]) or "none"
    if isinstance(value, dict):
        return _struct(value, kind)
    return str(value)


def _struct(value: dict[str, Any], kind: pa.DataType) -> str:
    if value.keys() >= {"label", "text", "score"}:  # an entity
        return f"{value['text'][:LONGEST]} ({value['label']}, {value['score']:.2f})"
    if all(isinstance(inner, float) for inner in value.values()):  # scores: the best ones
        best = sorted(value.items(), key=lambda item: -item[1])[:3]
        return ", ".join(f"{name} {score:.2f}" for name, score in best)
    return ", ".join(f"{name}: {_text(value[name], kind.field(name).type)}" for name in value)
