"""The text beside a document that is learnt with it: what is to be written, or the other one of a pair."""

from __future__ import annotations

import pyarrow as pa

from batchnlp.data.sources.columns import is_text
from batchnlp.errors import SourceError
from batchnlp.tasks.base import present
from batchnlp.train.corpus import Rows, Verdict


def check_texts(schema: pa.Schema, column: str, noun: str) -> None:
    """SourceError where the column, `noun` to a user, holds something else."""
    kind = schema.field(column).type
    if not is_text(kind):
        raise SourceError(f"the {noun} column {column} is {kind}, not text", f"choose another {noun}")


def texts_of(rows: Rows, column: str) -> pa.Array:
    """[rows]"""
    return rows.column(column).cast(pa.large_string())


def judge_texts(rows: Rows, column: str, noun: str) -> Verdict:
    """Rows without such a text: `null_<noun>`, `empty_<noun>`, `blank_<noun>`."""
    _, failures = present(texts_of(rows, column))
    return Verdict({f.doc: f.code.replace("_text", f"_{noun}") for f in failures}, {})
