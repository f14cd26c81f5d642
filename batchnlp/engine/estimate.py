"""What a job will cost, before it costs anything: from a sample of the corpus, or all of it.

Lengths, duplicates, truncation and padding come from tokenising a sample; memory from the sizes in config.json; the
time left only from a measurement (`--probe` runs some batches), because any other figure would be invented.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from batchnlp import registry
from batchnlp.backends import device as devices
from batchnlp.data.changes import changes_of
from batchnlp.data.commits import Tally
from batchnlp.data.ledger import Ledger
from batchnlp.data.store import open_store
from batchnlp.engine.incremental import on_base, plan_changes
from batchnlp.engine.planner import Prepared, find_repeats, make_plan
from batchnlp.errors import UsageError
from batchnlp.text.batching import pack, padding
from batchnlp.types import Docs, Encoded, Int64, Pieces, Plan, Resolved, Server, many

SAMPLE = 2_000  # documents
PROBE_SECONDS = 5.0
PROBE_TOKENS = 16_384  # a batch, where the backend makes its own
ALL = "these are the rows of the whole corpus; --explain tells how many of them must be computed"
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
    rows_done: int  # in them
    docs_per_second: float | None = None
    seconds: float | None = None  # for the rows that are left
    notes: list[str] = field(default_factory=list)
    changes: dict[str, int] | None = None  # with `explain`: all rows by reason; `rows` are those to compute


def estimate(prepared: Prepared, *, full: bool = False, probe: bool = False, explain: bool = False) -> Estimate:
    """Look at the corpus and the model; nothing is written. What a server would count is left out. `explain` compares the
    whole corpus with what the last good run left."""
    incremental = prepared.spec.output.mode == "incremental"
    if explain and not incremental:
        raise UsageError("only a job with output.mode: incremental has changes to explain", "leave out --explain")
    if probe and isinstance(prepared.model, Server):
        raise UsageError("a server is not probed: that would cost what it measures", "leave out --probe")
    hardware = devices.probe_hardware()
    resolved = devices.resolve(prepared.spec.engine, prepared.model, hardware, prepared.task.needs)
    replicas, threads = devices.share(hardware, resolved.device, prepared.spec.engine.replicas)
    store = open_store(prepared.spec.output.path)
    if incremental:
        prepared = on_base(prepared, store)
    ledger, changes = Ledger(store, prepared.fingerprint), None
    if ledger.plan_tree() is not None:
        plan, changes = ledger.plan()[0], changes_of(ledger)
    elif explain:
        plan, changes = plan_changes(prepared, store, replicas, keep=False)
    else:
        plan = make_plan(prepared, replicas)
        plan = plan if incremental else find_repeats(prepared, plan)[0]
    done = ledger.commits()
    full = full or plan.rows <= SAMPLE
    survey = Survey(prepared)
    if full:
        for shard in plan.shards:
            survey.add(prepared.source.read(shard))
    else:
        survey.add(prepared.source.sample(SAMPLE))
    n_tokens, lengths, sampled = np.concatenate(survey.n_tokens), np.concatenate(survey.lengths), survey.rows
    scale = plan.rows / max(sampled, 1)
    found = Estimate(
        run=prepared.fingerprint[:8], job=prepared.about["job"], files=len(plan.files), shards=len(plan.shards),
        rows=plan.rows, sampled=sampled, tokens=int(n_tokens.sum() * scale), histogram=_histogram(n_tokens),
        longest=int(n_tokens.max(initial=0)), over_limit=int(survey.over * scale),
        max_length=prepared.model.max_length,
        duplicate_share=round((survey.with_text - len(survey.texts)) / max(sampled, 1), 4), dead=dict(survey.dead),
        padding=_padding(lengths, resolved, plan, sampled),
        memory=_memory(prepared, resolved, lengths, plan, sampled),
        resolved=asdict(resolved), replicas=replicas,
        committed=len(done), rows_done=Tally.of(done.values()).rows,
        notes=[
            *filter(None, [prepared.task.note]), *([ALL] if incremental and changes is None else []),
            *_over(prepared, survey, plan.rows + (changes.unchanged if changes else 0), full),
        ],
        changes=None if changes is None else asdict(changes),
    )  # fmt: skip
    if probe:
        found.docs_per_second = _probe(prepared, resolved, survey, threads) * replicas
        left = plan.rows - found.rows_done
        found.seconds = left / found.docs_per_second if found.docs_per_second else None
    return found


class Survey:
    """Documents looked at, a chunk at a time; of all but the first chunk only numbers are kept."""

    def __init__(self, prepared: Prepared) -> None:
        self._task = prepared.task
        self.rows = 0
        self.n_tokens: list[Any] = [np.empty(0, np.int32)]
        self.lengths: list[Any] = [np.empty(0, np.int64)]  # of pieces
        self.with_text = 0
        self.texts: set[bytes] = set()  # hashes
        self.dead: Counter[str] = Counter()
        self.failed = 0  # rows that count against the limit, as in `Tally`
        self.over = 0  # documents longer than the model takes beside prompt and labels
        self.first: Encoded | None = None

    def add(self, docs: Docs) -> None:
        """Look at some documents; of several failures of one the first counts."""
        encoded = self._task.encode(docs)
        self.first = self.first or encoded
        self.rows += len(docs)
        self.n_tokens.append(encoded.counts.n_tokens[encoded.counts.n_tokens >= 0])
        self.lengths.append(encoded.pieces.lengths)
        texts = [text for text in map(docs.text_at, range(len(docs))) if text]
        self.with_text += len(texts)
        self.texts.update(blake2b(text.encode(), digest_size=8).digest() for text in texts)
        first = {failure.doc: failure for failure in reversed([*docs.failures, *encoded.failures])}
        self.dead.update(failure.code for failure in first.values())
        self.failed += sum(failure.rows for failure in first.values() if failure.code != "duplicate_id")
        counts = encoded.counts
        self.over += int(((counts.n_windows > 1) | (counts.n_tokens_used < counts.n_tokens)).sum())
        self.over += sum(failure.code == "too_long" for failure in encoded.failures)


def _over(prepared: Prepared, survey: Survey, rows: int, full: bool) -> list[str]:
    """What to say of more dead letters than the job allows: better now than after the night. `rows` of the corpus, which a
    sample is one of; what fails is computed each time, also in a log of changes."""
    limits = prepared.spec.limits
    failed = survey.failed if full else round(survey.failed * rows / max(survey.rows, 1))
    if failed <= (allowed := limits.failed_allowed(rows)):
        return []
    expected = f"about {many(failed, 'dead letter')} from what has been looked at"
    return [f"{expected}, {allowed:,} allowed by limits.max_failed {limits.max_failed}: the run would end as failed"]


def _histogram(n_tokens: Any) -> dict[str, int]:
    counts, _ = np.histogram(n_tokens, [0, *EDGES, np.inf])
    names = [f"<{edge}" for edge in EDGES] + [f">={EDGES[-1]}"]
    return {name: int(n) for name, n in zip(names, counts, strict=True) if n}


def _padding(lengths: Int64, resolved: Resolved, plan: Plan, sampled: int) -> float:
    """Padding of a shard of the plan's size, its lengths drawn from the sample."""
    if not len(lengths) or not plan.shards or not resolved.tokens_per_batch:
        return 0.0
    times = plan.rows / len(plan.shards) / max(sampled, 1)
    lengths = np.repeat(lengths, round(times)) if times > 1 else lengths[:: round(1 / times)]
    return round(padding(pack(lengths, resolved.tokens_per_batch), lengths), 4)


