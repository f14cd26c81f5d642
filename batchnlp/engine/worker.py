"""The worker: one model replica and three stages, each in a thread, one shard apart.

    read + encode  →  forward  →  decode + write
      thread 1        thread 2        thread 3

Thread 2 owns the device and should never wait: while it computes a shard, the next one is being tokenised and the one
before written. Queues hold one shard each, so memory is that of a handful of shards, however large the corpus.

The worker knows nothing of Ray, and nothing of who else works: it leases shards until there are none. Shards that are under
suspicion (see `suspects`) go first, one at a time and with nothing beside them.
"""

from __future__ import annotations

import math
import queue
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa

from batchnlp import failpoints, registry
from batchnlp.data.again import Again
from batchnlp.data.ledger import Ledger
from batchnlp.data.parts import PartWriter, dead_table, dead_texts, ids_hash, log_columns
from batchnlp.data.sources import Source
from batchnlp.data.sources.repeats import Repeats
from batchnlp.data.store import CONTROL, open_store
from batchnlp.engine.meter import Cost, Meter
from batchnlp.engine.suspects import Suspect
from batchnlp.errors import CorruptError, WorkerLostError
from batchnlp.job.spec import JobSpec
from batchnlp.tasks.base import answers
from batchnlp.tasks.cached import cache_note, cached_rows, with_cache
from batchnlp.types import UPSERT, Docs, Encoded, Failure, ModelFiles, Part, Pieces, Plan, Raw, Resolved, Server, Shard

Lease = Callable[[], Shard | None]
_Found = tuple[pa.Table, pa.Table, pa.Table]  # results, dead letters, and their texts where asked for
LeaseSuspect = Callable[[], tuple[Shard, str] | None]  # with how the worker was lost that had it last


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """All a worker needs, in a form that travels between processes."""

    spec: JobSpec
    model: ModelFiles
    plan: Plan
    resolved: Resolved
    source_schema: pa.Schema
    spool: str | None
    threads: int

    @property
    def batch_seconds(self) -> float | None:
        """What a worker may take for a step; None: as is measured. Who asks a server minds its time by himself."""
        seconds = self.spec.limits.batch_seconds
        if seconds == "auto":
            return math.inf if isinstance(self.model, Server) else None
        return seconds


@dataclass(slots=True)
class _Item:
    """A shard, or some rows of one, on its way through the stages."""

    shard: Shard
    docs: Docs
    encoded: Encoded
    raw: Raw | None = None
    cost: Cost = field(default_factory=Cost)

    def add(self, raw: Raw) -> None:
        """What the model answered in this round."""
        self.raw = raw
        self.cost.add(Cost(raw.tokens, raw.executed, seconds={"forward": raw.seconds}))


class _Feed:
    """The encoded shards as the backend pulls them; those that are asked about again go first."""

    def __init__(self, items: queue.Queue[Any], worker: Worker) -> None:
        self._items, self._worker = items, worker
        self._ended = False
        self.again: deque[_Item] = deque()

    @property
    def ended(self) -> bool:
        """Whether there will be no more."""
        return self._ended and not self.again

    def take(self, *, wait: bool) -> tuple[_Item, Pieces] | None:
        """The next shard; an error of the stage before is raised here, after all that came before it."""
        if self.again:
            item = self.again.popleft()
            return item, item.encoded.pieces
        while not self._ended:
            began = perf_counter()
            item = _get(self._items, None if wait else 0)
            self._worker.meter.idle += perf_counter() - began
            if item is None:
                return None
            if isinstance(item, BaseException):
                raise item
            if item is _END:
                self._ended = True
            elif not self._worker.stopping.is_set():  # else it is not begun: left for the next run
                self._worker.begin(item)
                return item, item.encoded.pieces
        return None


