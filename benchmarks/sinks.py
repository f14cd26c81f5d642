"""Loading a million results into each warehouse, beside the best that can be written by hand for its engine. One run, alternated.

    append   all rows into a new table
             duckdb    INSERT INTO t SELECT * FROM read_parquet(files)
             delta     write_deltalake(stream of the files, mode="append")
             iceberg   table.append(all files as one table in memory)
             postgres  COPY of the stream, binary, by ADBC
             parquet   pyarrow.dataset.write_dataset of the files
    upsert   all rows into a table that has every other one of them already
             duckdb    MERGE INTO t USING read_parquet(files)
             delta     DeltaTable.merge of the stream
             iceberg   one overwrite: the rows without the new keys, and the new rows, in memory (its upsert is far slower)
             postgres  COPY into a temporary table, INSERT ... ON CONFLICT; a unique index on the key
             parquet   the same as iceberg, into a new directory that takes the old one's place

Both sides read the same Parquet files, write the same columns and types, and begin and end without a connection. Ours also checks
the files and the keys, and keeps the account. A ratio is their seconds over ours. A small load, and a whole
round that does not count, take the imports and the first use of memory out of it.

python benchmarks/sinks.py [--rows 1000000] [--rounds 5] [--kinds duckdb,delta] [--nested]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from harness import environment
from harness.scenario import Floor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # outputs by hand, and a PostgreSQL server

from postgres_server import binaries, server
from warehouses import KINDS, Warehouse, write_output

from batchnlp.job.sinks import SinkSpec
from batchnlp.sinks.load import load

SHARD = 20_000
FLOOR = Floor(min=0.8)  # of each ratio
By = Callable[[Warehouse, list[str]], None]


def results(rows: int, nested: bool) -> pa.Table:
    """What a classification leaves; with `nested` the scores of all labels and some entities too."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(5000)])
    labels = np.array(["games", "science", "web", "law"])
    columns: dict[str, Any] = {
        "id": [f"doc-{i:09d}" for i in rng.permutation(rows)],
        "lang": np.array(["en", "de", "fr", "es"])[rng.integers(0, 4, rows)],
        "title": [" ".join(row) for row in words[rng.integers(0, 5000, (rows, 8))]],
        "label": labels[rng.integers(0, 4, rows)], "score": rng.random(rows, np.float32),
        "n_tokens": rng.integers(1, 5000, rows).astype(np.int32), "n_tokens_used": rng.integers(1, 512, rows).astype(np.int32),
        "n_windows": np.ones(rows, np.int32), "truncated": rng.random(rows) < 0.1,
    }  # fmt: skip
    if nested:
        scores = [pa.array(rng.random(rows, np.float32)) for _ in labels]
        offsets = pa.array(np.arange(rows + 1) * 3, pa.int32())
        starts = pa.array(rng.integers(0, 1000, 3 * rows), pa.int32())
        texts = pa.array(words[rng.integers(0, 5000, 3 * rows)])
        items = pa.StructArray.from_arrays([texts, starts, pc.add(starts, 5)], ["text", "start", "end"])
        columns |= {
            "scores": pa.StructArray.from_arrays(scores, list(labels)),
            "entities": pa.ListArray.from_arrays(offsets, items),
        }
    return pa.table(columns)


# --- by hand


def duckdb_append(warehouse: Warehouse, files: list[str]) -> None:
    """In one transaction, as ours."""
    import duckdb

    with duckdb.connect(warehouse.database) as connection:
        connection.execute("begin").fetchall()
        connection.execute("create table t as from read_parquet($1) limit 0", [files]).fetchall()
        connection.execute("insert into t from read_parquet($1)", [files]).fetchall()
        connection.execute("commit").fetchall()


def duckdb_upsert(warehouse: Warehouse, files: list[str]) -> None:
    """MERGE took 0.6 of the time of DELETE and INSERT, and a quarter of that of a primary key."""
    import duckdb

    names = ds.dataset(files).schema.names
    changes = ", ".join(f'"{name}" = s."{name}"' for name in names if name != "id")
    values = ", ".join(f's."{name}"' for name in names)
    with duckdb.connect(warehouse.database) as connection:
        connection.execute(
            f"merge into t using (from read_parquet($1)) as s on t.id = s.id when matched then update set {changes} "
            f"when not matched then insert values ({values})", [files],
        ).fetchall()  # fmt: skip


