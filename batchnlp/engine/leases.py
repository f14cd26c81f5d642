"""Who works on what. Workers pull; what a lost worker held goes back to the front.

Plain Python, used as it is by the inline runner and as an actor by Ray's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from batchnlp.types import Shard

MAX_LOSSES = 3  # workers that one shard may take with it


class LeaseQueue:
    """Shards waiting, and shards out on lease."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._waiting = deque(shards)
        self._leased: dict[str, dict[int, Shard]] = {}
        self._losses: Counter[int] = Counter()
        self._closed = False

    def lease(self, worker: str) -> Shard | None:
        """The next shard for this worker, or None when there is none or no more are to begin."""
        if self._closed or not self._waiting:
            return None
        shard = self._waiting.popleft()
        self._leased.setdefault(worker, {})[shard.index] = shard
        return shard

    def done(self, worker: str, index: int) -> None:
        """The shard is finished."""
        self._leased.get(worker, {}).pop(index, None)

    def release(self, worker: str) -> list[int]:
        """Take back what a lost worker held; the shards that have now been lost `MAX_LOSSES` times."""
        held = self._leased.pop(worker, {})
        self._losses.update(held.keys())
        self._waiting.extendleft(held[index] for index in sorted(held, reverse=True))
        return [index for index in held if self._losses[index] >= MAX_LOSSES]

    def close(self) -> None:
        """Lease nothing more."""
        self._closed = True

    def waiting(self) -> int:
        """Shards that nobody works on."""
        return 0 if self._closed else len(self._waiting)
