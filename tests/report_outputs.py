"""Outputs of every task without a model: results as tables, dead letters, and the notes that a run leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchnlp.data.invocations import Invocation
from batchnlp.data.ledger import Ledger, live, set_live, settle
from batchnlp.data.parts import DEAD_SCHEMA, PartWriter
from batchnlp.data.store import LocalStore, to_json
from batchnlp.job.load import build_spec
from batchnlp.types import InputFile, Plan, Resolved, Segment, Shard

NIGHT = 1_780_000_000.0  # Unix time at which runs begin
ENTITY = pa.struct([
    pa.field("label", pa.string()), pa.field("text", pa.string()), pa.field("start", pa.int32()),
    pa.field("end", pa.int32()), pa.field("score", pa.float32()),
])  # fmt: skip
ANSWER = pa.struct([
    pa.field("text", pa.string()), pa.field("n_new_tokens", pa.int32()), pa.field("finish_reason", pa.string()),
])  # fmt: skip
SECONDS = {"start": 4.0, "encode": 1.0, "forward": 6.0, "write": 0.5, "idle": 0.2, "total": 12.0}


def table(own: dict[str, pa.Array], lengths: Sequence[int] | None = None, limit: int = 256) -> pa.Table:
    """Results with these columns, ids before and counts after them; documents over the limit are read in windows."""
    rows = len(next(iter(own.values())))
    tokens = np.resize(np.asarray(lengths or [7, 30, 90, 200, 600], np.int32), rows)
    counts = {"n_tokens": tokens, "n_tokens_used": tokens, "n_windows": -(-tokens // limit), "truncated": tokens < 0}
    return pa.table({"id": [f"doc-{i:05}" for i in range(rows)], **own, **counts})


def labelled(labels: Sequence[str], shares: Sequence[float], rows: int = 1000, **more: Any) -> pa.Table:
    """Results of classify, in which each label has about its share of the rows."""
    which = np.searchsorted(np.cumsum(shares), (np.arange(rows) * 0.618034) % 1.0, side="right")
    names = [labels[min(i, len(labels) - 1)] for i in which]
    return table({"label": pa.array(names), "score": pa.array(np.linspace(0.3, 1, rows), pa.float32())}, **more)


def vectors(rows: int, size: int = 8) -> pa.Array:
    values = np.random.default_rng(0).normal(size=rows * size).astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), size)


def entity(label: str, text: str) -> dict[str, Any]:
    return {"label": label, "text": text, "start": 0, "end": len(text), "score": 0.9}


TABLES: dict[str, tuple[str, pa.Table, set[str]]] = {  # → task, results, what is told of them
    "classify": ("classify", labelled(["games", "science"], [0.7, 0.3], 40), {"label", "score"}),
    "multi-label": ("zero-shot", table({
        "label": pa.array(["a", "b"] * 20), "score": pa.array([0.1, -0.2] * 20, pa.float32()),
        "labels": pa.array([["a", "b"], []] * 20, pa.list_(pa.string())),
    }), {"labels", "score", "no_label"}),
    "ner": ("ner", table({
        "entities": pa.array([[entity("PER", "Ada"), entity("LOC", "Oslo")], []] * 20, pa.list_(ENTITY)),
    }), {"entity_label", "entity", "entities", "no_entity"}),
    "qa": ("qa", table({
        "answer": pa.array(["two days", None] * 20), "start": pa.array([3, None] * 20, pa.int32()),
        "end": pa.array([11, None] * 20, pa.int32()), "score": pa.array([0.9, 0.1] * 20, pa.float32()),
        "no_answer_score": pa.array([0.1, 0.9] * 20, pa.float32()),
    }), {"answered", "answer", "score", "answer_length"}),
    "embed": ("embed", table({"embedding": vectors(40)}), {"cosine"}),
    "generate": ("generate", table({
        "text": pa.array([f"a story {i}" for i in range(40)]), "n_new_tokens": pa.array(range(40), pa.int32()),
        "finish_reason": pa.array(["stop", "length"] * 20), "logprobs": pa.array([[-0.5]] * 40, pa.list_(pa.float32())),
    }), {"n_new_tokens", "finish_reason", "empty"}),
    "several answers": ("generate", table({
        "answers": pa.array([[{"text": "x", "n_new_tokens": 3, "finish_reason": "stop"}] * 2] * 40, pa.list_(ANSWER)),
    }), {"n_new_tokens", "finish_reason", "empty"}),
    "json answers": ("chat", table({
        "reply": pa.array(['{"mood": "good"}'] * 40), "n_new_tokens": pa.array([5] * 40, pa.int32()),
        "finish_reason": pa.array(["stop"] * 40), "mood": pa.array(["good"] * 40), "stars": pa.array([4] * 40),
    }), {"n_new_tokens", "finish_reason", "empty", "mood", "stars"}),
    "summarize": ("summarize", table({
        "summary": pa.array(["short"] * 40), "n_new_tokens": pa.array([None] * 40, pa.int32()),
        "finish_reason": pa.array(["stop"] * 40),
    }), {"finish_reason"}),
    "of another version": ("sing", table({"tune": pa.array(["la", "fa"] * 20), "pitch": pa.array([1.5] * 40)}),
                           {"tune", "pitch"}),
}  # fmt: skip


class Night:
    """An output, and a run in it."""

    def __init__(
        self, root: Path, results: pa.Table, kind: str = "classify", *, job: str = "topics", print_: str = "a1" * 32,
        began: float = NIGHT, shards: int = 4, dead: int = 0, kept: Sequence[str] = (), **task: Any,
    ) -> None:  # fmt: skip
        """`dead`: letters in each shard."""
        self.store, self.results, self.job, self.began, self.dead = LocalStore(root), results, job, began, dead
        self.ledger = Ledger(self.store, print_)
        self.each = len(results) // shards
        rows = self.each + dead
        cuts = tuple(Shard(i, (Segment(0, i * rows, (i + 1) * rows, rows),)) for i in range(shards))
        files = (InputFile("/in/a.parquet", "a.parquet", 10, "1", "parquet"),)
        self.plan = Plan(print_, files, cuts, results.schema)
        known = kind if kind in ("classify", "ner", "embed") else "classify"
        spec: dict[str, Any] = build_spec({
            "source": {"path": "in", "keep": list(kept)}, "task": {"kind": known, "model": "org/name"},
            "output": {"path": str(root)}, "limits": {"max_failed": "10%"},
        }).model_dump(mode="json")  # fmt: skip
        spec["job"] = job
        spec["task"] |= {"kind": kind, **task}
        model = {"name": "org/name", "revision": "local", "weights": "f" * 64, "max_length": 256}
        about = {"job": job, "spec": spec, "version": "0.1.0", "model": model}
        self.ledger.create_plan(self.plan, {}, Resolved("cpu", "bfloat16", "openvino", 4096, "a CPU"), about)
        set_live(self.store, [*(name for name in live(self.store) if name != print_), print_])

    def work(self, shards: Sequence[int] | None = None, message: str = "null text", note: str = "") -> Night:
        """Commit shards (all of them without a choice), one every two seconds."""
        writer = PartWriter(self.store, self.ledger.fingerprint, ())
        for i in range(len(self.plan.shards)) if shards is None else shards:
            letters = [
                {"id": f"dead-{i}-{n}", "file": "a.parquet", "row": i * self.each + n, "stage": "encode",
                 "code": "null_text", "message": message, "attempts": 1} for n in range(self.dead)
            ]  # fmt: skip
            measured: dict[str, Any] = {"tokens": 900, "executed": 1000, "seconds": {"forward": 1.0}, "note": note}
            rows = self.results.slice(i * self.each, self.each)
            part = writer.write(i, "one", rows, pa.Table.from_pylist(letters, DEAD_SCHEMA), measured)
            assert self.ledger.commit(part, self.plan.shards[i], "first")
            self.stamp(i, self.began + 4 + 2 * (i + 1))
        return self

    def stamp(self, shard: int, when: float, who: str = "first") -> None:
        """Let a commit have been made at that time."""
        path = Path(self.store.path(f"{self.ledger.control}/commits/{shard:05d}.json"))
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"committed": when, "invocation": who}))

    def note(self, *entries: Invocation) -> Night:
        """Let invocations have worked."""
        trees = [asdict(entry) for entry in entries]
        self.store.replace(f"{self.ledger.control}/invocations.json", to_json(trees))
        return self

    def finish(self, *, success: bool = True, **result: Any) -> Night:
        """The end of the run, and what its one invocation noted."""
        self.ledger.finish(self.ledger.commits(), {"job": self.job}, success=success)
        settle(self.store)
        told = {"seconds": SECONDS, "device_busy": 0.9, "resolved": {"replicas": 2}, **result}
        ended, status = self.began + 13, "done" if success else "failed"
        versions = {"python": "3.11", "torch": "2.13"}
        return self.note(Invocation("first", self.began, self.began + 4, ended, status, "", "host-a", versions, told))

    @property
    def root(self) -> str:
        return self.store.root
