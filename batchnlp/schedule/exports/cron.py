"""A crontab."""

from __future__ import annotations

from batchnlp.schedule.exports.base import Place, command, head, secrets, shell, slug
from batchnlp.schedule.jobs import Entry

ZONES = "Not every cron obeys CRON_TZ: Debian's keeps the machine's own zone. There, see that it is the one below."


def export(entry: Entry, place: Place) -> dict[str, str]:
    """One line, and the zone that it is in."""
    words = shell(["cd", place.folder]) + " && exec " + shell(command(entry))
    notes = [
        ZONES,
        *(f"It needs {name}: set it in a file that only its owner can read." for name in secrets(entry.spec)),
    ]
    line = f"{entry.schedule.times} {escaped(words)}"
    return {f"{slug(entry.name)}.crontab": f"{head(entry, *notes)}CRON_TZ={entry.schedule.timezone}\n{line}\n"}


def escaped(words: str) -> str:
    """A command as a crontab has it: an unescaped % ends it."""
    return words.replace("%", r"\%")
