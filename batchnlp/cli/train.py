"""The bodies of `train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchnlp.cli.show import LiveLine, duration, message, print_json, print_table
from batchnlp.job.load import build_train, load_train
from batchnlp.job.train import PARTS, TrainSpec
from batchnlp.train.run import TrainResult, train
from batchnlp.types import many

FLAGS = {
    "output": "output.path", "held_out": "output.held_out", "model": "model", "revision": "revision",
    "text_column": "source.text", "id_column": "source.id", "group_column": "split.group", "workers": "workers",
    "label_column": "label", "target_column": "target", "entities_column": "entities", "pair_column": "pair",
}  # fmt: skip

ODD = {
    "truncated": "texts cut to max_length",
    "targets_truncated": "targets cut to max_target_length",
    "spans_between_tokens": "spans that begin or end inside of a token",
}


def train_one(kind: str, inputs: Sequence[str], flags: Mapping[str, Any], as_json: bool) -> None:
    """A training from flags alone."""
    given = {key: flags[flag] for flag, key in FLAGS.items() if flags.get(flag) is not None}
    given |= {"kind": kind, "source.path": list(inputs)}
    _train(build_train({}, flags["settings"], given, "the command line"), as_json)


def train_file(path: str, settings: Sequence[str], as_json: bool) -> None:
    """A training from a file."""
    _train(load_train(path, settings), as_json)


def _train(spec: TrainSpec, as_json: bool) -> None:
    with LiveLine(line_of) as line:
        result = train(spec, line.update)
    _summary(spec, result)
    if as_json:
        print_json({"status": result.status, "output": result.output, "already": result.already, **result.record})


def line_of(p: Any) -> str:
    """The live line."""
    rate = p.tokens / max(p.seconds, 1e-9)
    parts = [f"{p.step:,}/{p.steps:,} steps {p.step / max(p.steps, 1):4.0%}"]
    if p.loss is not None:
        parts.append(f"loss {p.loss:.4g}")
    parts += [f"{name} {value:.4g}" for name, value in (p.metrics or {}).items() if name != "loss"]
    return " · ".join([*parts, f"epoch {p.epoch:.2f}", f"{rate:,.0f} tokens/s", duration(p.seconds)])


def _summary(spec: TrainSpec, result: TrainResult) -> None:
    """What was learnt from what, on stderr; the metrics as a table on stdout."""
    told, made = result.record["result"], result.record["composition"]
    parts = " + ".join(f"{made['parts'][name]:,} {name}" for name in PARTS)
    gone = {**made["unusable"], **made["left_out"], "copies": made["copies"], "near_copies": made["near_copies"]}
    out = {code: n for code, n in gone.items() if n}
    said = f" + {sum(out.values()):,} left out ({', '.join(f'{n:,} {code}' for code, n in out.items())})" if out else ""
    message("all is done already" if result.already else f"done: {spec.kind} in {result.output}")
    message(f"{many(made['rows'], 'row')} = {parts}{said}")
    if "steps" in told:
        early = ", stopped early" if told["stopped_early"] else ""
        padding = 1 - told["tokens"] / told["executed"] if told["executed"] else 0.0
        message(
            f"{many(told['steps'], 'step')}{early}, best {told['best_step'] or told['steps']:,} · "
            f"{told['tokens'] / max(told['seconds'], 1e-9):,.0f} tokens/s · padding {padding:.1%} · "
            f"{told['device']} in {told['dtype']} · {duration(told['seconds'])}"
        )
    for part, found in told.get("examples", {}).items():
        odd = [f"{found[key]:,} {what}" for key, what in ODD.items() if found.get(key)]
        if odd:
            message(f"{part}: {', '.join(odd)}")
    if spec.kind == "classify" and any(part.get("truncated") for part in told.get("examples", {}).values()):
        message(
            "a job reads long texts in windows, so its figures are others; with task.on_long=truncate they are these"
        )
    metrics = {**told["metrics"], **({"baselines": told["baselines"]} if "baselines" in told else {})}
    rows = [(part, name, f"{value:.6g}") for part, found in metrics.items() for name, value in found.items()]
    print_table("", ("part", "metric", "value"), rows)
