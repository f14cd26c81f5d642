"""The jobs that have a schedule, as files and folders name them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchnlp.errors import SpecError
from batchnlp.job.identity import job_name
from batchnlp.job.load import load_spec
from batchnlp.job.nightly import ScheduleSpec
from batchnlp.job.spec import JobSpec

Problem = Callable[[SpecError], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """A job that runs by itself. Filled by `scheduled`."""

    file: str  # as it was given, relative to where the command runs
    name: str
    spec: JobSpec
    schedule: ScheduleSpec


def fail(error: SpecError) -> None:
    """At the start a job that cannot be read is an error."""
    raise error


def scheduled(paths: Sequence[str], problem: Problem = fail) -> list[Entry]:
    """The jobs in these files, and in the YAML files of these folders, that have a schedule. What is wrong with one goes to
    `problem`, and the others are found all the same."""
    found: dict[str, Entry] = {}
    for file in _files(paths):
        try:
            spec = load_spec(file)
            if spec.schedule is None:
                continue
            entry = Entry(file, job_name(spec), spec, spec.schedule)
            if entry.name in found:
                what = f"{file} and {found[entry.name].file} are both the job {entry.name}"
                raise SpecError(what, "give each a name of its own, as job: nightly-topics")
            found[entry.name] = entry
        except SpecError as error:
            problem(error)
    return list(found.values())


def _files(paths: Sequence[str]) -> list[str]:
    files: list[str] = []
    for path in paths:
        inside = [name for pattern in ("*.yaml", "*.yml") for name in Path(path).glob(pattern)]
        files += sorted(map(str, inside)) if os.path.isdir(path) else [path]
    return list(dict.fromkeys(map(os.path.normpath, files)))


def some(entries: Sequence[Entry], paths: Sequence[str]) -> Sequence[Entry]:
    """The entries, or SpecError where there is none."""
    if not entries:
        what = f"no job in {', '.join(paths)} has a schedule"
        raise SpecError(what, 'add one to it: schedule: {cron: "0 2 * * *", timezone: Europe/Berlin}')
    return entries
