"""Outputs made by hand, and warehouses read back by their own readers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batchnlp.data.deletes import set_deletes
from batchnlp.data.ledger import Ledger, live, set_live, settle
from batchnlp.data.parts import DEAD_SCHEMA, PartWriter
from batchnlp.data.store import LocalStore, sha256_of
from batchnlp.job.sinks import SinkSpec
from batchnlp.types import InputFile, PartFile, Plan, Resolved, Segment, Shard

KINDS = ["duckdb", "delta", "iceberg", "postgres", "parquet"]
FILES = (InputFile("/in/a.parquet", "a.parquet", 10, "1", "parquet"),)
RESOLVED = Resolved("cpu", "float32", "torch", 4096, "as asked")
Rows = list[dict[str, Any]]


def write_output(
    root: Path, table: pa.Table, run: str = "a", *, shards: int = 2, partition_by: Sequence[str] = (), job: str = "j",
    deletes: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """A finished run in an output, beside those that are there; its fingerprint is the letter `run`, many times. With
    `deletes` it is a part of a log of changes, which takes these ids away."""
    store, print_ = LocalStore(root), run * 64
    if deletes is not None:
        table = logged(table, len(live(store)), "upsert")
    ledger, size = Ledger(store, print_), -(-len(table) // shards) or 1
    cuts = [table.slice(start, size) for start in range(0, max(len(table), 1), size)]
    plan = Plan(
        print_, FILES, tuple(Shard(i, (Segment(0, 0, len(cut), len(cut)),)) for i, cut in enumerate(cuts)), table.schema
    )
    facts = {"source": {"id": None if deletes is None else "id"}, "partition_by": list(partition_by)}
    ledger.create_plan(plan, facts, RESOLVED, {"job": job})
    set_live(store, [*live(store), print_])
    writer = PartWriter(store, print_, partition_by)
    for shard, cut in zip(plan.shards, cuts, strict=True):
        measured: dict[str, Any] = {"tokens": 1, "executed": 1, "seconds": {}}
        part = writer.write(shard.index, "one", cut, DEAD_SCHEMA.empty_table(), measured)
        assert ledger.commit(part, shard, "invocation")
    if deletes:
        name = f"part-delete-{run * 8}.parquet"
        columns = [deletes, *(pa.nulls(len(deletes), field.type) for field in list(table.schema)[1:-2])]
        gone = logged(pa.table(columns, names=table.schema.names[:-2]), len(live(store)) - 1, "delete")
        pq.write_table(gone.cast(table.schema), root / name)
        with (root / name).open("rb") as handle:
            file = PartFile(name, len(deletes), (root / name).stat().st_size, sha256_of(handle), "delete")
        set_deletes(ledger, file)
    ledger.finish(ledger.commits(), {"job": job}, success=True)
    settle(store)


def logged(table: pa.Table, revision: int, op: str) -> pa.Table:
    """The table with the last columns of a log of changes."""
    table = table.append_column("revision", pa.repeat(pa.scalar(revision, pa.int32()), len(table)))
    return table.append_column("op", pa.repeat(op, len(table)))


def topics(start: int, stop: int, label: str = "x", langs: Sequence[str | None] = ("en", "de", None)) -> pa.Table:
    """Some results of a classification."""
    rows = range(start, stop)
    return pa.table({
        "id": pa.array([f"doc-{i}" for i in rows], pa.string()),
        "lang": pa.array([langs[i % len(langs)] for i in rows], pa.string()),
        "label": pa.array([label for _ in rows], pa.string()), "score": np.linspace(0, 1, len(rows), dtype=np.float32),
        "n_tokens": pa.array(rows, pa.int32()), "truncated": pa.array([i % 2 == 0 for i in rows], pa.bool_()),
    })  # fmt: skip


class Warehouse:
    """A warehouse of one kind, at first empty."""

    def __init__(self, kind: str, folder: Path, uri: str = "") -> None:
        self.kind, self._folder = kind, folder
        self.database = {"duckdb": str(folder / "w.duckdb"), "postgres": uri}.get(kind, str(folder / "lake"))

    def spec(self, table: str = "t", **more: Any) -> SinkSpec:
        return SinkSpec.model_validate({"kind": self.kind, "database": self.database, "table": table, **more})

    def table(self, name: str = "t") -> pa.Table:
        """The whole table, as the warehouse's own reader gives it."""
        found = getattr(self, f"_{self.kind}")(name)
        assert isinstance(found, pa.Table)
        return found

    def rows(self, name: str = "t", by: str = "id") -> Rows:
        """The rows, sorted; JSON is read."""
        table = self.table(name)
        json_ = [field.name for field in table.schema if "json" in str(field.type)]
        rows = table.to_pylist()
        for row in rows:
            row |= {key: None if row[key] is None else json.loads(row[key]) for key in json_}
        return sorted(rows, key=lambda row: (row[by], repr(row)))

    def drop(self, name: str = "t") -> None:
        """As a user would."""
        if self.kind in ("duckdb", "postgres"):
            self.sql(f'drop table "{name}"')
        elif self.kind == "iceberg":
            with closing(self._catalog()) as catalog:
                catalog.drop_table(("default", name))
        else:
            shutil.rmtree(Path(self.database) / name)

    def sql(self, *statements: str) -> None:
        """On a warehouse that has it."""
        if self.kind == "duckdb":
            import duckdb

            with duckdb.connect(self.database) as connection:
                for statement in statements:
                    connection.execute(statement).fetchall()
            return
        from adbc_driver_postgresql import dbapi

        with dbapi.connect(self.database, autocommit=True) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def _duckdb(self, name: str) -> pa.Table:
        import duckdb

        with duckdb.connect(self.database) as connection:
            return connection.sql(f'from "{name}"').to_arrow_table()

    def _postgres(self, name: str) -> pa.Table:
        from adbc_driver_postgresql import dbapi

        with dbapi.connect(self.database) as connection, connection.cursor() as cursor:
            cursor.execute(f'select * from "{name}"')
            return cursor.fetch_arrow_table()

    def _delta(self, name: str) -> pa.Table:
        from deltalake import DeltaTable

        return DeltaTable(f"{self.database}/{name}").to_pyarrow_table()

    def _iceberg(self, name: str) -> pa.Table:
        with closing(self._catalog()) as catalog:
            return catalog.load_table(("default", name)).scan().to_arrow()

    def _parquet(self, name: str) -> pa.Table:
        files = sorted(str(path) for path in (Path(self.database) / name).rglob("*.parquet"))
        schemas = [ds.dataset(file).schema for file in files]
        return ds.dataset(files, pa.unify_schemas(schemas)).to_table()

    def _catalog(self) -> Any:
        from pyiceberg.catalog import load_catalog

        return load_catalog("default", type="sql", uri=f"sqlite:///{self.database}/catalog.db")
