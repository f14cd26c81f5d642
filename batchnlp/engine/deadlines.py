"""When to give up waiting for a worker that does not move. The clock is monotonic.

How long a step may take (a batch, the reading or the writing of a shard) is known from those that were measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TIMES, FLOOR = 20.0, 60.0  # times the slowest step so far, and seconds at the least
UNMEASURED = 1800.0  # seconds for a first step, and for a model to load
BLIND = 10.0  # seconds between two looks after which the watcher itself was held up, and knows nothing


class Watch:
    """One worker, seen from outside."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._steps = -1.0  # as long as the model loads
        self._moved = self._looked = clock()

    def waited(self, steps: float, slowest: float) -> float:
        """Seconds without a step, where these are too many; else 0.

        `steps` counts what was done, -1 while the model loads; `slowest` is the longest of all, of any worker.
        """
        now = self._clock()
        if steps != self._steps or now - self._looked > BLIND:
            self._steps, self._moved = steps, now
        self._looked = now
        waited = now - self._moved
        return waited if waited > self._patience(slowest) else 0.0

    def _patience(self, slowest: float) -> float:
        if self._steps < 0:
            return UNMEASURED
        if self._seconds is not None:
            return self._seconds
        return max(TIMES * slowest, FLOOR) if slowest else UNMEASURED
