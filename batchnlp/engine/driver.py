"""The driver: owns the ledger, tells the runner what is left to do, commits what comes back, and says how it went.

    preflight → lock → plan or resume → runner → commit, commit, ... → manifest → _SUCCESS

It is the only process that commits, and it computes nothing itself.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from batchnlp import registry
from batchnlp.backends import device as devices
from batchnlp.data.changes import Changes
from batchnlp.data.commits import Commits, Tally
from batchnlp.data.ledger import SUCCESS, Ledger, fingerprints, live, set_live, settle
from batchnlp.data.lock import Lock
from batchnlp.data.store import LocalStore
from batchnlp.data.sweep import drop, sweep_dropped, sweep_temporary, sweep_unnamed
from batchnlp.engine import incremental
from batchnlp.engine.planner import Prepared, make_plan, prepare
from batchnlp.engine.signals import Interrupt, watch_signals
from batchnlp.engine.warehouses import load_all, unloaded
from batchnlp.engine.worker import WorkerSetup
from batchnlp.errors import CorruptError, Interrupted, OutputError
from batchnlp.job.identity import differences
from batchnlp.job.spec import JobSpec
from batchnlp.types import Part, Plan, Resolved, many

COMMITTERS = 8  # commits at a time, where several parts are there


class Runner(Protocol):
    """Something that runs workers over shards."""

    def ready(self, timeout: float) -> bool:
        """Whether work has begun, which it has when the first worker has loaded its model."""

    def note(self) -> str:
        """What keeps work from beginning, if it is anything out of the ordinary."""

    def wait(self, timeout: float) -> list[Part]:
        """Parts that got done."""

    def progress(self) -> dict[str, float]:
        """Counters of all workers."""

    def stop(self) -> None:
        """Begin no more shards."""

    def idle(self) -> bool:
        """Whether nothing is under way."""

    def close(self) -> None:
        """End at once."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The run at a moment, for whoever draws it."""

    rows: int  # done, in the model or written
    total: int
    dead: int
    seconds: float  # since the first lease
    rows_now: float  # done in this invocation
    tokens: float
    executed: float
    busy: float  # device seconds a replica
    note: str = ""
    message: str = ""  # to be told once, on a line of its own


@dataclass(slots=True)
class RunResult:
    """How a run ended."""

    status: str  # done, failed (over the limit), stopped
    run: str
    output: str
    rows: int
    dead: int
    exit_code: int
    resumed: int  # shards that were there before
    shards: int  # shards computed now
    docs_per_second: float
    tokens_per_second: float
    padding: float
    device_busy: float
    seconds: dict[str, float]
    codes: dict[str, int] = field(default_factory=dict)
    message: str = ""
    sinks: list[dict[str, Any]] = field(default_factory=list)  # what each of the job's warehouses was given
    resolved: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what a backend did otherwise than it would, and why
    replaced: list[str] = field(default_factory=list)  # runs that an overwrite took the place of
    reused: int = 0  # of an incremental run: rows whose results stand; rows = results + dead + reused
    deleted: int = 0  # ids that have no result any more
    changes: dict[str, int] = field(default_factory=dict)  # all rows by reason
    cached: int = 0  # rows of this invocation whose results came from the cache


Listener = Callable[[Progress], None]


def run_job(spec: JobSpec, listen: Listener = lambda progress: None) -> RunResult:
    """Run a job to its end, or resume it. Raises UsageError before any result is written, LockedError, StoppedError,
    and Interrupted where a signal comes before there is a plan."""
    began = time.monotonic()
    with watch_signals() as interrupt:
        prepared = prepare(spec)
        interrupt.check()
        store = LocalStore(spec.output.path)
        refuse_other_runs(prepared, store)
        lock = Lock(store, invocation := uuid.uuid4().hex[:12])
        try:
            lock.acquire()
            refuse_other_runs(prepared, store)  # again: before the lock was ours, another job may have come
            prepared = incremental.on_base(prepared, store)
            return _Run(prepared, store, invocation, listen, began, interrupt).run()
        finally:
            interrupt.defer()
            lock.release()


