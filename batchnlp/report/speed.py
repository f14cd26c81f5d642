"""How fast a run was, from the times of its commits: over all its invocations, without the pauses between them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchnlp.data.invocations import Invocation
from batchnlp.report.page import Speed, Timeline
from batchnlp.types import Int64, Part, Retried

BINS = 60  # of the timeline
FEWEST = 4  # commits that make a timeline


class Log:
    """What the commits of a run tell, in a few numbers each: a run may have a million."""

    def __init__(self) -> None:
        self.shards, self.ok, self.dead = (array("q") for _ in range(3))  # of each shard
        self.rows, self.tokens, self.who = (array("q") for _ in range(3))  # of each commit: a retry is one of its own
        self.at = array("d")
        self.executed = 0
        self.names: dict[str, int] = {}  # of invocations
        self.notes: set[str] = set()

    def add(self, part: Part) -> None:
        """One more."""
        for column, value in zip((self.shards, self.ok, self.dead), (part.shard, part.ok, part.dead), strict=True):
            column.append(value)
        for layer in part.layers if isinstance(part, Retried) else [part]:
            numbers = layer.rows, layer.tokens, self.names.setdefault(layer.invocation, len(self.names))
            for column, value in zip((self.rows, self.tokens, self.who), numbers, strict=True):
                column.append(value)
            self.at.append(layer.committed)
        self.executed += part.executed
        self.notes |= {part.note} - {""}

    def per_shard(self, column: array[int]) -> Int64:
        """A column by the number of the shard."""
        out = np.zeros(max(self.shards, default=-1) + 1, np.int64)
        out[np.asarray(self.shards, np.int64)] = column
        return out

    def by(self, name: str) -> int:
        """Shards that an invocation committed."""
        return int((np.asarray(self.who) == self.names.get(name, -1)).sum())


@dataclass(frozen=True, slots=True)
class Stretch:
    """The work of one invocation."""

    name: str
    start: float
    at: Any  # [commits] float64, increasing
    rows: Any  # [commits]
    tokens: Any  # [commits]

    @property
    def seconds(self) -> float:
        """From the first lease to the last commit."""
        return float(self.at[-1] - self.start)


def stretches(log: Log, entries: Sequence[Invocation]) -> list[Stretch]:
    """The work of each invocation, in the order of time; nothing of commits that do not tell when they were made.

    What is committed before its invocation had a replica was finished by an earlier one, and is left out. Where nobody
    noted when the first replica was ready, the first commit stands for it.
    """
    leased = {entry.invocation: entry.leased for entry in entries}
    at, who = np.asarray(log.at, np.float64), np.asarray(log.who, np.int64)
    found = []
    for name, number in log.names.items():
        mine = np.flatnonzero((who == number) & (at > 0))
        if not len(mine) or not name:
            continue
        mine = mine[np.argsort(at[mine], kind="stable")]
        start = leased.get(name) or float(at[mine[0]])
        mine = mine[at[mine] > start]
        if len(mine):
            rows, tokens = np.asarray(log.rows, np.int64)[mine], np.asarray(log.tokens, np.int64)[mine]
            found.append(Stretch(name, start, at[mine], rows, tokens))
    return sorted(found, key=lambda stretch: stretch.start)


def speed(work: Sequence[Stretch], log: Log, entries: Sequence[Invocation]) -> Speed:
    """Rates over the time at work, and what the invocations measured by themselves."""
    seconds = sum(stretch.seconds for stretch in work)
    rows, tokens = (float(sum(getattr(s, name).sum() for s in work)) for name in ("rows", "tokens"))
    phases: dict[str, float] = {}
    for entry in entries:
        for name, value in entry.result.get("seconds", {}).items():
            phases[name] = phases.get(name, 0.0) + float(value)
    padding = 1 - sum(log.tokens) / log.executed if log.executed else None
    per_second = (rows / seconds, tokens / seconds) if seconds else (0.0, 0.0)
    return Speed(seconds, *per_second, padding, _busy(work, entries), phases)


def _busy(work: Sequence[Stretch], entries: Sequence[Invocation]) -> float:
    """The mean of what the invocations say, by the time that each was at work."""
    told = {entry.invocation: float(entry.result.get("device_busy", 0.0)) for entry in entries if entry.result}
    known = [(told[stretch.name], stretch.seconds) for stretch in work if stretch.name in told]
    total = sum(seconds for _, seconds in known)
    return sum(busy * seconds for busy, seconds in known) / total if total else 0.0


def timeline(work: Sequence[Stretch]) -> Timeline | None:
    """Documents a second, one stretch after the other; None of so few commits that a curve would say nothing."""
    commits = sum(len(stretch.at) for stretch in work)
    seconds = sum(stretch.seconds for stretch in work)
    if commits < FEWEST or not seconds:
        return None
    times, done, starts, offset, rows = [0.0], [0.0], [], 0.0, 0.0
    for stretch in work:
        starts.append((offset, stretch.start))
        times += (offset + stretch.at - stretch.start).tolist()
        done += (rows + np.cumsum(stretch.rows)).tolist()
        offset, rows = times[-1], done[-1]
    edges = np.linspace(0, seconds, min(BINS, commits // 2) + 1)  # between two commits the rows came evenly
    rates = np.diff(np.interp(edges, times, done)) / np.diff(edges)
    return Timeline(tuple(map(float, rates)), seconds, tuple(starts), rows / seconds)
