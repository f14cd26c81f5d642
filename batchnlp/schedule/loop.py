"""`batchnlp schedule run`: looks at the clock, starts what is due, each run in a process of its own, and remembers.

    due = what came after the last time that was seen to, until now      times.py, state.py
    nothing due        → wait
    due, and running   → it is said, and the run begins when the other has ended
    due several times  → one run, with the date of the latest; the others are named
    ended              → the time counts as seen to; not so if the output was in use, or we are told to stop

So a crash, a stop, or a machine that was off all end alike: the next start finds the time due, and the run resumes.

All waits are short and end with a look at the clock, which may have been set, or the machine asleep, meanwhile. A process of
its own, because a job takes over signals and Ray, and its memory is to be given back.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from batchnlp.engine.signals import Interrupt
from batchnlp.errors import LockedError, SpecError
from batchnlp.schedule.jobs import Entry, scheduled
from batchnlp.schedule.state import State
from batchnlp.schedule.times import Missed, due, missed
from batchnlp.types import many

IDLE = 30.0  # seconds between two looks at clock and files
BUSY = 1.0  # the same while something runs
SLICE = 0.2  # seconds in which a signal is noticed
AGAIN = timedelta(minutes=1)  # after an output was in use


class Process(Protocol):
    """A run under way: `subprocess.Popen`, as far as it is used."""

    def poll(self) -> int | None:
        """Its exit code, None as long as it runs."""

    def terminate(self) -> None:
        """Ask it to end."""


Start = Callable[[Entry, datetime], Process]


def start(entry: Entry, at: datetime) -> Process:
    """Run the job of that time, in a session of its own: a Ctrl-C is for us, who pass it on once."""
    command = [sys.executable, "-m", "batchnlp", "run", entry.file, "--date", at.date().isoformat()]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


@dataclass(frozen=True, slots=True)
class _Running:
    entry: Entry
    at: datetime  # the scheduled time
    process: Process


class Scheduler:
    """The jobs, and which of them run. It never waits."""

    def __init__(
        self,
        paths: Sequence[str],
        state: State,
        tell: Callable[[str], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        start: Start = start,
    ) -> None:
        self._paths, self._state, self._tell, self._now, self._start = paths, state, tell, now, start
        self._running: dict[str, _Running] = {}
        self._told: set[str] = set()  # what is not to be said again
        self._not_before: dict[str, datetime] = {}

    def step(self) -> float:
        """Do what is to be done now; the seconds until the next look."""
        self._reap()
        now = self._now()
        ahead = [self._look(entry, now) for entry in scheduled(self._paths, self._problem)]
        wait = min([(moment - now).total_seconds() for moment in ahead], default=IDLE)
        return max(min(wait, BUSY if self._running else IDLE), 0.0)

    def stop(self) -> None:
        """Pass it on to what runs; what ends from now on is to be resumed."""
        for running in self._running.values():
            running.process.terminate()

    def drained(self) -> bool:
        """Whether nothing runs any more."""
        return all(running.process.poll() is not None for running in self._running.values())

    def _problem(self, error: SpecError) -> None:
        """A file that somebody is writing at this moment is no reason to end."""
        self._once(f"left out: {error}")

    def _once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)

    def _look(self, entry: Entry, now: datetime) -> datetime:
        """See to a job; when it is due next."""
        cron, zone = entry.schedule.times, entry.schedule.zone
        seen, news = self._state.meet(entry, now)
        found = missed(cron, zone, seen.last, now)
        if found is not None and self._not_before.get(entry.name, now) <= now:
            self._fire(entry, found)
        following = next(due(cron, zone, max(now, seen.last)))
        if news:
            self._tell(f"{entry.name}: {news}; next {clock(following)}")
        return following

    def _fire(self, entry: Entry, found: Missed) -> None:
        if entry.name in self._running:
            at = clock(self._running[entry.name].at)
            self._once(f"{entry.name}: the run of {at} is not done; that of {clock(found.last)} begins after it")
            return
        self._tell(f"{entry.name}: the run of {clock(found.last)} begins")
        if found.count > 1:
            self._tell(f"{entry.name}: {_left_out(entry, found)}")
        self._running[entry.name] = _Running(entry, found.last, self._start(entry, found.last))

    def _reap(self) -> None:
        for name, running in list(self._running.items()):
            code = running.process.poll()
            if code is None:
                continue
            del self._running[name]
            if code == LockedError.exit_code:
                self._not_before[name] = self._now() + AGAIN
                self._tell(f"{name}: its output is in use; tried again in a minute")
                continue
            seen = self._state.seen(name)
            if seen is not None and seen.of(running.entry):
                self._state.put(name, replace(seen, last=running.at, exit_code=code, ended=self._now()))
            self._tell(f"{name}: the run of {clock(running.at)} ended with exit code {code}")


def serve(scheduler: Scheduler, interrupt: Interrupt) -> None:
    """Until a signal comes, and what runs then has ended."""
    interrupt.defer()
    while not interrupt.signal:
        until = time.monotonic() + scheduler.step()
        while not interrupt.signal and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, SLICE))
    scheduler.stop()
    while not scheduler.drained():
        time.sleep(SLICE)


def clock(moment: datetime) -> str:
    """A moment as people read it."""
    return moment.strftime("%Y-%m-%d %H:%M %Z")


def _left_out(entry: Entry, found: Missed) -> str:
    """Which of several missed runs are not made up for."""
    others = found.count - 1
    first, last = found.first.date(), found.last.date() - timedelta(days=1)
    text = f"missed before it, and not made up for: {many(others, 'run')} since {clock(found.first)}"
    if entry.spec.date is None or first > last:
        return text
    return f"{text}; batchnlp run {entry.file} --backfill {first} {last} does"
