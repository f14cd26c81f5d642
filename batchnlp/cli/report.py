"""The body of `report`, and the page at the end of a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from batchnlp.cli.show import message, print_json
from batchnlp.data import invocations
from batchnlp.data.status import ledgers
from batchnlp.data.store import open_store
from batchnlp.errors import BatchnlpError, Interrupted, OutputError, SpecError
from batchnlp.report import history
from batchnlp.report.gather import comparison, page
from batchnlp.report.page import Page
from batchnlp.report.render import render
from batchnlp.types import many

NAME, COMPARISON = "_report.html", "_comparison.html"  # who reads a directory of Parquet passes over names with _


def write_report(outs: Sequence[str], compare: bool, target: str | None, columns: str | None, as_json: bool) -> None:
    """The report on an output, or on what differs between two."""
    if len(outs) != 1 + compare:
        given = f"{many(len(outs), 'output')} {'is' if len(outs) == 1 else 'are'} given"
        raise SpecError(given, "give one, or two with --compare")
    if compare:
        found = comparison(*outs)
        html, target = render(found), target or _in(outs[1], COMPARISON)
        notable = [change.notable for change in found.changes if change.notable]
        told: dict[str, Any] = {"status": "differ" if notable else "alike", "notable": notable}
    else:
        made = _remembered(outs[0], [name.strip() for name in (columns or "").split(",") if name.strip()])
        html, target = render(made), target or _in(outs[0], NAME)
        verdict = made.verdict
        told = {"status": made.digest.state, "run": made.digest.run, "verdict": verdict.word, "notable": verdict.points}
        message(f"{verdict.word}: {verdict.sentence}")
    if target == "-":
        sys.stdout.write(html.decode())
        return
    _write(target, html)
    message(f"report: {target}")
    if as_json:
        print_json({**told, "file": _absolute(target)})


def page_of_run(root: str) -> str | None:
    """Write the page of an output in which a run has just ended, unless the one that is there tells of it already; where it
    is. Whatever goes wrong, the run ended as it did."""
    target = _absolute(_in(root, NAME))
    try:
        if _current(root):
            return target
        made = _remembered(root)
        _write(target, render(made))
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - the CLI's border
        what = str(error) if isinstance(error, BatchnlpError) else type(error).__name__
        message(f"no report: {what}")
        return None
    message("\n  ".join([f"report: {target}", *made.verdict.points]))
    return target


def _current(root: str) -> bool:
    """Whether a page was written since something last happened in the output."""
    found = ledgers(root)
    ends = [entry.ended or entry.began for ledger, _ in found for entry in invocations.read(ledger)]
    written = found[0][0].store.modified(NAME)
    return bool(ends) and written is not None and written > max(ends)


def _remembered(root: str, columns: Sequence[str] = ()) -> Page:
    """The page; the run's digest is kept for the next one, where the output can be written."""
    made = page(root, columns)
    with suppress(BatchnlpError):
        history.keep(open_store(root), made.digest)
    return made


def _write(target: str, html: bytes) -> None:
    if os.path.isdir(target):
        raise OutputError(f"cannot write {target}: it is a directory", "name a file with -o")
    folder, _, name = _absolute(target).rpartition("/")
    try:
        open_store(folder or "/").replace(name, html)
    except OutputError as error:
        raise OutputError(error.message, "name another file with -o") from None


def _in(root: str, name: str) -> str:
    """A file of an output, which is a directory or a URI."""
    return f"{root.rstrip('/')}/{name}" if "://" in root else os.path.join(root, name)


def _absolute(target: str) -> str:
    return target if "://" in target else os.path.abspath(target)
