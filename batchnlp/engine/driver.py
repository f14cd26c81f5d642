"""The driver: owns the ledger, tells the runner what is left to do, commits what comes back, and says how it went.

    preflight → lock → plan or resume → runner → commit, commit, ... → manifest → _SUCCESS

It is the only process that commits, and it computes nothing itself.
"""

from __future__ import annotations

import shlex
import time
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pyarrow as pa

from batchnlp.backends import device as devices
from batchnlp.data.changes import in_log
from batchnlp.data.invocations import Diary
from batchnlp.data.ledger import SUCCESS, Ledger, fingerprints, live, set_live, settle
from batchnlp.data.lock import locked
from batchnlp.data.store import Store, open_store
from batchnlp.data.sweep import drop, sweep_dropped, sweep_temporary, sweep_unnamed
from batchnlp.engine import incremental
from batchnlp.engine.computing import Computation, Listener, Progress, RunResult, summed_up
from batchnlp.engine.hooks import observed
from batchnlp.engine.judge import judge
from batchnlp.engine.loading import load_all
from batchnlp.engine.planner import Prepared, find_repeats, make_plan, prepare
from batchnlp.engine.results import written
from batchnlp.engine.signals import Interrupt, watch_signals
from batchnlp.errors import CorruptError, OutputError
from batchnlp.evaluate.evaluation import Evaluation, asked
from batchnlp.job.identity import differences
from batchnlp.job.spec import JobSpec
from batchnlp.types import Plan, Resolved, many


def run_job(spec: JobSpec, listen: Listener = lambda progress: None) -> RunResult:
    """Run a job to its end, or resume it. Raises UsageError before any result is written, LockedError, StoppedError,
    and Interrupted where a signal comes before there is a plan."""
    began = time.monotonic()

    def say(text: str) -> None:
        listen(Progress(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, message=text))

    with watch_signals() as interrupt, observed(spec, say) as ending:
        prepared = prepare(spec)
        interrupt.check()
        store = open_store(spec.output.path)
        warning = store.check()
        refuse_other_runs(prepared, store)
        with locked(store) as invocation:
            try:
                prepared = incremental.on_base(prepared, store)
                run = _Run(prepared, store, invocation, listen, began, interrupt)
                if warning:
                    run.warn(warning)
                with written(ending, run.ledger, run.facts):
                    ending.result = run.run()
                return ending.result
            finally:
                interrupt.defer()


