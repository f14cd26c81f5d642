"""Budgets: a run that has spent one ends cleanly, says which, and the same command goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import Corpus, classify, last_json, rows_of

from batchnlp.data.verify import verify


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("max_tokens=30", "limits.max_tokens 30 is spent; the same command resumes it"),
        (
            "max_minutes=0.00001",
            "limits.max_minutes 1e-05 is spent before a shard was done; the same command would begin again: raise it, or "
            "limits.grace_seconds",
        ),
    ],
)
def test_a_spent_budget_is_exit_3_and_resumable(
    limit: str, reason: str, corpus: Corpus, classifier: str, tmp_path: Path
) -> None:
    docs, out = corpus(), tmp_path / "out"
    shards = "--set", "source.rows_per_shard=1"
    result = classify(docs, out, classifier, *shards, "--set", f"limits.{limit}", "--json")
    assert result.exit_code == 3, result.output
    tree: dict[str, Any] = last_json(result)
    assert tree["status"] == "stopped"
    assert tree["message"] == reason
    assert tree["rows"] < 25
    assert not (out / "_SUCCESS").exists()
    again = last_json(classify(docs, out, classifier, *shards, "--json"))
    assert (again["status"], again["rows"], again["resumed"]) == ("done", 25, tree["rows"])
    assert len(rows_of(out)) == 25
    assert verify(str(out)).problems == []


def test_a_budget_that_is_not_reached_changes_nothing(corpus: Corpus, classifier: str, tmp_path: Path) -> None:
    limits = "--set", "limits.max_tokens=1000000", "--set", "limits.max_minutes=60"
    result = classify(corpus(), tmp_path / "out", classifier, *limits, "--json")
    assert (result.exit_code, last_json(result)["status"]) == (0, "done")


@pytest.mark.parametrize("limit", ["max_minutes=0", "max_tokens=0", "batch_seconds=-1", "shard_seconds=soon"])
def test_limits_that_are_none(limit: str, corpus: Corpus, classifier: str, tmp_path: Path) -> None:
    assert classify(corpus(), tmp_path / "out", classifier, "--set", f"limits.{limit}").exit_code == 2
