"""Named points at which a test can make the program fail. Free when none is switched on, as it is everywhere but in tests.

    BATCHNLP_FAILPOINTS="forward=kill@2; commit=exit#/tmp/once"

switches on, as NAME=ACTION with, in this order and where wanted:

    @N      only from the N-th time on that this process comes there
    #PATH   only in the process that comes there first, which this file remembers; over all processes that share it
    ?TEXT   only where one of the documents at hand has TEXT in it

Actions: `kill` (SIGKILL), `exit` (as a library would that calls exit), `hang`, `sleep:SECONDS`, `raise`, `oom`.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

VARIABLE = "BATCHNLP_FAILPOINTS"
NAMES = {
    "load": "a worker, before it loads its model",
    "read": "a worker, before it reads a shard",
    "encode": "a worker, before it tokenises documents",
    "forward": "a worker, before documents go into the model",
    "write": "a worker, when the files of a part are written and its part.json is not",
    "written": "a worker, when the part is written and the driver does not know of it",
    "handed": "a worker, when it has handed the part over",
    "commit": "the driver, before a commit record",
    "committed": "the driver, between a commit record and the publication of its files",
    "published": "the driver, between that and the end of the staging folder",
    "manifest": "the driver, before a manifest",
    "success": "the driver, before _SUCCESS",
}
_SPEC = re.compile(r"(\w+)=(kill|exit|hang|raise|oom|sleep:[\d.]+)(?:@(\d+))?(?:#([^?;]+))?(?:\?([^;]+))?")


@dataclass(frozen=True, slots=True)
class _Point:
    name: str
    action: str
    after: int  # times
    first: str  # the file that remembers who came first
    text: str


def _parse(setting: str) -> list[_Point]:
    points = []
    for part in filter(None, map(str.strip, setting.split(";"))):
        found = _SPEC.fullmatch(part)
        if found is None or found[1] not in NAMES:
            raise ValueError(f"{VARIABLE}: {part!r} is no failpoint; the names are {', '.join(NAMES)}")
        points.append(_Point(found[1], found[2], int(found[3] or 1), found[4] or "", found[5] or ""))
    return points


_POINTS = _parse(os.environ.get(VARIABLE, ""))
_times: Counter[_Point] = Counter()


def reach(name: str, texts: Any = ()) -> None:
    """The program comes to the point `name`; `texts` is an Arrow array of the documents at hand."""
    if _POINTS:
        for point in _POINTS:
            if point.name == name and _strikes(point, texts):
                _act(point)


def _strikes(point: _Point, texts: Any) -> bool:
    if point.text and not any(point.text in str(text) for text in texts):
        return False
    _times[point] += 1
    return _times[point] >= point.after and (not point.first or _is_first(point.first))


def _is_first(path: str) -> bool:
    mine = str(os.getpid())
    with suppress(FileExistsError), open(path, "x", encoding="ascii") as handle:
        handle.write(mine)
    with open(path, encoding="ascii") as handle:
        return handle.read() == mine


def _act(point: _Point) -> None:
    action, _, seconds = point.action.partition(":")
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "exit":
        os._exit(1)
    elif action == "raise":
        raise RuntimeError(f"failpoint {point.name}")
    elif action == "oom":
        raise MemoryError(f"failpoint {point.name}")
    time.sleep(float(seconds or 1e6))
