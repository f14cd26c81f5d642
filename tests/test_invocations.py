"""Who worked on a run, and when its parts were committed: recorded for people, and in the way of nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from commands import Corpus, classify, invoke, last_json

from batchnlp.data import invocations
from batchnlp.data.commits import Segments
from batchnlp.data.invocations import Diary
from batchnlp.data.ledger import Ledger, open_ledgers
from batchnlp.errors import StoppedError

RESULT = {"status": "done", "message": "", "rows": 18}


def entries(ledger: Ledger) -> list[dict[str, Any]]:
    return [
        {"invocation": e.invocation, "status": e.status, "message": e.message, "ended": e.ended is not None}
        for e in invocations.read(ledger)
    ]


def worked(ledger: Ledger, name: str, result: dict[str, Any]) -> None:
    with Diary(ledger, name, 0.5) as diary:
        diary.begin()
        diary.leased()
        diary.result(result)


def test_a_run_leaves_one_entry_and_nothing_to_do_leaves_none(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out, began = tmp_path / "out", time.time()
    assert last_json(classify(corpus(), out, classifier, "--json"))["status"] == "done"
    assert last_json(invoke("status", out, "--json"))["shards"] == 1
    assert classify(tmp_path / "corpus", out, classifier).exit_code == 0, "there is nothing to do"
    (ledger,) = open_ledgers(str(out))
    (entry,) = invocations.read(ledger)
    assert entry.leased is not None
    assert entry.ended is not None
    assert began - 1 <= entry.began <= entry.leased <= entry.ended <= time.time() + 1
    assert (entry.status, entry.result["rows"], entry.result["resolved"]["backend"]) == ("done", 25, "torch")
    assert {"python", "batchnlp", "torch", "transformers"} <= entry.versions.keys()
    part = ledger.committed(0)
    assert part.invocation == entry.invocation
    assert entry.leased <= part.committed <= entry.ended


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (StoppedError("no space left", "make room"), "stopped", "no space left (make room)"),
        (ValueError("a document's words"), "error", "ValueError"),
    ],
    ids=["of ours", "of others"],
)
def test_an_exception_is_the_end_and_others_words_are_not_kept(
    run: Any, error: Exception, status: str, message: str
) -> None:
    diary = Diary(run.ledger, "one", 0.0)
    diary.begin()
    with pytest.raises(type(error)), diary:
        raise error
    assert entries(run.ledger) == [{"invocation": "one", "status": status, "message": message, "ended": True}]


def test_who_was_killed_has_no_end(run: Any) -> None:
    Diary(run.ledger, "one", 0.0).begin()
    worked(run.ledger, "two", RESULT)
    assert [(e["invocation"], e["status"], e["ended"]) for e in entries(run.ledger)] == [
        ("one", "", False),
        ("two", "done", True),
    ]


def test_nothing_computed_is_told_only_where_it_ends_otherwise(run: Any) -> None:
    def looked(name: str, status: str) -> None:
        with Diary(run.ledger, name, 0.0) as diary:
            diary.result({**RESULT, "status": status})

    looked("before reports", "done")
    worked(run.ledger, "one", {**RESULT, "status": "stopped"})
    for name, status in (("two", "stopped"), ("three", "done"), ("four", "done")):
        looked(name, status)
    assert [(e["invocation"], e["status"]) for e in entries(run.ledger)] == [("one", "stopped"), ("three", "done")]


def test_entries_are_bounded_and_damaged_ones_begin_anew(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invocations, "KEPT", 3)
    for name in "abcde":
        worked(run.ledger, name, RESULT)
    assert [entry["invocation"] for entry in entries(run.ledger)] == ["c", "d", "e"]
    path = Path(run.store.path(f"{run.ledger.control}/invocations.json"))
    path.write_text('[{"invocation":')
    assert invocations.read(run.ledger) == []
    worked(run.ledger, "f", RESULT)
    assert [entry["invocation"] for entry in entries(run.ledger)] == ["f"]


def test_commits_tell_when_and_by_whom_also_from_segments(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.time()
    run.complete()
    told = [
        (part.invocation, before - 1 <= part.committed <= time.time() + 1) for part in run.ledger.commits().values()
    ]
    assert told == [("invocation", True)] * 3
    monkeypatch.setattr(Segments, "size", 3)
    again = Ledger(run.store, run.ledger.fingerprint)
    again.recover(run.plan.shards, "another")
    assert run.store.names(f"{again.control}/commits") == []
    assert {part.invocation for part in again.commits().values()} == {"invocation"}


def test_outputs_of_before_have_no_times(run: Any) -> None:
    run.complete()
    for path in Path(run.store.path(f"{run.ledger.control}/commits")).iterdir():
        tree = json.loads(path.read_text())
        del tree["committed"], tree["invocation"]
        path.write_text(json.dumps(tree))
    assert [part.committed for part in run.ledger.commits().values()] == [0.0] * 3
