"""What people see of an incremental output, and what becomes of its dead letters when they are tried again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import invoke, last_json
from nightly import Nightly, corpus, counts, same, second_night
from outputs import Crash
from poison import WORD, poison
from warehouses import Warehouse

from batchnlp.data.ledger import Ledger, live
from batchnlp.data.store import LocalStore
from batchnlp.engine import incremental
from batchnlp.engine.retry import retry_job
from batchnlp.report.gather import page
from batchnlp.report.render import render


@pytest.fixture
def job(tmp_path: Path, classifier: str) -> Nightly:
    """Twenty rows."""
    return Nightly(tmp_path, classifier, corpus(0, 20))


# --- dead letters, tried again


LIMIT: dict[str, Any] = {"limits": {"max_failed": "10%"}}


def poisoned(job: Nightly, *names: str) -> None:
    job.now |= {name: f"a {WORD} in {name}" for name in names}


def retried(job: Nightly) -> dict[str, Any]:
    result = invoke("retry", job.out, "--json")
    assert result.exit_code == 0, result.output
    return last_json(result)


def test_retry_brings_back_what_the_newest_night_has_lost(
    job: Nightly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = Warehouse("duckdb", tmp_path)
    more = {**LIMIT, "sinks": [{"kind": "duckdb", "database": house.database, "table": "t", "key": "id"}]}
    poisoned(job, "doc-05")
    with poison(monkeypatch):
        assert job.run(**more).dead == 1
        second_night(job)
        poisoned(job, "doc-06")
        second = job.run(**more)
        assert (second.dead, second.deleted) == (2, 3), "two are gone, and doc-06 had a result"
        assert second.changes["previously_failed"] == 1
    tree = retried(job)
    assert (tree["rows"], tree["dead"], tree["message"]) == (2, 0, "2 of 2 dead letters have results now")
    want = job.scratch(**more)
    assert same(job.view(), want)
    assert same({row["id"]: row for row in house.rows()}, want)
    assert invoke("verify", job.out).exit_code == 0
    assert retried(job)["message"].startswith("there is nothing to do"), "doc-05 of the night before is done too"
    assert job.again(**more).message == "all is done already"
    job.now |= corpus(25, 26)
    assert job.run(**more).changes == counts(rows=24, new=1, unchanged=23), "none is known as failed any more"
    del job.now["doc-06"]
    assert job.run(**more).deleted == 1
    want = job.scratch(**more)
    assert same(job.view(), want)
    assert same({row["id"]: row for row in house.rows()}, want)


def test_retry_makes_a_night_good_that_was_over_its_limit(job: Nightly, monkeypatch: pytest.MonkeyPatch) -> None:
    job.run()
    second_night(job)
    poisoned(job, "doc-06", "doc-21")
    with poison(monkeypatch):
        assert job.run().status == "failed"
        assert invoke("retry", job.out).exit_code == 1
        assert job.again().status == "failed"
    assert len(live(LocalStore(job.out))) == 1

    def crash(ledger: Ledger) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(incremental, "make_live", crash)
        with pytest.raises(Crash):
            retry_job(str(job.out))
    assert retried(job)["status"] == "done"
    assert len(live(LocalStore(job.out))) == 2
    assert (job.out / "_SUCCESS").exists()
    assert same(job.view(), job.scratch())
    assert invoke("verify", job.out).exit_code == 0
    job.now |= corpus(25, 27)
    assert job.run().changes == counts(rows=25, new=2, unchanged=23)
    assert same(job.view(), job.scratch())


def test_retry_of_a_night_whose_corpus_has_gone_on_says_what_to_do(
    job: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(job, "doc-05")
    with poison(monkeypatch):
        job.run(**LIMIT)
    second_night(job)
    job.write()
    result = invoke("retry", job.out)
    assert result.exit_code == 2
    assert "differs in" in result.stderr
    assert "run the job: each run of it tries again what failed in the last one" in result.stderr


# --- what people see of it


def test_status_report_and_results_tell_of_the_whole_corpus(job: Nightly) -> None:
    job.run()
    second_night(job)
    job.run()
    status = last_json(invoke("status", job.out, "--json"))["runs"][-1]
    assert (status["rows"], status["changes"], status["deleted"]) == (
        8, counts(rows=23, new=5, changed=3, unchanged=15, deleted=2), 2,
    )  # fmt: skip
    assert "changed 3" in " ".join(invoke("status", job.out).stdout.split())
    found = page(str(job.out))
    assert found.verdict.sentence == "23 rows in = 8 results + 0 dead letters + 15 that stand; 2 deleted."
    rows = next(change for change in found.changes if change.what == "rows in")
    assert (rows.before, rows.after) == ("20", "23")
    assert not {"op", "revision"} & {*found.samples.columns}
    assert "previously failed" in render(found).decode()
    results = json.loads(next((job.out / "_batchnlp").glob(f"{found.digest.run}*/run_results.json")).read_text())
    assert (results["rows"], results["reused"], results["deleted"]) == (23, 15, 2)


def test_a_night_with_nothing_to_compute_is_reported_too(job: Nightly) -> None:
    job.run()
    del job.now["doc-00"]
    night = job.run()
    assert (night.shards, night.deleted) == (0, 1)
    found = page(str(job.out))
    assert (found.digest.run, found.verdict.level) == (night.run, "good")
    assert found.verdict.sentence == "19 rows in = 0 results + 0 dead letters + 19 that stand; 1 deleted."
