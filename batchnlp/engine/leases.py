"""Who works on what. Workers pull; what a lost worker held is suspected, and goes to the next one that begins.

    waiting → leased → done
                 ↓ the worker is lost
              suspected → leased again, alone (see `suspects`)

At the end, when nothing waits any more, a worker with nothing to do takes a shard a second time that another one has had
for longer than is usual: whose part comes first counts.

Plain Python, used as it is by the inline runner and as an actor by Ray's.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping

from batchnlp.engine.suspects import LOST
from batchnlp.types import Shard

MAX_LOSSES = 20  # workers that one shard may take with it: six documents or so are found by then
USUAL = 1.5  # times the middle one of the last shards: from then on a second worker may try
REMEMBERED = 33  # shards, for the middle one
SLOW, SLOW_FLOOR = 50.0, 600.0  # times the slowest shard, and seconds, after which a worker is given up


class LeaseQueue:
    """Shards waiting, under suspicion, and out on lease."""

    def __init__(
        self, shards: Iterable[Shard], suspects: Mapping[int, str] | None = None, *, twice: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        known, every = suspects or {}, list(shards)
        self._waiting = deque(shard for shard in every if shard.index not in known)
        self._suspects = deque((shard, known[shard.index]) for shard in every if shard.index in known)
        self._leased: dict[str, dict[int, tuple[Shard, float]]] = {}  # with the time of the lease
        self._done: set[int] = set()
        self._alone: set[int] = set()  # of which nobody shall have a second one
        self._losses: Counter[int] = Counter()
        self._took: deque[float] = deque(maxlen=REMEMBERED)
        self._slowest = 0.0
        self._twice, self._clock = twice, clock
        self._closed = False

    def lease(self, worker: str) -> Shard | None:
        """The next shard for this worker, or None when there is none or no more are to begin."""
        if self._closed:
            return None
        shard = self._waiting.popleft() if self._waiting else self._late(worker)
        return shard and self._out(worker, shard)

    def suspect(self, worker: str) -> tuple[Shard, str] | None:
        """A shard that a worker was lost with, and how (`worker_lost`, `hung`)."""
        if self._closed or not self._suspects:
            return None
        shard, code = self._suspects.popleft()
        self._alone.add(shard.index)
        return self._out(worker, shard), code

    def _out(self, worker: str, shard: Shard) -> Shard:
        self._leased.setdefault(worker, {})[shard.index] = (shard, self._clock())
        return shard

    def done(self, worker: str, index: int) -> None:
        """The shard is finished."""
        self._done.add(index)
        held = self._leased.get(worker, {}).pop(index, None)
        if held is not None:
            self._took.append(took := self._clock() - held[1])
            self._slowest = max(self._slowest, took)

    def release(self, worker: str, code: str = LOST) -> tuple[list[int], list[int]]:
        """Take back what a lost worker held: (those shards, those that have now been lost `MAX_LOSSES` times)."""
        held = self._leased.pop(worker, {})
        elsewhere = {index for other in self._leased.values() for index in other}
        back = [index for index in sorted(held) if index not in self._done | elsewhere]
        self._losses.update(back)
        self._suspects.extend((held[index][0], code) for index in back)
        return sorted(held), [index for index in back if self._losses[index] >= MAX_LOSSES]

    def held(self, worker: str) -> list[int]:
        """The shards that this worker has."""
        return sorted(self._leased.get(worker, {}))

    def close(self) -> None:
        """Lease nothing more."""
        self._closed = True

    def waiting(self) -> int:
        """Shards that a worker with nothing to do could have."""
        if self._closed:
            return 0
        return len(self._waiting) + len(self._suspects) + len(self._late_ones())

    def stuck(self, seconds: float | None) -> list[str]:
        """Workers that have had a shard for longer than that; without a number, for many times the slowest so far."""
        if seconds is None:
            seconds = max(SLOW * self._slowest, SLOW_FLOOR) if self._took else float("inf")
        now, leased = self._clock(), self._leased.items()
        return [worker for worker, held in leased if any(now - since > seconds for since in self._begun(held))]

    def _begun(self, held: dict[int, tuple[Shard, float]]) -> list[float]:
        """When the shards were leased that are not done elsewhere."""
        return [since for index, (_, since) in held.items() if index not in self._done]

    def _late(self, worker: str) -> Shard | None:
        mine = self._leased.get(worker, {})
        return next((shard for shard in self._late_ones() if shard.index not in mine), None)

    def _late_ones(self) -> list[Shard]:
        """Shards that one worker has had for longer than is usual, the longest first."""
        if not self._twice or self._waiting or not self._took:
            return []
        held = Counter(index for other in self._leased.values() for index in other)
        usual, now = sorted(self._took)[len(self._took) // 2], self._clock()
        late = [
            (since, index, shard)
            for other in self._leased.values()
            for index, (shard, since) in other.items()
            if held[index] == 1 and index not in self._done | self._alone and now - since > USUAL * usual
        ]
        return [shard for _, _, shard in sorted(late, key=lambda one: one[:2])]
