"""Night after night: what is computed, what is told, and that it always comes to what a run from nothing comes to."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tiny
import yaml
from commands import invoke, last_json
from nightly import Nightly, corpus, counts, same, second_night
from outputs import Crash, crashing

from batchnlp.data.ledger import live
from batchnlp.data.store import LocalStore
from batchnlp.engine import driver
from batchnlp.engine.worker import Worker
from batchnlp.errors import CorruptError, OutputError, SourceError, SpecError


@pytest.fixture
def job(tmp_path: Path, classifier: str) -> Nightly:
    """Twenty rows."""
    return Nightly(tmp_path, classifier, corpus(0, 20))


# --- what is computed


def test_a_night_computes_what_is_new_or_changed(job: Nightly, monkeypatch: pytest.MonkeyPatch) -> None:
    first = job.run()
    assert (first.rows, first.reused, first.deleted, first.changes) == (20, 0, 0, counts(rows=20, new=20))
    second_night(job)
    seen: list[str] = []
    results = Worker._results

    def told(worker: Worker, item: Any) -> Any:
        seen.extend(item.docs.ids.to_pylist())
        return results(worker, item)

    monkeypatch.setattr(Worker, "_results", told)
    second = job.run()
    assert sorted(seen) == ["doc-03", "doc-11", "doc-19", *(f"doc-{i}" for i in range(20, 25))]
    assert second.changes == counts(rows=23, new=5, changed=3, unchanged=15, deleted=2)
    assert (second.rows, second.dead, second.reused, second.deleted) == (23, 0, 15, 2)
    assert [row["op"] for row in job.log()].count("delete") == 2
    assert same(job.view(), job.scratch())
    assert invoke("verify", job.out).exit_code == 0


def test_the_same_command_is_done_and_a_touched_file_costs_nothing(job: Nightly) -> None:
    job.run()
    assert job.again().message == "all is done already"
    os.utime(job.source, (1, 1))
    result = job.again()
    assert (result.message, result.shards, result.rows, result.reused) == ("nothing had to be computed", 0, 20, 20)
    assert result.changes == counts(rows=20, unchanged=20)
    assert (job.out / "_SUCCESS").exists()
    assert same(job.view(), job.scratch())


def test_kept_columns_count_as_much_as_the_text(job: Nightly) -> None:
    job.run()
    table = pa.parquet.read_table(job.source)
    langs = ["fr", *table["lang"].to_pylist()[1:]]
    pa.parquet.write_table(table.set_column(2, "lang", pa.array(langs)), job.source)
    assert job.again().changes == counts(rows=20, changed=1, unchanged=19)
    assert same(job.view(), job.scratch())


def test_a_corpus_that_is_as_it_was_once_is_not_done_already(job: Nightly) -> None:
    job.run()
    before = dict(job.now)
    second_night(job)
    job.run()
    job.now = before
    assert job.run().changes == counts(rows=20, new=2, changed=3, unchanged=15, deleted=5)
    assert same(job.view(), job.scratch())


@pytest.mark.parametrize("more", [{"on_long": "truncate"}, {"max_length": 20}])
def test_another_parameter_computes_all_rows(job: Nightly, more: dict[str, Any]) -> None:
    job.run()
    second_night(job)
    result = job.run(task=more)
    assert result.changes == counts(rows=23, new=5, changed=3, model_changed=15, deleted=2)
    assert same(job.view(), job.scratch(task=more))


def test_another_model_computes_all_rows(job: Nightly, multi_label: str, tmp_path: Path) -> None:
    job.run()
    other = tiny.save_classifier(tmp_path / "other", ("games", "science", "web"), hidden_dropout_prob=0.2)
    job.model = other
    assert job.run().changes == counts(rows=20, model_changed=20)
    assert same(job.view(), job.scratch())


def test_rows_that_failed_are_tried_again_and_stale_results_deleted(job: Nightly) -> None:
    limits = {"limits": {"max_failed": "50%"}}
    job.now |= {"doc-05": None}
    first = job.run(**limits)
    assert (first.dead, first.deleted) == (1, 0)
    job.now |= {"doc-06": "", "doc-05": None}
    second = job.run(**limits)
    assert second.changes == counts(rows=20, changed=1, previously_failed=1, unchanged=18)
    assert (second.dead, second.deleted) == (2, 1), "doc-06 had a result, doc-05 never"
    assert same(job.view(), job.scratch(**limits))
    job.now |= {"doc-05": "a library", "doc-06": "a kernel"}
    third = job.run(**limits)
    assert third.changes == counts(rows=20, changed=2, unchanged=18)
    assert same(job.view(), job.scratch())
    del job.now["doc-05"]
    assert job.run(**limits).deleted == 1


def test_a_night_over_its_limit_changes_nothing(job: Nightly) -> None:
    job.run()
    before = job.view()
    job.now |= {"doc-05": None}
    failed = job.run()
    assert (failed.status, live(LocalStore(job.out))[0][:8] == failed.run) == ("failed", False)
    assert same(job.view(), before)
    second_night(job)
    job.now |= {"doc-05": "a package"}
    assert job.run().changes == counts(rows=23, new=5, changed=4, unchanged=14, deleted=2)
    assert same(job.view(), job.scratch())
    assert len(list((job.out / "_batchnlp" / "state").glob("*/*"))) == 2, "of the newest good run and its base"
    assert len(list((job.out / "_batchnlp").glob("*/plan.json"))) == 2, "the failed one is gone"


def test_replicas_compute_a_night_too(job: Nightly, tmp_path: Path) -> None:
    more = {"engine": {"runner": "ray", "replicas": 2}, "cache": str(tmp_path / "cache")}
    more["source"] = {"path": str(job.source), "id": "doc_id", "keep": ["lang"], "rows_per_shard": 5}
    job.run()
    second_night(job)
    second = job.run(**more)
    assert (second.changes["unchanged"], second.shards >= 2, second.cached) == (15, True, 0)
    assert same(job.view(), job.scratch())


@pytest.mark.parametrize("suffix", ["jsonl.gz", "csv"])
def test_line_formats_and_a_filter(job: Nightly, suffix: str) -> None:
    def write() -> None:
        rows = [
            {"doc_id": name, "text": text, "lang": "de" if i % 4 else "en"}
            for i, (name, text) in enumerate(job.now.items())
        ]
        if suffix == "csv":
            lines = ["doc_id,text,lang", *(f'{r["doc_id"]},"{r["text"]}",{r["lang"]}' for r in rows)]
            job.source.write_text("\n".join(lines) + "\n")
        else:
            with gzip.open(job.source, "wt") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))

    job.source = job.source.with_suffix(f".{suffix}")
    more = {"source": {"path": str(job.source), "id": "doc_id", "keep": ["lang"], "filter": [["lang", "==", "de"]]}}
    write()
    first = job.again(**more)
    assert first.rows == 15
    job.now |= {"doc-02": "something else"}
    write()
    assert job.again(**more).changes == counts(rows=15, changed=1, unchanged=14)
    assert same(job.view(), job.scratch(**more))
    other = {"source": {**more["source"], "filter": [["lang", "==", "en"]]}}
    assert job.again(**other).changes == counts(rows=5, new=5, deleted=15)
    assert same(job.view(), job.scratch(**other))


def test_partitioned_outputs(job: Nightly) -> None:
    more = {"output": {"path": str(job.out), "mode": "incremental", "partition_by": ["lang"]}}
    job.run(**more)
    second_night(job)
    assert job.run(**more).deleted == 2
    assert same(job.view(), job.scratch())
    assert invoke("verify", job.out).exit_code == 0


# --- what is refused


def test_what_is_refused(job: Nightly, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"source\.id is needed for output\.mode=incremental"):
        job.run(source={"id": None})
    job.run()
    with pytest.raises(OutputError, match="is the log of the job nightly"):
        job.again(job="another")
    with pytest.raises(OutputError, match="holds the results of another job"):
        job.again(output={"mode": "new"})
    with pytest.raises(OutputError, match="holds a log of changes, to which only an incremental job adds"):
        job.again(output={"mode": "append"})
    job.scratch()
    with pytest.raises(OutputError, match="no log of changes"):
        job.again(output={"path": str(tmp_path / "scratch0")})
    sink = {"kind": "parquet", "database": str(tmp_path / "lake"), "table": "t"}
    for more, what in [
        ({"write": "replace_partition", "partition_by": []}, "cannot follow a log of changes"),
        ({"key": ["id", "lang"]}, "deletes by id"),
    ]:
        with pytest.raises(SpecError, match=what):
            job.again(sinks=[{**sink, **more}])


def test_ids_must_be_unique_and_of_one_type(job: Nightly) -> None:
    job.run()
    table = pa.parquet.read_table(job.source)
    pa.parquet.write_table(pa.concat_tables([table, table.slice(4, 1)]), job.source)
    with pytest.raises(SourceError, match="the id 'doc-04' is there more than once"):
        job.again()
    numbers = pa.array(range(len(table)), pa.int64())
    pa.parquet.write_table(table.set_column(0, "doc_id", numbers), job.source)
    with pytest.raises(OutputError, match=r"source\.id is int64 now, and string in the log"):
        job.again()


def test_a_state_that_is_gone_is_named(job: Nightly) -> None:
    job.run()
    for state in (job.out / "_batchnlp" / "state").glob("*/*"):
        state.unlink()
    second_night(job)
    with pytest.raises(CorruptError, match=r"state.*cannot be read"):
        job.run()


# --- explained beforehand


def test_explain_counts_by_reason_and_writes_nothing(job: Nightly, tmp_path: Path) -> None:
    job.now |= {"doc-05": None}
    job.sections = {"limits": {"max_failed": "50%"}}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job.spec()))
    job.run()
    second_night(job)
    job.write()
    before = sorted((path, path.stat().st_mtime_ns) for path in job.out.rglob("*"))
    tree = last_json(invoke("plan", file, "--explain", "--json"))
    want = counts(rows=23, new=5, changed=3, previously_failed=1, unchanged=14, deleted=2)
    assert (tree["changes"], tree["rows"], tree["sampled"]) == (want, 9, 9)
    text = invoke("plan", file, "--explain").stdout
    for line in ("new 5 rows", "changed 3 rows", "previously failed 1 row", "unchanged 14 rows", "deleted 2 rows"):
        assert line in " ".join(text.split())
    assert sorted((path, path.stat().st_mtime_ns) for path in job.out.rglob("*")) == before
    assert "--explain tells" in last_json(invoke("plan", file, "--json"))["notes"][0]
    assert job.again().changes == want
    other = invoke("plan", file, "--explain", "--set", "output.mode=append")
    assert (other.exit_code, "output.mode: incremental" in other.stderr) == (2, True)


# --- crashes


def test_a_night_that_is_cut_short_goes_on_and_another_corpus_begins_anew(
    job: Nightly, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.run()
    second_night(job)
    half = {"source": {"path": str(job.source), "id": "doc_id", "keep": ["lang"], "rows_per_shard": 8}}
    commit, done = driver.Ledger.commit, []

    def two(*args: Any) -> bool:
        if len(done) == 2:
            raise Crash
        done.append(args[1].shard)
        return commit(*args)

    with monkeypatch.context() as patch:
        patch.setattr(driver.Ledger, "commit", two)
        for night in (job.run, job.again):
            with pytest.raises(Crash):
                night(**half)
    result = job.again(**half)
    assert (result.resumed >= 2, result.reused) == (True, 15), "and perhaps one that was finished and not committed"
    assert same(job.view(), job.scratch())
    job.now |= corpus(25, 27)
    done.clear()
    with monkeypatch.context() as patch:
        patch.setattr(driver.Ledger, "commit", lambda *args: two(*args) and two(*args) and two(*args))
        with pytest.raises(Crash):
            job.run(**half)
    job.now |= corpus(27, 30)
    assert job.run(**half).changes == counts(rows=28, new=5, unchanged=23)
    assert same(job.view(), job.scratch())


LOCK = "lock"  # which outlives no process, but a test
STEPS = [
    "batchnlp.data.store.LocalStore.create", "batchnlp.data.store.LocalStore.replace", "batchnlp.data.store.LocalStore.publish",
    "batchnlp.data.store.LocalStore.remove", "batchnlp.engine.incremental.parquet_writer",
]  # fmt: skip


def test_a_night_that_ends_at_any_step_neither_skips_nor_doubles(
    tmp_path: Path, classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nights(name: str) -> Nightly:
        (tmp_path / name).mkdir()
        job = Nightly(tmp_path / name, classifier, corpus(0, 12))
        job.run()
        job.now |= {"doc-03": "something else", "doc-20": "a server"}
        del job.now["doc-00"]
        return job

    undisturbed = nights("undisturbed")
    with crashing(monkeypatch, STEPS, -1, after=False, spared=LOCK) as steps:
        undisturbed.run()
    want = undisturbed.view()
    assert same(want, undisturbed.scratch())
    for at in range(1, steps[0] + 1, 3):  # by turns before and after
        job = nights(f"at{at}")
        with crashing(monkeypatch, STEPS, at, after=at % 2 == 0, spared=LOCK), pytest.raises(Crash):
            job.run()
        result = job.again()
        assert result.changes == counts(rows=12, new=1, changed=1, unchanged=10, deleted=1), at
        assert same(job.view(), want), f"step {at} of {steps[0]}"
        assert sum(row["op"] == "delete" for row in job.log()) == 1
        assert job.again().message == "all is done already"
        assert invoke("verify", job.out).exit_code == 0


def test_a_shard_of_the_newest_night_is_computed_again(job: Nightly) -> None:
    job.run()
    second_night(job)
    want = job.run(sinks=[])
    control = next((job.out / "_batchnlp").glob(f"{want.run}*"))
    (control / "commits" / "00000.json").unlink()
    again = job.again()
    assert (again.shards, again.changes, again.deleted) == (1, want.changes, want.deleted)
    assert same(job.view(), job.scratch())
    assert invoke("verify", job.out).exit_code == 0