def delta_append(warehouse: Warehouse, files: list[str]) -> None:
    """A stream."""
    from deltalake import write_deltalake

    write_deltalake(f"{warehouse.database}/t", ds.dataset(files).scanner().to_reader(), mode="append")


def delta_upsert(warehouse: Warehouse, files: list[str]) -> None:
    """As Delta's documentation shows it."""
    from deltalake import DeltaTable

    source = ds.dataset(files).scanner().to_reader()
    merger = DeltaTable(f"{warehouse.database}/t").merge(source, "t.id = s.id", source_alias="s", target_alias="t")
    merger.when_matched_update_all().when_not_matched_insert_all().execute()


@contextmanager
def catalog(warehouse: Warehouse) -> Iterator[Any]:
    """The same kind of catalog as ours."""
    from pyiceberg.catalog.sql import SqlCatalog

    Path(warehouse.database).mkdir(exist_ok=True)
    folder = warehouse.database
    with closing(SqlCatalog("default", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")) as found:
        found.create_namespace_if_not_exists("default")
        yield found


def iceberg_append(warehouse: Warehouse, files: list[str]) -> None:
    """The quickest of its ways: everything in memory."""
    table = ds.dataset(files).to_table()
    with catalog(warehouse) as found:
        found.create_table("default.t", table.schema).append(table)


def iceberg_upsert(warehouse: Warehouse, files: list[str]) -> None:
    """Copy on write."""
    new = ds.dataset(files).to_table()
    with catalog(warehouse) as found:
        table = found.load_table("default.t")
        table.overwrite(pa.concat_tables([without(table.scan().to_arrow(), new), new]))


def without(old: pa.Table, new: pa.Table) -> pa.Table:
    """The rows whose key is not among the new ones."""
    return old.filter(pc.invert(pc.is_in(old["id"], value_set=new["id"].combine_chunks()))).cast(new.schema)


def postgres_append(warehouse: Warehouse, files: list[str]) -> None:
    """ADBC's ingest is COPY in binary; nested columns have been made JSON beforehand."""
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(warehouse.database) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("t", ds.dataset(files).scanner().to_reader(), mode="create")
        connection.commit()


def postgres_upsert(warehouse: Warehouse, files: list[str]) -> None:
    """MERGE, and DELETE and INSERT, took 1.2 times as long."""
    from adbc_driver_postgresql import dbapi

    names = ds.dataset(files).schema.names
    changes = ", ".join(f'"{name}" = excluded."{name}"' for name in names if name != "id")
    with dbapi.connect(warehouse.database) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("staged", ds.dataset(files).scanner().to_reader(), mode="create", temporary=True)
        cursor.execute(f"insert into t select * from staged on conflict (id) do update set {changes}")
        connection.commit()


def parquet_append(warehouse: Warehouse, files: list[str]) -> None:
    """With the same compression."""
    write_dataset(ds.dataset(files), f"{warehouse.database}/t")


def parquet_upsert(warehouse: Warehouse, files: list[str]) -> None:
    """Into a new directory, which takes the place of the old one."""
    folder, new = f"{warehouse.database}/t", ds.dataset(files).to_table()
    write_dataset(pa.concat_tables([without(ds.dataset(folder).to_table(), new), new]), f"{folder}.new")
    shutil.rmtree(folder)
    os.rename(f"{folder}.new", folder)


def write_dataset(data: Any, folder: str) -> None:
    """zstd, as our files are."""
    options = ds.ParquetFileFormat().make_write_options(compression="zstd")
    ds.write_dataset(data, folder, format="parquet", file_options=options)


# --- side by side


class Contest:
    """One warehouse and one way to write, ours and theirs in turn."""

    def __init__(self, kind: str, work: Path, uri: str) -> None:
        self.kind, self._work, self._uri = kind, work, uri
        self._count, self._ours_first = 0, False

    def append(self, out: str, files: list[str]) -> tuple[float, float]:
        """Seconds of (ours, theirs)."""
        theirs: By = globals()[f"{self.kind}_append"]
        return self._pair(lambda warehouse: load(out, warehouse.spec()), lambda warehouse: theirs(warehouse, files))

    def upsert(self, out: str, files: list[str], base: str) -> tuple[float, float]:
        """The same, onto a table that has the rows of `base`."""
        theirs: By = globals()[f"{self.kind}_upsert"]
        return self._pair(
            lambda warehouse: load(out, keyed(warehouse)), lambda warehouse: theirs(warehouse, files), base
        )

    def _pair(
        self, ours: Callable[[Warehouse], object], theirs: Callable[[Warehouse], object], base: str = ""
    ) -> tuple[float, float]:
        """Who goes first changes from round to round: memory that one has let go the other need not ask for."""
        self._ours_first = not self._ours_first
        if self._ours_first:
            return self._timed(ours, base), self._timed(theirs, base)
        took = self._timed(theirs, base)
        return self._timed(ours, base), took

    def _timed(self, call: Callable[[Warehouse], object], base: str = "") -> float:
        self._count += 1
        folder, uri = self._work / f"{self.kind}{self._count}", self._uri
        folder.mkdir()
        if self.kind == "postgres":
            Warehouse(self.kind, folder, uri).sql(f"create schema s{self._count}")
            uri = f"{uri}&options=-csearch_path%3Ds{self._count}"
        warehouse = Warehouse(self.kind, folder, uri)
        if base:
            load(base, keyed(warehouse))
        os.sync()
        began = perf_counter()
        call(warehouse)
        seconds = perf_counter() - began
        if self.kind == "postgres":
            warehouse.sql(f"drop schema s{self._count} cascade", "checkpoint")
        shutil.rmtree(folder)
        return seconds


def keyed(warehouse: Warehouse) -> SinkSpec:
    """Upsert by id."""
    return warehouse.spec(key="id")


def prepare(work: Path, rows: int, nested: bool, json: bool) -> tuple[str, list[str], str]:
    """(the output, its files as theirs reads them, an output with every other row)."""
    table = results(rows, nested)
    write_output(work / "out", table, shards=max(rows // SHARD, 1))
    half = table.filter(pa.array(np.arange(rows) % 2 == 0))
    write_output(work / "base", half, "b", shards=max(rows // SHARD // 2, 1), job="base")
    files = sorted(str(path) for path in (work / "out").glob("part-*"))
    if not (nested and json):
        return str(work / "out"), files, str(work / "base")
    raise SystemExit("--nested leaves out postgres: by hand it would have no JSON to begin with")


def main() -> int:
    """Alternate, and print seconds and ratios; exit 1 below the floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--nested", action="store_true", help="scores and entities too; not for postgres")
    args = parser.parse_args()
    kinds = args.kinds.split(",")
    found: dict[str, Any] = {"rows": args.rows, "rounds": args.rounds, "nested": args.nested}
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as folder, running(kinds) as uri:
        work = Path(folder)
        out, files, base = prepare(work, args.rows, args.nested, "postgres" in kinds)
        small = str(work / "small")
        write_output(Path(small), results(100, args.nested), "c")
        print(f"{'':22}{'ours':>8}{'theirs':>8}{'ratio':>8}  floor           of rounds")
        for kind in kinds:
            contest = Contest(kind, work, uri)
            contest.append(small, sorted(str(path) for path in Path(small).glob("part-*")))
            for name in ("append", "upsert"):
                more = () if name == "append" else (base,)
                _, *rounds = [getattr(contest, name)(out, files, *more) for _ in range(args.rounds + 1)]
                ours, theirs = median(r[0] for r in rounds), median(r[1] for r in rounds)
                ratio, each = median(b / a for a, b in rounds), ", ".join(f"{b / a:.2f}" for a, b in rounds)
                word = "ok" if FLOOR.holds(ratio) else "MISSED"
                print(f"{kind + ' ' + name:22}{ours:8.2f}{theirs:8.2f}{ratio:8.2f}  {FLOOR} {word:6}  {each}", flush=True)
                found |= {f"{kind}_{name}": ratio, f"{kind}_{name}_rows_per_second": round(args.rows / ours)}
                missed += [] if FLOOR.holds(ratio) else [f"{kind}_{name}"]
    print(json.dumps({"benchmark": "sinks", **found, "missed": missed, "environment": environment.capture()}))
    return 1 if missed else 0


@contextmanager
def running(kinds: list[str]) -> Iterator[str]:
    """The URI of a PostgreSQL server, where one is asked for."""
    programs = binaries()
    if "postgres" not in kinds:
        yield ""
        return
    if programs is None:
        raise SystemExit("no PostgreSQL here: install it, pip install pgserver, or leave postgres out of --kinds")
    with server(programs) as uri:
        yield uri


if __name__ == "__main__":
    sys.exit(main())
