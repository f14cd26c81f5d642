"""The model card: what a model is, where it came from and what it is worth, as the README.md beside its weights.

Markdown with the hub's metadata on top. Its sha256 goes into the manifest of every run with the model, so that results lead back
to what was known of the model that made them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchnlp.data.store import LocalStore
from batchnlp.evaluate.evaluation import Evaluation
from batchnlp.evaluate.groups import Comparison
from batchnlp.evaluate.sums import Metric

NAME = "README.md"  # what the hub calls it
TAGS = {"classify": "text-classification", "ner": "token-classification", "embed": "feature-extraction",
        "lm": "text-generation", "summarize": "summarization", "translate": "translation",
        "generate": "text-generation", "chat": "text-generation", "qa": "question-answering",
        "seq2seq": "text2text-generation", "zero-shot": "zero-shot-classification"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Data:
    """What the model was trained on."""

    name: str  # what people call it
    fingerprint: str  # sha256 over its files, their sizes and versions, and the selection of rows
    rows: Mapping[str, int]  # split → documents
    composition: Mapping[str, int] = field(default_factory=dict)  # as rows a class, or duplicates that were removed


@dataclass(frozen=True, slots=True)
class Results:
    """What it reached on documents that it was not trained on. `of` makes it from an evaluation."""

    data: str
    documents: int
    metrics: Mapping[str, Metric]
    baselines: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    groups: Sequence[Comparison] = ()
    intervals: str = ""

    @classmethod
    def of(cls, made: Evaluation, data: str) -> Results:
        """From an evaluation on the data of that name."""
        return cls(data, made.judged, made.metrics, made.baselines, tuple(made.groups), made.intervals)


@dataclass(frozen=True, slots=True)
class Card:
    """All that a card says. Filled by training."""

    name: str
    task: str
    intended_use: str
    data: Data
    tokenizer: str  # what it is, and its sha256
    parameters: int
    commands: Sequence[str]  # that made it, in order
    versions: Mapping[str, str]
    base_model: str | None = None
    license: str | None = None
    languages: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the training
    results: Sequence[Results] = ()
    limitations: str = ""


def write(directory: str, card: Card) -> str:
    """Put the card beside the weights, in the place of an older one; its sha256."""
    data = render(card).encode()
    LocalStore(directory).replace(NAME, data)
    return hashlib.sha256(data).hexdigest()


def sha256_of(directory: str) -> str | None:
    """Of the card in a model's directory; None where there is none."""
    path = os.path.join(directory, NAME)
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def render(card: Card) -> str:
    """The card as Markdown."""
    parts = [f"---\n{_metadata(card)}\n---", f"# {card.name}", card.intended_use]
    facts = {
        "task": card.task, "made from": card.base_model or "nothing: trained from scratch",
        "parameters": f"{card.parameters:,}", "tokenizer": card.tokenizer,
    }  # fmt: skip
    parts += ["## Model", _table(("", ""), facts.items())]
    parts += ["## Data", f"{_text(card.data.name)}, fingerprint `{card.data.fingerprint}`"]
    parts.append(_table(("split", "documents"), ((split, f"{n:,}") for split, n in card.data.rows.items())))
    if card.data.composition:
        parts.append(_table(("of which", "documents"), ((name, f"{n:,}") for name, n in card.data.composition.items())))
    parts += [part for results in card.results for part in _results(results)]
    if card.limitations:
        parts += ["## Limitations", card.limitations]
    parts += ["## How it was made", "```\n" + "\n".join(card.commands) + "\n```"]
    if card.settings:
        parts.append(_table(("setting", ""), card.settings.items()))
    parts.append(_table(("made with", "version"), card.versions.items()))
    return "\n\n".join(parts) + "\n"


def _metadata(card: Card) -> str:
    """What the hub reads, by its own library."""
    from huggingface_hub import EvalResult, ModelCardData

    tag = TAGS.get(card.task, card.task)
    measured = [
        EvalResult(task_type=tag, dataset_type=results.data, dataset_name=results.data, metric_type=name,
                   metric_value=round(metric.value, 6))
        for results in card.results for name, metric in results.metrics.items() if metric.value is not None
    ]  # fmt: skip
    data = ModelCardData(
        language=list(card.languages) or None, license=card.license, library_name="transformers", pipeline_tag=tag,
        tags=["batchnlp"], base_model=card.base_model, model_name=card.name, eval_results=measured or None,
    )  # fmt: skip
    return str(data.to_yaml()).strip()


def _results(results: Results) -> list[str]:
    """Metrics with intervals beside those of the baselines, and groups."""
    names = list(results.baselines)
    rows = [
        (name, _figure(metric), *(_figure(results.baselines[b].get(name)) for b in names))
        for name, metric in results.metrics.items()
    ]
    found = [
        f"## Results on {_text(results.data)}",
        f"{results.documents:,} documents. Intervals: {results.intervals}.",
    ]
    found.append(_table(("metric", "this model", *names), rows))
    for comparison in results.groups:
        metrics = next((list(group.metrics) for group in comparison.groups if group.metrics), [])
        lines = [
            (
                g.group,
                f"{g.documents:,}",
                *(["insufficient"] * len(metrics) if g.insufficient else map(_figure, g.metrics.values())),
            )
            for g in comparison.groups
        ]
        apart = ((name, _figure(metric)) for name, metric in comparison.differences.items())
        found += [
            f"### By {_text(comparison.by)}",
            _table(("group", "documents", *metrics), lines),
            _table(("apart", ""), apart),
        ]
    return found


def _figure(metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return "unknown"
    return f"{metric.value:.4f}" + ("" if metric.low is None else f" ({metric.low:.4f} to {metric.high:.4f})")


def _table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    columns = [_text(name) for name in head]
    lines = [columns, ["---"] * len(columns), *([_text(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    """In a cell, or in running text: no line breaks, no markup."""
    text = " ".join(str(value).split())
    for mark in ("\\", "|", "<", "`"):
        text = text.replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return text
