"""classify and zero-shot: precision, recall and F1 as scikit-learn has them, confusion, and calibration.

Averages go over the classes that occur, in the truth or among the answers; what is undefined (the precision of a class that is
never answered) is 0. In groups and resamples too: a class that does not occur there takes no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.evaluate.sums import Array, Sums, beside, dense, share, sparse

BINS = 15  # of equal width, for the expected calibration error
HEAD = 2  # columns before those of the classes: documents, and those that are wholly right
METRICS = (
    "accuracy",
    *(f"{kind}_{what}" for kind in ("micro", "macro", "weighted") for what in ("precision", "recall", "f1")),
)


@dataclass(frozen=True, slots=True)
class Labels:
    """Truth and answers as sets of classes a document."""

    names: tuple[str, ...]  # all classes that occur, sorted
    truth: Any  # csr_array [documents, classes] of 0 and 1
    answers: Any  # the same
    multi: bool  # whether a document may have none or several

    @classmethod
    def of(cls, truth: pa.Array, answers: pa.Array, multi: bool) -> Labels:
        """From columns of strings, or of lists of strings."""
        flat = [(_rows(column), _values(column)) for column in (truth, answers)]
        names = sorted({name for _, values in flat for name in values.unique().to_pylist()})
        true, given = (_matrix(rows, values, names, len(truth)) for rows, values in flat)
        return cls(tuple(names), true, given, multi)

    @property
    def sums(self) -> Sums:
        """documents, right ones; then of each class: hits, answers, truths."""
        hits = self.truth * self.answers
        wrong = np.asarray((self.truth + self.answers - 2 * hits).sum(axis=1)).ravel()
        head = dense(np.column_stack([np.ones(len(wrong)), wrong == 0]))
        return Sums(beside(head, hits, self.answers, self.truth), label_metrics)

    def classes(self) -> list[dict[str, Any]]:
        """Precision, recall, F1 and support of each class."""
        hits, answers, truths = _by_class(self.sums.total)
        precision, recall, f1 = prf(hits, answers, truths)
        columns = self.names, truths.astype(int).tolist(), precision.tolist(), recall.tolist(), f1.tolist()
        keys = "label", "support", "precision", "recall", "f1"
        return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]

    def confusion(self) -> dict[str, Any] | None:
        """How often the row's class was answered by the column's; None where a document may have several."""
        if self.multi:
            return None
        counts = np.asarray((self.truth.T @ self.answers).todense()).astype(int)
        return {"labels": list(self.names), "truth_by_answer": counts.tolist()}


def label_metrics(total: Array) -> dict[str, Array]:
    """From totals [..., 2 + 3 a class]."""
    count, right = total[..., 0], total[..., 1]
    return {"accuracy": share(right, count)} | averages(*_by_class(total))


def averages(hits: Array, answers: Array, truths: Array) -> dict[str, Array]:
    """Precision, recall and F1 over classes [..., classes]: micro, macro, weighted by the truth."""
    each = dict(zip(("precision", "recall", "f1"), prf(hits, answers, truths), strict=True))
    pooled = (column.sum(axis=-1) for column in (hits, answers, truths))
    micro = dict(zip(each, prf(*pooled), strict=True))
    occurs = (answers + truths) > 0
    any_ = occurs.any(axis=-1)
    found = {f"micro_{name}": np.where(any_, value, np.nan) for name, value in micro.items()}
    macro = {
        name: share((value * occurs).sum(axis=-1), occurs.sum(axis=-1).astype(np.float64))
        for name, value in each.items()
    }
    weighted = {name: share((value * truths).sum(axis=-1), truths.sum(axis=-1)) for name, value in each.items()}
    for kind, values in (("macro", macro), ("weighted", weighted)):
        found |= {f"{kind}_{name}": value for name, value in values.items()}
    return found


def prf(hits: Array, answers: Array, truths: Array) -> tuple[Array, Array, Array]:
    """Precision, recall, F1; 0 where undefined."""
    return share(hits, answers, 0.0), share(hits, truths, 0.0), share(2 * hits, answers + truths, 0.0)


def _by_class(total: Array) -> tuple[Array, Array, Array]:
    hits, answers, truths = np.split(total[..., HEAD:], 3, axis=-1)
    return hits, answers, truths


def calibration(right: npt.NDArray[Any], confidence: Array) -> Sums:
    """The expected calibration error: how far, on average, the score of an answer is from how often such answers are right."""
    edges = np.linspace(0, 1, BINS + 1)[1:-1]
    bin_ = np.searchsorted(edges, confidence)  # a score on an edge belongs below it
    rows = np.arange(len(bin_))
    columns = np.concatenate([bin_, bin_ + BINS])
    gap = np.asarray(right, np.float64) - confidence
    places = np.concatenate([rows, rows])
    return Sums(
        sparse(places, columns, np.concatenate([gap, np.ones(len(gap))]), (len(bin_), 2 * BINS)), _calibration_error
    )


def _calibration_error(total: Array) -> dict[str, Array]:
    gaps, counts = np.split(total, 2, axis=-1)
    return {"ece": share(np.abs(gaps).sum(axis=-1), counts.sum(axis=-1))}


def one_class(total: Array, at: int, classes: int) -> tuple[Array, Array, Array, Array]:
    """(documents, hits, answers, truths) of one of so many classes; other sums may follow theirs."""
    hits, answers, truths = (total[..., HEAD + block * classes + at] for block in range(3))
    return total[..., 0], hits, answers, truths


def _rows(column: pa.Array) -> npt.NDArray[np.int64]:
    """[values] the document of each."""
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        return np.flatnonzero(np.asarray(pc.is_valid(column)))
    return np.asarray(pc.list_parent_indices(column), np.int64)


def _values(column: pa.Array) -> pa.Array:
    nested = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    values = pc.list_flatten(column) if nested else column.drop_null()
    return values.cast(pa.string())


def _matrix(rows: npt.NDArray[np.int64], values: pa.Array, names: Sequence[str], count: int) -> Any:
    at = pc.index_in(values, pa.array(names, pa.string()))
    matrix = sparse(rows, np.asarray(at, np.int64), np.ones(len(rows)), (count, len(names)))
    matrix.data[:] = 1  # a label that is there twice is there
    return matrix
