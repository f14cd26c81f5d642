"""What a job will cost, before it costs anything: from a sample of the corpus, or all of it.

Lengths, duplicates, truncation and padding come from tokenising a sample; memory from the sizes in config.json; the
time left only from a measurement (`--probe` runs some batches), because any other figure would be invented.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

from batchnlp import registry
from batchnlp.backends import device as devices
from batchnlp.data.ledger import Ledger
from batchnlp.data.store import LocalStore
from batchnlp.engine.planner import Prepared, make_plan
from batchnlp.text.batching import pack, padding
from batchnlp.types import Encoded, Pieces, Plan, Resolved

SAMPLE = 2_000  # documents
PROBE_SECONDS = 5.0
EDGES = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]


@dataclass(slots=True)
class Estimate:
    """What `plan` shows."""

    run: str
    job: str
    files: int
    shards: int
    rows: int
    sampled: int  # documents the figures below stand on
    tokens: int  # content tokens of the whole corpus, scaled up from the sample
    histogram: dict[str, int]  # content tokens a document, in the sample
    longest: int
    over_limit: int  # documents longer than the model takes, scaled up
    max_length: int
    duplicate_share: float  # in the sample
    dead: dict[str, int]  # by code, in the sample
    padding: float
    memory: dict[str, int]  # bytes: weights, batch, shards
    resolved: dict[str, Any]
    replicas: int
    committed: int  # shards that a run before has done
    docs_per_second: float | None = None
    seconds: float | None = None
    notes: list[str] = field(default_factory=list)


def estimate(prepared: Prepared, *, full: bool = False, probe: bool = False) -> Estimate:
    """Look at the corpus and the model; nothing is written."""
    hardware = devices.probe_hardware()
    resolved = devices.resolve(prepared.spec.engine, prepared.model, hardware)
    replicas, threads = devices.share(hardware, resolved.device, prepared.spec.engine.replicas)
    plan = make_plan(prepared, replicas)
    texts = prepared.source.sample(plan.rows if full else SAMPLE)
    encoded = prepared.task.encode(pa.array(texts, pa.large_string()))
    n_tokens = encoded.counts.n_tokens
    scale = plan.rows / max(len(texts), 1)
    room = prepared.model.max_length - 2
    dead: dict[str, int] = {}
    for failure in encoded.failures:
        dead[failure.code] = dead.get(failure.code, 0) + 1
    found = Estimate(
        run=prepared.fingerprint[:8], job=prepared.about["job"], files=len(plan.files), shards=len(plan.shards),
        rows=plan.rows, sampled=len(texts), tokens=int(n_tokens.sum() * scale), histogram=_histogram(n_tokens),
        longest=int(n_tokens.max(initial=0)), over_limit=int((n_tokens > room).sum() * scale),
        max_length=prepared.model.max_length,
        duplicate_share=round(1 - len(set(texts)) / max(len(texts), 1), 4), dead=dead,
        padding=_padding(encoded.pieces, resolved, plan, len(texts)),
        memory=_memory(prepared, resolved, encoded, plan, len(texts)),
        resolved={"why": resolved.why, "device": resolved.device, "dtype": resolved.dtype,
                  "tokens_per_batch": resolved.tokens_per_batch, "backend": resolved.backend},
        replicas=replicas,
        committed=len(Ledger(LocalStore(prepared.spec.output.path), prepared.fingerprint).commits()),
    )  # fmt: skip
    if probe:
        found.docs_per_second = _probe(prepared, resolved, encoded, threads, len(texts)) * replicas
        found.seconds = plan.rows / found.docs_per_second if found.docs_per_second else None
    return found


def _histogram(n_tokens: Any) -> dict[str, int]:
    counts, _ = np.histogram(n_tokens, [0, *EDGES, np.inf])
    names = [f"<{edge}" for edge in EDGES] + [f">={EDGES[-1]}"]
    return {name: int(n) for name, n in zip(names, counts, strict=True) if n}


def _padding(pieces: Pieces, resolved: Resolved, plan: Plan, sampled: int) -> float:
    """Padding of a shard of the plan's size, its lengths drawn from the sample."""
    if not len(pieces) or not plan.shards:
        return 0.0
    shard = plan.rows / len(plan.shards)
    lengths = np.repeat(pieces.lengths, max(round(shard / max(sampled, 1)), 1))
    return round(padding(pack(lengths, resolved.tokens_per_batch), lengths), 4)


def _memory(prepared: Prepared, resolved: Resolved, encoded: Encoded, plan: Plan, sampled: int) -> dict[str, int]:
    """Bytes a replica needs: weights as loaded, activations of a batch, and the five shards that are under way."""
    stored = sum(f.stat().st_size for f in Path(prepared.model.path).glob("*.safetensors"))
    weights = stored // 2 if resolved.dtype == "bfloat16" and _stored_in(prepared) == "float32" else stored
    largest = max((shard.rows for shard in plan.shards), default=0)
    row = (encoded.pieces.ids.nbytes * 2 + 8 * len(encoded.pieces)) / max(sampled, 1) + 600
    batch = max(resolved.tokens_per_batch, int(encoded.pieces.lengths.max(initial=0)))
    return {
        "weights": weights, "batch": batch * devices.token_bytes(prepared.model, resolved.dtype),
        "shards": int(5 * largest * row),
    }  # fmt: skip


def _stored_in(prepared: Prepared) -> str:
    return str(prepared.model.config.get("torch_dtype") or prepared.model.config.get("dtype") or "float32")


def _probe(prepared: Prepared, resolved: Resolved, encoded: Encoded, threads: int, sampled: int) -> float:
    """Documents a second of one replica, measured for some seconds on batches spread over all lengths."""
    backend = registry.load(registry.BACKENDS, resolved.backend)(prepared.model, resolved, prepared.task.needs, threads)
    done = {"tokens": 0, "seconds": 0.0}

    def count(rows: int, tokens: int, executed: int, seconds: float) -> None:
        done["tokens"] += tokens
        done["seconds"] += seconds

    began = perf_counter()
    batches = list(pack(encoded.pieces.lengths, resolved.tokens_per_batch))
    for i, batch in enumerate(batches[:: max(len(batches) // 24, 1)]):
        backend.forward(take(encoded.pieces, batch.index))
        if i == 1:  # the first two batches pay for allocations
            backend.on_batch = count
        if perf_counter() - began > PROBE_SECONDS and done["tokens"]:
            break
    if not done["tokens"]:
        return 0.0
    return round(done["tokens"] / done["seconds"] / (int(encoded.pieces.lengths.sum()) / max(sampled, 1)), 1)


def take(pieces: Pieces, index: Any) -> Pieces:
    """Some of the pieces."""
    from batchnlp.text.encode import offsets, ranges

    where = ranges(pieces.starts[index], pieces.lengths[index])
    return Pieces(
        pieces.ids[where], offsets(pieces.lengths[index]), pieces.doc[index], pieces.weight[index],
        None if pieces.type_ids is None else pieces.type_ids[where],
        None if pieces.role is None else pieces.role[index],
    )  # fmt: skip