def refuse_other_runs(prepared: Prepared, store: LocalStore) -> None:
    """With `mode: new`, results of another fingerprint in the same place are an error that says what changed."""
    if prepared.spec.output.mode == "incremental":
        incremental.refuse_others(prepared, store)
        return
    standing = live(store)
    others = [f for f in standing if f != prepared.fingerprint and Ledger(store, f).begun()]
    if not others or prepared.fingerprint in standing or prepared.spec.output.mode != "new":
        return  # a run that stands here already is resumed, whoever was appended meanwhile
    facts: dict[str, Any] = {}
    with suppress(CorruptError):  # then it is not known what differs
        facts = (Ledger(store, others[-1]).plan_tree() or {}).get("facts", {})
    changed = ", ".join(differences(facts, prepared.facts)[:5]) if facts else "what its damaged plan does not tell"
    hint = "use another output.path, or --mode overwrite or append"
    raise OutputError(f"{store.root} holds the results of another job; this one differs in {changed}", hint)


class _Run:
    """One invocation."""

    def __init__(
        self,
        prepared: Prepared,
        store: LocalStore,
        invocation: str,
        listen: Listener,
        began: float,
        interrupt: Interrupt,
    ) -> None:
        self.prepared, self.store, self.invocation = prepared, store, invocation
        self.listen, self.began, self.interrupt = listen, began, interrupt
        self.spec = prepared.spec
        self.ledger = Ledger(store, prepared.fingerprint)
        self.parts = Commits(self.ledger.committed)
        self.total, self.new = Tally(), Tally()  # of all invocations, of this one
        self.before: dict[str, Any] = Tally().sums()  # the sums of what earlier invocations did
        self.rows = 0  # in the plan
        self.counters: dict[str, float] = {}
        self.first = self.last = self.asked = began
        self.replicas = 1
        self.replaced: list[str] = []
        self.incremental = self.spec.output.mode == "incremental"

    def run(self) -> RunResult:
        sweep_dropped(self.store)
        sweep_temporary(self.store)
        plan, resolved, threads = self._plan()
        self._claim()
        self.rows = plan.rows
        self.parts = self.ledger.recover(plan.shards, self.invocation, self.total)
        self.before, resumed = self.total.sums(), len(self.parts)
        if going := ", ".join(map(self._named, self._replaced())):
            self.listen(self._progress("starting", f"when this run is done, it replaces {going}"))
        left = [shard for shard in plan.shards if shard.index not in self.parts]
        if left:
            self.ledger.reopen()
            self._compute(plan, resolved, threads, left)
        if len(self.parts) < len(plan.shards):
            code = self.interrupt.exit_code
            return self._result("stopped", plan, resolved, resumed, code, "the same command resumes it")
        return self._finish(plan, resolved, resumed)

    def _plan(self) -> tuple[Plan, Resolved, int]:
        """The fixed plan; made now if this is the first start."""
        hardware = devices.probe_hardware()
        if self.ledger.plan_tree() is None:
            resolved = devices.resolve(self.spec.engine, self.prepared.model, hardware, self.prepared.task.needs)
            replicas, _ = devices.share(hardware, resolved.device, self.spec.engine.replicas)
            plan, about = self._new_plan(replicas)
            sweep_unnamed(self.ledger)
            self.ledger.create_plan(plan, self.prepared.facts, resolved, {**self.prepared.about, **about})
        plan, stored = self.ledger.plan()
        resolved = devices.resume(stored, self.spec.engine, self.prepared.model, hardware, self.prepared.task.needs)
        self.replicas, threads = devices.share(hardware, resolved.device, self.spec.engine.replicas)
        return plan, resolved, threads

    def _new_plan(self, replicas: int) -> tuple[Plan, dict[str, Any]]:
        if not self.incremental:
            return make_plan(self.prepared, replicas), {}
        self._spool()
        tell = partial(self._tell_of, "comparing")
        plan, changes = incremental.plan_changes(self.prepared, self.store, replicas, keep=True, tell=tell)
        return plan, {"changes": asdict(changes)}

    def _tell_of(self, doing: str, rows: int, total: int) -> None:
        self.listen(self._progress(f"{doing} {rows:,} of {many(total, 'row')}"))

    def _compute(self, plan: Plan, resolved: Resolved, threads: int, left: list[Any]) -> None:
        try:
            runner = self._start(plan, resolved, threads, left)
        except Interrupted:
            return
        self.interrupt.defer()
        try:
            while not self.interrupt.signal and not runner.ready(0.2):
                self._report(runner, runner.note() or "starting")
            self.first = self.last = time.monotonic()
            if not self.interrupt.signal:
                self._loop(runner, plan)
                self.counters = runner.progress() or self.counters
        finally:
            runner.close()

    def _start(self, plan: Plan, resolved: Resolved, threads: int, left: list[Any]) -> Runner:
        schema, spool = self.prepared.source.schema, self._spool()
        setup = WorkerSetup(self.spec, self.prepared.model, plan, resolved, schema, spool, threads)
        factory = registry.load(registry.RUNNERS, self.spec.engine.runner)
        if self.spec.engine.runner == "inline":
            self.replicas = 1
        else:
            self.interrupt.defer()
        return factory(setup, left, self.replicas, self.spec.engine.address)  # type: ignore[no-any-return]

    def _loop(self, runner: Runner, plan: Plan) -> None:
        """Commit what comes; several at a time, because a disk takes many fsyncs in the time of one."""
        with ThreadPoolExecutor(COMMITTERS) as committers:
            self._rounds(runner, plan, committers)

    def _commit(self, parts: list[Part], plan: Plan, committers: Executor) -> None:
        def commit(part: Part) -> bool:
            return self.ledger.commit(part, plan.shards[part.shard], self.invocation)

        for part, mine in zip(parts, committers.map(commit, parts), strict=True):
            if part.shard not in self.parts:
                self.total.add(part if mine else self.ledger.committed(part.shard))
            self.parts.add(part.shard)
            if mine:
                self.new.add(part)
                self.last = time.monotonic()

    def _rounds(self, runner: Runner, plan: Plan, committers: Executor) -> None:
        deadline, interrupt = 0.0, self.interrupt
        while len(self.parts) < len(plan.shards):
            self._commit(runner.wait(0.2), plan, committers)
            self._report(runner, "stopping" if interrupt.signal else "")
            if interrupt.signal and not deadline:
                deadline = time.monotonic() + self.spec.limits.grace_seconds
                runner.stop()
            if deadline and (runner.idle() or time.monotonic() > deadline):
                return

    def _report(self, runner: Runner, note: str) -> None:
        now = time.monotonic()
        if now - self.asked < 0.5:
            return
        self.asked = now
        self.counters = runner.progress() or self.counters
        self.listen(self._progress(note))

    def _progress(self, note: str, message: str = "") -> Progress:
        c = self.counters
        done_now = max(c.get("docs", 0.0), self.new.rows)
        return Progress(
            min(int(self.before["rows"] + done_now), self.rows), self.rows, self.before["dead"] + self.new.dead,
            time.monotonic() - self.first, done_now, c.get("tokens", 0), c.get("executed", 0),
            c.get("busy", 0.0) / self.replicas, note, message,
        )  # fmt: skip

    def _spool(self) -> str | None:
        """Compressed line files are unpacked once, where every replica can read them."""
        if not any(file.compression for file in self.prepared.source.files):
            return None
        folder = self.store.path(f"{self.ledger.control}/spool")
        self.prepared.source.spool_into(folder)
        return folder

    def _finish(self, plan: Plan, resolved: Resolved, resumed: int) -> RunResult:
        dead = self.total.dead
        stand = incremental.changes_of(self.ledger).unchanged if self.incremental else 0
        allowed = self.spec.limits.failed_allowed(self.rows + stand)  # all that fails is tried again each time
        success = dead <= allowed
        manifest = None
        with suppress(CorruptError):  # which is written anew
            manifest = self.ledger.outcome()
        if made := manifest is None or self.new.shards > 0 or manifest["success"] != success:
            if self.incremental:
                incremental.write_deletes(self.prepared, self.ledger, plan)
            self.ledger.finish(self.parts, {**self.prepared.about, "invocation": self.invocation}, success=success)
        self._make_live(success)
        settle(self.store)
        if success and self.incremental:
            incremental.sweep_states(self.ledger)
        if success:
            messages = [] if self.new.shards else [self._nothing(plan, made)]
            if self.store.read(SUCCESS) is None:
                messages.append(f"no {SUCCESS} yet: another run here is not complete; batchnlp status tells which")
            self.interrupt.defer()
            sinks = load_all(self.store.root, self.spec.sinks, self.interrupt)
            result = self._result("done", plan, resolved, resumed, 0, "; ".join(messages))
            return replace(result, sinks=sinks, **unloaded(sinks, self.interrupt))
        message = f"{many(dead, 'dead letter')}, {allowed:,} allowed by limits.max_failed {self.spec.limits.max_failed}"
        if self.prepared.fingerprint not in live(self.store):
            message += "; the results of before stand, and part files of this run lie beside them until one succeeds"
        return self._result("failed", plan, resolved, resumed, 1, message)

    def _nothing(self, plan: Plan, made: bool) -> str:
        """Why nothing was computed."""
        if self.incremental and made:
            return "nothing had to be computed"
        return "all is done already" if plan.shards or self.incremental else "the corpus has no rows"

    def _claim(self) -> None:
        """Where no results stand that must be kept, this run is what the output holds, from its start."""
        standing = live(self.store)
        begun = [f for f in standing if f == self.prepared.fingerprint or Ledger(self.store, f).begun()]
        overwrite = self.spec.output.mode == "overwrite"
        if not any(not overwrite or Ledger(self.store, f).complete() for f in begun):
            set_live(self.store, [self.prepared.fingerprint])
        elif begun != standing:
            set_live(self.store, begun)
        for other in set(standing) - set(begun):  # a plan and nothing else, of a job that could not start
            drop(Ledger(self.store, other))

    def _make_live(self, success: bool) -> None:
        """append: beside what is there; incremental: after the good runs; overwrite: in the place of all, and only then are
        the old parts removed."""
        mine, now = self.prepared.fingerprint, live(self.store)
        if self.spec.output.mode == "append" and mine not in now:
            if not success:
                self.store.remove(SUCCESS)  # before it would speak for this run too
            set_live(self.store, [*now, mine])
        elif self.spec.output.mode in ("overwrite", "incremental") and success:  # a failed run replaces nothing
            self.replaced = [other[:8] for other in self._replaced()]
            stays = incremental.log_of(self.ledger) if self.incremental else [mine]
            if stays != now:
                set_live(self.store, stays)
            for other in {*now, *fingerprints(self.store)} - {*stays}:  # also those that a crash here once left over
                drop(Ledger(self.store, other))
            if not self.incremental:
                self.store.remove(incremental.STATE)

    def _replaced(self) -> list[str]:
        """The live runs whose place an overwrite takes."""
        overwrite = self.spec.output.mode == "overwrite"
        return [f for f in live(self.store) if overwrite and f != self.prepared.fingerprint]

    def _named(self, other: str) -> str:
        """A run as a user knows it; its plan may be damaged."""
        ledger, about = Ledger(self.store, other), ""
        with suppress(CorruptError, OutputError):
            about = f" ({(ledger.plan_tree() or {}).get('job')}, {many(ledger.plan()[0].rows, 'row')})"
        return f"run {ledger.run}{about}"

    def _result(
        self, status: str, plan: Plan, resolved: Resolved, resumed: int, exit_code: int, message: str
    ) -> RunResult:
        total, now, c = self.total.sums(), self.new.sums(), self.counters
        wall = max(self.last - self.first, 1e-9)
        busy = self.new.forward
        changes = incremental.changes_of(self.ledger) if self.incremental else Changes()
        return RunResult(
            status=status, run=self.ledger.run, output=self.store.root, rows=total["rows"] + changes.unchanged,
            dead=total["dead"], reused=changes.unchanged, deleted=sum(file.rows for file in self.ledger.deletes()),
            changes=asdict(changes) if self.incremental else {}, cached=self.new.cached,
            exit_code=exit_code, resumed=resumed, shards=self.new.shards,
            docs_per_second=round(now["rows"] / wall, 2), tokens_per_second=round(now["tokens"] / wall, 1),
            padding=round(1 - now["tokens"] / now["executed"], 4) if now["executed"] else 0.0,
            device_busy=round(min(busy / wall / self.replicas, 1.0), 4) if self.new.shards else 0.0,
            seconds={
                "start": round(self.first - self.began, 3), "encode": round(c.get("encode", 0.0), 3),
                "forward": round(busy, 3), "write": round(c.get("write", 0.0), 3), "idle": round(c.get("idle", 0.0), 3),
                "total": round(time.monotonic() - self.began, 3),
            },
            codes=total["codes"], message=message, resolved={**asdict(resolved), "replicas": self.replicas},
            notes=sorted({self.prepared.task.note, *self.total.notes} - {""}),
            replaced=self.replaced,
        )  # fmt: skip
