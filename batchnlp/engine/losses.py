"""Workers that were lost: what is told of them, what they had done, and when there were too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from batchnlp.errors import WorkerLostError
from batchnlp.types import many

IN_VAIN = 3  # workers, beside as many as there are, that may be lost one after the other before they have done anything
AGAIN = "the same command goes on"


class Losses:
    """Of one run."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.done: dict[str, float] = {}  # counters of those that are gone, added up; of `slowest` the largest
        self._ways: Counter[str] = Counter()
        self._in_vain = 0

    def add(
        self, name: str, how: str, reason: str, held: Sequence[int], hopeless: Sequence[int],
        progress: Mapping[str, float], *, proven: bool,
    ) -> None:  # fmt: skip
        """One more, which `held` shards. WorkerLostError where one of them took too many with it."""
        self._ways[how] += 1
        self._in_vain += not proven and not held
        self.events.append(f"{name} was {how}, with {many(len(held), 'shard')} under way: {reason}")
        for key, value in progress.items():
            before = self.done.get(key, 0.0)
            self.done[key] = max(before, value) if key == "slowest" else before + value
        if hopeless:
            what = f"shard {hopeless[0]} took one worker after the other with it: {reason}"
            raise WorkerLostError(what, "out of memory? fewer replicas or rows_per_shard may help")

    def worked(self) -> None:
        """A new worker has done something."""
        self._in_vain = 0

    def too_many(self, workers: int) -> bool:
        """Whether there is no use in replacing one of so many."""
        return self._in_vain > IN_VAIN + workers

    def summary(self) -> list[str]:
        """A line for each way to be lost."""
        return [f"{many(n, 'replica')} {how}" for how, n in self._ways.items()]
