"""The few numbers that a checkpoint is chosen by. `batchnlp evaluate` tells all others, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batchnlp.types import Int32

Span = tuple[int, int, int, int]  # document, label, start, end


def accuracy(truth: Int32, found: Int32) -> float:
    """Share of the rows that are right."""
    return float((truth == found).mean())


def macro_f1(truth: Int32, found: Int32, labels: int) -> float:
    """The mean F1 of the labels that are there, in truth or among the answers: as scikit-learn has it."""
    hits = np.bincount(truth[truth == found], minlength=labels)
    both = np.bincount(truth, minlength=labels) + np.bincount(found, minlength=labels)
    there = both > 0
    return float((2 * hits[there] / both[there]).mean())


def span_f1(truth: Sequence[Span], found: Sequence[Span]) -> dict[str, float]:
    """Strict: label, start and end must be right."""
    hits = len(set(truth) & set(found))
    precision, recall = hits / max(len(set(found)), 1), hits / max(len(set(truth)), 1)
    return {"precision": precision, "recall": recall, "f1": 2 * hits / max(len(set(truth)) + len(set(found)), 1)}
