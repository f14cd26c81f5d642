"""Cron expressions, the five fields of crontab(5): which minutes they name on the calendar. Which moments those are in a time
zone, `schedule/times.py` knows.

Accepted is what cron, Kubernetes, systemd and Airflow understand alike. Where they differ the expression is refused, so that
a job runs at the same times wherever it is exported to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# name, least, most, words for the values from the least on
FIELDS = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of the week", 0, 7, DAYS),
)
PART = re.compile(r"(?P<first>\*|\w+)(-(?P<last>\w+))?(/(?P<step>\d+))?")
SIZES = (60, 24, 31, 12, 7)  # values that a field can name
DAYS_OF = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True, slots=True)
class Cron:
    """A parsed expression: the values that each field names, sorted."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]  # Sunday is 0
    fixed: bool  # whether it names times of the day, and not a rhythm that goes through the hours
    either: bool  # whether a day may match by its number or by its weekday

    @classmethod
    def parse(cls, text: str) -> Cron:
        """The expression, or ValueError with what is wrong in it."""
        words = text.split()
        if len(words) != len(FIELDS):
            names = ", ".join(name for name, *_ in FIELDS)
            raise ValueError(f"a cron expression has five fields ({names}), as 0 2 * * *; {text!r} has {len(words)}")
        minutes, hours, days, months, weekdays = (_values(w, *field) for w, field in zip(words, FIELDS, strict=True))
        weekdays = tuple(sorted({day % 7 for day in weekdays}))
        either = "*" not in (words[2], words[4])
        if either and "*" in words[2] + words[4]:
            what = f"{words[2]} and {words[4]} together: schedulers differ in whether both days must match"
            raise ValueError(f"{what}; write one of them as *, or both as numbers")
        if words[4] == "*" and all(days[0] > DAYS_OF[month - 1] for month in months):
            raise ValueError(f"{text!r} names a day that is in none of its months")
        return cls(minutes, hours, days, months, weekdays, not words[1].startswith("*"), either)

    def on(self, day: date) -> bool:
        """Whether it names a time on this day."""
        if day.month not in self.months:
            return False
        number, weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return number or weekday if self.either else number and weekday

    def walls(self, first: date) -> Iterator[datetime]:
        """What clocks on the wall show whenever it is time, from the beginning of a day on."""
        for day in self.dates(first):
            for hour in self.hours:
                yield from (datetime.combine(day, time(hour, minute)) for minute in self.minutes)

    def dates(self, first: date) -> Iterator[date]:
        """The days on which there is a time, without end."""
        while True:
            if self.on(first):
                yield first
            first += timedelta(days=1)

    def __str__(self) -> str:
        """In numbers, as any scheduler reads it."""
        fields = (self.minutes, self.hours, self.days, self.months, self.weekdays)
        texts = [
            "*" if len(v) == SIZES[i] and not (self.either and i in (2, 4)) else _ranges(v)
            for i, v in enumerate(fields)
        ]
        return " ".join(texts)


def _values(text: str, name: str, least: int, most: int, words: tuple[str, ...]) -> tuple[int, ...]:
    found: set[int] = set()
    for part in text.split(","):
        match = PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no {name}")
        first, last, step = match["first"], match["last"], match["step"]
        if first == "*" and last is not None:
            raise ValueError(f"{part!r} is no {name}")
        if step is not None and last is None and first != "*":
            raise ValueError(f"{part!r}: a step needs a range before it, as {first}-{most}/{step}")
        low = least if first == "*" else _number(first, name, least, most, words)
        high = (most if first == "*" else low) if last is None else _number(last, name, least, most, words)
        if high < low:
            raise ValueError(f"{part!r} ends before it begins")
        if step == "0":
            raise ValueError(f"{part!r} has a step of 0")
        found.update(range(low, high + 1, int(step or 1)))
    return tuple(sorted(found))


def _number(text: str, name: str, least: int, most: int, words: tuple[str, ...]) -> int:
    if text.lower() in words:
        return least + words.index(text.lower())
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ValueError(f"{text!r} is no {name} ({least} to {most})")
    return int(text)


def _ranges(values: tuple[int, ...]) -> str:
    """1-5,7: runs of three and more as ranges."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    texts = (f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
    return ",".join(texts)
