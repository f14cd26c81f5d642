"""Does batching change answers? A sample of a job's documents, answered as the job is configured and by the model alone.

The reference (`backends.reference`) is the model as transformers runs it, in float32, one document at a time; what counts
as equal stands in `equality`. Sampling is off here: batching may change a distribution, never a draw, which is seeded
by the row.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from batchnlp import registry
from batchnlp.backends import device as devices
from batchnlp.backends.reference import Reference, Reread
from batchnlp.engine.equality import (
    COARSE,
    COSINE,
    EXACT,
    Check,
    Row,
    allowed,
    compare,
    cosines,
    deviations,
    distances,
    farthest,
    largest,
    margin,
)
from batchnlp.engine.planner import SHARD_BYTES, Prepared, prepare
from batchnlp.errors import UsageError
from batchnlp.job.spec import JobSpec
from batchnlp.job.task import BELONGS
from batchnlp.tasks.base import Task, answers
from batchnlp.types import Completions, Docs, Encoded, Failure, Float32, Int32, Pieces, Raw

ROWS = 32
POOL = 2_000  # documents that the sample is taken from, where the corpus is small or a filter leaves few
SHOWN = 5

Listen = Callable[[str], None]


@dataclass(slots=True)
class Diagnosis:
    """What `doctor` found."""

    status: str  # equal, different
    job: str
    documents: int  # sampled
    compared: int  # of them, those with an answer from both
    padding: float  # of the job's own batches on this sample
    resolved: dict[str, Any]
    checks: list[Check]
    apart: list[Row]  # the worst documents: id, and what differs
    notes: list[str]
    advice: str


@dataclass(slots=True)
class _Answered:
    """The sample as one way of computing answered it."""

    rounds: list[tuple[Encoded, Raw]]
    table: pa.Table
    failed: set[int]
    failures: list[Failure] = field(default_factory=list)


def examine(spec: JobSpec, rows: int = ROWS, listen: Listen = lambda text: None) -> Diagnosis:
    """Compare; nothing is written. Raises UsageError where the job could not be run, or the sample has no answer."""
    if spec.engine.backend == "http":
        hint = "name the same model without engine.backend=http, where its files are at hand"
        raise UsageError("doctor compares with the model's own files, and a server does not give them", hint)
    return _Examination(prepare(_decided(spec)), rows, listen, sampled=spec.task.sample).run()


def _decided(spec: JobSpec) -> JobSpec:
    """The job without draws, and with all scores where the task can tell them."""
    calm: dict[str, Any] = dict.fromkeys(("temperature", "top_k", "top_p")) | {"sample": False, "n": 1}
    calm["scores"] = spec.task.kind in BELONGS["scores"]
    return spec.model_copy(update={"task": spec.task.model_copy(update=calm)})


class _Read(NamedTuple):
    """A written answer of the engine, read again by the reference."""

    doc: int
    turn: int  # the round it was given in
    prompt: Int32
    read: Reread


class _Examination:
    """One sample, one job."""

    def __init__(self, prepared: Prepared, rows: int, listen: Listen, *, sampled: bool) -> None:
        self._prepared, self._listen = prepared, listen
        hardware = devices.probe_hardware()
        self._resolved = devices.resolve(prepared.spec.engine, prepared.model, hardware, prepared.task.needs)
        _, self._threads = devices.share(hardware, self._resolved.device, prepared.spec.engine.replicas)
        self._docs = sample(prepared, rows)
        self._notes = ["sampling is off here: the draws are the rows' own, whatever the batch"] if sampled else []
        self._checks: list[Check] = []
        self._apart: list[Row] = []
        self._differing = 0
        self._exact = self._resolved.dtype == "float32"
        # What rounding may change; int8 is held against it too, and what is beyond it is its price.
        self._coarser = "bfloat16" if self._resolved.dtype == "int8" else self._resolved.dtype

    def run(self) -> Diagnosis:
        """The engine first, then the model alone: only one of them is in memory."""
        resolved, docs = self._resolved, self._docs
        self._listen(
            f"{len(docs)} documents as the job has them: {resolved.device}, {resolved.dtype}, {resolved.backend}"
        )
        mine = self._engine()
        sequences = sum(len(encoded.pieces) for encoded, _ in mine.rounds)
        self._listen(f"{sequences} sequences one at a time, in float32")
        generative = isinstance(mine.rounds[0][1], Completions)
        compared = 0 if not sequences else self._writing(mine) if generative else self._reading(mine)
        if not compared:
            codes = ", ".join(sorted({failure.code for failure in mine.failures}))
            raise UsageError(
                f"none of {len(docs)} documents has an answer to compare: {codes}", "look at more with --rows"
            )
        raws = [raw for _, raw in mine.rounds]
        executed, tokens = sum(raw.executed for raw in raws), sum(raw.tokens for raw in raws)
        good = all(check.ok for check in self._checks)
        return Diagnosis(
            status="equal" if good else "different", job=self._prepared.about["job"], documents=len(docs),
            compared=compared, padding=round(1 - tokens / executed, 4) if executed else 0.0,
            resolved=asdict(resolved), checks=self._checks, apart=self._apart[:SHOWN], notes=self._notes,
            advice=self._advice(good, generative),
        )  # fmt: skip

    # --- the two ways to answer

    def _task(self) -> Task:
        task: Task = registry.load(registry.TASKS, self._prepared.spec.task.kind)(
            self._prepared.model, self._prepared.spec.task
        )
        return task

    def _engine(self) -> _Answered:
        task = self._task()
        backend = registry.backend(self._prepared.model, self._resolved, task, self._threads)
        task.prepare(backend.forward)
        encoded = task.encode(self._docs)
        rounds = [(encoded, backend.forward(encoded.pieces))]
        while (more := task.again(*rounds[-1])) is not None:
            rounds.append((more, backend.forward(more.pieces)))
        self._notes += [backend.note] if backend.note else []
        del backend
        gc.collect()  # a model is held by cycles, and the next one wants its memory
        return _answered(task, rounds, self._docs)

    def _reference(self, dtype: str, task: Task) -> Reference:
        resolved = replace(self._resolved, dtype=dtype, backend="torch")
        return Reference(self._prepared.model, resolved, task.needs, self._threads, task.decoding)

    def _alone(self, dtype: str, encoded: Encoded) -> _Answered:
        """An encoder's answers to the same pieces, one at a time."""
        task = self._task()
        reference = self._reference(dtype, task)
        task.prepare(reference.forward)
        return _answered(task, [(encoded, reference.forward(encoded.pieces))], self._docs)

    # --- encoders

    def _reading(self, mine: _Answered) -> int:
        encoded, raw = mine.rounds[0]
        alone = self._alone("float32", encoded)
        rounded = alone if self._exact else self._alone(self._coarser, encoded)
        both = sorted(set(range(len(self._docs))) - mine.failed - alone.failed)
        self._only_here(mine.failed - alone.failed)
        if not both:
            return 0
        owners = _owners(encoded.pieces, raw)
        raws = [way.rounds[0][1].values for way in (mine, alone, rounded)]
        rows = np.isin(owners, both) & np.all([np.isfinite(values).all(1) for values in raws], axis=0)
        values, wanted, coarse = (values[rows] for values in raws)
        off = (
            self._vectors(values, wanted, coarse)
            if raw.kind == "vectors"
            else self._outputs(raw.kind, values, wanted, coarse)
        )
        moved = set(owners[rows][off].tolist())
        self._columns(mine.table, alone.table, rounded.table, both, moved)
        if raw.executed == raw.tokens:
            self._notes.append("no sequence of the sample was padded; --rows more, for documents of different lengths")
        return len(both)

    def _outputs(self, kind: str, values: Float32, wanted: Float32, coarse: Float32) -> Any:
        """[rows] whether a row is too far off."""
        far, noise = deviations(kind, values, wanted), float(deviations(kind, coarse, wanted).max())
        limit = allowed(None if self._exact else noise, largest(kind, wanted))
        self._check("largest difference of model outputs", float(far.max()), limit)
        return far > limit

    def _vectors(self, values: Float32, wanted: Float32, coarse: Float32) -> Any:
        """[rows] whether a vector is too far off."""
        far, near, alone = distances(values, wanted), cosines(values, wanted), cosines(coarse, wanted).min()
        self._checks.append(Check("smallest cosine", float(near.min()), COSINE, bool(near.min() >= COSINE)))
        if alone < COSINE:
            self._notes.append(f"{self._coarser} alone, without batches, comes to a cosine of {alone:.6f}")
        if not self._exact:
            return near < COSINE
        self._check("largest distance, by length", float(far.max()), EXACT)
        return far > EXACT

    def _columns(self, mine: pa.Table, alone: pa.Table, rounded: pa.Table, both: list[int], moved: set[int]) -> None:
        """The columns as the job would write them: scores by number, all else by being the same; `moved` are the
        documents whose model outputs are too far off."""
        found, wanted, coarse = ([table.slice(i, 1).to_pylist()[0] for i in both] for table in (mine, alone, rounded))
        apart = [compare(a, b) for a, b in zip(found, wanted, strict=True)]
        by_dtype = [compare(a, b) for a, b in zip(coarse, wanted, strict=True)]
        limit = allowed(None if self._exact else max(far for _, far in by_dtype))
        self._check("largest difference of scores", max(far for _, far in apart), limit)
        if not self._exact and "label" in alone.column_names:
            self._coarse("labels", sum("label" in names for names, _ in by_dtype) / len(both))
        beyond = 0
        for doc, row, (names, far) in zip(both, wanted, apart, strict=True):
            undecided = margin(row) if "label" in names else None
            if names:  # two labels change places when each moves by half their margin
                beyond += doc in moved if undecided is None else undecided > 2 * limit
            if names or doc in moved or far > limit:
                self._tell(doc, differs=", ".join(names) or "numbers", margin=undecided, score=far)
        self._differing = sum(bool(names) for names, _ in apart)
        self._check(f"answers that differ: {self._differing}; by more than rounding", beyond, 0)
        self._apart.sort(key=lambda row: (row["differs"] == "numbers", -(row.get("score") or 0)))

    # --- generation

    def _writing(self, mine: _Answered) -> int:
        task = self._task()
        reference = self._reference("float32", task)
        reads: list[_Read] = []
        only_here: set[int] = set()
        for turn, (encoded, raw) in enumerate(mine.rounds):
            assert isinstance(raw, Completions)
            pieces = encoded.pieces
            for i, limit in enumerate(reference.limits(pieces).tolist()):
                if limit < 1:
                    continue  # it failed for that in both
                prompt, doc = pieces.ids[pieces.starts[i] : pieces.starts[i + 1]], int(pieces.doc[i])
                answer, finish = raw.ids[raw.starts[i] : raw.starts[i + 1]].tolist(), raw.finish[i]
                read = reference.reread(prompt, limit, answer, finish)
                if read is not None and finish:
                    reads.append(_Read(doc, turn, prompt, read))
                elif read is not None:
                    only_here.add(doc)
        del reference
        gc.collect()
        self._only_here(only_here)
        self._judge(reads, task)
        return len({read.doc for read in reads})

    def _judge(self, reads: list[_Read], task: Task) -> None:
        """A token that is another one is harmless where the reference was as undecided as rounding goes."""
        noise = 0.0 if self._exact or not reads else self._moved(reads, task)
        left, beyond, unjudged, widest = 0, 0, 0, 0.0
        for doc, turn, _, read in reads:
            if read.at < 0:
                continue
            left += 1
            gap = float(read.gaps.max())
            if read.comparable:
                beyond += gap > allowed(None if self._exact else noise, max(1.0, read.scale))
                widest = max(widest, gap)
            else:
                unjudged, beyond = unjudged + (not self._exact), beyond + self._exact
            first = float(read.gaps[read.at]) if read.comparable else np.inf
            place = f"token {read.at}" + (f" of round {turn + 1}" if turn else "")
            self._tell(doc, differs=place, margin=first if np.isfinite(first) else None)
        self._notes.append(f"{len(reads)} answers, {sum(len(read.gaps) for *_, read in reads):,} tokens")
        if left:
            self._notes.append(
                f"where tokens differ, the model alone prefers its own by {widest:.3g} at most, in logits"
            )
        if not self._exact:
            self._notes.append(f"{self._resolved.dtype} alone moves such a preference by {noise:.3g}")
        if unjudged:
            hint = "which only float32 can judge: --set engine.dtype=float32"
            self._notes.append(f"{unjudged} answers of beam search differ, {hint}")
        self._check(f"answers that differ: {left}; by more than rounding", beyond, 0)

    def _moved(self, reads: list[_Read], task: Task) -> float:
        """How far the dtype alone moves the two likeliest tokens of a place against each other."""
        self._listen(f"the same in {self._resolved.dtype}, one at a time: what rounding changes")
        reference = self._reference(self._resolved.dtype, task)
        pairs = [(read, reference.margins(prompt, read)) for _, _, prompt, read in reads if len(read.best)]
        changed = sum(int((margins < 0).sum()) for _, margins in pairs)
        self._coarse("tokens", changed / max(sum(len(margins) for _, margins in pairs), 1))
        return max((farthest(margins, read.margins) for read, margins in pairs), default=0.0)

    # --- what is said of it

    def _only_here(self, docs: set[int]) -> None:
        """Documents that the engine fails on, and the model alone does not."""
        self._check("documents that fail only in the job's way", len(docs), 0)
        for doc in sorted(docs):
            self._tell(doc, differs="no answer", margin=None)

    def _check(self, what: str, value: float, limit: float) -> None:
        self._checks.append(Check(what, value, limit, value <= limit))

    def _coarse(self, what: str, share: float) -> None:
        self._check(f"share of {what} that {self._coarser} alone changes", share, COARSE)

    def _tell(self, doc: int, **what: Any) -> None:
        self._apart.append({"id": str(self._docs.ids[doc].as_py()), **what})

    def _advice(self, good: bool, generative: bool) -> str:
        resolved = self._resolved
        if good:
            return "batches, dtype and backend change no answer by more than rounding"
        if resolved.dtype == "int8":
            what = "answers" if self._differing else "numbers, and no other answer,"
            return (
                f"int8 changes {what} by more than the rounding of bfloat16, as told above; bench tells what it gains"
            )
        settings = []
        if resolved.backend != "torch":
            settings.append("engine.backend=torch")
        if not self._exact:
            settings.append("engine.dtype=float32")
        if not settings and not generative and resolved.tokens_per_batch > 1:
            settings.append("engine.tokens_per_batch=1")
        if settings:
            return f"do not trust this job's answers; run it, and doctor again, with {' '.join(settings)}"
        return "do not trust this job's answers: batchnlp computes this model wrongly; please report it, with its config.json"


