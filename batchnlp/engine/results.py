"""How a run ended, as one JSON object: run_results.json beside the manifest, and what hooks are told.

The file is there for every invocation that had the output to itself, also one that stopped or broke; what ended before that, in
the preflight or at a run's lock, only hooks are told. A retry with nothing to try and nothing to load leaves a file alone that is
true.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from batchnlp import __version__
from batchnlp.data.ledger import Ledger
from batchnlp.data.store import to_json
from batchnlp.errors import BatchnlpError
from batchnlp.job.identity import job_name
from batchnlp.job.spec import JobSpec

if TYPE_CHECKING:
    from batchnlp.engine.computing import RunResult

FORMAT = 1
FILE = "run_results.json"
LIBRARIES = ("torch", "transformers", "tokenizers", "ray", "pyarrow", "numpy", "openvino", "vllm")
EVENTS = {"done": "success", "failed": "threshold"}  # by status; all else is failure


@dataclass(slots=True)
class Ending:
    """How a run ends, as far as that is known."""

    spec: JobSpec
    say: Callable[[str], None]
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended: datetime | None = None  # when it was first told
    facts: dict[str, Any] = field(default_factory=dict)  # of a run that has begun: fingerprint, counts, ...
    result: RunResult | None = None
    error: Exception | None = None

    @property
    def event(self) -> str:
        """success, threshold or failure."""
        return EVENTS.get(self.result.status, "failure") if self.result is not None else "failure"

    def tree(self) -> dict[str, Any]:
        """The object."""
        spec, self.ended = self.spec, self.ended or datetime.now(UTC)
        about = {
            "format": FORMAT, "event": self.event, "job": job_name(spec), "date": spec.date, "output": spec.output.path,
            "began": self.began.isoformat(), "ended": self.ended.isoformat(), "versions": versions(),
        }  # fmt: skip
        return {**about, **self.facts, **(asdict(self.result) if self.result is not None else _broken(self.error))}


def _broken(error: Exception | None) -> dict[str, Any]:
    """Status, exit code and reason of a run that raised."""
    if isinstance(error, BatchnlpError):
        status = "stopped" if error.retryable else "error"
        return {"status": status, "exit_code": error.exit_code, "error": type(error).__name__, "message": str(error)}
    name = type(error).__name__  # and no more: what another library says may hold a document's text
    return {"status": "error", "exit_code": BatchnlpError.exit_code, "error": name, "message": name}


@contextmanager
def written(ending: Ending, ledger: Ledger, facts: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Around a run: write how it ended, if it came as far as a plan."""
    try:
        yield
    except Exception as error:
        ending.error = error
        raise
    finally:
        ending.facts = {"run": ledger.run, "fingerprint": ledger.fingerprint, **facts()}
        if ledger.store.names(ledger.control):
            try:
                ledger.store.replace(f"{ledger.control}/{FILE}", to_json(ending.tree()))
            except (OSError, BatchnlpError) as error:  # the manifest stands all the same
                ending.say(f"{FILE} could not be written: {error}")


def results_of(ledger: Ledger) -> dict[str, Any]:
    """What the file says; nothing where there is none, or it is damaged."""
    with suppress(ValueError, TypeError, BatchnlpError):
        return dict(json.loads(ledger.store.read(f"{ledger.control}/{FILE}") or b"{}"))
    return {}


def versions() -> dict[str, str]:
    """Of all that may change results or speed."""
    found = {"batchnlp": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
