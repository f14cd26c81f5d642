"""ner: entities against entities, by their places in the text.

strict    label, start and end are the same; averages as for classes
partial   of the same label and overlapping: whole where start and end are the same, else half (as in SemEval 2013, task 9, but
          with the label); each entity counts once
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from batchnlp.evaluate.labels import averages, prf
from batchnlp.evaluate.sums import Array, Sums, sparse

HALF = 0.5
AVERAGES = tuple(f"{kind}_{what}" for kind in ("micro", "macro", "weighted") for what in ("precision", "recall", "f1"))
METRICS = (*(f"strict_{name}" for name in AVERAGES), "partial_precision", "partial_recall", "partial_f1")
Span = tuple[int, int, str]


class Spans:
    """Truth and answers of each document."""

    def __init__(self, truth: Sequence[Sequence[Span]], answers: Sequence[Sequence[Span]]) -> None:
        self.truth, self.answers = truth, answers
        both = (*truth, *answers)
        self.names = tuple(sorted({label for spans in both for _, _, label in spans}))

    @property
    def sums(self) -> Sums:
        """Of each class hits, answers, truths; then the partial credit, answers, truths of all."""
        at = {name: i for i, name in enumerate(self.names)}
        width = 3 * len(at) + 3
        places: list[tuple[int, int, float]] = []
        for row, (truth, answers) in enumerate(zip(self.truth, self.answers, strict=True)):
            gold, given = set(truth), set(answers)
            for block, spans in enumerate((gold & given, given, gold)):
                counts = Counter(label for _, _, label in spans)
                places += [(row, block * len(at) + at[label], n) for label, n in counts.items()]
            partial = credit(gold, given), len(given), len(gold)
            places += [(row, width - 3 + i, n) for i, n in enumerate(partial) if n]
        rows, columns, values = (
            (np.array(column) for column in zip(*places, strict=True)) if places else (np.empty(0, int),) * 3
        )
        return Sums(sparse(rows, columns, values, (len(self.truth), width)), span_metrics)

    def by_name(self, texts: Sequence[str], known: set[str]) -> dict[str, Spans]:
        """The entities that `known` names, and the others: in the truth and among the answers."""

        def chosen(side: Sequence[Sequence[Span]], learnt: bool) -> list[list[Span]]:
            pairs = zip(texts, side, strict=True)
            return [[s for s in spans if (text[s[0] : s[1]] in known) == learnt] for text, spans in pairs]

        return {
            title: Spans(chosen(self.truth, learnt), chosen(self.answers, learnt))
            for title, learnt in (("learnt", True), ("new", False))
        }

    def classes(self) -> list[dict[str, Any]]:
        """Strict precision, recall, F1 and support of each class."""
        hits, answers, truths = np.split(self.sums.total[:-3], 3)
        columns = self.names, truths.astype(int).tolist(), *(values.tolist() for values in prf(hits, answers, truths))
        keys = "label", "support", "precision", "recall", "f1"
        return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]


def span_metrics(total: Array) -> dict[str, Array]:
    """From totals [..., 3 a class, 3]."""
    strict = averages(*np.split(total[..., :-3], 3, axis=-1))
    some = (total[..., -2] + total[..., -1]) > 0
    partial = prf(*(total[..., i] for i in (-3, -2, -1)))
    named = zip(("partial_precision", "partial_recall", "partial_f1"), partial, strict=True)
    return {f"strict_{name}": value for name, value in strict.items()} | {
        name: np.where(some, value, np.nan) for name, value in named
    }


def credit(truth: set[Span], answers: set[Span]) -> float:
    """What the answers of a document are worth, in entities."""
    exact = truth & answers
    found, left = float(len(exact)), sorted(answers - exact)
    for start, end, label in sorted(truth - exact):
        for other in left:
            if other[2] == label and other[0] < end and start < other[1]:
                left.remove(other)
                found += HALF
                break
    return found


def flaw(spans: Sequence[Span], length: int | None) -> str:
    """Why true entities cannot be right: outside of their text, empty, or crossing; "" where they can."""
    for start, end, _ in spans:
        if start < 0 or (length is not None and end > length):
            return "outside of the text"
        if end <= start:
            return "empty"
    for i, (start, end, _) in enumerate(ordered := sorted(spans)):
        if any(start < other < end < stop for other, stop, _ in ordered[i + 1 :]):
            return "crossing"
    return ""
