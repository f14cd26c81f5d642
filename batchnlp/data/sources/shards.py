"""From runs to shards: near-equal pieces of large files, tiny files joined, or exactly the rows that were asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import groupby

from batchnlp.data.sources.base import Limits, Run, too_large
from batchnlp.types import Segment, Shard


def pack(files: Iterable[Iterable[Run]], limits: Limits) -> list[Shard]:
    """Shards of the runs of each file, in order."""
    groups = _exact(files, limits) if limits.exact else _joined(files, limits)
    return [Shard(index, _segments(group)) for index, group in enumerate(groups)]


def _exact(files: Iterable[Iterable[Run]], limits: Limits) -> Iterator[list[Run]]:
    for runs in files:
        for _, group in groupby(runs, key=lambda run: run.segment.start // limits.rows):
            yield list(group)


def _joined(files: Iterable[Iterable[Run]], limits: Limits) -> Iterator[list[Run]]:
    """The last group of a file waits: the next file may fit in beside it."""
    waiting: list[Run] = []
    for runs in files:
        for group in _balanced(list(runs), limits):
            if waiting and not (group[0].segment.start == 0 and _fits(waiting + group, limits)):
                yield waiting
                waiting = []
            waiting = waiting + group
    if waiting:
        yield waiting


def _balanced(runs: list[Run], limits: Limits) -> Iterator[list[Run]]:
    """As few groups as the limits allow, of about the same load."""
    loads = [max(run.segment.rows / limits.rows, run.size / limits.size) for run in runs]
    rows, size = sum(run.segment.rows for run in runs), sum(run.size for run in runs)
    target = sum(loads) / max(1, -(-rows // limits.rows), -(-size // limits.size))
    group: list[Run] = []
    done, parts = 0.0, 1
    rows = size = 0
    for run, load in zip(runs, loads, strict=True):
        full = rows + run.segment.rows > limits.rows or size + run.size > limits.size
        if group and (full or done + load / 2 > target * parts + 1e-9):
            yield group
            group, rows, size, parts = [], 0, 0, parts + 1
        group.append(run)
        done, rows, size = done + load, rows + run.segment.rows, size + run.size
    if group:
        yield group


def _fits(group: list[Run], limits: Limits) -> bool:
    return sum(run.segment.rows for run in group) <= limits.rows and sum(run.size for run in group) <= limits.size


def _segments(group: list[Run]) -> tuple[Segment, ...]:
    """Neighbouring runs become one segment, but a record that must not be loaded stays alone."""
    out: list[Segment] = []
    for segment, _ in group:
        last = out[-1] if out else None
        follows = last is not None and (last.file, last.stop) == (segment.file, segment.start)
        alone = segment.lost or too_large(segment) or (last is not None and too_large(last))
        if last is None or not follows or alone:
            out.append(segment)
        else:
            end = segment.offset + segment.length
            rows = last.rows + segment.rows
            out[-1] = dataclasses.replace(last, stop=segment.stop, rows=rows, length=end - last.offset)
    return tuple(out)
