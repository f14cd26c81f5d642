"""`batchnlp retry`: only the dead, in their places, and nothing else touched."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from commands import Corpus, classify, invoke, last_json, rows_of
from outputs import Crash
from poison import TOKEN, WORD, poison
from test_hooks import kept, results_file, writes
from warehouses import Warehouse

from batchnlp.data.ledger import Ledger, open_ledgers
from batchnlp.data.verify import verify
from batchnlp.report.gather import page

TEXTS: list[str | None] = [*tiny.texts(22), None, "", "   "]
POISON = {3, 11, 12, 21}
POISONED = [f"{text} {WORD}" if i in POISON else text for i, text in enumerate(TEXTS)]
SHARDS = "--set", "source.rows_per_shard=10"
MANY = *SHARDS, "--set", "limits.max_failed=10"


def test_the_word_is_one_token(classifier: str) -> None:
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(classifier)(WORD)["input_ids"][1:-1] == [TOKEN]


def dead_of(out: Path) -> list[tuple[str, str, int]]:
    result = invoke("collect", out, "--dead", "-o", "-")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return [(row["id"], row["code"], row["attempts"]) for row in rows]


def same(a: Path, b: Path | list[dict[str, Any]]) -> bool:
    """The same rows in the same order, but for the rounding of another batch."""
    rows = rows_of(b) if isinstance(b, Path) else b
    return [{**row, "score": pytest.approx(row["score"], abs=1e-5)} for row in rows] == rows_of(a)


def into(warehouse: Warehouse) -> tuple[str, str]:
    """The option that loads the results into its table."""
    return "--set", "sinks=" + json.dumps([{"kind": warehouse.kind, "database": warehouse.database, "table": "t"}])


def published(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("part-*.parquet") if "staging" not in path.parts}


@pytest.mark.parametrize("partition", [(), ("--set", "output.partition_by=lang", "--keep", "lang")], ids=["", "parts"])
def test_only_the_dead_are_run_and_all_is_as_if_they_had_never_failed(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition: tuple[str, ...]
) -> None:
    docs, out, calm = corpus(POISONED), tmp_path / "out", tmp_path / "calm"
    assert classify(docs, calm, classifier, *MANY, *partition).exit_code == 0
    with poison(monkeypatch):
        assert classify(docs, out, classifier, *MANY, *partition).exit_code == 0
        before = published(out)
        assert {id_ for id_, code, _ in dead_of(out) if code == "forward_error"} == {f"doc-{i:03}" for i in POISON}
        again = last_json(invoke("retry", out, "--json"))
        assert (again["rows"], again["dead"], again["message"]) == (7, 7, "0 of 7 dead letters have results now")
        assert verify(str(out)).problems == []
        assert published(out) == before, "no part without rows"
    with poison(monkeypatch, -1) as met:
        result = invoke("retry", out, "--json")
    assert sum(met) == len(POISON), "nothing but the dead went into the model"
    assert result.exit_code == 0, result.output
    tree = last_json(result)
    assert (tree["status"], tree["rows"], tree["dead"], tree["run"][-3:]) == ("done", 7, 3, "-r2")
    assert tree["message"] == "4 of 7 dead letters have results now"
    assert same(out, calm), "in their places"
    assert dead_of(out) == [
        ("doc-022", "null_text", 3), ("doc-023", "empty_text", 3), ("doc-024", "blank_text", 3),
    ]  # fmt: skip
    assert verify(str(out)).problems == []
    assert before < published(out), "what stood there was not touched"
    status = last_json(invoke("status", out, "--json"))
    assert (status["status"], status["rows_done"], status["dead"], status["retries"]) == ("done", 25, 3, 2)
    assert re.search(r"tried again +2 times", invoke("status", out).stdout)


def test_a_second_retry_has_nothing_to_do(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs, out = corpus(POISONED), tmp_path / "out"
    with poison(monkeypatch):
        classify(docs, out, classifier, *MANY)
    assert invoke("retry", out).exit_code == 0
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "lock.json"}
    for _ in range(2):
        result = invoke("retry", out, "--json")
        assert result.exit_code == 0
        want = "there is nothing to do: no dead letter may fare better; blank_text 1, empty_text 1, null_text 1 would"
        assert last_json(result)["message"].startswith(want)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != "lock.json"} == files


def test_an_output_without_dead_letters_has_nothing_to_do(corpus: Corpus, classifier: str, tmp_path: Path) -> None:
    classify(corpus(), tmp_path / "out", classifier)
    result = invoke("retry", tmp_path / "out")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        0,
        "there is nothing to do: no dead letter may fare better",
    )


def test_a_run_over_its_limit_succeeds_once_its_dead_are_fewer(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs, out = corpus(POISONED), tmp_path / "out"
    with poison(monkeypatch):
        assert classify(docs, out, classifier, *SHARDS, "--set", "limits.max_failed=3").exit_code == 1
        result = invoke("retry", out)
        assert result.exit_code == 1
        assert "7 dead letters are left, 3 allowed by limits.max_failed 3" in result.stderr
    assert not (out / "_SUCCESS").exists()
    assert invoke("retry", out).exit_code == 0
    assert (out / "_SUCCESS").exists()
    assert verify(str(out)).problems == []


def test_what_a_retry_replaces_is_kept(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs, out = corpus(POISONED), tmp_path / "out"
    with poison(monkeypatch):
        classify(docs, out, classifier, *MANY)
    (control,) = (path.parent for path in out.glob("_batchnlp/*/manifest.json"))
    old, dead = (control / "manifest.json").read_bytes(), {path.name for path in (control / "dead").iterdir()}
    invoke("retry", out)
    assert (control / "manifest-0.json").read_bytes() == old
    (ledger,) = open_ledgers(str(out))
    manifest = ledger.manifest()
    assert manifest is not None
    assert (manifest["run"], manifest["rows"], manifest["ok"], manifest["dead"]) == (f"{ledger.run}-r1", 25, 22, 3)
    assert sum(file["rows"] for file in manifest["files"] if file["kind"] == "rows") == 22
    assert {path.name for path in (control / "resolved").iterdir()} == dead
    assert [path.name[:14] for path in sorted((control / "dead").iterdir())] == ["dead-r1-00002-"]


@pytest.mark.parametrize("at", ["recover", "adopt", "finish", "put_away"])
def test_a_retry_that_was_cut_off_goes_on(
    at: str, corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its manifest is there, readers see what they saw before."""
    docs, out, calm = corpus(POISONED), tmp_path / "out", tmp_path / "calm"
    classify(docs, calm, classifier, *MANY)
    with poison(monkeypatch):
        classify(docs, out, classifier, *MANY)
    before = rows_of(out)

    def crash(*args: Any, **more: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        if at == "put_away":
            patch.setattr("batchnlp.engine.retry.put_away", crash)
        else:
            patch.setattr(Ledger, at, crash)
        invoke("retry", out)
    assert verify(str(out)).problems == []
    assert same(out, calm if at == "put_away" else before)
    assert invoke("retry", out).exit_code == 0
    assert same(out, calm)
    assert verify(str(out)).problems == []
    assert len(list(out.glob("_batchnlp/*/dead/*"))) == 1
    assert len(list(out.glob("_batchnlp/*/manifest-*.json"))) == 1
    assert [results_file(out)[key] for key in ("event", "rows", "dead")] == ["success", 25, 3], "not how it broke"


def test_a_shard_that_is_computed_anew_leaves_its_retries_behind(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs, out, calm = corpus(POISONED), tmp_path / "out", tmp_path / "calm"
    classify(docs, calm, classifier, *MANY)
    with poison(monkeypatch):
        classify(docs, out, classifier, *MANY)
    invoke("retry", out)
    (commit,) = out.glob("_batchnlp/*/commits/00001.json")
    commit.unlink()
    assert classify(docs, out, classifier, *MANY).exit_code == 0
    assert same(out, calm)
    assert verify(str(out)).problems == []
    assert last_json(invoke("status", out, "--json"))["retries"] == 1


def test_all_live_runs_are_retried(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with poison(monkeypatch):
        classify(corpus(POISONED, "one"), out, classifier, *MANY)
        classify(corpus([f"{text} more" for text in POISONED[:20]], "two"), out, classifier, *MANY, "--mode", "append")
    tree = last_json(invoke("retry", out, "--json"))
    assert [(run["rows"], run["dead"]) for run in tree["runs"]] == [(7, 3), (3, 0)]
    assert len(rows_of(out)) == 42
    assert verify(str(out)).problems == []


def test_a_warehouse_gets_the_new_rows_alone(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("duckdb")
    docs, out, duckdb = corpus(POISONED), tmp_path / "out", Warehouse("duckdb", tmp_path)
    sinks = into(duckdb)
    with poison(monkeypatch):
        tree = last_json(classify(docs, out, classifier, *MANY, *sinks, "--json"))
    assert [sink["rows"] for sink in tree["sinks"]] == [18]
    tree = last_json(invoke("retry", out, "--json"))
    assert [(sink["status"], sink["rows"]) for sink in tree["sinks"]] == [("loaded", 4)]
    assert sorted(row["id"] for row in duckdb.rows()) == sorted(row["id"] for row in rows_of(out))
    assert [sink["status"] for sink in last_json(invoke("retry", out, "--json"))["sinks"]] == ["held"]


def test_warehouses_wait_for_all_the_runs_of_an_output(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take an output only whole: what the second run lacks must not keep its own dead letters from being tried."""
    pytest.importorskip("duckdb")
    out, duckdb = tmp_path / "out", Warehouse("duckdb", tmp_path)
    sinks = into(duckdb)
    hook = "--set", f"hooks={json.dumps([writes(tmp_path / 'told', when=['success'])])}"
    few = *SHARDS, "--set", "limits.max_failed=3", *sinks, *hook
    with poison(monkeypatch):
        assert classify(corpus(POISONED, "one"), out, classifier, *few).exit_code == 1
        more = corpus([f"{text} {WORD}" if i < 5 else text for i, text in enumerate(TEXTS[:20])], "two")
        assert classify(more, out, classifier, *few, "--mode", "append").exit_code == 1
    result = invoke("retry", out, "--json")
    assert result.exit_code == 0, result.output
    runs = last_json(result)["runs"]
    assert [(run["status"], run["rows"], run["dead"]) for run in runs] == [("done", 7, 3), ("done", 5, 0)]
    assert [sink["status"] for run in runs for sink in run["sinks"]] == ["loaded", "held"]
    assert [one["run"] for one in kept(tmp_path / "told")] == [run["run"] for run in runs], "the newest last"
    assert len(duckdb.rows()) == 42


def test_a_retry_is_told_and_noted_as_a_run_is(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an orchestrator would go on from what the run said before it."""
    pytest.importorskip("duckdb")
    docs, out, told = corpus(POISONED), tmp_path / "out", tmp_path / "told"
    hook = json.dumps([writes(told, when=["success", "failure", "threshold"])])
    sinks = json.dumps([{"kind": "duckdb", "database": str(tmp_path / "house" / "t.duckdb"), "table": "t"}])
    with poison(monkeypatch):
        few = "--set", "limits.max_failed=3", "--set", f"hooks={hook}", "--set", f"sinks={sinks}"
        assert classify(docs, out, classifier, *SHARDS, *few).exit_code == 1
    (tmp_path / "house").write_text("in the way of a warehouse")
    assert invoke("retry", out).exit_code == 3
    (tmp_path / "house").unlink()
    (tmp_path / "house").mkdir()
    for _ in range(2):  # the second of which has nothing to tell
        assert invoke("retry", out).exit_code == 0
    runs = kept(told)
    assert [(one["event"], one["rows"], one["dead"]) for one in runs] == [
        ("threshold", 25, 7), ("failure", 25, 3), ("success", 25, 3),
    ]  # fmt: skip
    assert runs[1]["message"] == "the same command loads what is missing, and computes nothing again"
    assert [one["sinks"][0]["status"] for one in runs[1:]] == ["failed", "loaded"]
    assert results_file(out) == runs[2], "beside the manifest"
    assert len({one["invocation"] for one in runs}) == 3
    first, second, third = page(str(out)).worked
    assert (first.shards, second.shards, third.shards) == (3, 3, 0)
    assert [load.status for load in page(str(out)).loads] == ["loaded"]


def test_a_retry_that_is_refused_is_told_and_changes_no_file(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs, out, told = corpus(POISONED), tmp_path / "out", tmp_path / "told"
    with poison(monkeypatch):
        classify(docs, out, classifier, *MANY, "--set", f"hooks={json.dumps([writes(told)])}")
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "lock.json"}
    assert invoke("retry", out, "--set", "task.max_length=20").exit_code == 2
    (one,) = kept(told)
    assert (one["event"], one["exit_code"], one["error"]) == ("failure", 2, "OutputError")
    now = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "lock.json"}
    assert {path.name for path in files if files[path] != now.get(path)} <= {"_report.html"}
    assert files.keys() == now.keys()


def test_what_was_brought_back_is_loaded_also_where_another_run_cannot_be_tried(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("duckdb")
    out, duckdb = tmp_path / "out", Warehouse("duckdb", tmp_path)
    sinks = into(duckdb)
    two = corpus([f"{text} more" for text in POISONED[:20]], "two")
    with poison(monkeypatch):
        classify(corpus(POISONED, "one"), out, classifier, *MANY, *sinks)
        classify(two, out, classifier, *MANY, *sinks, "--mode", "append")
    assert len(duckdb.rows()) == 18 + 17
    for file in two.iterdir():
        file.unlink()
    refused = invoke("retry", out)
    assert (refused.exit_code, "4 of 7 dead letters have results now" in refused.stderr) == (2, True)
    assert len(duckdb.rows()) == 22 + 17
    (first,) = (
        json.loads(path.read_text()) for path in out.glob("_batchnlp/*/run_results.json") if "-r1" in path.read_text()
    )
    assert (first["event"], first["dead"], first["sinks"][0]["status"]) == ("success", 3, "loaded")


def test_what_cannot_be_retried_is_refused(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs, out = corpus(POISONED), tmp_path / "out"
    with poison(monkeypatch):
        classify(docs, out, classifier, *MANY)
    other = invoke("retry", out, "--set", "task.max_length=20")
    assert (other.exit_code, "it differs in recipe.task.max_length" in other.stderr) == (2, True)
    table = pq.read_table(docs / "01.parquet")
    pq.write_table(table.slice(1), docs / "01.parquet")
    changed = invoke("retry", out)
    assert (changed.exit_code, "it differs in files" in changed.stderr) == (2, True)
    (manifest,) = out.glob("_batchnlp/*/manifest.json")
    manifest.unlink()
    early = invoke("retry", out)
    assert (early.exit_code, "is not complete (run the job again first)" in early.stderr) == (2, True)
    assert invoke("retry", tmp_path / "nothing").exit_code == 2


def test_what_a_damaged_file_lost_stays_lost(classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "a.parquet", tmp_path / "out"
    texts = [f"document {i}" + f" {WORD}" * (i in (3, 12)) for i in range(30)]
    table = pa.table({"doc_id": [f"d{i}" for i in range(30)], "text": texts})
    pq.write_table(table, source, row_group_size=10, compression="none", use_dictionary=False, write_page_checksum=True)
    source.write_bytes(source.read_bytes().replace(b"document 25", b"Document 25"))
    options = (
        "source.rows_per_shard=30",
        "source.on_bad_file=salvage",
        "limits.max_failed=100%",
        "output.dead_text=true",
    )
    with poison(monkeypatch):
        result = classify(source, out, classifier, *(word for setting in options for word in ("--set", setting)))
    assert result.exit_code == 0, result.output
    assert [code for _, code, _ in dead_of(out)] == ["forward_error", "forward_error", "lost_rows"]
    assert len(list(out.glob("_batchnlp/*/dead/text-*"))) == 1
    assert invoke("retry", out).exit_code == 0
    assert [code for _, code, _ in dead_of(out)] == ["lost_rows"]
    assert list(out.glob("_batchnlp/*/dead/text-*")) == [], "it lies with the letters that were resolved"
    verdict = verify(str(out))
    assert (verdict.problems, verdict.rows, verdict.ok, verdict.dead) == ([], 30, 20, 10)
    assert [row["id"] for row in rows_of(out)] == [f"d{i}" for i in range(20)], "in their places"