def refuse_other_runs(prepared: Prepared, store: Store) -> None:
    """With `mode: new`, results of another fingerprint in the same place are an error that says what changed."""
    if prepared.spec.output.mode == "incremental":
        incremental.refuse_others(prepared, store)
        return
    standing = live(store)
    others = [f for f in standing if f != prepared.fingerprint and Ledger(store, f).begun()]
    if prepared.spec.output.mode == "append" and any(in_log(Ledger(store, f)) for f in others):
        hint = "use another output.path, or --mode overwrite"
        raise OutputError(f"{store.root} holds a log of changes, to which only an incremental job adds", hint)
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
        store: Store,
        invocation: str,
        listen: Listener,
        began: float,
        interrupt: Interrupt,
    ) -> None:
        self.prepared, self.store, self.listen, self.began = prepared, store, listen, began
        self.spec = prepared.spec
        self.ledger = Ledger(store, prepared.fingerprint)
        self.diary = Diary(self.ledger, invocation, time.monotonic() - began)
        self.work = Computation(prepared, self.ledger, invocation, listen, began, interrupt, leased=self.diary.leased)
        self.replaced: list[str] = []
        self.incremental = self.spec.output.mode == "incremental"
        self.warnings: list[str] = []
        self.judged: Evaluation | None = None

    def warn(self, what: str) -> None:
        """Tell it now and in the result."""
        self.warnings.append(what)
        self.listen(self.work.progress("starting", what))

    def run(self) -> RunResult:
        with self.diary:
            result = self._run()
            self.diary.result(asdict(result))
        return result

    def _run(self) -> RunResult:
        refuse_other_runs(self.prepared, self.store)  # again: before the lock was ours, another job may have come
        sweep_dropped(self.store)
        sweep_temporary(self.store)
        plan, resolved, threads = self._plan()
        self._claim()
        left = self.work.resume(plan)
        resumed = len(self.work.parts)
        if going := ", ".join(map(self._named, self._replaced())):
            self.listen(self.work.progress("starting", f"when this run is done, it replaces {going}"))
        if left:
            self.ledger.reopen()
            self.diary.begin()
            self.work.run(plan, resolved, threads, left)
        elif self.incremental and not self.ledger.complete():  # a night with nothing to compute is a night
            self.diary.begin()
        signalled = self.work.interrupt.signal and asked(self.spec.evaluate, self.spec.gates)
        if len(self.work.parts) < len(plan.shards) or signalled:
            return self._result("stopped", resolved, resumed, self.work.exit_code, self.work.why)
        return self._finish(plan, resolved, resumed)

    def facts(self) -> dict[str, Any]:
        """What is known of the run at any time."""
        return {"invocation": self.work.invocation, **self.work.total.sums()}

    def _plan(self) -> tuple[Plan, Resolved, int]:
        """The fixed plan; made now if this is the first start."""
        hardware = devices.probe_hardware()
        if self.ledger.plan_tree() is None:
            resolved = devices.resolve(self.spec.engine, self.prepared.model, hardware, self.prepared.task.needs)
            replicas, _ = devices.share(hardware, resolved.device, self.spec.engine.replicas)
            plan, repeats, about = self._new_plan(replicas)
            sweep_unnamed(self.ledger)
            about = {**self.prepared.about, **about}
            self.ledger.create_plan(plan, self.prepared.facts, resolved, about, repeats)
        plan, stored = self.ledger.plan()
        resolved = devices.resume(stored, self.spec.engine, self.prepared.model, hardware, self.prepared.task.needs)
        self.work.replicas, threads = devices.share(hardware, resolved.device, self.spec.engine.replicas)
        return plan, resolved, threads

    def _new_plan(self, replicas: int) -> tuple[Plan, pa.Table | None, dict[str, Any]]:
        """(the plan, rows whose id is there before them, what else the plan's file says)."""
        if not self.incremental:
            return *find_repeats(self.prepared, make_plan(self.prepared, replicas)), {}
        self.work.spool()
        tell = partial(self._tell_of, "comparing")
        plan, changes = incremental.plan_changes(self.prepared, self.store, replicas, keep=True, tell=tell)
        return plan, None, {"changes": asdict(changes)}

    def _tell_of(self, doing: str, rows: int, total: int) -> None:
        self.listen(self.work.progress(f"{doing} {rows:,} of {many(total, 'row')}"))

    def _finish(self, plan: Plan, resolved: Resolved, resumed: int) -> RunResult:
        dead, new = self.work.total.failed, self.work.new.shards
        manifest = None
        with suppress(CorruptError):  # which is written anew
            manifest = self.ledger.outcome()
        made = manifest is None or bool(new)
        if made and self.incremental:  # first: what is gone is not judged
            incremental.write_deletes(self.prepared, self.ledger, plan)
        found = judge(self.spec, self.ledger, plan, dead, self.work.interrupt)
        self.judged, success, gates = found.evaluation, found.success, found.gates
        if manifest is not None and (manifest["success"], manifest.get("gates", "")) != (success, gates):
            made = True
        if made:
            about = {**self.prepared.about, "invocation": self.work.invocation, "gates": gates}
            self.ledger.finish(self.work.parts, about, success=success)
        self._make_live(success)
        settle(self.store)
        if success and self.incremental:
            incremental.sweep_states(self.ledger)
        if success:
            messages = [] if new else [self._nothing(plan, made)]
            if self.store.read(SUCCESS) is None:
                messages.append(f"no {SUCCESS} yet: another run here is not complete; batchnlp status tells which")
            result = self._result("done", resolved, resumed, 0, "; ".join(messages))
            return load_all(result, self.spec.sinks, self.work.interrupt)
        over = (
            f"{many(dead, 'dead letter')}, {found.allowed:,} allowed by limits.max_failed {self.spec.limits.max_failed}"
        )
        message = f"below its gates: {gates}" if gates else over
        if self.prepared.fingerprint not in live(self.store):
            message += "; the results of before stand, and part files of this run lie beside them until one succeeds"
        elif not gates:
            see = f"batchnlp collect {shlex.quote(self.store.root)} --dead -o - shows them"
            message += f"; {see}, and a higher limit lets them pass"
        return self._result("failed", resolved, resumed, 1, message)

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
        elif self.incremental and success:
            incremental.make_live(self.ledger)
        elif self.spec.output.mode == "overwrite" and success:  # a failed run replaces nothing
            self.replaced = [other[:8] for other in self._replaced()]
            set_live(self.store, [mine])
            for other in {*now, *fingerprints(self.store)} - {mine}:  # also those that a crash here once left over
                drop(Ledger(self.store, other))
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

    def _result(self, status: str, resolved: Resolved, resumed: int, exit_code: int, message: str) -> RunResult:
        result = summed_up(self.work, resolved, self.ledger.run, self.store.root)
        if self.incremental:
            result = incremental.told(result, self.ledger)
        return replace(
            result, status=status, resumed=resumed, exit_code=exit_code, message=message, replaced=self.replaced,
            evaluation=asdict(self.judged) if self.judged else {}, notes=sorted({*result.notes, *self.warnings}),
        )  # fmt: skip
