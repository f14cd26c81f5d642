"""What is otherwise than in another run, and whether that is more than chance and worth a look.

A share is notable where it moved by so many points and by four standard errors; the rest by a ratio. So a small job does not
cry wolf every morning, and a large one not for a tenth of a percent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from batchnlp.report.page import Bars, Change, Digest, Histogram, Number
from batchnlp.report.words import brief, count, difference, number, points, ratio, share

POINTS = 0.05  # a share of the results has moved
DEAD_POINTS = 0.001  # the share of dead letters has
ERRORS = 4.0  # standard errors
ENOUGH = 100  # documents that a median stands on
MANY = 8  # labels that are listed
LENGTHS = 1.25  # ratio from which lengths are otherwise
APART = 0.2  # and of numbers that would have to move to be spread as before
ROWS = 1.5  # and rows
SLOWER = 0.75
AT_WORK = 5.0  # seconds in both runs, for a speed to say anything
Fact = TypeVar("Fact", Bars, Histogram, Number)


def changes(before: Digest, after: Digest) -> list[Change]:
    """From one run to the other, most important first."""
    return [
        *_rows(before, after), *_dead(before, after), *_results(before, after), *_speed(before, after),
    ]  # fmt: skip


def settings_changed(before: Digest, after: Digest) -> list[Change]:
    """Settings, model and libraries that differ."""
    found = []
    for old, new in ((before.settings, after.settings), (before.versions, after.versions)):
        for key in dict.fromkeys([*old, *new]):
            if old.get(key) != new.get(key):
                found.append(Change(key, old.get(key, "-"), new.get(key, "-"), ""))
    return found


def _rows(before: Digest, after: Digest) -> Iterator[Change]:
    if before.came is None or after.came is None:
        return
    a, b = before.came, after.came
    notable = ""
    if not a / ROWS <= b <= a * ROWS:
        notable = f"{count(b)} rows came in, {count(a)} before"
    yield Change("rows in", count(a), count(b), ratio(a, b), notable, chief=True)


def _dead(before: Digest, after: Digest) -> Iterator[Change]:
    lost = _share("dead letters", before.dead, before.known, after.dead, after.known, DEAD_POINTS)
    yield replace(lost, chief=True)
    for code in sorted(before.codes.keys() | after.codes.keys()):
        a, b = before.codes.get(code, 0), after.codes.get(code, 0)
        yield _share(f"dead letters: {code}", a, before.known, b, after.known, DEAD_POINTS)


def _results(before: Digest, after: Digest) -> Iterator[Change]:
    for bars, was in _pairs(before.results.bars, after.results.bars):
        yield from _bars(was, bars)
    for spread, earlier in _pairs(before.results.histograms, after.results.histograms):
        yield from _spread(earlier, spread)
    for fact, once in _pairs(before.results.numbers, after.results.numbers):
        if fact.kind == "share":
            yield _share(fact.title, once.value * once.of, once.of, fact.value * fact.of, fact.of, POINTS)
        else:
            yield Change(fact.title, number(once.value), number(fact.value), ratio(once.value, fact.value))


def _speed(before: Digest, after: Digest) -> Iterator[Change]:
    old, new = before.speed, after.speed
    if not old.docs_per_second or not new.docs_per_second:
        return
    notable = ""
    slower = new.tokens_per_second < SLOWER * old.tokens_per_second if old.tokens_per_second else False
    slower &= min(old.seconds, new.seconds) >= AT_WORK
    if slower and new.docs_per_second < SLOWER * old.docs_per_second:  # not because documents are longer
        notable = f"{brief(new.docs_per_second)} documents a second, {brief(old.docs_per_second)} before"
    a, b = old.docs_per_second, new.docs_per_second
    yield Change("documents a second", brief(a), brief(b), ratio(a, b), notable, chief=True)
    a, b = old.tokens_per_second, new.tokens_per_second
    yield Change("tokens a second", brief(a), brief(b), ratio(a, b))
    if old.padding is not None and new.padding is not None:
        yield Change("padding", share(old.padding), share(new.padding), points(new.padding - old.padding))


def _share(what: str, a: float, of_a: float, b: float, of_b: float, least: float) -> Change:
    p, q = a / max(of_a, 1), b / max(of_b, 1)
    notable = ""
    if abs(q - p) >= least and _beyond_chance(p, of_a, q, of_b):
        notable = f"{what}: {share(q)}, {share(p)} before"
    return Change(what, share(p), share(q), points(q - p), notable)


def _beyond_chance(p: float, n: float, q: float, m: float) -> bool:
    if not n or not m:
        return False
    pooled = (p * n + q * m) / (n + m)
    error = math.sqrt(max(pooled * (1 - pooled), 1e-9) * (1 / n + 1 / m))
    return abs(q - p) > ERRORS * error


def _bars(before: Bars, after: Bars) -> Iterator[Change]:
    """The names whose shares moved most; nothing of names that are texts, of which there are always others."""
    old, new = shares(before), shares(after)
    partly = after.rest or before.rest  # then a name that is not listed is not known to be gone
    names = old.keys() & new.keys() if partly else old.keys() | new.keys()
    for name in sorted(names, key=lambda name: (-abs(new.get(name, 0.0) - old.get(name, 0.0)), name))[:MANY]:
        a, b = old.get(name, 0.0), new.get(name, 0.0)
        what = f"{after.title.lower()}: {name}"
        yield _share(what, a * before.of, before.of, b * after.of, after.of, POINTS)


def shares(bars: Bars) -> dict[str, float]:
    """The share of each name."""
    return {name: n / max(bars.of, 1) for name, n in bars.counts}


def _spread(before: Histogram, after: Histogram) -> Iterator[Change]:
    title = f"{after.title.lower()}, {after.unit}"
    lengths = before.edges[-1] > 1  # not scores and cosines, of which ratios mean nothing
    longer = lengths and not before.median / LENGTHS <= after.median <= before.median * LENGTHS
    notable = min(before.of, after.of) >= ENOUGH and (longer or apart(before, after) > APART)
    told = (("median", before.median, after.median), ("95 % are below", before.p95, after.p95))
    most = max(told, key=lambda one: _moved(*one[1:], lengths=lengths))
    for what, a, b in told:
        why = f"{title}: {what} {number(b)}, {number(a)} before" if notable and what == most[0] else ""
        yield Change(f"{title}: {what}", number(a), number(b), ratio(a, b) if lengths else difference(a, b), why)


def _moved(before: float, after: float, *, lengths: bool) -> float:
    return abs(math.log((after + 1) / (before + 1))) if lengths else abs(after - before)


def apart(before: Histogram, after: Histogram) -> float:
    """The share of the numbers that would have to move for one to become the other: 0 the same, 1 apart."""
    bins = {edge: 0.0 for edge in (*before.edges[:-1], *after.edges[:-1])}
    for spread, sign in ((before, -1), (after, 1)):
        for edge, n in zip(spread.edges, spread.counts, strict=False):
            bins[edge] += sign * n / max(spread.of, 1)
    return sum(map(abs, bins.values())) / 2


def _pairs(before: tuple[Fact, ...], after: tuple[Fact, ...]) -> Iterator[tuple[Fact, Fact]]:
    """(of this run, of the one before) of the same name."""
    old: Mapping[str, Fact] = {fact.name: fact for fact in before}
    return ((fact, old[fact.name]) for fact in after if fact.name in old)