def _memory(prepared: Prepared, resolved: Resolved, lengths: Int64, plan: Plan, sampled: int) -> dict[str, int]:
    """Bytes a replica needs: weights as loaded, activations of a batch, and the five shards that are under way."""
    if isinstance(prepared.model, Server):
        return {}
    stored = sum(f.stat().st_size for f in Path(prepared.model.path).glob("*.safetensors"))
    weights = stored // 2 if resolved.dtype == "bfloat16" and _stored_in(prepared) == "float32" else stored
    largest = max((shard.rows for shard in plan.shards), default=0)
    row = ((8 + prepared.task.token_bytes) * int(lengths.sum()) + 8 * len(lengths)) / max(sampled, 1) + 600
    batch = max(resolved.tokens_per_batch, int(lengths.max(initial=0)))
    return {
        "weights": weights, "batch": batch * devices.token_bytes(prepared.model, resolved.dtype),
        "shards": int(5 * largest * row),
    }  # fmt: skip


def _stored_in(prepared: Prepared) -> str:
    return str(prepared.model.config.get("torch_dtype") or prepared.model.config.get("dtype") or "float32")


def _probe(prepared: Prepared, resolved: Resolved, survey: Survey, threads: int) -> float:
    """Documents a second of one replica, measured for some seconds on batches spread over all lengths."""
    encoded = survey.first
    if encoded is None or not len(encoded.pieces):
        return 0.0
    backend = registry.backend(prepared.model, resolved, prepared.task, threads)
    done = {"tokens": 0, "seconds": 0.0}

    def count(rows: int, tokens: int, executed: int, seconds: float) -> None:
        done["tokens"] += tokens
        done["seconds"] += seconds

    batches = list(pack(encoded.pieces.lengths, resolved.tokens_per_batch or PROBE_TOKENS))
    backend.forward(take(encoded.pieces, batches[0].index))  # pays for allocations, and is not counted
    backend.on_batch = count
    began = perf_counter()
    for batch in batches[:: max(len(batches) // 24, 1)]:
        backend.forward(take(encoded.pieces, batch.index))
        if perf_counter() - began > PROBE_SECONDS:
            break
    return round(
        done["tokens"] / done["seconds"] / (int(encoded.pieces.lengths.sum()) / len(encoded.counts.n_tokens)), 1
    )


def take(pieces: Pieces, index: Any) -> Pieces:
    """Some of the pieces."""
    from batchnlp.text.encode import offsets, ranges

    where = ranges(pieces.starts[index], pieces.lengths[index])
    by_token = ("ids", "type_ids", "word")
    columns = {f.name: getattr(pieces, f.name) for f in fields(pieces) if f.name != "starts"}
    taken: dict[str, Any] = {n: c if c is None else c[where if n in by_token else index] for n, c in columns.items()}
    return Pieces(starts=offsets(pieces.lengths[index]), **taken)
