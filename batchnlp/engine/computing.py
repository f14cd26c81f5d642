"""From shards that are left to commits: starts a runner, commits what comes back, and knows when to stop.

runner → part → commit, commit, ... until all are there, a signal comes, or a budget is spent
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from batchnlp import registry
from batchnlp.data.commits import Commits, Tally
from batchnlp.data.ledger import Ledger
from batchnlp.engine.planner import Prepared, ray_token
from batchnlp.engine.signals import Interrupt
from batchnlp.engine.worker import WorkerSetup
from batchnlp.errors import Interrupted, StoppedError
from batchnlp.types import Part, Plan, Resolved, Shard

COMMITTERS = 8  # commits at a time, where several parts are there
LAST_COUNTS = 1.0  # seconds that the last counters of a run are worth


class Runner(Protocol):
    """Something that runs workers over shards."""

    replicas: int  # the most there were at a time

    def ready(self, timeout: float) -> bool:
        """Whether work has begun, which it has when the first worker has loaded its model."""

    def note(self) -> str:
        """What keeps work from beginning, if it is anything out of the ordinary."""

    def wait(self, timeout: float) -> list[Part]:
        """Parts that got done."""

    def progress(self, timeout: float = 0.0) -> dict[str, float]:
        """Counters of all workers; with a `timeout` those of now, if they can be had in so many seconds."""

    def events(self) -> list[str]:
        """What happened to workers since this was asked last, for the user."""

    def summary(self) -> list[str]:
        """What was out of the ordinary, when all is over."""

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


Listener = Callable[[Progress], None]


@dataclass(slots=True)
class RunResult:
    """How a run ended."""

    status: str  # done, failed (over the limit, or below a gate), stopped
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
    evaluation: dict[str, Any] = field(default_factory=dict)  # as in evaluation.json; empty where the job asks for none
    resolved: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what a backend did otherwise than it would, and why
    replaced: list[str] = field(default_factory=list)  # runs that an overwrite took the place of
    reused: int = 0  # incremental: rows whose results of before stand
    deleted: int = 0  # incremental: ids that have no result any more
    changes: dict[str, int] = field(default_factory=dict)  # incremental: rows of the corpus by reason
    cached: int = 0  # rows computed now whose results came from the cache


@dataclass(slots=True)
class Computation:
    """What one invocation computes of a plan, and what it came to."""

    prepared: Prepared
    ledger: Ledger
    invocation: str
    listen: Listener
    began: float
    interrupt: Interrupt
    leased: Callable[[], None] = lambda: None  # called when work begins
    rows: int = 0  # in the plan
    replicas: int = 1
    parts: Commits = field(default_factory=lambda: Commits(lambda shard: _nothing()))
    total: Tally = field(default_factory=Tally)  # of all invocations
    new: Tally = field(default_factory=Tally)  # of this one
    before: dict[str, Any] = field(default_factory=lambda: Tally().sums())  # what earlier invocations did
    counters: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    spent: str = ""  # the budget that ended it
    first: float = 0.0
    last: float = 0.0
    _asked: float = 0.0
    _shards: dict[int, Shard] = field(default_factory=dict)

    def resume(self, plan: Plan) -> list[Shard]:
        """Find what is committed already; the shards that are left."""
        self.first = self.last = self._asked = self.began
        self.rows, self._shards = plan.rows, {shard.index: shard for shard in plan.shards}
        self.parts = self.ledger.recover(plan.shards, self.invocation, self.total)
        self.before = self.total.sums()
        return [shard for shard in plan.shards if shard.index not in self.parts]

    def run(self, plan: Plan, resolved: Resolved, threads: int, left: Sequence[Shard]) -> None:
        """Compute what is left, as far as signals and budgets let it."""
        try:
            runner = self._start(plan, resolved, threads, left)
        except Interrupted:
            return
        self.interrupt.defer()
        try:
            while not self._over() and not runner.ready(0.2):
                self._report(runner, runner.note() or "starting")
            self.first = self.last = time.monotonic()
            self.leased()
            if not self._over():
                with ThreadPoolExecutor(COMMITTERS) as committers:
                    self._rounds(runner, committers)
                self.counters = runner.progress(LAST_COUNTS) or self.counters
            self.notes, self.replicas = runner.summary(), runner.replicas
        finally:
            runner.close()

    def _start(self, plan: Plan, resolved: Resolved, threads: int, left: Sequence[Shard]) -> Runner:
        spec, source = self.prepared.spec, self.prepared.source
        setup = WorkerSetup(spec, self.prepared.model, plan, resolved, source.schema, self.spool(), threads)
        if spec.engine.address and spec.engine.insecure and not ray_token():
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # as the cluster; read when ray is imported
        factory = registry.load(registry.RUNNERS, spec.engine.runner)
        if spec.engine.runner == "inline":
            self.replicas = 1
        else:
            self.interrupt.defer()
        return factory(setup, left, self.replicas, spec.engine.address)  # type: ignore[no-any-return]

    def spool(self) -> str | None:
        """Compressed line files are unpacked once, where every replica can read them."""
        if not any(file.compression for file in self.prepared.source.files):
            return None
        folder = self.ledger.store.scratch(f"{self.ledger.control}/spool")
        self.prepared.source.spool_into(folder)
        return folder

    def _rounds(self, runner: Runner, committers: Executor) -> None:
        """Commit what comes; several at a time, because a disk takes many fsyncs in the time of one."""
        deadline = 0.0
        while len(self.parts) < len(self._shards):
            self._commit(runner.wait(0.2), committers)
            over = self._over()
            self._report(runner, "stopping" if over else "")
            if over and not deadline:
                deadline = time.monotonic() + self.prepared.spec.limits.grace_seconds
                runner.stop()
            if deadline and (runner.idle() or time.monotonic() > deadline):
                return

    def _over(self) -> bool:
        """Whether nothing more is to begin: a signal came, or a budget is spent."""
        limits = self.prepared.spec.limits
        tokens = max(self.counters.get("tokens", 0.0), self.new.tokens)
        if (
            not self.spent
            and limits.max_minutes is not None
            and time.monotonic() - self.began > 60 * limits.max_minutes
        ):
            self.spent = f"limits.max_minutes {limits.max_minutes:g}"
        if not self.spent and limits.max_tokens is not None and tokens >= limits.max_tokens:
            self.spent = f"limits.max_tokens {limits.max_tokens:,}"
        return bool(self.interrupt.signal or self.spent)

    @property
    def exit_code(self) -> int:
        """Of a run that was stopped."""
        return self.interrupt.exit_code if self.interrupt.signal else StoppedError.exit_code

    @property
    def why(self) -> str:
        """What a run says that was stopped."""
        if not self.spent or self.interrupt.signal:
            return "the same command resumes it"
        if not self.new.shards:  # night after night, if nobody is told
            again = "the same command would begin again: raise it, or limits.grace_seconds"
            return f"{self.spent} is spent before a shard was done; {again}"
        return f"{self.spent} is spent; the same command resumes it"

    def _commit(self, parts: list[Part], committers: Executor) -> None:
        def commit(part: Part) -> bool:
            return self.ledger.commit(part, self._shards[part.shard], self.invocation)

        for part, mine in zip(parts, committers.map(commit, parts), strict=True):
            if part.shard not in self.parts:
                self.total.add(part if mine else self.ledger.committed(part.shard))
            self.parts.add(part.shard)
            if mine:
                self.new.add(part)
                self.last = time.monotonic()

    def _report(self, runner: Runner, note: str) -> None:
        for message in runner.events():
            self.listen(self.progress(note, message))
        now = time.monotonic()
        if now - self._asked < 0.5:
            return
        self._asked = now
        self.counters = runner.progress() or self.counters
        self.listen(self.progress(note))

    def progress(self, note: str, message: str = "") -> Progress:
        """The run now."""
        c = self.counters
        done_now = max(c.get("docs", 0.0), self.new.rows)
        return Progress(
            min(int(self.before["rows"] + done_now), self.rows), self.rows, self.before["dead"] + self.new.dead,
            time.monotonic() - self.first, done_now, c.get("tokens", 0), c.get("executed", 0),
            c.get("busy", 0.0) / self.replicas, note, message,
        )  # fmt: skip


def _nothing() -> Part:
    raise KeyError("nothing is committed")


def summed_up(work: Computation, resolved: Resolved, run: str, output: str) -> RunResult:
    """What a computation came to, whatever is to be said of its end."""
    total, now, c = work.total.sums(), work.new.sums(), work.counters
    wall = max(work.last - work.first, 1e-9)
    busy = work.new.forward
    return RunResult(
        status="done", run=run, output=output, rows=total["rows"], dead=total["dead"], exit_code=0, resumed=0,
        shards=work.new.shards,
        docs_per_second=round(now["rows"] / wall, 2), tokens_per_second=round(now["tokens"] / wall, 1),
        padding=round(1 - now["tokens"] / now["executed"], 4) if now["executed"] else 0.0,
        device_busy=round(min(busy / wall / work.replicas, 1.0), 4) if work.new.shards else 0.0,
        seconds={
            "start": round(work.first - work.began, 3), "encode": round(c.get("encode", 0.0), 3),
            "forward": round(busy, 3), "write": round(c.get("write", 0.0), 3), "idle": round(c.get("idle", 0.0), 3),
            "total": round(time.monotonic() - work.began, 3),
        },
        cached=work.new.cached, codes=total["codes"], resolved={**asdict(resolved), "replicas": work.replicas},
        notes=[*sorted({work.prepared.task.note, *work.total.notes} - {""}), *work.notes],
    )  # fmt: skip
