"""A run as people see it: a live line, a summary, and a page in the output."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from batchnlp.cli.show import LiveLine, print_summary
from batchnlp.data.store import open_store
from batchnlp.engine.computing import RunResult
from batchnlp.engine.driver import run_job
from batchnlp.engine.retry import retry_job
from batchnlp.errors import BackendError, BatchnlpError, Interrupted, LockedError, StoppedError
from batchnlp.job.spec import JobSpec


def run_shown(spec: JobSpec) -> tuple[RunResult, str | None]:
    """(what it came to, where its page is; None where it is not wanted or cannot be written)."""
    try:
        with LiveLine() as line:
            result = run_job(spec, line.update)
    except (StoppedError, BackendError):
        if spec.output.report:
            _page(spec.output.path)  # else the page of the night before would stand there as if it were of this one
        raise
    print_summary(result)
    return result, _page(spec.output.path) if spec.output.report else None


def retry_shown(out: str, settings: Sequence[str]) -> tuple[list[RunResult], str | None]:
    """The same for the dead letters of an output, tried again."""
    try:
        with LiveLine() as line:
            results = retry_job(out, settings, line.update)
    except (LockedError, Interrupted):
        raise  # the output is another's, or somebody waits
    except BatchnlpError:
        with suppress(BatchnlpError):
            _page(out, anew=True)  # of what was brought back before it
        raise
    for result in results:
        print_summary(result)
    return results, _page(out, anew=True)


def _page(out: str, *, anew: bool = False) -> str | None:
    """Where the page is; with `anew` only where there is one already."""
    from batchnlp.cli.report import NAME, page_of_run

    return None if anew and open_store(out).size(NAME) is None else page_of_run(out)