class Worker:
    """Built once a replica: loads the model, then turns leases into parts."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.meter = Meter()
        self.stopping = threading.Event()  # no new shards
        self.aborting = threading.Event()  # not even the rest of this one
        self.stuck = False  # a thread of it comes to no end: nobody is to wait for it
        self._docs_per_piece = 1.0  # of the shard in the model
        self._schema = setup.plan.schema
        self._files = setup.plan.files
        self._dead_text = setup.spec.output.dead_text
        spec = setup.spec
        self._date = spec.date if spec.writes_date else None  # a column of the results
        failpoints.reach("load")
        self._store, self._generation = open_store(spec.output.path), setup.plan.generation
        self._control = f"{CONTROL}/{setup.plan.fingerprint}"
        self._ledger = Ledger(self._store, setup.plan.fingerprint)
        self._task = task = with_cache(registry.task(setup.model, spec.task), spec, setup.model, setup.resolved)
        self._source = Source(
            spec.source.config(task.columns, task.turns), setup.plan.files, setup.source_schema, setup.spool
        )
        if setup.plan.repeats:
            self._source.repeats = Repeats(self._store, self._ledger.repeats)
        self._backend = registry.backend(setup.model, setup.resolved, task, setup.threads)
        self._task.prepare(self._backend.forward)
        self._backend.aborted = self.aborting.is_set
        self._backend.on_batch = self._count
        self._again: dict[int, Again] = {}  # by shard, in a retry
        self._writer = PartWriter(self._store, setup.plan.fingerprint, spec.output.partition_by, self._generation)

    def run(self, lease: Lease, suspect: LeaseSuspect = lambda: None) -> Iterator[Part | None]:
        """Parts as they get done; None now and then while there is none, so that the caller can look around."""
        encoded: queue.Queue[Any] = queue.Queue(1)
        forwarded: queue.Queue[Any] = queue.Queue(1)
        stages = [
            (self._read_and_encode, lease, encoded), (self._forward, encoded, forwarded),
            (self._decode_and_write, forwarded, queue.Queue()),
        ]  # fmt: skip
        try:
            yield from self._flow([(self._isolate, suspect, queue.Queue())])
            yield from self._flow(stages)
        finally:
            if not self.stuck:
                self.stopping.clear()
                self.aborting.clear()

    def _flow(self, stages: list[Any]) -> Iterator[Part | None]:
        """What comes out of the last of some stages (work, source, target), a thread each."""
        threads = [threading.Thread(target=_stage, args=s, name=s[0].__name__, daemon=True) for s in stages]
        *between, finished = (target for _, _, target in stages)
        for thread in threads:
            thread.start()
        try:
            while (got := _get(finished, 0.2)) is not _END:
                if isinstance(got, BaseException):
                    raise got
                yield got
        except BaseException:
            self.stopping.set()
            self.aborting.set()
            raise
        finally:
            if not self.stuck:
                _unblock(between, threads)

    # --- the stages: each a generator from its input to its output

    def _read_and_encode(self, lease: Lease) -> Iterator[_Item]:
        while not self.stopping.is_set() and (shard := lease()) is not None:
            yield self._encoded(shard, self._read(shard))

    def _read(self, shard: Shard) -> Docs:
        failpoints.reach("read")
        began = perf_counter()
        docs = self._source.read(shard)
        if shard.dead is not None:
            self._again[shard.index] = again = Again.of(self._ledger, shard.index, docs, self._files)
            docs = docs.take(again.place)
        self.meter.encode += (seconds := perf_counter() - began)
        self.meter.step(seconds)
        return docs

    def _encoded(self, shard: Shard, docs: Docs) -> _Item:
        failpoints.reach("encode", docs.text)
        began = perf_counter()
        item = _Item(shard, docs, self._task.encode(docs))
        item.cost.cached = cached_rows(item.encoded)
        item.cost.seconds["encode"] = seconds = perf_counter() - began
        self.meter.encode += seconds
        self.meter.step(seconds)
        return item

    def _forward(self, items: queue.Queue[Any]) -> Iterator[_Item]:
        feed = _Feed(items, self)
        for item, raw in self._backend.run(feed):
            item.add(raw)
            more = self._task.again(item.encoded, raw)
            if more is None:
                yield item
            else:
                item.encoded = more
                feed.again.append(item)

    def begin(self, item: _Item) -> None:
        """The shard goes into the model."""
        failpoints.reach("forward", item.docs.text)
        self._docs_per_piece = len(item.docs) / max(len(item.encoded.pieces), 1)

    def _decode_and_write(self, items: queue.Queue[Any]) -> Iterator[Any]:
        while (item := items.get()) is not _END:
            if isinstance(item, BaseException):
                yield item
                continue
            began = perf_counter()
            yield self._written(item.shard, item.docs, self._results(item), item.cost, began)

    def _written(self, shard: Shard, docs: Docs, found: _Found, cost: Cost, began: float) -> Part:
        table, dead, texts = found
        cost.seconds["write"] += perf_counter() - began
        note = "; ".join(filter(None, (self._backend.note, cache_note(self._task))))
        measured = {**asdict(cost), "note": note}
        again, order = self._again.pop(shard.index, None), None
        if again is not None:
            measured["after"], dead = again.part.attempt, again.aged(dead)
            order = partial(again.order, docs, self._files, dead)
        part = self._writer.write(shard.index, uuid.uuid4().hex[:12], table, dead, measured, texts, order)
        if part.ids_hash != f"{ids_hash(docs.ids):016x}":
            message = f"shard {part.shard}: the ids that come out are not those that went in"
            raise CorruptError(message, "this is a fault of batchnlp; the shard was not committed")
        self.meter.write += (seconds := perf_counter() - began)
        self.meter.step(seconds)
        self.meter.dead += part.dead
        return part

    # --- shards that a worker was lost with

    def _isolate(self, lease: LeaseSuspect) -> Iterator[Part]:
        while not self.stopping.is_set() and (found := lease()) is not None:
            shard, code = found
            suspect = Suspect(self._store, self._control, shard.index, self._generation)
            suspect.open(code)
            try:
                part = self._alone(shard, suspect)
            except WorkerLostError:
                raise  # and what is under way stays in the note
            except BaseException:
                suspect.leave()
                raise
            if part is not None:
                suspect.close()
                yield part

    def _alone(self, shard: Shard, suspect: Suspect) -> Part | None:
        """The shard range by range; None where it was stopped half-way."""
        docs, cost = self._read(shard), Cost()
        found = {-1: self._found(docs, self._schema.empty_table(), [])}
        for failure in suspect.failures:
            found[failure.doc] = self._found(docs, found[-1][0], [failure])
        for some in suspect.run(len(docs)):
            if self.stopping.is_set():
                suspect.leave()
                return None
            item = self._answered(shard, docs.take(np.arange(some.start, some.stop)))
            cost.add(item.cost)
            found[some.start] = self._results(item)
        began = perf_counter()
        table, dead, texts = (pa.concat_tables([found[at][i] for at in sorted(found)]) for i in range(3))
        return self._written(shard, docs, (table, dead, texts), cost, began)

    def _answered(self, shard: Shard, docs: Docs) -> _Item:
        """Some rows of a shard, with nothing else in the model."""
        item = self._encoded(shard, docs)
        self.begin(item)
        item.add(self._backend.forward(item.encoded.pieces))
        assert item.raw is not None
        while (more := self._task.again(item.encoded, item.raw)) is not None:
            item.encoded = more
            item.add(self._backend.forward(more.pieces))
        return item

    def _results(self, item: _Item) -> _Found:
        """Every row of the shard as a result or a dead letter."""
        assert item.raw is not None
        found, failures = answers(self._task, item.encoded, item.raw, item.docs.failures)
        alive = np.ones(len(item.docs), bool)
        alive[[failure.doc for failure in failures]] = False
        date = [pa.repeat(pa.scalar(self._date, pa.date32()), len(item.docs))] if self._date else []
        log = log_columns(self._schema, len(item.docs), UPSERT)
        columns = [item.docs.ids, *item.docs.keep.columns, *date, *found.columns, *log]
        table = pa.table(columns, names=self._schema.names)
        table = (table if alive.all() else table.filter(pa.array(alive))).cast(self._schema.remove_metadata())
        return self._found(item.docs, table.replace_schema_metadata(self._schema.metadata), failures)

    def _found(self, docs: Docs, table: pa.Table, failures: Sequence[Failure]) -> _Found:
        texts = dead_texts(docs, failures if self._dead_text else [], self._files)
        return table, dead_table(docs, failures, self._files), texts

    def _count(self, pieces: int, tokens: int, executed: int, seconds: float) -> None:
        meter = self.meter
        meter.docs += pieces * self._docs_per_piece
        meter.tokens += tokens
        meter.executed += executed
        meter.busy += seconds
        meter.step(seconds)


class _End:
    """What a stage sends after its last item."""


_END = _End()


def _stage(work: Callable[[Any], Iterator[Any]], source: Any, target: queue.Queue[Any]) -> None:
    """Run a stage to its end; an error travels on as an item, because nobody looks at a thread."""
    try:
        for item in work(source):
            target.put(item)
    except BaseException as error:  # noqa: BLE001 - the worker's border: it is raised again by `run`
        target.put(error)
    target.put(_END)


def _get(items: queue.Queue[Any], timeout: float | None) -> Any:
    try:
        return items.get(timeout != 0, timeout)
    except queue.Empty:
        return None


def _unblock(queues: list[queue.Queue[Any]], threads: list[threading.Thread]) -> None:
    """Empty the queues until the stages, which may wait to put something, have ended."""
    while any(thread.is_alive() for thread in threads):
        for items in queues:
            _get(items, 0.01)
        for items in queues:  # a stage that was robbed of its end waits for one
            if items.empty() and any(thread.is_alive() for thread in threads):
                try:
                    items.put_nowait(_END)
                except queue.Full:
                    continue
