"""How many requests may be under way at a server: as many as pay. Pure arithmetic; time comes from outside.

It doubles as long as that brings more work done a second. Where it does not, requests only wait longer for one another:
then the half is kept, and doubling is tried again after a while. When the server pushes back, it falls at once, and from
then on grows in small steps, as TCP does.
"""

from __future__ import annotations

FIRST, MOST = 16, 256
SAMPLE = 16  # answers at the least that a rate is measured on
PAYS = 1.2  # times the rate that twice the requests must bring; 2 is ideal, 1 a server that is full
HOLD = 20  # measurements until doubling is tried again
BACK = 0.7  # of the requests that stay when the server pushes back


class Throttle:
    """The limit, and the measurement that is under way."""

    def __init__(self) -> None:
        self.limit = FIRST
        self._before: tuple[int, float] | None = None  # the limit before this one, and its rate
        self._hold = 0  # measurements for which the limit stays
        self._creeping = False  # the server has pushed back: no more doubling
        self._cut = float("-inf")  # when it did
        self._since = float("-inf")  # requests that began before do not count
        self._first: float | None = None  # when the first one that counts was answered
        self._answers, self._work = 0, 0.0  # after that

    def answered(self, began: float, now: float, work: float, *, full: bool) -> None:
        """An answer to a request that began then, worth so much; `full` if as many as may be were under way."""
        if began < self._since:
            return  # a part of its time was spent under another limit
        if not full:
            self._measure(now)  # nothing is learnt about the limit where there is too little to ask
            return
        if self._first is None:
            self._first = now
            return
        self._answers += 1
        self._work += work
        if self._answers >= max(self.limit, SAMPLE):
            self._decide(self._work / max(now - self._first, 1e-9))
            self._measure(now)

    def pushed_back(self, began: float, now: float) -> None:
        """The server has refused a request that began then, because it has too many."""
        if began < self._cut:
            return  # it was under way when the limit fell, so it says nothing new
        self.limit = max(int(self.limit * BACK), 1)
        self._creeping, self._cut = True, now
        self._measure(now)

    def _measure(self, since: float) -> None:
        self._since, self._first = since, None
        self._answers, self._work = 0, 0.0

    def _decide(self, rate: float) -> None:
        if self._creeping:
            self.limit = min(self.limit + max(self.limit // 16, 1), MOST)
        elif self._hold:
            self._hold -= 1
            if not self._hold:
                self._double(rate)
        elif self._before is None or rate > self._before[1] * PAYS:
            self._double(rate)
        else:
            self.limit, self._before, self._hold = self._before[0], None, HOLD

    def _double(self, rate: float) -> None:
        self._before = (self.limit, rate)
        self.limit = min(self.limit * 2, MOST)
