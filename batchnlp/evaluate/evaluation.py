"""An evaluation from its parts: join, judge, groups, swaps, baselines, the other model, gates.

`preflight` refuses what cannot work before anything is computed; `evaluate` computes; `write` puts evaluation.json beside the
manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnlp import __version__
from batchnlp.data.store import Store, to_json
from batchnlp.errors import BatchnlpError, OutputError, SourceError, SpecError
from batchnlp.evaluate import baselines as simple
from batchnlp.evaluate import counterfactual, gates, library
from batchnlp.evaluate import groups as fairness
from batchnlp.evaluate.gates import Scores, Verdict
from batchnlp.evaluate.judges import Judged, answer_columns, columns, judge, known_metrics, text_references
from batchnlp.evaluate.learnt import Learnt
from batchnlp.evaluate.outputs import Output
from batchnlp.evaluate.paired import differences, mcnemar
from batchnlp.evaluate.sums import LEVEL, RESAMPLES, SEED, Metric, Sums, measured
from batchnlp.evaluate.truth import Joined, Where, check_type
from batchnlp.job.evaluate import EvaluateSpec, Gate
from batchnlp.types import many

FILE = "evaluation.json"
NAMED = tuple(f"strict_micro_{name}" for name in ("precision", "recall", "f1"))
LIBRARIES = ("scikit-learn", "scipy", "sacrebleu", "rouge-score")


@dataclass(slots=True)
class Evaluation:
    """What results are worth. Written as evaluation.json."""

    status: str  # passed, or failed: a gate
    job: str | None
    runs: list[str]
    output: str
    task: str
    labels: str | None
    rows: int  # results
    judged: int
    without_label: int  # results
    without_result: int  # labels
    problems: dict[str, int]  # labels left out, by reason
    coverage: float | None  # judged ÷ all labels that there are
    metrics: dict[str, Metric]
    classes: list[dict[str, Any]]
    confusion: dict[str, Any] | None
    groups: list[fairness.Comparison] = field(default_factory=list)
    counterfactual: list[counterfactual.Swapped] = field(default_factory=list)
    baselines: dict[str, dict[str, Metric]] = field(default_factory=dict)
    names: dict[str, dict[str, Any]] = field(default_factory=dict)  # ner: of entities called as in training, and others
    against: dict[str, Any] | None = None
    gates: list[Verdict] = field(default_factory=list)
    signatures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    intervals: str = f"{LEVEL} % of {RESAMPLES} resamples of the documents, seed {SEED}"
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> Scores:
        """By the names that gates use."""
        return gates.scores(self.metrics, self.coverage, self.classes, self.groups, self.counterfactual)


def asked(ask: EvaluateSpec, bounds: Mapping[str, Gate]) -> bool:
    """Whether there is anything to evaluate."""
    return bool(bounds) or ask != EvaluateSpec()


def preflight(ask: EvaluateSpec, bounds: Mapping[str, Gate], kind: str, schema: pa.Schema, id_column: str) -> Where:
    """Refuse what cannot work: columns, types, pairs, gates, libraries. Reads no results."""
    library.check()
    where = Where.of(ask, schema, id_column)
    if where.column and not where.file and where.column in answer_columns(kind):
        hint = f"write FILE:{where.column}, or name a column of the source, kept by source.keep"
        raise SpecError(f"evaluate.labels: {where.column} is what the model answers, not the truth", hint)
    if where.column:
        check_type(kind, where.kind, "labels" in schema.names, f"{where.file or 'the results'}: {where.column}")
    metrics = known_metrics(kind, schema, bool(where.column))
    if ask.groups and not metrics:
        raise SpecError("evaluate.groups: there is nothing to compare groups by", "give evaluate.labels (--labels) too")
    if ask.counterfactual:
        if kind not in counterfactual.KINDS:
            raise SpecError(f"evaluate.counterfactual is for classify and zero-shot, not for {kind}", "leave it out")
        counterfactual.load_pairs(ask.counterfactual)
    gates.check(bounds, gates.known_names(kind, metrics, bool(ask.groups), bool(ask.counterfactual)))
    if not metrics and not ask.counterfactual:
        raise SpecError(f"without labels there is nothing to judge {kind} by", "give evaluate.labels (--labels)")
    return where


def evaluate(
    output: Output, ask: EvaluateSpec, bounds: Mapping[str, Gate], *, answer: counterfactual.Answer | None = None,
    last: Scores | None = None, baselines: bool = True,
) -> Evaluation:  # fmt: skip
    """Judge the output. `answer` asks its model, for counterfactuals."""
    where = preflight(ask, bounds, output.kind, output.schema, output.id_column)
    found = where.join(output, columns(output))
    if where.column and not len(found.results):
        hint = f"are the ids the same? {found.rows:,} results, {found.without_result:,} labels, none of the same id"
        raise OutputError(f"{output.root}: no result has a label", hint)
    judged = (
        judge(output, found, output.texts) if known_metrics(output.kind, output.schema, bool(where.column)) else None
    )
    if judged is not None and not len(judged.rows):
        raise SourceError("no label can be judged by", ", ".join(f"{why}: {n:,}" for why, n in judged.problems.items()))
    made = _evaluation(output, ask, found, judged)
    if judged is not None:
        names = judged.labels.names if judged.labels else ()
        for by, values in fairness.crossed(found.groups).items():
            made.groups.append(fairness.compare(by, [values[i] for i in judged.rows], judged.sums, names))
        if baselines and where.column:
            _add_baselines(made, output, found, judged)
        if baselines and judged.spans is not None:
            _add_names(made, output, found, judged)
        if ask.against:
            made.against = _against(output, Output.at(ask.against), found, judged)
    if ask.counterfactual:
        assert answer is not None
        pairs = counterfactual.load_pairs(ask.counterfactual)
        made.counterfactual = counterfactual.examine(pairs, output.documents(), answer)
    made.gates = gates.judge(bounds, made.scores, last)
    made.status = "passed" if all(verdict.passed for verdict in made.gates) else "failed"
    return made


def _evaluation(output: Output, ask: EvaluateSpec, found: Joined, judged: Judged | None) -> Evaluation:
    about: dict[str, Any] = {
        "status": "passed", "job": output.tree.get("job"), "runs": [ledger.run for ledger in output.ledgers],
        "output": output.root, "task": output.kind, "labels": ask.labels, "rows": found.rows,
        "without_label": found.without_label, "without_result": found.without_result,
        "versions": {"batchnlp": __version__} | {name: version(name) for name in LIBRARIES},
    }  # fmt: skip
    if judged is None:
        return Evaluation(**about, judged=0, problems={}, coverage=None, metrics={}, classes=[], confusion=None)
    labelled = len(found.results) + found.without_result
    return Evaluation(
        **about, judged=len(judged.rows), problems=judged.problems,
        coverage=len(judged.rows) / labelled if found.truth is not None and labelled else None,
        metrics=measured(judged.sums), classes=judged.classes, confusion=judged.confusion,
        signatures=judged.signatures, notes=list(judged.notes),
    )  # fmt: skip


# --- baselines


def _add_baselines(made: Evaluation, output: Output, found: Joined, judged: Judged) -> None:
    """Each that the task has; why one is not there is a note."""
    labels = judged.labels
    rows = judged.rows[simple.drawn(len(judged.rows))] if len(judged.rows) else judged.rows
    if not len(rows) or output.kind not in ("classify", "zero-shot", "summarize") or (labels and labels.multi):
        return
    chosen = found.take(rows.tolist())
    assert chosen.truth is not None
    if labels is not None:
        names = chosen.truth.cast(pa.string()).to_pylist()
        made.baselines["majority"] = measured(simple.majority(names))
    try:
        texts = output.texts(chosen.results["id"].combine_chunks()).to_pylist()
    except BatchnlpError as error:
        made.notes.append(f"no baseline from the texts: {error.message}")
        return
    if labels is None:
        made.baselines["lead-1"] = measured(simple.lead(texts, [text_references(v) for v in chosen.truth.to_pylist()]))
        return
    sums, how = _words(made, output, chosen.results["id"].combine_chunks(), texts, names)
    if isinstance(sums, str):
        made.notes.append(f"no baseline of words: {sums}")
    else:
        made.baselines["tf-idf"] = measured(sums)
        made.notes.append(f"tf-idf: words and logistic regression, {how} of {len(judged.rows):,} judged")


def _words(
    made: Evaluation, output: Output, ids: pa.Array, texts: list[str], names: list[str]
) -> tuple[Sums | str, str]:
    """(the sums, or why there are none; what was learnt from). The model's own rows are the best to learn from."""
    try:
        learnt = Learnt.of(output)
        if learnt is not None and not _seen(made, learnt, ids):
            at = simple.drawn(len(learnt.ids), simple.MOST_TRAINED)
            sums = simple.trained_words(*learnt.labelled(at), texts, names)
            rows = f"{len(at):,} of the {len(learnt.ids):,} rows that the model learnt from"
            return sums, f"learnt from {rows}, asked about {len(texts):,}"
    except BatchnlpError as error:
        made.notes.append(f"the baseline of words could not learn from the model's rows: {error.message}")
    return simple.words(texts, names), f"{simple.FOLDS}-fold on {len(texts):,}"


