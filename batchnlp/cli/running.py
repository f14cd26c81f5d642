"""A run as people see it: a live line, a summary, and a page in the output."""

from __future__ import annotations

from batchnlp.cli.show import LiveLine, print_summary
from batchnlp.engine.driver import RunResult, run_job
from batchnlp.errors import BackendError, StoppedError
from batchnlp.job.spec import JobSpec


def run_shown(spec: JobSpec) -> tuple[RunResult, str | None]:
    """(what it came to, where its page is; None where it is not wanted or cannot be written)."""
    try:
        with LiveLine() as line:
            result = run_job(spec, line.update)
    except (StoppedError, BackendError):
        _page(spec)  # else the page of the night before would stand there as if it were of this one
        raise
    print_summary(result)
    return result, _page(spec)


def _page(spec: JobSpec) -> str | None:
    if not spec.output.report:
        return None
    from batchnlp.cli.report import page_of_run

    return page_of_run(spec.output.path)
