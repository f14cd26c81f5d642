"""Warehouses that follow a log of changes: what they show is what a run from nothing would have given them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from commands import invoke
from nightly import Nightly, same
from outputs import Crash
from test_sinks_crash import STEPS, all_rows, crashing, some, spec_of, words
from warehouses import KINDS, Warehouse, topics, write_output

from batchnlp.errors import SpecError
from batchnlp.job.load import build_target
from batchnlp.job.sinks import StatementSpec
from batchnlp.sinks.load import load
from batchnlp.sinks.statements import statements

TEXTS = tiny.texts(40)


@pytest.fixture
def job(tmp_path: Path, classifier: str) -> Nightly:
    return Nightly(tmp_path, classifier, {f"doc-{i:02}": TEXTS[i] for i in range(30)})


def second_night(job: Nightly) -> None:
    job.now |= {f"doc-{i}": TEXTS[i] for i in range(30, 36)} | {"doc-03": "something else", "doc-29": "a game"}
    del job.now["doc-00"], job.now["doc-12"]


def sink(warehouse: Warehouse, **more: Any) -> dict[str, Any]:
    return {"kind": warehouse.kind, "database": warehouse.database, "table": "t", **more}


def shown(warehouse: Warehouse) -> dict[str, Any]:
    return {row["id"]: row for row in warehouse.rows()}


def test_the_view_is_that_of_a_run_from_nothing(job: Nightly, warehouse: Warehouse) -> None:
    into: dict[str, Any] = {"sinks": [sink(warehouse, key="id")], "limits": {"max_failed": "50%"}}
    first = job.run(**into)
    assert same(shown(warehouse), job.scratch())
    second_night(job)
    second = job.run(**into)
    assert [(s["rows"], s["deleted"], s["runs"]) for s in second.sinks] == [(8, 2, [second.run])]
    assert same(shown(warehouse), job.scratch())
    job.write()  # touched, and the same
    assert [(s["rows"], s["deleted"]) for s in job.again(**into).sinks] == [(0, 0)]
    del job.now["doc-01"]
    job.now |= {"doc-02": None}
    assert job.run(**into).sinks[0]["deleted"] == 2, "one that is gone, and one that fails now"
    want = job.scratch(**into)
    assert same(shown(warehouse), want)
    assert len(want) == len(job.now) - 1
    assert first.sinks[0]["deleted"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_load_of_changes_that_ends_at_any_step_is_completed_by_the_same_command(
    job: Nightly, new_warehouse: Callable[[str], Warehouse], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = new_warehouse(kind)
    into = {"sinks": [sink(counted, key="id")]}
    job.run(**into)
    first = job.folder / "first"
    shutil.copytree(job.out, first)
    second_night(job)
    job.run()
    want = job.scratch()
    with crashing(monkeypatch, STEPS[kind], -1, after=False) as steps:
        job.again(**into)
    assert same(shown(counted), want)
    for at in some(steps[0], kind):
        warehouse = new_warehouse(kind)
        load(str(first), warehouse.spec(key="id"))
        into = {"sinks": [sink(warehouse, key="id")]}
        with crashing(monkeypatch, STEPS[kind], at, after=at % 2 == 0), pytest.raises(Crash):
            job.again(**into)
        result = job.again(**into)
        assert (result.status, result.shards) == ("done", 0)
        assert same(shown(warehouse), want), f"step {at} of {steps[0]}"


def test_an_appended_table_is_the_log(job: Nightly, warehouse: Warehouse) -> None:
    into = {"sinks": [sink(warehouse)]}
    job.run(**into)
    second_night(job)
    job.run(**into)
    rows = warehouse.rows()
    assert sorted((row["revision"], row["op"], row["id"]) for row in rows) == sorted(
        (row["revision"], row["op"], row["id"]) for row in job.log()
    )
    newest = {row["id"]: row for row in sorted(rows, key=lambda row: (row["revision"], row["op"]))}
    view = {name: row for name, row in newest.items() if row.pop("op") == "upsert" and row.pop("revision") >= 0}
    assert same(view, job.scratch())


def test_entries_of_an_unnested_column_follow(tmp_path: Path, warehouse: Warehouse) -> None:
    out = tmp_path / "out"
    write_output(out, words(topics(0, 9)), deletes=[])
    load(str(out), spec_of(warehouse))
    write_output(out, words(topics(1, 2, "y")), "b", deletes=["doc-2", "doc-5"], shards=1)
    assert load(str(out), spec_of(warehouse)).deleted == 2
    rows, entries = all_rows(warehouse)
    assert [(row["id"], row["label"]) for row in rows] == [
        (f"doc-{i}", "y" if i == 1 else "x") for i in (0, 1, 3, 4, 6, 7, 8)
    ]
    assert sorted({row["id"] for row in entries}) == ["doc-4", "doc-7", "doc-8"], "of doc-1 there is none any more"
    write_output(out, words(topics(0, 0)), "c", deletes=["doc-8"], shards=1)
    load(str(out), spec_of(warehouse))
    assert len(warehouse.rows()) == 6
    assert sorted({row["id"] for row in warehouse.rows("t_entities")}) == ["doc-4", "doc-7"]


def test_warehouses_that_load_by_themselves_get_the_log(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_output(out, topics(0, 4), deletes=[])
    write_output(out, topics(1, 2, "y"), "b", deletes=["doc-2"], shards=1)

    def target(*more: str) -> StatementSpec:
        found = build_target("clickhouse", ["table=t", "database=d", "files=out", *more])
        assert isinstance(found, StatementSpec)
        return found

    with pytest.raises(SpecError, match="cannot upsert a log of changes"):
        statements(str(out), target("key=id"))
    found = "\n".join(statements(str(out), target()))
    assert "part-delete-bbbbbbbb.parquet" in found
    assert "`op`" in found


def test_a_log_says_what_it_deletes_to_verify(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_output(out, topics(0, 4), deletes=[])
    write_output(out, topics(1, 2, "y"), "b", deletes=["doc-2"], shards=1)
    assert invoke("verify", out).exit_code == 0
    (out / "part-delete-bbbbbbbb.parquet").write_bytes(b"damaged")
    result = invoke("verify", out)
    assert (result.exit_code, "part-delete-bbbbbbbb.parquet" in result.stderr) == (1, True)