def _seen(made: Evaluation, learnt: Learnt, ids: pa.Array) -> bool:
    """Whether documents are judged that the model has learnt from; a note tells."""
    if count := learnt.among(ids):
        made.notes.append(
            f"the model has learnt from {count:,} of {many(len(ids), 'document')} that it is judged by; judge it by those "
            "that were held out"
        )
    return bool(count)


def _add_names(made: Evaluation, output: Output, found: Joined, judged: Judged) -> None:
    """Strict figures of the entities whose names were learnt, and of the others."""
    assert judged.spans is not None
    ids = found.take(judged.rows.tolist()).results["id"].combine_chunks()
    try:
        if (learnt := Learnt.of(output)) is None:
            return
        _seen(made, learnt, ids)
        known, texts = learnt.names(), output.texts(ids).to_pylist()
    except BatchnlpError as error:
        made.notes.append(f"names that were learnt cannot be told from others: {error.message}")
        return
    for title, some in judged.spans.by_name(texts, known).items():
        metrics = {name: value for name, value in measured(some.sums).items() if name in NAMED}
        made.names[title] = {"entities": sum(map(len, some.truth)), "metrics": metrics}


# --- another model


def _against(output: Output, other: Output, found: Joined, judged: Judged) -> dict[str, Any]:
    """Both models on the documents that both have judged."""
    if other.kind != output.kind:
        raise OutputError(f"{other.root} holds {other.kind}, not {output.kind}", "compare two models at one task")
    table = other.read(columns(other))
    ours = found.take(judged.rows.tolist())
    at = pc.index_in(ours.results["id"].combine_chunks(), table["id"].combine_chunks())
    both = np.flatnonzero(np.asarray(pc.is_valid(at)))
    if not len(both):
        raise OutputError(f"{other.root} has none of the judged documents", "are the ids the same?")
    shared = ours.take(both.tolist())
    theirs = Joined(table.take(at.drop_null()), shared.truth, shared.groups, len(both))
    again, other_judged = (judge(o, rows, output.texts) for o, rows in ((output, shared), (other, theirs)))
    if list(again.rows) != list(other_judged.rows):
        raise OutputError(f"{other.root} cannot be judged by the same labels", "compare runs with the same columns")
    compared = {name: asdict(d) for name, d in differences(again.sums, other_judged.sums).items()}
    about: dict[str, Any] = {"output": other.root, "runs": [ledger.run for ledger in other.ledgers],
                             "documents": len(again.rows), "metrics": compared}  # fmt: skip
    if again.labels and other_judged.labels:
        right = [
            np.asarray(j.labels.sums.rows[:, [1]].todense()).ravel() > 0 for j in (again, other_judged) if j.labels
        ]
        about["mcnemar"] = mcnemar(right[0], right[1])
    return about


# --- on disk


def write(store: Store, control: str, made: Evaluation) -> str:
    """Beside the manifest of the newest run; the path."""
    name = f"{control}/{FILE}"
    store.replace(name, to_json(asdict(made)))
    return store.path(name)
