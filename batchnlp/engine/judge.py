"""Evaluations and gates of a run: after its last commit, before its results stand and a warehouse gets them.

What a gate compares with is the last run in this output that passed: its scores lie beside the control folders, so that they
outlive the run when another one takes its place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

from batchnlp.data.changes import rows_of
from batchnlp.data.ledger import Ledger
from batchnlp.data.store import CONTROL, to_json
from batchnlp.engine.memory import labels_of
from batchnlp.engine.signals import Interrupt
from batchnlp.errors import CorruptError, StoppedError, UsageError
from batchnlp.evaluate.evaluation import FILE, Evaluation, asked, evaluate, write
from batchnlp.evaluate.gates import Scores
from batchnlp.evaluate.outputs import Output
from batchnlp.job.spec import JobSpec
from batchnlp.types import Plan

LAST = f"{CONTROL}/{FILE}"  # of the last run that passed


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether results may stand. Filled by `judge`."""

    success: bool
    allowed: int  # dead letters
    gates: str  # those that are not kept, in one line
    evaluation: Evaluation | None  # None too where there are too many dead letters


def judge(spec: JobSpec, ledger: Ledger, plan: Plan, failed: int, interrupt: Interrupt) -> Judgement:
    """By the dead letters that count, `failed`, and then by the gates."""
    allowed = spec.limits.failed_allowed(rows_of(ledger, plan))
    made = judge_run(spec, ledger, interrupt) if failed <= allowed else None
    gates = "" if made is None else "; ".join(verdict.why for verdict in made.gates if not verdict.passed)
    return Judgement(failed <= allowed and not gates, allowed, gates, made)


def judge_run(spec: JobSpec, ledger: Ledger, interrupt: Interrupt) -> Evaluation | None:
    """The evaluation of a run whose shards are all committed, written beside its manifest; None where the job asks for none.

    Nothing is under way, so a signal ends it at once. StoppedError where it cannot be made any more: the same command
    tries it again.
    """
    if not asked(spec.evaluate, spec.gates):
        return None
    interrupt.defer(deferred=False)
    made = _judge(spec, ledger)
    interrupt.defer()
    return made


def _judge(spec: JobSpec, ledger: Ledger) -> Evaluation:
    try:
        made = judge_output(spec, Output.of_run(ledger), baselines=False)
    except UsageError as error:  # the labels' file was there before the run
        raise StoppedError(f"the results are whole, but not judged: {error.message}", error.hint) from error
    write(ledger.store, ledger.control, made)
    if made.status == "passed":
        before = last_scores(ledger)
        ledger.store.replace(LAST, to_json({"run": ledger.run, "scores": made.scores, "before": before}))
    return made


def judge_output(spec: JobSpec, output: Output, *, baselines: bool = True) -> Evaluation:
    """The same of any output, and of nothing but what `spec` asks for; written nowhere."""
    answer = partial(labels_of, spec) if spec.evaluate.counterfactual else None
    last = last_scores(output.ledgers[-1])
    return evaluate(output, spec.evaluate, spec.gates, answer=answer, last=last, baselines=baselines)


def last_scores(ledger: Ledger) -> Scores | None:
    """The scores of the last run that passed before this one, if there was any."""
    data = ledger.store.read(LAST)
    if data is None:
        return None
    try:
        tree = json.loads(data)
        found = tree["before" if tree["run"] == ledger.run else "scores"]
        return None if found is None else dict(found)
    except (ValueError, LookupError, TypeError):
        path = ledger.store.path(LAST)
        raise CorruptError(f"{path} is damaged", "remove it; the next run that passes writes it anew") from None
