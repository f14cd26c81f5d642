"""The model card beside the weights, of what training.json says. `batchnlp evaluate` judges further, with intervals."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchnlp.evaluate.card import Card, Data, Results, write
from batchnlp.evaluate.sums import Metric
from batchnlp.job.identity import digest
from batchnlp.job.train import TrainSpec

USES = {
    "lm": ("goes on with a text", "generate"),
    "classify": ("labels documents", "classify"),
    "ner": ("finds entities in documents", "ner"),
    "seq2seq": ("writes a text from a text", "summarize"),
    "embed": ("makes vectors of documents", "embed"),
}
KEPT: Any = {"kind": True, "source": {"path"}, "output": {"path"}}  # what the command says by itself
OTHERS = "Nobody has looked at how it does on other texts, or on groups of authors: `batchnlp evaluate --groups` does."


def write_card(folder: str, spec: TrainSpec, record: Mapping[str, Any]) -> None:
    """README.md in the model's directory, for kinds that make a model."""
    if spec.kind not in USES:
        return
    does, command = USES[spec.kind]
    made, told = record["composition"], record["result"]
    gone = {**made["unusable"], **made["left_out"], "copies": made["copies"], "near_copies": made["near_copies"]}
    start = record["facts"]["start"]
    sources = ", ".join(spec.source.path)
    write(folder, Card(
        name=Path(folder).name, task=spec.kind,
        intended_use=f"A model that {does} like those of {sources}: `batchnlp {command} INPUT -o OUT --model {folder}`.",
        data=Data(
            sources, digest([record["facts"]["files"], record["facts"]["spec"]["source"]]), made["parts"],
            {name: count for name, count in gone.items() if count},
        ),
        tokenizer=f"tokenizer.json, sha256 {record['files'].get('tokenizer.json', 'unknown')}",
        parameters=told["parameters"], commands=_commands(spec), versions={"batchnlp": record["version"], **record["libraries"]},
        base_model=start.get("name"), settings={"shape": start["shape"]} if "shape" in start else {},
        results=[_results(part, rows, record) for part, rows in made["parts"].items() if part in told["metrics"]],
        limitations=OTHERS,
    ))  # fmt: skip


def _commands(spec: TrainSpec) -> list[str]:
    """The training as one command: all that is not as it would be without being said."""
    said = spec.model_dump(mode="json", exclude_defaults=True, exclude=KEPT)
    words = ["batchnlp", "train", spec.kind, *map(shlex.quote, spec.source.path), "-o", shlex.quote(spec.output.path)]
    for key, value in said.items():
        inner = (
            {f"{key}.{name}": some for name, some in value.items()}
            if key in ("source", "split", "output")
            else {key: value}
        )
        words += [f"--set {shlex.quote(f'{name}={json.dumps(some)}')}" for name, some in inner.items()]
    return [" ".join(words)]


def _results(part: str, rows: int, record: Mapping[str, Any]) -> Results:
    """Of one part; without intervals, which `batchnlp evaluate` computes."""
    told = record["result"]
    metrics = {name: Metric(value) for name, value in told["metrics"][part].items()}
    counted: dict[str, Metric] = {name: Metric(value) for name, value in told.get("baselines", {}).items()}
    return Results(f"the {part} part", rows, metrics | (counted if part == "test" else {}),
                   intervals="none here; `batchnlp evaluate` computes them")  # fmt: skip
