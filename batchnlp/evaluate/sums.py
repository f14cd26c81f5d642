"""Metrics as functions of sums: what makes intervals, groups and paired comparisons the same few lines for every task.

Each document adds one row of numbers (is it right, of which class, how many of its words are found, ...), and every metric
is computed from the total of the rows. So a metric of a group is that of the group's total, and one of a resample that of
the resample's total: `weights @ rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batchnlp.evaluate.library import need

Array = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Metrics = Callable[
    [Array], dict[str, Array]
]  # totals [..., width] → by name [...], NaN where there is nothing to judge

RESAMPLES = 1000
SEED = 0
LEVEL = 95  # per cent of the resamples that an interval holds
BLOCK = 4_000_000  # numbers of the resamples that are at work together


@dataclass(frozen=True, slots=True)
class Sums:
    """What a task's metrics are made of. Filled by the task's judge."""

    rows: Any  # csr_array [documents, width]
    metrics: Metrics

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    @property
    def total(self) -> Array:
        """[width]"""
        return np.asarray(self.rows.sum(axis=0), np.float64)

    def take(self, chosen: npt.NDArray[Any]) -> Sums:
        """The sums of some documents only, by position or by mask."""
        return Sums(self.rows[chosen], self.metrics)

    def values(self) -> dict[str, float]:
        """The metrics of all documents."""
        return {name: float(value) for name, value in self.metrics(self.total).items()}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric with its interval: of 1,000 resamples of the documents, seeded, 95 % lie between `low` and `high`."""

    value: float | None  # None where there is nothing to judge
    low: float | None = None
    high: float | None = None


def sparse(rows: npt.NDArray[Any], columns: npt.NDArray[Any], values: npt.NDArray[Any], shape: tuple[int, int]) -> Any:
    """A csr_array from places and values; what falls on one place is added."""
    return need("scipy.sparse").csr_array((values.astype(np.float64), (rows, columns)), shape=shape)


def dense(values: npt.NDArray[Any]) -> Any:
    """A csr_array from [documents, width]."""
    return need("scipy.sparse").csr_array(np.asarray(values, np.float64))


def beside(*parts: Any) -> Any:
    """Matrices of the same documents as one."""
    return need("scipy.sparse").hstack(parts, format="csr")


def joined(parts: Sequence[Sums]) -> Sums:
    """Several sums of the same documents as one, so that they are resampled together."""
    if len(parts) == 1:
        return parts[0]
    rows = beside(*(part.rows for part in parts))
    ends = np.cumsum([0, *(part.rows.shape[1] for part in parts)])

    def metrics(total: Array) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for part, start, end in zip(parts, ends[:-1], ends[1:], strict=True):
            found |= part.metrics(total[..., start:end])
        return found

    return Sums(rows, metrics)


def resampled(sums: Sums, stream: int = 0) -> Array:
    """[resamples, width] the totals of as many documents, drawn with replacement. A stream always draws the same for as many
    documents, so that two models are compared on the same ones."""
    count, width = sums.rows.shape
    rng, step = np.random.default_rng([SEED, stream]), max(1, min(RESAMPLES, BLOCK // max(count, width, 1)))
    found = []
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        drawn = rng.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)
        found.append(np.asarray(weights @ sums.rows))
    return np.concatenate(found)


def measured(sums: Sums, draws: Array | None = None) -> dict[str, Metric]:
    """Every metric with its interval; `draws` are the resampled totals, where they are there already."""
    if not len(sums):
        return {name: Metric(None) for name in sums.metrics(sums.total)}
    drawn = sums.metrics(resampled(sums) if draws is None else draws)
    return {name: Metric(known(value), *interval(drawn[name])) for name, value in sums.values().items()}


def interval(draws: Array) -> tuple[float | None, float | None]:
    """The middle 95 % of the draws that have a value."""
    sound = draws[~np.isnan(draws)]
    if not len(sound):
        return None, None
    low, high = np.percentile(sound, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def known(value: float) -> float | None:
    """None for NaN, which JSON has not."""
    return None if np.isnan(value) else float(value)


def share(part: Array, whole: Array, empty: float = np.nan) -> Array:
    """part / whole, `empty` where there is no whole."""
    there = whole > 0
    return np.where(there, part / np.where(there, whole, 1), empty)
