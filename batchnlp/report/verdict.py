"""What is to be read first: whether the night went well, in one sentence, and what to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from batchnlp.data.status import Status
from batchnlp.report.page import Change, Digest, Level, Load, Number, Other, Verdict, Worked
from batchnlp.report.words import count, share
from batchnlp.types import many

NEAR = 0.5  # of the dead letters that are allowed: worth a word before it is too late
CUT = 0.001  # share of documents


def judge(
    digest: Digest, status: Status, allowed: int | None, changes: Sequence[Change], loads: Sequence[Load],
    others: Sequence[Other], worked: Sequence[Worked],
) -> Verdict:  # fmt: skip
    """The verdict on a run in its output."""
    points = [*_points(digest, allowed, loads, others), *(c.notable for c in changes if c.notable)]
    last = worked[-1] if worked else None
    if status.damage:
        return Verdict("bad", "Damaged", _progress(digest), (*status.damage, *points))
    if digest.state == "failed":
        limit = "more than are allowed" if allowed is None else f"{count(allowed)} allowed"
        cause = f"below its gates: {status.gates}" if status.gates else f"{limit} by limits.max_failed"
        return Verdict("bad", "Failed", f"{_rows(digest)}; {cause}.", tuple(points))
    if digest.state.startswith("running"):
        return Verdict("going", "Running", _progress(digest), tuple(points))
    if digest.state != "done":
        why = [last.message] if last and last.message and last.status != "done" else []
        return Verdict("look", "Not complete", f"{_progress(digest)} The same command resumes it.", (*why, *points))
    unloaded = any(load.status == "failed" for load in loads)
    level: Level = "bad" if unloaded else "look" if points else "good"
    word = "Done, but not loaded" if unloaded else "Done, worth a look" if points else "Done"
    return Verdict(level, word, f"{_rows(digest)}.", tuple(points))


def _rows(digest: Digest) -> str:
    rate = f" ({share(digest.dead / max(digest.known, 1))})" if digest.dead else ""
    stand = f" + {count(digest.reused)} that stand; {count(digest.deleted)} deleted" if digest.reasons else ""
    total = f"{many(digest.ok, 'result')} + {many(digest.dead, 'dead letter')}{rate}{stand}"
    return f"{many(digest.known, 'row')} in = {total}"


def _progress(digest: Digest) -> str:
    if digest.rows is None:
        return f"{_rows(digest)}; the plan does not say of how many."
    part = share(digest.rows_done / digest.rows) if digest.rows else "all"
    done = f"{count(digest.rows_done)} of {many(digest.rows, 'row')} ({part})"
    return f"{done}: {many(digest.ok, 'result')} + {many(digest.dead, 'dead letter')}."


def _points(digest: Digest, allowed: int | None, loads: Sequence[Load], others: Sequence[Other]) -> Iterator[str]:
    for load in loads:
        if load.status == "failed":
            yield f"{load.name} was not loaded: {load.message}"
    for other in others:
        if other.live and other.state != "done":
            yield f"run {other.run} ({other.job}) in the same output is {other.state}"
    failed = digest.dead - digest.codes.get("duplicate_id", 0)  # which the limit does not count
    if digest.state == "done" and allowed and failed > NEAR * allowed:
        yield f"{count(failed)} dead letters, {count(allowed)} are allowed"
    cut = _number(digest, "truncated")
    if cut is not None and cut.value > CUT:
        yield f"{share(cut.value)} of the documents were cut off: task.on_long says how"


def _number(digest: Digest, name: str) -> Number | None:
    return next((number for number in digest.results.numbers if number.name == name), None)
