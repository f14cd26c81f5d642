"""The body of `evaluate`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from batchnlp.cli.running import run_shown
from batchnlp.cli.show import message, print_json, print_table
from batchnlp.data.ledger import Ledger, fingerprints
from batchnlp.data.store import open_store
from batchnlp.engine.computing import RunResult
from batchnlp.engine.judge import judge_output
from batchnlp.errors import UsageError
from batchnlp.evaluate.evaluation import asked, write
from batchnlp.evaluate.outputs import Output
from batchnlp.job.load import build_spec, load_spec
from batchnlp.job.spec import JobSpec
from batchnlp.types import many

HEADLINES = ("accuracy", "macro_f1", "rougeL")  # what a model is held against baselines by
MOST_CLASSES = 60  # rows of the table of classes, and columns of the confusion
FLAGS = {name: f"evaluate.{name}" for name in ("labels", "groups", "counterfactual", "against")}


def show_evaluation(target: str, flags: Mapping[str, str | None], settings: Sequence[str], as_json: bool) -> int:
    """Judge an output, or run a job and judge it; the exit code."""
    given = {FLAGS[name]: value for name, value in flags.items() if value is not None}
    code = 0
    if os.path.isdir(target) or "://" in target:
        output = Output.at(target)
        spec = _ask(build_spec(output.tree["spec"], settings, given, f"the job of {target}"), target)
    else:
        spec = _ask(load_spec(target, settings, given), target)
        result, page = run_shown(spec)
        code = result.exit_code
        if result.status == "stopped":
            if as_json:
                print_json({**asdict(result), "report": page})
            return code
        output = _of_run(result)
    made = judge_output(spec, output)
    path = write(output.ledgers[-1].store, output.ledgers[-1].control, made)
    tree = asdict(made)
    show(tree)
    message(f"written to {path}")
    if as_json:
        print_json({**tree, "file": path})
    return code or (1 if made.status == "failed" else 0)


def _of_run(result: RunResult) -> Output:
    """Of that run alone, whether or not its results stand."""
    store = open_store(result.output)
    print_ = next(name for name in fingerprints(store) if name.startswith(result.run))
    return Output.of_run(Ledger(store, print_))


def _ask(spec: JobSpec, target: str) -> JobSpec:
    if asked(spec.evaluate, spec.gates):
        return spec
    raise UsageError(
        f"nothing says what {target} is to be held against",
        f"batchnlp evaluate {shlex.quote(target)} --labels FILE:COLUMN, or a column of the results",
    )


def show(made: Mapping[str, Any]) -> None:
    """The whole evaluation as tables on stdout, remarks on stderr."""
    counts = [("judged", made["judged"], "results with a label"), ("without label", made["without_label"], "results")]
    counts += [("without result", made["without_result"], "labels")]
    counts += [(reason, count, "labels left out") for reason, count in made["problems"].items()]
    print_table(f"{made['task']}: {many(made['rows'], 'result')} in {made['output']}", ("", "", ""), counts)
    _show_metrics(made)
    if classes := made["classes"][:MOST_CLASSES]:
        rows = [(c["label"], c["support"], *(f"{c[k]:.4f}" for k in ("precision", "recall", "f1"))) for c in classes]
        print_table("\nclasses", ("", "support", "precision", "recall", "f1"), rows)
    if (confusion := made["confusion"]) and len(confusion["labels"]) <= MOST_CLASSES:
        rows = [(name, *counts) for name, counts in zip(confusion["labels"], confusion["truth_by_answer"], strict=True)]
        print_table("\nconfusion: truth by answer", ("", *confusion["labels"]), rows)
    for comparison in made["groups"]:
        _show_groups(comparison)
    for swapped in made["counterfactual"]:
        _show_swapped(swapped)
    if against := made["against"]:
        rows = [(name, *(_number(d[k]) for k in ("ours", "theirs", "difference")), _between(d), _number(d["p"]))
                for name, d in against["metrics"].items()]  # fmt: skip
        print_table(f"\nagainst {against['output']}", ("", "ours", "theirs", "difference", "95 %", "p"), rows)
        if "mcnemar" in against:
            m = against["mcnemar"]
            message(
                f"right alone: ours {m['only_ours_right']:,}, theirs {m['only_theirs_right']:,}; p {m['p']:.3g} (McNemar)"
            )
    if made["gates"]:
        rows = [
            (v["metric"], _number(v["value"]), v["bound"], "ok" if v["passed"] else "FAILED") for v in made["gates"]
        ]
        print_table("\ngates", ("", "found", "bound", ""), rows)
    for line in (*made["signatures"].values(), *made["notes"]):
        message(line)


def _show_metrics(made: Mapping[str, Any]) -> None:
    metrics, baselines = made["metrics"], made["baselines"]
    same = metrics.get("accuracy") == metrics.get("micro_f1")  # of one label a document, all three micro averages
    names = [name for name in metrics if not (same and name.startswith("micro_"))]
    sides = [metrics, *baselines.values()]
    rows = [(name, *(_interval(side[name]) if name in side else "" for side in sides)) for name in names]
    print_table("\nmetrics", ("", "model", *baselines), rows)
    below = [
        f"{baseline} in {name}"
        for baseline, theirs in baselines.items()
        for name in HEADLINES
        if name in names and name in theirs and (metrics[name]["value"] or 0) < (theirs[name]["value"] or 0)
    ]
    if below:
        message(f"the model is below a baseline: {', '.join(below)}")
    for name, part in made["names"].items():
        _table(f"entities whose names are {name} ({part['entities']:,})", _named(part["metrics"]))


def _show_groups(comparison: Mapping[str, Any]) -> None:
    groups = comparison["groups"]
    names = next((list(group["metrics"]) for group in groups if group["metrics"]), [])
    rows = []
    for group in groups:
        figures = ["insufficient"] if group["insufficient"] else [_interval(group["metrics"][name]) for name in names]
        rows.append((group["group"], group["documents"], *figures, *[""] * (len(names) - len(figures))))
    print_table(f"\nby {comparison['by']}", ("", "documents", *names), rows)
    _table(f"apart by {comparison['by']}", _named(comparison["differences"]))


def _show_swapped(swapped: Mapping[str, Any]) -> None:
    title = f"swapped: {swapped['pairs']}, {many(swapped['documents'], 'document')}"
    if swapped["insufficient"]:
        message(f"{title}: insufficient")
        return
    _table(title, _named(swapped["metrics"]))
    if swapped["toward"]:
        rows = [(label, f"{shift:+.4f}") for label, shift in swapped["toward"].items()]
        print_table("\nfrom the first terms to the second", ("", "score"), rows)


def _table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    print_table(f"\n{title}", ("", ""), rows)


def _named(metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(name, _interval(metric)) for name, metric in metrics.items()]


def _interval(metric: Mapping[str, Any]) -> str:
    return "insufficient" if metric["value"] is None else f"{metric['value']:.4f} {_between(metric)}"


def _between(metric: Mapping[str, Any]) -> str:
    return "" if metric["low"] is None else f"[{metric['low']:.4f}, {metric['high']:.4f}]"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
