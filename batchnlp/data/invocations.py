"""Who worked on a run, when, and how it ended: for people and reports. Nothing depends on it, and it may be removed.

    OUT/_batchnlp/<fingerprint>/invocations.json    the newest last; written under the lock

An entry without an end is that of a process which runs, or was killed.
"""

from __future__ import annotations

import json
import platform
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any

from batchnlp.data.ledger import Ledger
from batchnlp.data.store import to_json
from batchnlp.errors import BatchnlpError, Interrupted, StoppedError

KEPT = 50  # entries: a job that is tried again every minute must not fill the disk
LIBRARIES = ("batchnlp", "torch", "transformers", "tokenizers", "pyarrow", "numpy", "ray", "openvino", "vllm")


@dataclass(slots=True)
class Invocation:
    """One process that worked on a run. Filled by the driver; all times are Unix times, for people to read."""

    invocation: str
    began: float
    leased: float | None = None  # when the first replica was ready to work
    ended: float | None = None
    status: str = ""  # as in `result`; error where there is none
    message: str = ""
    host: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)  # the whole RunResult


class Diary:
    """Notes of one invocation, from `begin` on; used as a context, it notes the end too."""

    def __init__(self, ledger: Ledger, invocation: str, seconds: float) -> None:
        """`seconds`: since the process began."""
        self._ledger, self._begun = ledger, False
        self._entry = Invocation(invocation, time.time() - seconds, host=socket.gethostname())

    def begin(self) -> None:
        """There is something to compute."""
        self._begun = True
        self._entry.versions = versions()
        self._write()

    def leased(self) -> None:
        """A replica is ready."""
        self._entry.leased = time.time()
        self._write()

    def result(self, result: dict[str, Any]) -> None:
        """How it ends, unless an exception comes."""
        self._entry.result = result
        self._entry.status, self._entry.message = result["status"], result["message"]

    def __enter__(self) -> Diary:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None:
            stopped = isinstance(error, Interrupted | StoppedError)
            self._entry.status = "stopped" if stopped else "error"
            # What another library says may hold a document's text, which is to be nowhere but in the results.
            self._entry.message = str(error) if isinstance(error, BatchnlpError) else type(error).__name__
        if not self._begun and (error is not None or self._known()):
            return
        self._entry.ended = time.time()
        with suppress(BatchnlpError, OSError):  # of a full disk, for one: what matters has been said
            self._write()

    def _known(self) -> bool:
        """Whether nothing was computed, and the last entry says the same: then a nightly job leaves no more of them."""
        last = read(self._ledger)[-1:]
        return not last or last[0].status == self._entry.status

    def _write(self) -> None:
        others = [entry for entry in read(self._ledger) if entry.invocation != self._entry.invocation]
        entries = [*others[-(KEPT - 1) :], self._entry]
        self._ledger.store.replace(_name(self._ledger), to_json([asdict(entry) for entry in entries]))


def read(ledger: Ledger) -> list[Invocation]:
    """The entries of a run; none where they are damaged."""
    with suppress(ValueError, TypeError, BatchnlpError):
        return [Invocation(**entry) for entry in json.loads(ledger.store.read(_name(ledger)) or b"[]")]
    return []


def versions() -> dict[str, str]:
    """What this process runs on, without importing it."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return {**found, "platform": platform.platform()}


def _name(ledger: Ledger) -> str:
    return f"{ledger.control}/invocations.json"
