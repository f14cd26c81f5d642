"""schedule/state.json: which time of each job was seen to last. What was missed follows from it, so that nothing else needs to be
remembered, and a crash forgets nothing."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from batchnlp.data.store import LocalStore, to_json
from batchnlp.errors import CorruptError
from batchnlp.schedule.jobs import Entry

FORMAT = 1
AHEAD = timedelta(days=1)  # from which on a time that was seen to is of a clock that was wrong


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a job."""

    cron: str
    timezone: str
    last: datetime  # the scheduled time that was seen to last; in the beginning, when the job was first met
    exit_code: int | None = None  # of the run at that time
    ended: datetime | None = None

    @classmethod
    def first(cls, entry: Entry, now: datetime) -> Seen:
        """Of a job whose schedule is met for the first time: nothing before now was missed."""
        return cls(entry.schedule.cron, entry.schedule.timezone, now)

    def of(self, entry: Entry) -> bool:
        """Whether it is about the schedule that the job has now."""
        return (self.cron, self.timezone) == (entry.schedule.cron, entry.schedule.timezone)


class State:
    """The file, written anew whenever something changes."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.store = LocalStore(os.path.dirname(self.path))
        self._name = os.path.basename(self.path)
        self._jobs = self._read()

    def seen(self, name: str) -> Seen | None:
        """What is known of a job."""
        return self._jobs.get(name)

    def meet(self, entry: Entry, now: datetime) -> tuple[Seen, str]:
        """What is known of a job by now, and what there is to say where that is news."""
        seen = self._jobs.get(entry.name)
        if seen is not None and seen.of(entry) and seen.last <= now + AHEAD:
            return seen, ""
        news = "scheduled" if seen is None else "schedule changed" if not seen.of(entry) else "the clock was set back"
        seen = Seen.first(entry, now)
        self.put(entry.name, seen)
        return seen, news

    def put(self, name: str, seen: Seen) -> None:
        """Remember."""
        self._jobs[name] = seen
        jobs = {name: {key: _text(value) for key, value in asdict(s).items()} for name, s in self._jobs.items()}
        self.store.replace(self._name, to_json({"format": FORMAT, "jobs": jobs}))

    def _read(self) -> dict[str, Seen]:
        data = self.store.read(self._name)
        if data is None:
            return {}
        try:
            jobs = json.loads(data)["jobs"].items()
            return {
                name: Seen(**{**of, "last": _moment(of["last"]), "ended": _moment(of["ended"])}) for name, of in jobs
            }
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            hint = "remove it; then nothing counts as missed"
            raise CorruptError(f"{self.path} is damaged: {type(error).__name__}: {error}", hint) from None


def _text(value: object) -> object:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


def _moment(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)
