"""Every warehouse, by one contract: what a load leaves behind, and that a second one changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from warehouses import Rows, Warehouse, topics, write_output

from batchnlp.data.ledger import set_live
from batchnlp.data.store import LocalStore
from batchnlp.errors import CorruptError, OutputError, SinkError, SpecError
from batchnlp.sinks.load import load

Make = Callable[[str], Warehouse]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def rows_of(*tables: pa.Table) -> Rows:
    return sorted((row for table in tables for row in table.to_pylist()), key=lambda row: row["id"])


# --- append


def test_append_loads_each_run_once(warehouse: Warehouse, out: Path) -> None:
    first, second = topics(0, 10), topics(5, 12, "y")
    write_output(out, first)
    loaded = load(str(out), warehouse.spec())
    assert (loaded.kind, loaded.table, loaded.rows, loaded.runs) == (warehouse.kind, "t", 10, ["a" * 8])
    assert warehouse.rows() == rows_of(first)
    again = load(str(out), warehouse.spec())
    assert (again.rows, again.runs) == (0, [])
    write_output(out, second, "b")
    assert load(str(out), warehouse.spec()).runs == ["b" * 8]
    assert len(warehouse.rows()) == 17
    assert load(str(out), warehouse.spec()).runs == []
    assert [row for row in warehouse.rows() if row["label"] == "y"] == rows_of(second)


def test_another_job_and_another_table_are_loads_of_their_own(warehouse: Warehouse, tmp_path: Path) -> None:
    for job in ("one", "two"):
        write_output(tmp_path / job, topics(0, 3), job=job)
        assert load(str(tmp_path / job), warehouse.spec()).rows == 3
        assert load(str(tmp_path / job), warehouse.spec("other")).rows == 3
    assert len(warehouse.rows()) == len(warehouse.rows("other")) == 6


def test_a_table_that_was_dropped_is_loaded_again(warehouse: Warehouse, out: Path) -> None:
    write_output(out, topics(0, 4))
    load(str(out), warehouse.spec())
    warehouse.drop()
    assert load(str(out), warehouse.spec()).rows == 4
    assert warehouse.rows() == rows_of(topics(0, 4))


def test_a_list_that_is_unnested_later_is_loaded_too(warehouse: Warehouse, out: Path) -> None:
    write_output(out, topics(0, 2).append_column("words", pa.array([["a"], ["b", "c"]])))
    load(str(out), warehouse.spec())
    loaded = load(str(out), warehouse.spec(unnest="words"))
    assert (loaded.rows, loaded.runs) == (0, ["a" * 8])
    assert [row["words"] for row in warehouse.rows("t_words")] == ["a", "b", "c"]
    assert load(str(out), warehouse.spec(unnest="words")).runs == []


def test_a_run_without_rows_is_loaded_too(warehouse: Warehouse, out: Path) -> None:
    write_output(out, topics(0, 0), shards=1)
    assert load(str(out), warehouse.spec()).runs == ["a" * 8]
    assert load(str(out), warehouse.spec()).runs == []
    write_output(out, topics(0, 2), "b")
    assert load(str(out), warehouse.spec(write="upsert")).rows == 2
    assert warehouse.rows() == rows_of(topics(0, 2))


# --- upsert


def test_upsert_replaces_by_key(warehouse: Warehouse, out: Path) -> None:
    spec = warehouse.spec(key="id")
    write_output(out, topics(0, 10))
    load(str(out), spec)
    write_output(out, topics(6, 14, "y"), "b")
    assert load(str(out), spec).rows == 8
    labels = [row["label"] for row in sorted(warehouse.rows(), key=lambda row: int(row["id"][4:]))]
    assert labels == ["x"] * 6 + ["y"] * 8


def test_two_runs_in_one_load_the_later_one_counts(warehouse: Warehouse, out: Path) -> None:
    write_output(out, topics(0, 4))
    write_output(out, topics(2, 6, "y"), "b")
    assert load(str(out), warehouse.spec(key="id")).runs == ["a" * 8, "b" * 8]
    assert [row["label"] for row in warehouse.rows()] == ["x", "x", "y", "y", "y", "y"]


def test_upsert_by_several_columns(warehouse: Warehouse, out: Path) -> None:
    table = topics(0, 6, langs=("en", "de"))
    both = pa.concat_tables([table, table.set_column(1, "lang", pa.array(["fr"] * 6))])
    spec = warehouse.spec(key=["id", "lang"])
    write_output(out, both)
    load(str(out), spec)
    write_output(out, table.set_column(2, "label", pa.array(["y"] * 6)), "b")
    load(str(out), spec)
    found = {(row["id"], row["lang"]): row["label"] for row in warehouse.rows()}
    assert len(found) == len(warehouse.rows()) == 12
    assert {lang: {label for (_, own), label in found.items() if own == lang} for lang in ("en", "de", "fr")} == {
        "en": {"y"}, "de": {"y"}, "fr": {"x"},
    }  # fmt: skip


def test_keys_that_are_there_twice_or_null_are_refused(warehouse: Warehouse, out: Path, tmp_path: Path) -> None:
    write_output(out, pa.concat_tables([topics(0, 4), topics(3, 5)]))
    with pytest.raises(SpecError, match=r"1 rows have the n_tokens of another one, as {'n_tokens': 3}"):
        load(str(out), warehouse.spec(key="n_tokens"))
    write_output(tmp_path / "nulls", topics(0, 6))
    with pytest.raises(SpecError, match=r"lang is null in 2 rows"):
        load(str(tmp_path / "nulls"), warehouse.spec(key=["id", "lang"]))
    assert load(str(out), warehouse.spec()).rows == 6, "append takes them all"


@pytest.mark.parametrize("kind", ["duckdb", "postgres"])
def test_columns_of_the_users_own_survive_an_upsert(new_warehouse: Make, out: Path, kind: str) -> None:
    warehouse = new_warehouse(kind)
    write_output(out, topics(0, 3))
    load(str(out), warehouse.spec(key="id"))
    warehouse.sql("alter table t add column note varchar", "update t set note = 'mine'")
    write_output(out, topics(1, 4, "y"), "b")
    load(str(out), warehouse.spec(key="id"))
    assert [(row["label"], row["note"]) for row in warehouse.rows()] == [
        ("x", "mine"), ("y", "mine"), ("y", "mine"), ("y", None),
    ]  # fmt: skip


# --- replace_partition


def test_partitions_are_replaced_and_others_stay(warehouse: Warehouse, out: Path, tmp_path: Path) -> None:
    spec = warehouse.spec(write="replace_partition")
    write_output(out, topics(0, 9, langs=("en", "de", None)), partition_by=["lang"])
    load(str(out), spec)
    later = topics(20, 24, "y", langs=("it's", None))
    write_output(tmp_path / "next", later, "b", partition_by=["lang"])
    assert load(str(tmp_path / "next"), spec).rows == 4
    found = warehouse.rows()
    assert [row for row in found if row["label"] == "y"] == rows_of(later)
    assert sorted(row["lang"] for row in found if row["label"] == "x") == ["de"] * 3 + ["en"] * 3
    assert load(str(tmp_path / "next"), spec).rows == 0


def test_runs_that_were_appended_replace_together(warehouse: Warehouse, out: Path) -> None:
    """One after the other, the second would take the rows of the first away."""
    spec = warehouse.spec(write="replace_partition")
    write_output(out, topics(0, 4, langs=("en",)), partition_by=["lang"])
    load(str(out), spec)
    write_output(out, topics(4, 6, "y", langs=("en", "de")), "b", partition_by=["lang"])
    load(str(out), spec)
    assert [row["label"] for row in warehouse.rows()] == ["x"] * 4 + ["y"] * 2


def test_the_whole_table_is_replaced_where_the_spec_says_so(warehouse: Warehouse, tmp_path: Path) -> None:
    spec = warehouse.spec(write="replace_partition", partition_by=[])
    for run in ("a", "b"):
        write_output(tmp_path / run, topics(0, 5 if run == "a" else 3, run), run)
        load(str(tmp_path / run), spec)
    assert [row["label"] for row in warehouse.rows()] == ["b"] * 3


def test_runs_of_other_types_do_not_go_together(new_warehouse: Make, out: Path) -> None:
    write_output(out, topics(0, 2), partition_by=["lang"])
    write_output(out, topics(2, 4).set_column(3, "score", pa.array(["a", "b"])), "b", partition_by=["lang"])
    with pytest.raises(OutputError, match=r"the runs in .* do not go together: .*score"):
        load(str(out), new_warehouse("duckdb").spec(write="replace_partition"))


@pytest.mark.parametrize("kind", ["duckdb", "delta", "iceberg"])
def test_partitions_of_other_types(new_warehouse: Make, tmp_path: Path, kind: str) -> None:
    import datetime as dt
    from decimal import Decimal

    warehouse, day = new_warehouse(kind), dt.date(2026, 1, 2)
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, 678, dt.UTC)
    columns: dict[str, pa.Array] = {
        "n": pa.array([1, 2, 1, 2], pa.int64()), "d": pa.array([day, day, None, day]),
        "b": pa.array([True, False, True, False]), "m": pa.array([moment] * 4, pa.timestamp("us", "UTC")),
        "c": pa.array([Decimal("1.50")] * 4, pa.decimal128(5, 2)),
    }  # fmt: skip
    for name, values in columns.items():
        for run, label in (("a", "x"), ("b", "y")):
            write_output(tmp_path / name / run, topics(0, 4, label).append_column(name, values), run)
            load(str(tmp_path / name / run), warehouse.spec(name, write="replace_partition", partition_by=name))
        found = warehouse.rows(name)
        assert [row["label"] for row in found] == ["y"] * 4, name
        assert [row[name] for row in found] == values.to_pylist(), name


# --- schemas


def test_new_columns_are_added(warehouse: Warehouse, out: Path) -> None:
    spec = warehouse.spec(key="id")
    write_output(out, topics(0, 3))
    load(str(out), spec)
    write_output(out, topics(2, 5, "y").append_column("extra", pa.array([1.5, 2.5, 3.5])), "b")
    load(str(out), spec)
    assert [row["extra"] for row in warehouse.rows()] == [None, None, 1.5, 2.5, 3.5]
    write_output(out, topics(4, 6, "z"), "c")
    load(str(out), spec)
    stays = 3.5 if warehouse.kind in ("duckdb", "delta", "postgres") else None  # the others write the row anew
    found = [(row["label"], row["extra"]) for row in warehouse.rows()]
    assert found[2:] == [("y", 1.5), ("y", 2.5), ("z", stays), ("z", None)]


def test_a_changed_type_is_refused_with_the_remedy(warehouse: Warehouse, out: Path) -> None:
    write_output(out, topics(0, 3))
    load(str(out), warehouse.spec())
    changed = topics(3, 6).set_column(3, "score", pa.array(["high", "low", None]))
    write_output(out, changed, "b")
    with pytest.raises(OutputError, match=r"the column score of t is .* in the results .load into another table, or"):
        load(str(out), warehouse.spec())
    assert warehouse.rows() == rows_of(topics(0, 3)), "nothing was changed"


def test_a_column_without_a_type_is_made_when_it_has_one(warehouse: Warehouse, out: Path) -> None:
    write_output(out, topics(0, 2).append_column("note", pa.nulls(2)))
    load(str(out), warehouse.spec())
    write_output(out, topics(2, 4).append_column("note", pa.array([1, None])), "b")
    load(str(out), warehouse.spec())
    assert [row["note"] for row in warehouse.rows()] == [None, None, 1, None]


# --- what is loaded, and what is not


def test_a_retry_generation_brings_only_what_is_new(warehouse: Warehouse, out: Path) -> None:
    """As the ledger will write it: the manifest lists old and new files, and the old one is kept beside it."""
    write_output(out, topics(0, 6), shards=3)
    control = out / "_batchnlp" / ("a" * 64)
    whole = json.loads((control / "manifest.json").read_text())
    first = {**whole, "files": whole["files"][:2]}
    (control / "manifest.json").write_text(json.dumps(first))
    assert load(str(out), warehouse.spec()).rows == 4
    (control / "manifest.json").rename(control / "manifest-0.json")
    (control / "manifest.json").write_text(json.dumps({**whole, "run": "aaaaaaaa-r1"}))
    assert load(str(out), warehouse.spec()).rows == 2
    assert load(str(out), warehouse.spec()).rows == 0
    assert load(str(out), warehouse.spec("afresh")).rows == 6
    assert warehouse.rows() == warehouse.rows("afresh") == rows_of(topics(0, 6))


def test_after_an_overwrite_append_adds_and_upsert_corrects(warehouse: Warehouse, out: Path) -> None:
    write_output(out, topics(0, 4))
    for name, more in (("plain", {}), ("keyed", {"key": "id"})):
        load(str(out), warehouse.spec(name, **more))
    write_output(out, topics(2, 6, "y"), "b")
    set_live(LocalStore(out), ["b" * 64])
    for name, more in (("plain", {}), ("keyed", {"key": "id"})):
        load(str(out), warehouse.spec(name, **more))
    assert len(warehouse.rows("plain")) == 8
    assert [row["label"] for row in warehouse.rows("keyed")] == ["x", "x", "y", "y", "y", "y"]


@pytest.mark.parametrize("kind", ["duckdb", "parquet"])
def test_an_output_that_is_not_finished_is_refused(new_warehouse: Make, out: Path, kind: str) -> None:
    warehouse = new_warehouse(kind)
    write_output(out, topics(0, 4))
    (out / "_SUCCESS").unlink()
    with pytest.raises(OutputError, match=r"has no _SUCCESS .run the job again, then load"):
        load(str(out), warehouse.spec())
    manifest = out / "_batchnlp" / ("a" * 64) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "success": False}))
    with pytest.raises(OutputError, match=r"run aaaaaaaa in .* is over its limit"):
        load(str(out), warehouse.spec())
    manifest.unlink()
    with pytest.raises(OutputError, match=r"run aaaaaaaa in .* is not complete"):
        load(str(out), warehouse.spec())
    assert not Path(warehouse.database).exists()


def damage(path: Path) -> None:
    """Flip a byte in the middle of the pages."""
    data = bytearray(path.read_bytes())
    data[len(data) // 8] ^= 0xFF
    path.write_bytes(data)


def test_a_damaged_part_loads_nothing(warehouse: Warehouse, out: Path) -> None:
    write_output(out, topics(0, 5000), shards=2)
    parts = sorted(out.glob("part-*"))
    whole = parts[1].read_bytes()
    damage(parts[1])
    with pytest.raises(CorruptError, match=r"is damaged: "):
        load(str(out), warehouse.spec())
    parts[1].write_bytes(whole[:-20])
    with pytest.raises(CorruptError, match=f"{parts[1]} cannot be read"):
        load(str(out), warehouse.spec())
    parts[1].write_bytes(whole)
    assert load(str(out), warehouse.spec()).rows == 5000
    assert len(warehouse.rows()) == 5000


def test_a_directory_that_looks_like_a_pattern(new_warehouse: Make, tmp_path: Path) -> None:
    for name in ("out[1]", "out*"):
        write_output(tmp_path / name, topics(0, 3), job=name)
        assert load(str(tmp_path / name), new_warehouse("duckdb").spec()).rows == 3


def test_a_part_with_other_rows_is_refused(new_warehouse: Make, out: Path) -> None:
    write_output(out, topics(0, 5), shards=2)
    parts = sorted(out.glob("part-*"))
    parts[1].write_bytes(parts[0].read_bytes())
    with pytest.raises(CorruptError, match=r"has 3 rows instead of 2"):
        load(str(out), new_warehouse("duckdb").spec())


# --- others at the same time


@pytest.mark.parametrize("kind", ["postgres", "parquet"])
def test_of_two_loads_at_once_one_does_it(new_warehouse: Make, out: Path, kind: str) -> None:
    warehouse = new_warehouse(kind)
    write_output(out, topics(0, 50))
    with ThreadPoolExecutor() as threads:
        both = [threads.submit(load, str(out), warehouse.spec(key="id")) for _ in range(2)]
    assert sorted(one.result().rows for one in both) == [0, 50]
    assert len(warehouse.rows()) == 50


def test_a_catalog_of_the_users_own(tmp_path: Path, out: Path) -> None:
    """By pyiceberg's own configuration, which it reads once a process."""
    write_output(out, topics(0, 5))
    uri = f"sqlite:///{tmp_path}/catalog.db"
    names = {"TYPE": "sql", "URI": uri, "WAREHOUSE": f"file://{tmp_path}/files"}
    environ = os.environ | {f"PYICEBERG_CATALOG__PROD__{key}": value for key, value in names.items()}
    settings = [f"--set={setting}" for setting in ("catalog=prod", "database=nlp", "table=topics")]
    command = [sys.executable, "-m", "batchnlp", "load", str(out), "--to", "iceberg", *settings]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with closing(SqlCatalog("prod", uri=uri)) as catalog:
        assert catalog.load_table("nlp.topics").scan().to_arrow().num_rows == 5


# --- warehouses that do not answer


def test_no_connection_is_one_line(tmp_path: Path, out: Path, new_warehouse: Make) -> None:
    write_output(out, topics(0, 2))
    (tmp_path / "file").write_text("hello" * 1000)
    cases: dict[str, tuple[Any, type[Exception]]] = {
        "duckdb": (tmp_path / "file", SinkError), "delta": (tmp_path / "file", SinkError),
        "iceberg": (tmp_path / "file", SinkError), "parquet": (tmp_path / "file", SinkError),
        "postgres": (f"postgresql://tests@/none?host={tmp_path}", SinkError),
    }  # fmt: skip
    for kind, (database, error) in cases.items():
        warehouse = Warehouse(kind, tmp_path)
        warehouse.database = str(database)
        with pytest.raises(error) as caught:
            load(str(out), warehouse.spec())
        assert len(str(caught.value).splitlines()) == 1, kind
