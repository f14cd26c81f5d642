"""A job on each of several dates, one run after the other. Again: what is done is told and not done again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any

from batchnlp.cli.running import run_shown
from batchnlp.cli.show import message, print_json, print_table
from batchnlp.errors import BatchnlpError, SpecError, UsageError
from batchnlp.job.dates import parse_date
from batchnlp.job.spec import JobSpec
from batchnlp.types import many

MOST = 10_000  # dates
LATER = "not begun"


@dataclass(frozen=True, slots=True)
class _Day:
    """A date, and what became of it."""

    date: date | None
    status: str
    exit_code: int
    message: str
    result: dict[str, Any]


def dates_between(first: str, last: str) -> list[date]:
    """From one date to another, both included."""
    begin, end = (parse_date(day, "--backfill") for day in (first, last))
    count = (end - begin).days + 1
    if not 0 < count <= MOST:
        raise SpecError(
            f"--backfill {first} {last} are {many(max(count, 0), 'date')}", f"from 1 to {MOST:,} can be run"
        )
    return [begin + timedelta(days=day) for day in range(count)]


def backfill(specs: Sequence[JobSpec], as_json: bool) -> int:
    """Run the job on each date; the exit code of the first that is not done.

    A date that cannot work, or has too many dead letters, does not keep the others from theirs. What will hit the next date
    too (a full disk, a server that is down, a signal) ends it.
    """
    _check(specs)
    days: list[_Day] = []
    for spec in specs:
        if days and days[-1].exit_code not in (0, 1, UsageError.exit_code):
            days.append(_Day(spec.date, LATER, 0, "", {}))
            continue
        message(f"{spec.date}:")
        days.append(_run(spec))
    _show(days, as_json)
    return next((day.exit_code for day in days if day.exit_code), 0)


def _check(specs: Sequence[JobSpec]) -> None:
    """The dates must be runs of their own, and must not be in each other's way."""
    if (
        len({spec.model_copy(update={"date": None}).model_dump_json() for spec in specs}) < len(specs)
        and not specs[0].writes_date
    ):
        raise SpecError(
            "the job names no date, so that all dates are one run", "write {{ ds }} into source.path or output.path"
        )
    if len({spec.output.path for spec in specs}) < len(specs) and specs[0].output.mode != "append":
        what = f"all dates would write into {specs[0].output.path}"
        raise SpecError(what, "write {{ ds }} into output.path, or use --mode append")


def _run(spec: JobSpec) -> _Day:
    try:
        result, page = run_shown(spec)
    except BatchnlpError as error:
        message(f"batchnlp: {error}", "error")
        return _Day(spec.date, "error", error.exit_code, str(error), {})
    return _Day(spec.date, result.status, result.exit_code, result.message, {**asdict(result), "report": page})


def _show(days: Sequence[_Day], as_json: bool) -> None:
    if as_json:
        undone = next((day for day in days if day.exit_code), None)
        dates = [{**day.result, **{k: v for k, v in asdict(day).items() if k != "result"}} for day in days]
        tree = {
            "status": undone.status if undone else "done",
            "exit_code": undone.exit_code if undone else 0,
            "dates": dates,
        }
        print_json(tree)
        return
    rows = [(day.date, day.status, *_counts(day.result), day.message) for day in days]
    print_table("", ("date", "", "rows", "dead", ""), rows)


def _counts(result: dict[str, Any]) -> tuple[str, str]:
    return (f"{result['rows']:,}", f"{result['dead']:,}") if result else ("", "")
