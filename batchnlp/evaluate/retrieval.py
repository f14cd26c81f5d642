"""embed: does a vector find the documents that belong with its own?

Each document in turn asks, and all others answer by their cosine. Relevant are those of the same label; or, where the labels
are lists, those whose ids the list names. A document to which nothing is relevant asks nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from batchnlp.evaluate.sums import SEED, Sums
from batchnlp.evaluate.texts import means

DEPTH = 10
QUESTIONS = 10_000  # documents that ask at the most, drawn with the seed
BLOCK = 256  # of them at a time
METRICS = (f"ndcg_at_{DEPTH}", f"recall_at_{DEPTH}")
Int = npt.NDArray[np.int64]


class Relevance(Protocol):
    """Which documents belong with which."""

    asks: npt.NDArray[np.bool_]  # [documents] whether there is any

    def of(self, row: int) -> Int:
        """Their positions."""


def retrieval(vectors: npt.NDArray[np.float32], relevant: Relevance) -> tuple[Sums, Int]:
    """(nDCG and recall among the first ten, the documents that asked)."""
    asking = np.flatnonzero(relevant.asks)
    if len(asking) > QUESTIONS:
        asking = np.sort(np.random.default_rng(SEED).choice(asking, QUESTIONS, replace=False))
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    scores: list[tuple[float, float]] = []
    for start in range(0, len(asking), BLOCK):
        block = asking[start : start + BLOCK]
        cosine = unit[block] @ unit.T
        cosine[np.arange(len(block)), block] = -np.inf  # nobody finds oneself
        scores += [quality(row, relevant.of(int(at))) for row, at in zip(cosine, block, strict=True)]
    return means(METRICS, np.array(scores, np.float64).reshape(-1, 2)), asking


def quality(cosine: npt.NDArray[np.float32], relevant: Int) -> tuple[float, float]:
    """(nDCG, recall) among the first ten."""
    depth = min(DEPTH, len(cosine) - 1)
    first = np.argpartition(-cosine, depth - 1)[:depth]
    first = first[np.argsort(-cosine[first], kind="stable")]
    hits = np.isin(first, relevant)
    gain = 1 / np.log2(np.arange(depth) + 2)
    best = gain[: min(depth, len(relevant))].sum()
    return float((hits * gain).sum() / best), float(hits.sum() / len(relevant))


class ByLabel:
    """The other documents of the same label."""

    def __init__(self, labels: Sequence[str]) -> None:
        names, self._label = np.unique(np.array(labels, np.str_), return_inverse=True)
        self._members = [np.flatnonzero(self._label == i) for i in range(len(names))]
        self.asks = np.array([len(found) > 1 for found in self._members], bool)[self._label]

    def of(self, row: int) -> Int:
        """Without the document itself."""
        found = self._members[self._label[row]]
        return np.asarray(found[found != row], np.int64)


class ByIds:
    """The documents that a list names."""

    def __init__(self, lists: Sequence[Sequence[str]], ids: Sequence[str]) -> None:
        place = {name: row for row, name in enumerate(ids)}
        self._found = [np.array(sorted({place[n] for n in names if n in place} - {row}), np.int64)
                       for row, names in enumerate(lists)]  # fmt: skip
        self.unknown = sum(name not in place for names in lists for name in names)
        self.asks = np.array([len(found) > 0 for found in self._found], bool)

    def of(self, row: int) -> Int:
        """Without the document itself."""
        return self._found[row]
