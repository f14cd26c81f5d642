"""What "equal" means for two ways of computing the same answers, and how far apart two answers are.

    float32       model outputs within EXACT of the largest, scores within EXACT, vectors within EXACT of their length
    other dtypes  vectors: a cosine of COSINE; all else within SLACK times what the dtype alone changes, measured on the
                  same documents one at a time; where it changes more than COARSE of all labels or tokens by itself, it is
                  too coarse for the model, and nothing can be told
    always        the same labels, spans and tokens, unless the reference itself is undecided by no more than that

A wrong mask, position or border moves answers by far more than either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from batchnlp.types import Float32

EXACT = 1e-4  # the tests hold small models to 1e-5; deep ones sum more, and on a GPU in another order
COSINE = 0.999
COARSE = 0.1
SLACK = 4.0  # the largest deviation of a sample is not the largest there is

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was compared."""

    what: str
    value: float
    limit: float
    ok: bool


def allowed(noise: float | None, scale: float = 1.0) -> float:
    """How far numbers may be apart; `noise` is what the dtype alone changes, None for float32."""
    return EXACT * scale if noise is None else max(EXACT * scale, SLACK * noise)


def deviations(kind: str, a: Float32, b: Float32) -> Any:
    """[rows] how far two raw answers of a kind are apart, at the least where only labels and their probabilities are known."""
    if kind != "token_scores":
        return np.abs(a - b).max(1, initial=0.0)
    by = np.abs(a[:, 1] - b[:, 1])
    surest = np.maximum(a[:, 1], b[:, 1])  # another label has what is left, so this one led by so much
    return np.where(a[:, 0] == b[:, 0], by, np.maximum(by, 2 * surest - 1))


def largest(kind: str, values: Float32) -> float:
    """The largest number that a raw answer of this kind has in it, 1 at the least."""
    return 1.0 if kind == "token_scores" else max(1.0, float(np.abs(values).max(initial=0.0)))


def farthest(a: Float32, b: Float32) -> float:
    """The largest difference of two arrays."""
    return float(np.abs(a - b).max(initial=0.0))


def distances(a: Float32, b: Float32) -> Any:
    """[rows] the distances of vectors [rows, dim], by the lengths of the second ones."""
    return np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-12)


def cosines(a: Float32, b: Float32) -> Any:
    """[rows] the cosines of vectors [rows, dim]."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return (x * y).sum(1) / np.maximum(norms, 1e-24)


def compare(a: Row, b: Row) -> tuple[list[str], float]:
    """(columns that differ in more than their numbers, the largest difference of their numbers); vectors are told by
    their cosine, and left out."""
    names, far = [], 0.0
    for name in b:
        if name != "embedding":
            same, score = _alike(a[name], b[name])
            far = max(far, score)
            names += [] if same else [name]
    return names, far


def _alike(a: Any, b: Any) -> tuple[bool, float]:
    """(whether all but the floats is the same, the largest difference of the floats)."""
    if isinstance(a, float) and isinstance(b, float):
        return True, abs(a - b)
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        pairs = [_alike(a[key], b[key]) for key in a]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [_alike(x, y) for x, y in zip(a, b, strict=True)]
    else:
        return a == b, 0.0
    return all(same for same, _ in pairs), max((far for _, far in pairs), default=0.0)


def margin(row: Row) -> float | None:
    """How far the two best labels of a row are apart; None where it does not have all scores."""
    scores = row.get("scores")
    if not isinstance(scores, dict) or len(scores) < 2:
        return None
    best, second = sorted(scores.values(), reverse=True)[:2]
    return float(best - second)
