"""Several jobs and one output: what is refused, what stands beside, what replaces, and what a failure leaves."""

from __future__ import annotations

import json
from pathlib import Path

import tiny
from commands import BAD, Corpus, classify, invoke, last_json, rows_of


def test_another_job_is_refused_and_told_what_changed(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out, source = tmp_path / "out", corpus()
    classify(source, out, classifier)
    before = sorted(out.rglob("*"))
    result = classify(source, out, classifier, "--set", "task.on_long=truncate")
    assert result.exit_code == 2
    error = result.stderr.splitlines()[-1]
    assert error.startswith(
        f"batchnlp: {out} holds the results of another job; this one differs in recipe.task.on_long"
    )
    assert "--mode overwrite or append" in error
    assert sorted(out.rglob("*")) == before


def test_append_adds_and_overwrite_replaces(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / "out"
    first, second = corpus(), corpus(tiny.texts(4, seed=9), "second")
    assert classify(first, out, classifier).exit_code == 0
    assert classify(second, out, classifier, "--mode", "append").exit_code == 0
    assert len(rows_of(out)) == 29
    assert len(last_json(invoke("status", out, "--json"))["runs"]) == 2
    assert invoke("verify", out).exit_code == 0
    third = classify(second, out, classifier, "--mode", "overwrite", "--set", "task.scores=true")
    assert third.exit_code == 0, third.output
    rows = rows_of(out)
    assert len(rows) == 4
    assert all("scores" in row for row in rows)
    assert len(list(out.glob("part-*"))) == len(list((out / "_batchnlp").glob("*/plan.json"))) == 1
    assert invoke("verify", out).exit_code == 0


def test_a_failed_overwrite_leaves_no_success_of_the_run_before(
    tmp_path: Path, corpus: Corpus, classifier: str
) -> None:
    out = tmp_path / "out"
    assert classify(corpus(), out, classifier).exit_code == 0
    result = classify(corpus(BAD, "bad"), out, classifier, "--mode", "overwrite")
    assert result.exit_code == 1
    live = json.loads((out / "_batchnlp" / "current.json").read_text())["live"]
    manifest = json.loads((out / "_batchnlp" / live[-1] / "manifest.json").read_text())
    assert (out / "_SUCCESS").exists() == manifest["success"], "_SUCCESS speaks for what is live"


def test_a_failed_overwrite_replaces_nothing(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out, bad = tmp_path / "out", corpus(BAD, "bad")
    assert classify(corpus(), out, classifier).exit_code == 0
    want = rows_of(out)
    result = classify(bad, out, classifier, "--mode", "overwrite")
    assert result.exit_code == 1
    assert rows_of(out) == want
    assert invoke("verify", out).exit_code == 0
    assert (out / "_SUCCESS").exists()
    again = classify(bad, out, classifier, "--mode", "overwrite", "--set", "limits.max_failed=50%")
    assert again.exit_code == 0, again.output
    assert len(rows_of(out)) == 7
    assert len(list(out.glob("part-*"))) == 1
