"""`batchnlp retry`: the dead letters of an output, tried again by the job that left them.

    dead letters that may fare better → a plan of them → runner → commits r<g>-<shard> → manifest of generation g

Nothing of what stands is touched before the new manifest is there: until then readers see the generation before, and a
retry that is stopped goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from batchnlp.backends import device as devices
from batchnlp.data.again import forget_stale, put_away, worth_trying
from batchnlp.data.changes import changes_of
from batchnlp.data.commits import Tally
from batchnlp.data.invocations import Diary
from batchnlp.data.ledger import Ledger, fingerprints, live, open_ledgers, settle
from batchnlp.data.lock import locked
from batchnlp.data.parts import is_log
from batchnlp.engine import incremental
from batchnlp.engine.computing import Computation, Listener, Progress, RunResult, summed_up
from batchnlp.engine.hooks import observed
from batchnlp.engine.judge import judge
from batchnlp.engine.loading import load_all
from batchnlp.engine.planner import Prepared, prepare
from batchnlp.engine.results import Ending, results_of, written
from batchnlp.engine.signals import Interrupt, watch_signals
from batchnlp.errors import BatchnlpError, CorruptError, OutputError
from batchnlp.evaluate.evaluation import asked
from batchnlp.job.identity import differences
from batchnlp.job.load import build_spec
from batchnlp.job.sinks import SinkSpec
from batchnlp.job.spec import JobSpec
from batchnlp.types import Shard, many


def retry_job(root: str, settings: Sequence[str] = (), listen: Listener = lambda progress: None) -> list[RunResult]:
    """Try the dead letters of all live runs in `root` again, with `settings` over their jobs; how each went.

    Raises OutputError where a run is not complete or its job has become another one, and what `run_job` raises.
    """
    began = time.monotonic()

    def say(text: str) -> None:
        listen(Progress(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, message=text))

    with watch_signals() as interrupt, ExitStack() as hooks:
        ledgers = open_ledgers(root)
        if warning := ledgers[0].store.check():
            say(warning)
        retries: list[_Retry] = []
        try:
            with locked(ledgers[0].store) as invocation:
                try:
                    begun = (
                        _Retry(one, settings, invocation, listen, say, began, interrupt)
                        for one in _worth(ledgers, settings)
                    )
                    return _each(begun, retries, say)
                finally:
                    interrupt.defer()
        finally:
            for retry in reversed(retries):  # they may want the lock for themselves; the newest is told last
                hooks.push(retry.hooks)


def _each(begun: Iterator[_Retry], retries: list[_Retry], say: Callable[[str], None]) -> list[RunResult]:
    """One run after the other, into `retries`, and then the loads."""
    try:
        for retry in begun:
            retries.append(retry)
            if retry.run().status == "stopped":
                break
    except Exception:  # what was brought back before it goes where it belongs all the same
        with suppress(BatchnlpError):
            for one in _loaded(retries):
                say(f"run {one.run}: {one.message}")
        raise
    return _loaded(retries)


def _loaded(retries: Sequence[_Retry]) -> list[RunResult]:
    """How they went; last of all the loads, because a warehouse takes an output only whole. Each, whatever another one raises."""
    with ExitStack() as loads:
        for retry in reversed(retries):
            loads.callback(retry.load)
    return [retry.result for retry in retries if retry.result is not None]


def _worth(ledgers: Sequence[Ledger], settings: Sequence[str]) -> Sequence[Ledger]:
    """The runs whose dead letters count: of a log of changes the newest alone, which has tried those of all others again. That
    is the one which the same command would resume; it may be over its limit, and not live."""
    newest = ledgers[-1]
    if not is_log(newest.plan()[0].schema):
        return ledgers
    store, standing = newest.store, live(newest.store)
    if not any(Ledger(store, name).complete() for name in fingerprints(store) if name not in standing):
        return [newest]
    prepared = incremental.on_base(prepare(_spec(newest, settings)), store)
    resumed = Ledger(store, prepared.fingerprint)
    return [resumed if resumed.complete() else newest]


def _spec(ledger: Ledger, settings: Sequence[str]) -> JobSpec:
    """The job of a run as it was judged by last, wherever its output lies by now; its plan may be older, and know other limits
    and gates."""
    tree, judged = ledger.plan_tree() or {}, None
    with suppress(CorruptError):
        judged = ledger.outcome()
    spec = build_spec((judged or {}).get("spec") or tree["spec"], settings, where=f"the job of run {ledger.run}")
    output = spec.output.model_copy(update={"path": ledger.store.root})
    return spec.model_copy(update={"output": output, "job": tree["job"]})


@dataclass(slots=True)
class _Retry:
    """One run's."""

    ledger: Ledger
    settings: Sequence[str]
    invocation: str
    listen: Listener
    say: Callable[[str], None]
    began: float
    interrupt: Interrupt
    hooks: ExitStack = field(default_factory=ExitStack)  # to be told once the lock is free
    result: RunResult | None = None
    sinks: Sequence[SinkSpec] = ()  # that are to get the results: those of a run that is good
    standing: Tally = field(default_factory=Tally)  # the whole run, as it stands
    _since: float = field(default_factory=time.monotonic)
    _ending: Ending | None = None
    _diary: Diary | None = None
    _told: ExitStack = field(default_factory=ExitStack)

    def run(self) -> RunResult:
        """All but the loads."""
        try:
            with ExitStack() as told:
                self.result = self._run(told)
                self._told = told.pop_all()  # how it ended is not known before the warehouses have theirs
        except Exception:
            if self._ending is None:
                with suppress(BatchnlpError, LookupError):  # of a plan that is not there
                    self._observe(_spec(self.ledger, self.settings))
            raise
        return self.result

    def load(self) -> None:
        """Give the warehouses theirs, and note how it all ended."""
        if self.result is None:
            return
        with self._told as told:
            quiet = self._diary is None and self.interrupt.signal  # what was not begun cannot have been stopped
            if self.result.status == "done" and not quiet:
                self.result = load_all(self.result, self.sinks, self.interrupt)
            loads = {sink["status"] for sink in self.result.sinks} - {"held"}
            if self._diary is None and not quiet and (loads or self._untold()):
                self._observe(_spec(self.ledger, self.settings))
                diary = self._note(told)
                if "loaded" in loads:  # one that is refused again and again is no news
                    diary.begin()
            self._tell(self.result)

    def _untold(self) -> bool:
        """Whether the run is a good one, and its results say something else: whoever made it one broke before the end."""
        if (stands := self.ledger.succeeded()) is None:
            return False
        told = results_of(self.ledger)
        return (told.get("event"), told.get("dead")) != ("success", stands["dead"])

    def _observe(self, spec: JobSpec) -> None:
        """From now on the job's hooks are told."""
        self._ending = self.hooks.enter_context(observed(spec, self.say))

    def _note(self, told: ExitStack) -> Diary:
        """From now on it is an invocation of the run: what a refused one did is not what became of the results."""
        assert self._ending is not None
        self.standing = Tally.of(self.ledger.commits().values())
        self._diary = told.enter_context(Diary(self.ledger, self.invocation, time.monotonic() - self._since))
        told.enter_context(written(self._ending, self.ledger, self._facts))
        return self._diary

    def _facts(self) -> dict[str, Any]:
        return {"invocation": self.invocation, **self.standing.sums()}

    def _tell(self, result: RunResult) -> None:
        """The run's rows, not those that were tried: what hooks and orchestrators read is how the run stands."""
        if self._ending is None or self._diary is None:
            return
        all_of_it = self.standing
        whole = replace(result, rows=all_of_it.rows, dead=all_of_it.dead, codes=dict(all_of_it.codes))
        if changes_of(self.ledger) is not None:
            whole = incremental.told(whole, self.ledger)
        self._ending.result = whole
        self._diary.result(asdict(whole))

    def _run(self, told: ExitStack) -> RunResult:
        ledger = self.ledger
        if not ledger.complete():
            raise OutputError(f"run {ledger.run} in {ledger.store.root} is not complete", "run the job again first")
        if ledger.retries:  # the last one may have ended before it had done this
            put_away(ledger, ledger.commits().values())
        plan, _ = ledger.plan()
        again = worth_trying(ledger, plan.shards)
        return self._again(again, told) if again else self._nothing()

    def _nothing(self) -> RunResult:
        codes = Tally.of(self.ledger.commits().values()).codes
        lasting = f"; {', '.join(f'{code} {n:,}' for code, n in sorted(codes.items()))} would come to the same"
        message = f"there is nothing to do: no dead letter may fare better{lasting if codes else ''}"
        seconds = {"start": 0.0, "encode": 0.0, "forward": 0.0, "write": 0.0, "idle": 0.0, "total": 0.0}
        root = self.ledger.store.root
        result = RunResult("done", self.ledger.run, root, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, seconds, message=message)
        if not self.ledger.succeeded():
            with suppress(CorruptError):
                self.ledger.outcome()  # it is as the run said; of a damaged one nobody knows
                still = "the run stays over limits.max_failed or below a gate: run the job again with another one"
                return replace(result, message=f"{message}; {still}")
            return result
        self._stand()  # the last one may have ended before it had done this
        self.sinks = _spec(self.ledger, self.settings).sinks
        return result

    def _again(self, again: list[Shard], told: ExitStack) -> RunResult:
        self._observe(spec := _spec(self.ledger, self.settings))
        prepared, (plan, stored) = self._prepared(spec), self.ledger.plan()
        diary = self._note(told)
        diary.begin()
        store, generation = self.ledger.store, self.ledger.retries + 1
        retry = Ledger(store, self.ledger.fingerprint, generation)
        spec, hardware = prepared.spec, devices.probe_hardware()
        work = Computation(
            prepared, retry, self.invocation, self.listen, self.began, self.interrupt, leased=diary.leased
        )
        resolved = devices.resume(stored, spec.engine, prepared.model, hardware, prepared.task.needs)
        work.replicas, threads = devices.share(hardware, resolved.device, spec.engine.replicas)
        plan = replace(plan, shards=tuple(again), generation=generation)
        forget_stale(self.ledger, retry)
        left = work.resume(plan)
        resumed = len(work.parts)
        if left:
            work.run(plan, resolved, threads, left)
        signalled = self.interrupt.signal and asked(spec.evaluate, spec.gates)
        done = len(work.parts) == len(again) and not signalled
        result = replace(summed_up(work, resolved, retry.run, store.root), resumed=resumed)
        if not done:
            return replace(result, status="stopped", exit_code=work.exit_code, message=work.why)
        return self._finish(prepared, result, plan.rows, generation)

    def _stand(self) -> None:
        """A run of a log that was over its limit, and no longer is, becomes a part of it."""
        if self.ledger.fingerprint not in live(self.ledger.store):
            incremental.make_live(self.ledger)
            settle(self.ledger.store)
            incremental.sweep_states(self.ledger)

    def _finish(self, prepared: Prepared, result: RunResult, tried: int, generation: int) -> RunResult:
        ledger, limits = self.ledger, prepared.spec.limits
        ledger.adopt(generation)
        parts = ledger.commits()
        total = Tally.of(parts.values())
        found = judge(prepared.spec, ledger, ledger.plan()[0], total.failed, self.interrupt)
        about = {**prepared.about, "invocation": self.invocation, "gates": found.gates}
        ledger.finish(parts, about, success=found.success)
        self.standing = total
        put_away(ledger, parts.values())
        if found.success:
            self._stand()
        settle(ledger.store)
        message = f"{tried - result.dead:,} of {many(tried, 'dead letter')} have results now"
        result = replace(result, evaluation=asdict(found.evaluation) if found.evaluation else {}, message=message)
        if found.success:
            self.sinks = prepared.spec.sinks
            return result
        allowed = f"{found.allowed:,} allowed by limits.max_failed {limits.max_failed}"
        over = f"{many(total.failed, 'dead letter')} are left, {allowed}"
        why = f"below its gates: {found.gates}" if found.gates else over
        return replace(result, status="failed", exit_code=1, message=f"{message}; {why}")

    def _prepared(self, spec: JobSpec) -> Prepared:
        """The job as it was begun, wherever its output lies by now; it must still be the same one."""
        ledger, prepared = self.ledger, prepare(spec)
        prepared = incremental.on_base(prepared, ledger.store)
        if prepared.fingerprint != ledger.fingerprint:
            facts = (ledger.plan_tree() or {}).get("facts", {})
            changed = ", ".join(differences(facts, prepared.facts)[:5])
            hint = "what has changed makes it another job: run that with --mode overwrite, or into a new output.path"
            if changes_of(ledger) is not None:
                hint = "run the job: each run of it tries again what failed in the last one"
            raise OutputError(f"run {ledger.run} cannot be retried: it differs in {changed}", hint)
        return prepared
