"""Loads that end half-way: killed between any two of their steps, or by SIGKILL, and then begun again.

What is struck is a load that has all there is to do: it replaces rows of an earlier one, adds new ones, and has a table for an
unnested column beside the main one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from outputs import Crash, crashing
from warehouses import KINDS, Rows, Warehouse, topics, write_output

from batchnlp import registry
from batchnlp.job.sinks import SinkSpec
from batchnlp.sinks.load import load

Make = Callable[[str], Warehouse]
STEPS = {  # where the process may end: what a load calls that changes something
    "duckdb": ["batchnlp.sinks.duckdb.DuckDB._execute"],
    "postgres": ["batchnlp.sinks.postgres.Postgres._execute", "batchnlp.sinks.postgres.Postgres.finalize"],
    "delta": ["batchnlp.sinks.delta.write_deltalake", "batchnlp.sinks.delta._merger", "batchnlp.sinks.delta.Delta._widened"],
    "iceberg": [
        "pyiceberg.catalog.sql.SqlCatalog.commit_table", "batchnlp.sinks.iceberg._dataframe_to_data_files",
        "batchnlp.sinks.iceberg.Iceberg._table",
    ],
    "parquet": [
        "batchnlp.sinks.parquet.Parquet._stage", "batchnlp.data.store.LocalStore.replace", "batchnlp.sinks.parquet.os.replace",
        "batchnlp.data.store.LocalStore.remove",
    ],
}  # fmt: skip


def words(table: pa.Table) -> pa.Table:
    """The table with a list to unnest: none, one or two entities a row."""
    kind = pa.list_(pa.struct([("label", pa.string()), ("start", pa.int32())]))
    lists = [[{"label": f"e{j}", "start": j} for j in range(i % 3)] for i in range(len(table))]
    return table.append_column("entities", pa.array(lists, kind))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two runs that share half of their ids, over three partitions."""
    path = tmp_path / "out"
    write_output(path, words(topics(0, 8)), partition_by=["lang"])
    write_output(path, words(topics(4, 12, "y")), "b", partition_by=["lang"])
    return path


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """What the warehouse holds already: some of the same ids, from another job."""
    path = tmp_path / "before"
    write_output(path, words(topics(2, 6, "old")), "c", partition_by=["lang"], job="before")
    return path


def spec_of(warehouse: Warehouse) -> SinkSpec:
    return warehouse.spec(key="id", unnest="entities")


def all_rows(warehouse: Warehouse) -> tuple[Rows, Rows]:
    return warehouse.rows(), warehouse.rows("t_entities")


def some(steps: int, kind: str) -> list[int]:
    """Where to strike. Up to its commit a transaction leaves nothing; the one of Parquet is ours, and longest at its end."""
    last = 9 if kind == "parquet" else 2
    return sorted({1, steps // 3, 2 * steps // 3, *range(max(steps - last, 0) + 1, steps + 1)} - {0})


@pytest.mark.parametrize("kind", KINDS)
def test_a_load_that_ends_at_any_step_is_completed_by_the_next(
    new_warehouse: Make, out: Path, before: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    undisturbed = new_warehouse(kind)
    load(str(before), spec_of(undisturbed))
    with crashing(monkeypatch, STEPS[kind], -1, after=False) as steps:
        load(str(out), spec_of(undisturbed))
    want = all_rows(undisturbed)
    assert [row["label"] for row in want[0]] == ["x", "x", "y", "y", "x", "x", *"yyyyyy"]
    for at in some(steps[0], kind):
        warehouse = new_warehouse(kind)
        load(str(before), spec_of(warehouse))
        with crashing(monkeypatch, STEPS[kind], at, after=at % 2 == 0), pytest.raises(Crash):
            load(str(out), spec_of(warehouse))
        load(str(out), spec_of(warehouse))
        assert all_rows(warehouse) == want, f"step {at} of {steps[0]}"
        assert load(str(out), spec_of(warehouse)).runs == []


# --- SIGKILL

STAGES = [("start", True), ("write", True), ("finalize", False), ("finalize", True)]  # (in, whether it was done)


def killed_load(root: str, spec: SinkSpec, stage: str, after: bool) -> None:
    """In a process of its own: load, and be killed before or after a stage."""
    sink = registry.load(registry.SINKS, spec.kind)
    call = getattr(sink, stage)

    def kill(*args: Any) -> Any:
        result = call(*args) if after else None
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(sink, stage, kill)
    load(root, spec)


@pytest.fixture(scope="module")
def processes() -> Any:
    """Children of a server that has imported the drivers already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["batchnlp.sinks.load", *(f"batchnlp.sinks.{kind}" for kind in KINDS)])
    return context


@pytest.mark.parametrize("kind", KINDS)
def test_a_load_that_is_killed_is_completed_by_the_next(
    new_warehouse: Make, out: Path, before: Path, processes: Any, kind: str
) -> None:
    undisturbed = new_warehouse(kind)
    for root in (before, out):
        load(str(root), spec_of(undisturbed))
    want = all_rows(undisturbed)
    for stage, after in STAGES:
        warehouse = new_warehouse(kind)
        spec = spec_of(warehouse)
        load(str(before), spec)
        child = processes.Process(target=killed_load, args=(str(out), spec, stage, after))
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL, (stage, after)
        load(str(out), spec)
        assert all_rows(warehouse) == want, (stage, after)
        assert load(str(out), spec).runs == []
