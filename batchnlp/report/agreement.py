"""What two runs say of the same documents, by their ids: how many results are the same, and which labels became which."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from itertools import islice
from typing import Any

from batchnlp.data.collect import read_columns
from batchnlp.data.ledger import Ledger
from batchnlp.errors import CorruptError, OutputError
from batchnlp.report.page import Agreement
from batchnlp.report.results import evenly
from batchnlp.types import Int64

ROWS = 50_000  # that are looked at in each
MOVES = 8
COLUMNS = {"classify": "label", "zero-shot": "label", "ner": "entities", "qa": "answer", "summarize": "summary",
           "translate": "translation", "generate": "text", "chat": "reply"}  # fmt: skip


def agreement(a: Ledger, b: Ledger, kinds: tuple[str, str], rows: tuple[Int64, Int64]) -> Agreement | None:
    """None where they have no result in common that could be compared. `rows`: results of each shard."""
    column = COLUMNS.get(kinds[0])
    if column is None or column != COLUMNS.get(kinds[1]):
        return None
    old, new = _values(a, column, rows[0]), _values(b, column, rows[1])
    shared = old.keys() & new.keys()
    if not shared:
        return None
    moves = Counter((old[key], new[key]) for key in shared if old[key] != new[key])
    most = sorted(moves.items(), key=lambda item: (-item[1], item[0])) if column == "label" else []
    told = tuple((was, now, n) for (was, now), n in most[:MOVES])
    return Agreement(column, len(shared), len(shared) - moves.total(), told)


def _values(ledger: Ledger, column: str, rows: Int64) -> dict[str, str]:
    """id → result, of shards from all over the corpus; ids that come twice stand for nothing, and are left out."""
    total, found, double = int(rows.sum()), dict[str, str](), set[str]()
    there = rows.nonzero()[0]
    chosen = evenly(there, max(len(there) * ROWS // max(total, 1), 1))
    for shard in chosen.tolist():
        with suppress(CorruptError, OutputError, KeyError):
            for table in read_columns(ledger, ledger.committed(shard), ["id", column]):
                pairs = zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True)
                for key, value in islice(pairs, 2 * ROWS):
                    double |= {str(key)} & found.keys()
                    found[str(key)] = _text(value)
    return {key: value for key, value in found.items() if key not in double}


def _text(value: Any) -> str:
    if isinstance(value, list):  # entities: their scores may differ by rounding
        return str([(one["label"], one["start"], one["end"]) for one in value])
    return str(value)
