"""What all exports share: where a job runs, and what it is called there."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchnlp import __version__
from batchnlp.job.spec import JobSpec
from batchnlp.schedule.jobs import Entry

LONGEST_NAME = 52  # characters, of a CronJob; with "batchnlp-" before it


@dataclass(frozen=True, slots=True)
class Place:
    """Where an exported job is to run. Filled by `schedule export`."""

    folder: str  # that paths in the job are relative to, on this machine
    image: str  # of a container with batchnlp in it
    claim: str  # the volume claim that is the same folder, in a cluster

    @classmethod
    def here(cls, image: str | None = None, claim: str | None = None) -> Place:
        """This folder on this machine; elsewhere names that can be told from real ones."""
        return cls(os.getcwd(), image or f"batchnlp:{__version__}", claim or "batchnlp")


def command(entry: Entry, *more: str) -> list[str]:
    """What runs the job on this machine."""
    return [sys.executable, "-m", "batchnlp", "run", entry.file, *more]


def shell(words: Sequence[str]) -> str:
    """The words as a POSIX shell reads them."""
    return " ".join(map(shlex.quote, words))


def slug(name: str, separator: str = "-") -> str:
    """batchnlp-<job>, as names of units, Kubernetes' objects and DAGs may be."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if plain != name or len(plain) > LONGEST_NAME - 9:  # another job might come to the same
        plain = f"{plain[: LONGEST_NAME - 16]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}".strip("-")
    return f"batchnlp-{plain}".replace("-", separator)


def text_of(entry: Entry) -> str:
    """The job's file."""
    return Path(entry.file).read_text(encoding="utf-8")


def secrets(spec: JobSpec) -> list[str]:
    """The environment variables whose values only the machine knows that runs the job."""
    hooks = [name for hook in spec.hooks for name in (hook.webhook_env, hook.token_env)]
    password = ["PGPASSWORD"] if any(sink.kind == "postgres" for sink in spec.sinks) else []
    return sorted({name for name in [spec.engine.api_key_env, *hooks, *password] if name})


def head(entry: Entry, *lines: str) -> str:
    """The comment at the top of a file."""
    about = f"The job {entry.name} ({entry.file}), at {entry.schedule.cron} {entry.schedule.timezone}."
    return "".join(f"# {line}\n" for line in (about, *lines))
