"""When a cron expression is due in a time zone, also on the two days a year on which clocks are set.

A job at a fixed time of the day runs once a day. Where clocks are set back and show its time twice, that is the first of the
two; where they are set forward over its time, the next moment that there is. A rhythm through the hours (`*/15 * * * *`) goes
on as time does: it names clock times, and each moment at which a clock shows one counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from batchnlp.job.cron import Cron

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


def due(cron: Cron, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """The moments after one at which it is time, in order and without end, in the zone's own time."""
    first = (after.astimezone(zone) - DAY).date()  # a time that did not exist may have been put off to this day
    moments = _fixed(cron, zone, first) if cron.fixed else _rhythm(cron, zone, first)
    last = after.astimezone(UTC)
    for moment in moments:
        if moment > last:
            last = moment
            yield moment.astimezone(zone)


def _fixed(cron: Cron, zone: ZoneInfo, first: date) -> Iterator[datetime]:
    for wall in cron.walls(first):
        while not _exists(wall, zone):
            wall += MINUTE
        yield wall.replace(tzinfo=zone, fold=0).astimezone(UTC)


def _rhythm(cron: Cron, zone: ZoneInfo, first: date) -> Iterator[datetime]:
    for day in cron.dates(first):
        moment = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC) - DAY / 2
        for _ in range(2 * 24 * 60):
            wall = moment.astimezone(zone)
            if wall.date() == day and wall.hour in cron.hours and wall.minute in cron.minutes:
                yield moment
            moment += MINUTE


def _exists(wall: datetime, zone: ZoneInfo) -> bool:
    """Whether clocks in the zone ever show this."""
    return wall.replace(tzinfo=zone).astimezone(UTC).astimezone(zone).replace(tzinfo=None) == wall


@dataclass(frozen=True, slots=True)
class Missed:
    """Times that went by without a run."""

    first: datetime
    last: datetime
    count: int


def missed(cron: Cron, zone: ZoneInfo, last: datetime, now: datetime) -> Missed | None:
    """What was due after the `last` time that was seen to, and until now."""
    found: Missed | None = None
    for moment in due(cron, zone, last):
        if moment > now:
            break
        found = Missed(found.first if found else moment, moment, (found.count if found else 0) + 1)
    return found
