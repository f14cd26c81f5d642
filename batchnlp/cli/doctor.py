"""The body of `doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from batchnlp.cli.show import message, print_json, print_table
from batchnlp.engine.doctor import examine
from batchnlp.job.load import load_spec


def show_diagnosis(path: str, settings: Sequence[str], rows: int, as_json: bool) -> int:
    """Compare a job's answers with the model's own; the exit code."""
    found = examine(load_spec(path, settings), rows, message)
    for note in found.notes:
        message(note)
    print_table(
        f"{found.job}: {found.status}, {found.compared} of {found.documents} documents compared, "
        f"padding {found.padding:.1%}",
        ("compared", "found", "allowed", ""),
        [(c.what, f"{c.value:.6g}", f"{c.limit:.6g}", "ok" if c.ok else "FAILED") for c in found.checks],
    )
    if found.apart:
        rows_ = [
            (row["id"], row["differs"], _number(row.get("margin")), _number(row.get("score"))) for row in found.apart
        ]
        print_table("\nthe farthest off", ("id", "in", "margin", "score off by"), rows_)
    message(found.advice)
    if as_json:
        print_json(asdict(found))
    return 0 if found.status == "equal" else 1


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
