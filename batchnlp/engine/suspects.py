"""Which row took its worker with it: the shard is run again alone, in ranges that are noted on disk before they begin.

    the whole shard → ranges, `RANGES` at most → ranges of those → single rows

When the next worker is lost too, the note says what was under way, and the next one cuts that. So one row among twenty
thousand costs three workers, or what follows from a shard that was lost by chance: one run without company. Halving
without notes would take fourteen, and each has a model to load.

A row that `ALONE` workers were lost with, while nothing else was under way, is a dead letter, `worker_lost` or `hung`; once
may have been chance. All of it happens in some worker, so that the whole shard ends in one Part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any

from batchnlp.data.parts import shard_name
from batchnlp.data.store import Store, to_json
from batchnlp.errors import StoppedError
from batchnlp.types import Failure

RANGES = 150  # of one cut
ALONE = 2  # workers that may be lost with a single row
READS = 3  # workers that may be lost while they read a shard, which cannot be cut
LOST, HUNG = "worker_lost", "hung"
WHY = {
    LOST: "the worker that had this document alone in its model ended each time",
    HUNG: "the worker that had this document alone in its model came to no end each time, and was ended",
}


@dataclass(slots=True)
class Range:
    """Some rows of a shard."""

    start: int
    stop: int
    losses: int = 1  # workers that were lost with it, or with what it was cut from
    alone: int = 0  # of them, while this was a single row

    def __len__(self) -> int:
        return self.stop - self.start

    def cut(self) -> list[Range]:
        """Up to `RANGES` parts of about one size."""
        size = -(-len(self) // RANGES)
        return [Range(at, min(at + size, self.stop), self.losses) for at in range(self.start, self.stop, size)]


class Suspect:
    """What is known of one shard; in a file, so that it outlives workers."""

    def __init__(self, store: Store, control: str, shard: int, generation: int) -> None:
        self._store, self._name = store, f"{_folder(control)}/{shard_name(shard, generation)}.json"
        self.shard = shard
        self.code = LOST
        self.ranges: list[Range] = []  # in order; without those that are dead letters
        self.failures: list[Failure] = []  # the rows that are, `doc` being the row in the shard
        self._under_way: int | None = None  # the first row of the range
        self._reads = 0

    def note(self, code: str = LOST) -> None:
        """A worker begins with the shard among others; or is lost, by that code, whatever else is known."""
        self._read()
        self.code = code
        self._write()

    def open(self, code: str) -> None:
        """Learn from the last worker, which was lost by that code, and begin to read. StoppedError if that is it."""
        self._read()
        self.code = code
        if self._reads >= READS:
            hint = "are its files whole, and small enough for the memory? rows_per_shard makes shards smaller"
            raise StoppedError(f"{self._reads} workers were lost while they read shard {self.shard}", hint)
        if self._under_way is not None:
            self._learn(self._under_way)
        self._reads, self._under_way = self._reads + 1, None
        self._write()

    def _learn(self, start: int) -> None:
        at = next(i for i, found in enumerate(self.ranges) if found.start == start)
        guilty = self.ranges[at]
        guilty.losses += 1
        if len(guilty) > 1:
            self.ranges[at : at + 1] = guilty.cut()
            return
        guilty.alone += 1
        if guilty.alone >= ALONE:
            del self.ranges[at]
            self.failures.append(Failure(start, "forward", self.code, WHY[self.code], guilty.losses))

    def run(self, rows: int) -> Iterator[Range]:
        """The ranges of the shard, of so many rows, each noted before it is given out."""
        if not self.ranges and not self.failures:
            self.ranges = [Range(0, rows)] if rows else []
        self._reads = 0
        for found in self.ranges:
            self._under_way = found.start
            self._write()
            yield found

    def leave(self) -> None:
        """Nothing is under way, and nothing was lost."""
        self._under_way, self._reads = None, 0
        self._write()

    def close(self) -> None:
        """The shard is done."""
        self._store.remove(self._name)

    def _read(self) -> bool:
        data = self._store.read(self._name)
        if data is None:
            return False
        try:
            tree: dict[str, Any] = json.loads(data)
            self.code, self._under_way, self._reads = tree["code"], tree["under_way"], tree["reads"]
            self.ranges = [Range(*one) for one in tree["ranges"]]
            self.failures = [Failure(*one) for one in tree["failures"]]
        except (ValueError, LookupError, TypeError):
            return False  # torn: then all of it is found out again
        return True

    def _write(self) -> None:
        tree = {
            "code": self.code, "under_way": self._under_way, "reads": self._reads,
            "ranges": [astuple(one) for one in self.ranges], "failures": [astuple(one) for one in self.failures],
        }  # fmt: skip
        with suppress(FileNotFoundError):  # another driver, of a lock that was taken away, has ended the run
            self._store.replace(self._name, to_json(tree))


def known(store: Store, control: str, generation: int) -> dict[int, str]:
    """The shards that an earlier invocation, or a worker that is gone, noted and did not end; and by which code."""
    found = {}
    head, _, _ = shard_name(0, generation).rpartition("00000")
    for name in store.names(_folder(control)):
        number = name.removesuffix(".json").removeprefix(head)
        if number.isdecimal() and name.startswith(head):
            suspect = Suspect(store, control, int(number), generation)
            suspect._read()
            found[int(number)] = suspect.code
    return found


def _folder(control: str) -> str:
    return f"{control}/suspects"
