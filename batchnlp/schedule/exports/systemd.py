"""A systemd service and the timer that starts it."""

from __future__ import annotations

from batchnlp.job.cron import DAYS, Cron
from batchnlp.schedule.exports.base import Place, command, head, secrets, slug
from batchnlp.schedule.jobs import Entry

SERVICE = """\
[Unit]
Description=batchnlp job {name}
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
WorkingDirectory={folder}
ExecStart={command}
{environment}# SIGTERM goes to batchnlp alone, which ends its own children when the shards under way are done.
KillMode=mixed
TimeoutStopSec={stop}
"""
TIMER = """\
[Unit]
Description=batchnlp job {name}, by the clock

[Timer]
{times}# Once after the machine was off at the time.
Persistent=true
AccuracySec=1s

[Install]
WantedBy=timers.target
"""
SPARE = 60  # seconds beyond the job's own grace until systemd kills it


def export(entry: Entry, place: Place) -> dict[str, str]:
    """Both files; they go to /etc/systemd/system."""
    unit, top = slug(entry.name), head(entry)
    times = "".join(f"OnCalendar={time} {entry.schedule.timezone}\n" for time in calendar(entry.schedule.times))
    file = f"EnvironmentFile=/etc/batchnlp/{unit}.env\n"
    needs = f"# That file holds {', '.join(secrets(entry.spec))}; only root should read it.\n{file}"
    service = SERVICE.format(
        name=_specifiers(entry.name), folder=_specifiers(place.folder), stop=round(entry.spec.limits.grace_seconds) + SPARE,
        command=" ".join(map(quoted, command(entry))), environment=needs if secrets(entry.spec) else "",
    )  # fmt: skip
    timer = TIMER.format(name=_specifiers(entry.name), times=times)
    return {f"{unit}.service": top + service, f"{unit}.timer": top + timer}


def calendar(cron: Cron) -> list[str]:
    """The expression as OnCalendar= has it; two where a day may match by number or by weekday."""
    hours, minutes = _list(cron.hours, 24), _list(cron.minutes, 60)
    months, days = _list(cron.months, 12), _list(cron.days, 31)
    weekdays = ",".join(DAYS[day].capitalize() for day in cron.weekdays) + " "
    if cron.either:
        return [f"*-{months}-{days} {hours}:{minutes}:00", f"{weekdays}*-{months}-* {hours}:{minutes}:00"]
    return [f"{weekdays if len(cron.weekdays) < 7 else ''}*-{months}-{days} {hours}:{minutes}:00"]


def _list(values: tuple[int, ...], all_: int) -> str:
    return "*" if len(values) == all_ else ",".join(f"{value:02}" for value in values)


def quoted(word: str) -> str:
    """A word of ExecStart=."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("$", "$$")
    return f'"{_specifiers(plain)}"'


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")
