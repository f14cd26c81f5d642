"""Warehouses at the end of a job, and `batchnlp load`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlglot
from click.testing import Result
from commands import BAD, Corpus, classify, invoke, last_json, rows_of
from test_cli import loaded_after
from warehouses import Warehouse, topics, write_output

from batchnlp.data.lock import Lock
from batchnlp.data.store import LocalStore
from batchnlp.engine import driver
from batchnlp.engine.signals import Interrupt
from batchnlp.errors import SpecError
from batchnlp.job.load import build_target
from batchnlp.job.sinks import StatementSpec
from batchnlp.sinks.statements import statements


@pytest.fixture
def duckdb(tmp_path: Path) -> Warehouse:
    return Warehouse("duckdb", tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def sinks(*sections: dict[str, Any]) -> list[object]:
    return ["--set", "sinks=" + json.dumps(sections)]


def section(warehouse: Warehouse, **more: Any) -> dict[str, Any]:
    return {"kind": warehouse.kind, "database": warehouse.database, "table": "t", **more}


# --- at the end of a job


def test_a_job_fills_its_warehouses_once(out: Path, corpus: Corpus, classifier: str, duckdb: Warehouse) -> None:
    source, more = corpus(), sinks(section(duckdb), section(duckdb, table="keyed", key="id"))
    result = classify(source, out, classifier, "--json", "--keep", "lang", *more)
    assert result.exit_code == 0, result.output
    tree = last_json(result)
    assert [(s["kind"], s["table"], s["status"], s["rows"], s["runs"]) for s in tree["sinks"]] == [
        ("duckdb", "t", "loaded", 25, [tree["run"]]), ("duckdb", "keyed", "loaded", 25, [tree["run"]]),
    ]  # fmt: skip
    assert "duckdb t: 25 rows loaded in " in result.stderr
    assert duckdb.rows() == duckdb.rows("keyed") == rows_of(out)
    again = classify(source, out, classifier, "--json", "--keep", "lang", *more)
    assert [s["status"] for s in last_json(again)["sinks"]] == ["held", "held"]
    assert "duckdb t: holds these results already" in again.stderr
    assert len(duckdb.rows()) == 25


def test_a_warehouse_named_later_gets_what_is_there(
    out: Path, corpus: Corpus, classifier: str, duckdb: Warehouse
) -> None:
    source = corpus()
    assert classify(source, out, classifier).exit_code == 0
    tree = last_json(classify(source, out, classifier, "--json", *sinks(section(duckdb))))
    assert (tree["shards"], tree["sinks"][0]["rows"]) == (0, 25)


def test_a_warehouse_that_fails_is_exit_3_and_the_same_command_goes_on(
    tmp_path: Path, out: Path, corpus: Corpus, classifier: str, duckdb: Warehouse
) -> None:
    source, broken = corpus(), tmp_path / "broken.duckdb"
    broken.write_text("no database " * 1000)
    more = sinks({"kind": "duckdb", "database": str(broken), "table": "t"}, section(duckdb))
    result = classify(source, out, classifier, "--json", *more)
    assert result.exit_code == 3
    tree = last_json(result)
    assert (tree["status"], tree["rows"], tree["dead"]) == ("stopped", 25, 0)
    assert [s["status"] for s in tree["sinks"]] == ["failed", "loaded"]
    assert "not a valid DuckDB database" in tree["sinks"][0]["message"]
    assert "duckdb t: not loaded: duckdb, table t: " in result.stderr
    assert "the same command loads what is missing, and computes nothing again" in result.stderr
    assert (out / "_SUCCESS").exists(), "the results themselves are whole"
    broken.unlink()
    again = classify(source, out, classifier, "--json", *more)
    assert again.exit_code == 0, again.output
    assert last_json(again)["shards"] == 0
    assert [s["status"] for s in last_json(again)["sinks"]] == ["loaded", "held"]


def test_below_the_verdict_nothing_is_loaded(out: Path, corpus: Corpus, classifier: str, duckdb: Warehouse) -> None:
    source, more = corpus(BAD), sinks(section(duckdb))
    result = classify(source, out, classifier, "--json", "--set", "limits.max_failed=0", *more)
    assert (result.exit_code, last_json(result)["sinks"]) == (1, [])
    assert not Path(duckdb.database).exists()
    again = classify(source, out, classifier, "--json", "--set", "limits.max_failed=50%", *more)
    assert (again.exit_code, last_json(again)["sinks"][0]["rows"]) == (0, 7)


def test_after_a_signal_no_load_is_begun(
    out: Path, corpus: Corpus, classifier: str, duckdb: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, more = corpus(), sinks(section(duckdb))
    assert classify(source, out, classifier).exit_code == 0
    finish = driver._Run._finish

    def interrupted(self: Any, *args: Any) -> Any:
        self.work.interrupt = Interrupt()
        self.work.interrupt.signal = 15
        return finish(self, *args)

    monkeypatch.setattr(driver._Run, "_finish", interrupted)
    assert classify(source, out, classifier, *more).exit_code == 143
    assert not Path(duckdb.database).exists()


# --- refused before anything is computed


def test_a_missing_driver_is_told_before_the_run(
    out: Path, corpus: Corpus, classifier: str, duckdb: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    drivers = {
        "duckdb": ("duckdb", "duckdb"), "delta": ("deltalake", "delta"), "iceberg": ("pyiceberg", "iceberg"),
        "postgres": ("adbc_driver_postgresql", "postgres"),
    }  # fmt: skip
    source = corpus()
    for kind, (module, extra) in drivers.items():
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, f"batchnlp.sinks.{kind}", raising=False)
        result = classify(source, out, classifier, *sinks({**section(duckdb), "kind": kind}))
        assert result.exit_code == 2, result.output
        assert f"pip install 'batchnlp[{extra}]'" in result.stderr
        assert not out.exists()


def test_wrong_sinks_are_told_before_the_run(out: Path, corpus: Corpus, classifier: str, duckdb: Warehouse) -> None:
    source = corpus()
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "key": ({"tabel": "x"}, "did you mean sinks.table?"),
        "kind": ({"kind": "duckbd"}, "sinks.kind"),
        "table": ({"table": "../up"}, "sinks.table"),
        "column": ({"key": "idd"}, "sinks.key names 'idd'"),
        "partitions": ({"write": "replace_partition"}, "replace_partition needs partition columns"),
        "catalog": ({"catalog": "prod"}, "catalog belongs to iceberg"),
        "place": ({"kind": "parquet", "database": "s3://bucket/x"}, "writes to local directories"),
    }
    for name, (more, part) in cases.items():
        result = classify(source, out, classifier, *sinks({**section(duckdb), **more}))
        assert result.exit_code == 2, (name, result.output)
        assert part in result.stderr, (name, result.stderr)
        assert not out.exists(), name
    result = classify(source, out, classifier, "--set", "sinks=[duckdb]")
    assert "sinks is a section, not 'duckdb' (its keys: sinks.kind, sinks.database, " in result.stderr


@pytest.mark.parametrize(
    "database", ["postgresql://me:s3cret@host/db", "host=h password=s3cret", "postgresql://me@host/db?password=s3cret"]
)
def test_a_password_is_refused_and_not_repeated(
    tmp_path: Path, out: Path, corpus: Corpus, classifier: str, database: str
) -> None:
    section = {"kind": "postgres", "database": database, "table": "t"}
    results: list[Result] = [
        classify(corpus(), out, classifier, "--json", *sinks(section)),
        classify(tmp_path / "corpus", out, classifier, "--json", "--set", "sinks=" + json.dumps(section)),
        invoke("load", out, "--to", "postgres", "--set", f"database={database}", "--set", "table=t", "--json"),
    ]
    for result in results:
        assert result.exit_code == 2
        assert "PGPASSWORD" in result.stderr
        assert "s3cret" not in result.output
    assert not out.exists()


# --- the command


def test_load_fills_a_warehouse_once(out: Path, duckdb: Warehouse) -> None:
    write_output(out, topics(0, 6))
    args = ["load", out, "--to", "duckdb", "--set", f"database={duckdb.database}", "--set", "table=t", "--json"]
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    assert last_json(result) == {
        "kind": "duckdb", "table": "t", "runs": ["aaaaaaaa"], "rows": 6, "deleted": 0,
        "seconds": last_json(result)["seconds"],
        "status": "loaded", "output": str(out),
    }  # fmt: skip
    assert "duckdb t: 6 rows loaded in" in result.stderr
    again = invoke(*args)
    assert (last_json(again)["status"], last_json(again)["rows"]) == ("held", 0)
    assert len(duckdb.rows()) == 6


def test_load_needs_a_finished_output_that_nobody_holds(out: Path, duckdb: Warehouse) -> None:
    args = ["load", out, "--to", "duckdb", "--set", f"database={duckdb.database}", "--set", "table=t"]
    result = invoke(*args)
    assert result.exit_code == 2
    assert result.stderr == f"batchnlp: {out} is no directory (give the output.path of a job)\n"
    write_output(out, topics(0, 6))
    lock = Lock(LocalStore(out), "somebody")
    lock.acquire()
    try:
        assert invoke(*args).exit_code == 75
    finally:
        lock.release()
    (out / "_SUCCESS").unlink()
    assert invoke(*args).exit_code == 2
    assert not Path(duckdb.database).exists()


def test_a_warehouse_that_does_not_answer_is_exit_3(out: Path, tmp_path: Path) -> None:
    write_output(out, topics(0, 2))
    database = f"postgresql://tests@/none?host={tmp_path}"
    result = invoke("load", out, "--to", "postgres", "--set", f"database={database}", "--set", "table=t")
    assert result.exit_code == 3, result.output
    assert result.stderr.startswith("batchnlp: postgres, table t: ")
    assert "the same command loads what is missing" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_wrong_keys_of_a_load_name_the_nearest(out: Path) -> None:
    result = invoke("load", out, "--to", "duckdb", "--set", "datbase=x", "--set", "table=t")
    assert result.exit_code == 2
    assert "unknown key datbase" in result.stderr
    assert "did you mean database?" in result.stderr
    assert "table is missing" in invoke("load", out, "--to", "delta", "--set", "database=x").stderr


def test_a_load_needs_no_model_libraries(out: Path, duckdb: Warehouse) -> None:
    write_output(out, topics(0, 2))
    code, modules = loaded_after(
        "load", out, "--to", "duckdb", "--set", f"database={duckdb.database}", "--set", "table=t"
    )
    assert code == 0
    assert not modules & {"torch", "transformers", "tokenizers", "ray", "deltalake", "pyiceberg"}


# --- statements

PLACES = {"bigquery": "gs://bucket/out", "snowflake": "stage/out", "clickhouse": "s3://bucket/out"}


def made(out: Path, kind: str, *settings: str) -> list[str]:
    spec = build_target(kind, [f"files={PLACES[kind]}", "table=topics", "database=db", *settings])
    assert isinstance(spec, StatementSpec)
    return statements(str(out), spec)


@pytest.mark.parametrize("write", ["append", "upsert"])
@pytest.mark.parametrize("kind", PLACES)
def test_statements_parse_and_name_every_file(out: Path, kind: str, write: str) -> None:
    table = topics(0, 6).append_column("vector", pa.array([[1.0]] * 6))
    write_output(out, table, job="it's")
    found = made(out, kind, f"write={write}")
    for statement in found:
        sqlglot.parse_one(statement, dialect=kind, error_level=sqlglot.ErrorLevel.RAISE)
    text = "\n".join(found)
    assert all(text.count(path.name) >= 1 for path in out.glob("part-*"))
    assert "it\\'s" in text
    assert "aaaaaaaa" in text
    assert found == made(out, kind, f"write={write}"), "the same keys each time"
    assert ("MERGE INTO" in text or "ReplacingMergeTree" in text) == (write == "upsert")


def test_a_retry_generation_is_a_portion_of_its_own(out: Path) -> None:
    write_output(out, topics(0, 6), shards=3)
    control = out / "_batchnlp" / ("a" * 64)
    whole = json.loads((control / "manifest.json").read_text())
    (control / "manifest-0.json").write_text(json.dumps({**whole, "files": whole["files"][:2]}))
    (control / "manifest.json").write_text(json.dumps({**whole, "run": "aaaaaaaa-r1"}))
    inserts = [s for s in made(out, "snowflake") if s.startswith("COPY INTO")]
    assert [s.count("part-0000") for s in inserts] == [2, 1]


def test_load_prints_statements_and_nothing_else(out: Path) -> None:
    write_output(out, topics(0, 4))
    args = ["load", out, "--to", "clickhouse", "--set", "table=topics", "--set", "files=s3://bucket/out"]
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    printed = [statement.strip() for statement in result.stdout.split(";\n") if statement.strip()]
    assert last_json(invoke(*args, "--json"))["statements"] == printed
    assert len(printed) == 2 + 2 * 2
    refused = invoke(*args[:4], "--set", "table=topics")
    assert (refused.exit_code, "files is missing" in refused.stderr) == (2, True)


def test_statements_refuse_what_they_cannot_say(out: Path) -> None:
    write_output(out, topics(0, 4))
    with pytest.raises(SpecError, match=r"sinks.key names 'idd'"):
        made(out, "bigquery", "key=idd")
    assert invoke("load", out, "--to", "bigquery", "--set", "write=replace_partition").exit_code == 2
