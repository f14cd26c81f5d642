"""Fairness: each metric by group, and how far the groups are apart, as fairlearn's MetricFrame has it.

demographic parity   the share of documents that get a class; how far apart it is between the group with the most and the one with
                     the least
equalised odds       the same of the share of hits among those of the class, and of false alarms among the others; the larger one
difference           the same of any other metric

With more than two classes each is asked about in turn, and the class that is farthest apart counts. A group with few documents
is insufficient: its figures would be noise, so there are none, and it takes no part in the differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from batchnlp.evaluate.labels import one_class
from batchnlp.evaluate.sums import Array, Metric, Sums, interval, known, measured, resampled, share

FEWEST = 30  # documents of a group that is judged
FEWEST_OF_A_CLASS = 10  # and of those of the class, or of the others, of which a share is asked
PARITY, ODDS = "demographic_parity_difference", "equalized_odds_difference"


@dataclass(frozen=True, slots=True)
class Group:
    """A group's figures. Filled by `compare`."""

    group: str
    documents: int
    insufficient: bool
    metrics: dict[str, Metric] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The groups of a column (or of several columns crossed)."""

    by: str
    groups: list[Group]
    differences: dict[str, Metric]  # between groups; None where fewer than two can be judged
    farthest: dict[str, str]  # difference → the class that is farthest apart


def compare(by: str, names: Sequence[str], sums: Sums, classes: Sequence[str]) -> Comparison:
    """`names` is each document's group; `classes` those of label sums, empty for all others."""
    values, at = np.unique(np.array(names, np.str_), return_inverse=True)
    parts = [sums.take(np.flatnonzero(at == i)) for i in range(len(values))]
    large = {i: resampled(part, stream=i) for i, part in enumerate(parts) if len(part) >= FEWEST}
    groups = [
        Group(str(name), len(part), i not in large, measured(part, large[i]) if i in large else {})
        for i, (name, part) in enumerate(zip(values, parts, strict=True))
    ]
    names_ = [f"{name}_difference" for name in sums.metrics(sums.total)] + ([PARITY, ODDS] if classes else [])
    if len(large) < 2:
        return Comparison(by, groups, dict.fromkeys(names_, Metric(None)), {})
    totals = np.stack([parts[i].total for i in large])  # [groups, width]
    draws = np.stack(list(large.values()))  # [groups, resamples, width]
    points, drawn = sums.metrics(totals), sums.metrics(draws)
    differences = {
        f"{name}_difference": Metric(known(float(_spread(value))), *interval(_spread(drawn[name])))
        for name, value in points.items()
    }
    farthest: dict[str, str] = {}
    if classes:
        differences |= _parity(totals, draws, classes, farthest)
    return Comparison(by, groups, differences, farthest)


def crossed(groups: dict[str, list[str]]) -> dict[str, list[str]]:
    """The columns of groups, and all of them together where there are several."""
    if len(groups) < 2:
        return groups
    together = [" / ".join(row) for row in zip(*groups.values(), strict=True)]
    return groups | {",".join(groups): together}


def _parity(totals: Array, drawn: Array, classes: Sequence[str], farthest: dict[str, str]) -> dict[str, Metric]:
    """The two differences, of the class that is farthest apart."""
    found: dict[str, Metric] = {}
    for name, apart in ((PARITY, _selection), (ODDS, _odds)):
        points = np.array([apart(totals, i, len(classes)) for i in range(len(classes))])
        if np.isnan(points).all():
            found[name] = Metric(None)
            continue
        draws = np.stack([apart(drawn, i, len(classes)) for i in range(len(classes))])
        sound = ~np.isnan(draws).all(axis=0)
        found[name] = Metric(float(np.nanmax(points)), *interval(np.nanmax(draws[:, sound], axis=0)))
        farthest[name] = classes[int(np.nanargmax(points))]
    return found


def _selection(totals: Array, at: int, classes: int) -> Array:
    """[...] how far apart the shares of documents with a class are; totals [groups, ..., width]."""
    count, _, answers, _ = one_class(totals, at, classes)
    return _spread(share(answers, count))


def _odds(totals: Array, at: int, classes: int) -> Array:
    """The same for its hits among those of the class, and its false alarms among the others."""
    count, hits, answers, truths = one_class(totals, at, classes)
    others = count - truths
    rates = (hits, truths), (answers - hits, others)
    spreads = np.stack(
        [_spread(np.where(whole >= FEWEST_OF_A_CLASS, share(part, whole), np.nan)) for part, whole in rates]
    )
    sound = ~np.isnan(spreads)
    return np.where(sound.any(axis=0), np.where(sound, spreads, -np.inf).max(axis=0), np.nan)


def _spread(values: Array) -> Array:
    """[...] the largest less the smallest of [groups, ...]; NaN where fewer than two are known."""
    sound = ~np.isnan(values)
    apart = np.where(sound, values, -np.inf).max(axis=0) - np.where(sound, values, np.inf).min(axis=0)
    return np.where(sound.sum(axis=0) > 1, apart, np.nan)