def sample(prepared: Prepared, rows: int) -> Docs:
    """So many documents, spread over the corpus."""
    docs = prepared.source.sample(rows)
    if len(docs) < rows:
        shards = prepared.source.shards(None, max(POOL, rows), SHARD_BYTES)
        docs = prepared.source.read(shards[0]) if shards else docs
    if not len(docs):
        raise UsageError("the corpus has no documents to compare", "check source.path and source.filter")
    if len(docs) <= rows:
        return docs
    chosen = np.linspace(0, len(docs) - 1, rows).astype(int)
    place = {int(doc): i for i, doc in enumerate(chosen)}
    index = pa.array(chosen)
    return Docs(
        docs.ids.take(index), docs.text.take(index), docs.keep.take(index), docs.columns.take(index),
        docs.file[chosen], docs.row[chosen],
        tuple(replace(f, doc=place[f.doc]) for f in docs.failures if f.doc in place),
    )  # fmt: skip


def _answered(task: Task, rounds: list[tuple[Encoded, Raw]], docs: Docs) -> _Answered:
    table, failures = answers(task, *rounds[-1], docs.failures)
    return _Answered(rounds, table, {failure.doc for failure in failures}, failures)


def _owners(pieces: Pieces, raw: Raw) -> Any:
    """The document of each row of the raw answer, which has one a piece or one a token."""
    return pieces.doc if len(raw.values) == len(pieces) else np.repeat(pieces.doc, pieces.lengths)
