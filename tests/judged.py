"""Finished outputs of any task, made by hand, with the job that they are said to come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from warehouses import RESOLVED

from batchnlp.data.ledger import Ledger, live, set_live, settle
from batchnlp.data.parts import DEAD_SCHEMA, PartWriter
from batchnlp.data.sources import Source
from batchnlp.data.store import LocalStore
from batchnlp.job.load import build_spec
from batchnlp.types import Plan


def output(
    root: Path, kind: str, columns: Mapping[str, Any], *, texts: Sequence[str] | None = None, run: str = "a", **task: Any,
) -> Path:  # fmt: skip
    """Results of a task about `texts`, in one shard; ids are doc-0, doc-1, ... as in the source beside it."""
    count = len(next(iter(columns.values())))
    ids = [f"doc-{i}" for i in range(count)]
    source = root.with_name(f"{root.name}-{run}.parquet")
    pq.write_table(pa.table({"doc_id": ids, "text": list(texts or [f"text {i}" for i in range(count)])}), source)
    spec = build_spec({
        "job": "j", "source": {"path": str(source), "id": "doc_id"}, "task": {"kind": kind, "model": "m", **task},
        "output": {"path": str(root)},
    })  # fmt: skip
    table = pa.table({"id": ids, **columns})
    opened = Source.open(spec.source.config())
    plan = Plan(run * 64, opened.files, tuple(opened.shards(None, count, 1 << 30)), table.schema)
    store = LocalStore(root)
    ledger = Ledger(store, plan.fingerprint)
    ledger.create_plan(plan, {}, RESOLVED, {"job": "j", "spec": spec.model_dump(mode="json")})
    set_live(store, [*live(store), plan.fingerprint])
    measured: dict[str, Any] = {"tokens": 1, "executed": 1, "seconds": {}}
    part = PartWriter(store, plan.fingerprint, ()).write(0, "one", table, DEAD_SCHEMA.empty_table(), measured)
    assert ledger.commit(part, plan.shards[0], "invocation")
    ledger.finish(ledger.commits(), {"job": "j"}, success=True)
    settle(store)
    return root


def labels(
    root: Path, values: Mapping[str, Any], ids: Sequence[str] | None = None, name: str = "labels.parquet"
) -> Path:
    """A file of labels for the documents of `output`."""
    count = len(next(iter(values.values())))
    path = root / name
    pq.write_table(pa.table({"doc_id": list(ids or [f"doc-{i}" for i in range(count)]), **values}), path)
    return path
