"""Everything that can end a run, as one tree.

    BatchnlpError            70  a bug of ours, or something nobody foresaw
    ├── UsageError            2  what was asked for cannot work; no result was written
    │   ├── SpecError            the job: an unknown key, a value out of range
    │   ├── SourceError          the corpus: no such path or column, two schemas, a corrupt file
    │   ├── ModelError           the model: no such directory, no safetensors, code in the repository
    │   ├── OutputError          the output: another job's results are there, or it cannot be written
    │   └── MissingExtraError    an optional dependency is not installed
    ├── StoppedError          3  stopped half-way; the same command resumes
    │   ├── WorkerLostError      a replica died more often than the limit allows
    │   ├── SinkError            a warehouse could not be reached, or did not take the rows
    │   └── CorruptError         an input or a result changed or broke in mid-run
    ├── LockedError          75  another run holds the output
    ├── Interrupted         130  Ctrl-C came before any shard was under way
    │   └── Terminated      143  SIGTERM did
    └── BackendError         70  the model failed on everything it was given

A document that fails is not an error but data: see `types.Failure`.

Every error says what happened (`message`), what to do about it (`hint`), and whether trying again may help
(`retryable`). All of them survive pickling, because workers raise them in other processes.
"""

from __future__ import annotations

from typing import ClassVar


class BatchnlpError(Exception):
    """Base of all errors; `str(error)` is one line that a user can act on."""

    exit_code: ClassVar[int] = 70
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(BatchnlpError):
    """What was asked for cannot work; no result was written."""

    exit_code = 2


class SpecError(UsageError):
    """The job description is wrong."""


class SourceError(UsageError):
    """The corpus cannot be read as described."""


class ModelError(UsageError):
    """The model cannot or must not be loaded."""


class OutputError(UsageError):
    """The output cannot be used for this job."""


class MissingExtraError(UsageError):
    """An optional dependency is not installed."""

    @classmethod
    def of(cls, package: str, extra: str) -> MissingExtraError:
        """The error for a `package` that comes with the optional dependency group `extra`."""
        return cls(f"this needs the package {package}", f"pip install 'batchnlp[{extra}]'")


class StoppedError(BatchnlpError):
    """The run stopped half-way; the same command resumes it."""

    exit_code = 3
    retryable = True


class WorkerLostError(StoppedError):
    """A replica died more often than the limit allows."""


class SinkError(StoppedError):
    """A warehouse could not be reached, or did not take the rows; it holds what it held before."""


class CorruptError(StoppedError):
    """An input or a result changed or broke while the run was under way."""

    retryable = False


class LockedError(BatchnlpError):
    """Another run holds the output."""

    exit_code = 75
    retryable = True


class Interrupted(BatchnlpError):
    """Ctrl-C came before any shard was under way; from then on a run ends as `stopped`."""

    exit_code = 130
    retryable = True


class Terminated(Interrupted):
    """SIGTERM came then."""

    exit_code = 143


class BackendError(BatchnlpError):
    """The model failed on everything it was given."""
