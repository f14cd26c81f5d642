"""Outputs without a model: a plan, workers that write small parts, and a store that crashes."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batchnlp.data.ledger import Ledger, live, set_live, settle
from batchnlp.data.parts import DEAD_SCHEMA, PartWriter
from batchnlp.data.store import LocalStore, Store
from batchnlp.types import InputFile, Part, Plan, Resolved, Segment, Shard

PRINT = "0123456789abcdef" * 4
SCHEMA = pa.schema([("id", pa.string()), ("lang", pa.string()), ("score", pa.float32())])
RESOLVED = Resolved("cpu", "float32", "torch", 4096, "as asked")
FACTS: dict[str, Any] = {"source": {"id": None}}
ROWS = 6  # of a shard


def make_plan(shards: int, rows: int = ROWS) -> Plan:
    files = (InputFile("/in/a.parquet", "a.parquet", 10, "1", "parquet", None, (("k", "v"),)),)
    cuts = tuple(Shard(i, (Segment(0, i * rows, (i + 1) * rows, rows),)) for i in range(shards))
    return Plan(PRINT, files, cuts, SCHEMA)


def results(shard: int, rows: int = ROWS, langs: Sequence[str | None] = ("en", "de"), dead: int = 0) -> pa.Table:
    ids = [f"a.parquet#{shard * rows + i}" for i in range(rows - dead)]
    return pa.table(
        [ids, [langs[i % len(langs)] for i in range(rows - dead)], np.arange(rows - dead, dtype=np.float32)],
        schema=SCHEMA,
    )


def letters(shard: int, dead: int, rows: int = ROWS) -> pa.Table:
    found = [
        {"id": f"a.parquet#{shard * rows + rows - 1 - i}", "file": "a.parquet", "code": "null_text"}
        for i in range(dead)
    ]
    return pa.Table.from_pylist(found, DEAD_SCHEMA)


class Run:
    """An output with a plan, and workers that write parts."""

    def __init__(
        self, root: Path | str, shards: int = 3, partition_by: Sequence[str] = (), print_: str = PRINT,
        facts: dict[str, Any] = FACTS, store: Store | None = None,
    ) -> None:  # fmt: skip
        self.store = store or LocalStore(root)
        self.ledger = Ledger(self.store, print_)
        self.plan = replace(make_plan(shards), fingerprint=print_)
        self.writer = PartWriter(self.store, print_, partition_by)
        self.ledger.create_plan(self.plan, facts, RESOLVED, {"job": "j"})
        set_live(self.store, [*live(self.store), print_])

    def write(self, shard: int, attempt: str = "one", dead: int = 0, **more: Any) -> Part:
        measured: dict[str, Any] = {"tokens": 1, "executed": 2, "seconds": {"forward": 0.1}}
        return self.writer.write(shard, attempt, results(shard, dead=dead, **more), letters(shard, dead), measured)

    def commit(self, part: Part) -> bool:
        return self.ledger.commit(part, self.plan.shards[part.shard], "invocation")

    def complete(self, dead: int = 0) -> None:
        for shard in self.plan.shards:
            assert self.commit(self.write(shard.index, dead=dead))
        self.finish()

    def finish(self, *, success: bool = True) -> None:
        self.ledger.finish(self.ledger.commits(), {}, success=success)
        settle(self.store)

    def staged(self) -> list[str]:
        return self.store.names(f"{self.ledger.control}/staging")


class Crash(Exception):
    """The process ends here."""


@contextmanager
def crashing(
    monkeypatch: pytest.MonkeyPatch, steps: Sequence[str], at: int, *, after: bool, spared: str | None = None
) -> Iterator[list[int]]:
    """The process ends before, or after, the `at`-th of these steps; the list counts them. Those on a name with `spared` in it
    are none."""
    count = [0]

    def wrap(step: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            if spared is not None and spared in str(args[1]):
                return step(*args, **options)
            count[0] += 1
            mine = count[0]
            if mine == at and not after:
                raise Crash
            result = step(*args, **options)
            if mine == at:
                raise Crash
            return result

        return called

    with monkeypatch.context() as patch:
        for step in steps:
            patch.setattr(step, wrap(pkgutil.resolve_name(step)))
        yield count


class CrashingStore(LocalStore):
    """Ends the process before the operation of that name."""

    before = ""

    def publish(self, source: str, name: str) -> None:
        if self.before == "publish":
            raise Crash
        super().publish(source, name)

    def remove(self, name: str) -> None:
        if self.before == "remove":
            raise Crash
        super().remove(name)
