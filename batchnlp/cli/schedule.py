"""The bodies of `schedule`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from batchnlp import registry
from batchnlp.cli.show import message, print_json, print_table
from batchnlp.data.lock import locked
from batchnlp.data.store import explain_full
from batchnlp.engine.signals import watch_signals
from batchnlp.schedule.exports.base import Place
from batchnlp.schedule.jobs import Entry, scheduled, some
from batchnlp.schedule.loop import Scheduler, clock, serve
from batchnlp.schedule.state import Seen, State
from batchnlp.schedule.times import due
from batchnlp.types import many

SHOWN = 3  # next times of each job


def show_schedule(paths: Sequence[str], state_file: str, as_json: bool) -> None:
    """The next times of each job, the soonest first, and how its last run went."""
    now, state = datetime.now(UTC), State(state_file)
    jobs = [(entry, state.seen(entry.name), _next(entry, now)) for entry in some(scheduled(paths), paths)]
    jobs.sort(key=lambda job: job[2][0])
    if as_json:
        print_json({"status": "done", "jobs": [_told(*job) for job in jobs]})
        return
    rows = [(entry.name, *map(clock, times), _last(entry, seen), entry.file) for entry, seen, times in jobs]
    print_table("", ("job", "next", *["then"] * (SHOWN - 1), "last", "file"), rows)


def _next(entry: Entry, now: datetime) -> list[datetime]:
    return list(islice(due(entry.schedule.times, entry.schedule.zone, now), SHOWN))


def _told(entry: Entry, seen: Seen | None, times: list[datetime]) -> dict[str, Any]:
    ended = seen is not None and seen.ended is not None
    last = (
        {"last": seen.last.isoformat(), "exit_code": seen.exit_code}
        if seen and ended
        else {"last": None, "exit_code": None}
    )
    return {
        "job": entry.name,
        "file": entry.file,
        **entry.schedule.model_dump(),
        "next": [t.isoformat() for t in times],
        **last,
    }


def _last(entry: Entry, seen: Seen | None) -> str:
    if seen is None or seen.ended is None:
        return "never"
    ended = "done" if seen.exit_code == 0 else f"exit code {seen.exit_code}"
    return f"{clock(seen.last.astimezone(entry.schedule.zone))}: {ended}"


def run_schedule(paths: Sequence[str], state_file: str) -> int:
    """Run jobs by the clock until a signal comes; the exit code."""
    some(scheduled(paths), paths)  # at the start whatever is wrong with a file is an error
    state = State(state_file)
    with watch_signals() as interrupt, locked(state.store):  # two of us would start every run twice
        serve(Scheduler(paths, state, message), interrupt)
        return interrupt.exit_code


def export_schedule(paths: Sequence[str], kind: str, flags: Mapping[str, Any], as_json: bool) -> None:
    """Write or print the files of another scheduler."""
    export, place = registry.load(registry.EXPORTS, kind), Place.here(flags["image"], flags["claim"])
    files: dict[str, str] = {}
    for entry in some(scheduled(paths), paths):
        files |= export(entry, place)
    folder = flags["output"]
    if folder is not None:
        with explain_full(folder):
            os.makedirs(folder, exist_ok=True)
            for name, text in files.items():
                Path(folder, name).write_text(text, encoding="utf-8")
        message(f"{many(len(files), 'file')} in {folder}")
    elif not as_json:
        sys.stdout.write("\n".join(f"# {name}\n{text}" for name, text in files.items()))
    if as_json:
        print_json(
            {
                "status": "done",
                "files": {name: text if folder is None else os.path.join(folder, name) for name, text in files.items()},
            }
        )
