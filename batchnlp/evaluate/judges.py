"""Which metrics a task has, and how its results and their labels become sums."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.errors import SourceError
from batchnlp.evaluate import labels as by_label
from batchnlp.evaluate import retrieval, spans, texts
from batchnlp.evaluate.outputs import TEXT, Output, as_vectors
from batchnlp.evaluate.sums import Sums, joined
from batchnlp.evaluate.truth import Joined, is_list
from batchnlp.types import many

WORDS = ("exact_match", "f1")
TRANSLATION = ("bleu", "chrf")
LABELLED: dict[str, tuple[str, ...]] = {  # task → what needs labels
    "classify": (*by_label.METRICS, "ece"),
    "zero-shot": (*by_label.METRICS, "ece"),
    "ner": spans.METRICS,
    "qa": WORDS,
    "embed": retrieval.METRICS,
    "summarize": texts.ROUGE,
    "translate": TRANSLATION,
    "generate": (*WORDS, *texts.ROUGE, *TRANSLATION),
    "chat": (*WORDS, *texts.ROUGE, *TRANSLATION),
}
LOWER = ("ece", "perplexity")  # the less, the better
TextOf = Callable[[pa.Array], pa.Array]  # ids → texts


@dataclass(frozen=True, slots=True)
class Judged:
    """The results of a task, judged. `rows` of what was joined are in the sums, in this order."""

    sums: Sums
    rows: npt.NDArray[np.int64]
    labels: by_label.Labels | None = None  # for what needs the classes of single documents
    spans: spans.Spans | None = None  # for what needs the entities
    classes: list[dict[str, Any]] = field(default_factory=list)
    confusion: dict[str, Any] | None = None
    signatures: dict[str, str] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)  # labels that cannot be judged by, by reason
    notes: tuple[str, ...] = ()


def columns(output: Output) -> list[str]:
    """The columns of the results that the task's judge reads."""
    return [name for name in answer_columns(output.kind) if name in output.schema.names]


def answer_columns(kind: str) -> tuple[str, ...]:
    """What the model says, as a task calls it."""
    wanted = {
        "classify": ("label", "score", "labels", "scores"), "ner": ("entities",), "embed": ("embedding",),
    }  # fmt: skip
    return wanted.get("classify" if kind == "zero-shot" else kind, (TEXT.get(kind, ""), "answers", "logprobs"))


def judge(output: Output, joined_: Joined, text_of: TextOf) -> Judged:
    """Judge by the labels, where there are any, and by what the model tells of itself."""
    if joined_.truth is None:
        return _unlabelled(output, joined_)
    if output.kind in ("classify", "zero-shot"):
        return _labels(output, joined_)
    if output.kind == "ner":
        return _spans(joined_, text_of)
    return _vectors(joined_) if output.kind == "embed" else _texts(output, joined_)


# --- classify, zero-shot


def _labels(output: Output, all_: Joined) -> Judged:
    truth = all_.truth
    assert truth is not None
    multi = "labels" in all_.results.column_names
    names = _names(truth)
    blank = np.array([any(not name.strip() for name in row) for row in names], bool)
    rows = np.flatnonzero(~blank)
    at, kept = pa.array(rows), all_.take(rows.tolist())
    answers = kept.results["labels" if multi else "label"].combine_chunks()
    found = by_label.Labels.of(pa.array(names, pa.list_(pa.string())).take(at), answers, multi)
    notes = [*_unknown(output, found), *_single(found)]
    parts = [found.sums]
    if not multi:
        right = np.asarray(found.sums.rows[:, [1]].todense()).ravel()
        score = np.asarray(kept.results["score"].combine_chunks(), np.float64)
        if why := _no_probabilities(output, kept, score):
            notes.append(why)
        else:
            parts.append(by_label.calibration(right, score))
    problems = {"blank label": int(blank.sum())} if blank.any() else {}
    return Judged(
        joined(parts),
        rows,
        found,
        classes=found.classes(),
        confusion=found.confusion(),
        problems=problems,
        notes=tuple(notes),
    )


def _names(truth: pa.Array) -> list[list[str]]:
    """The classes of each document, as text."""
    if is_list(truth.type):
        return [[str(v) for v in row if v is not None] for row in truth.to_pylist()]
    return [[name] for name in truth.cast(pa.string()).to_pylist()]


def _unknown(output: Output, found: by_label.Labels) -> list[str]:
    """Labels that the model has not, or, where nobody knows which it has, has not answered; SourceError where none of them
    is one of the model's."""
    truths = np.asarray(found.truth.sum(axis=0)).ravel()
    own = _model_labels(output)
    known = own or _answered(output)
    wanted = {name: int(n) for name, n in zip(found.names, truths, strict=True) if n}
    if wanted and not known & wanted.keys():
        ours, theirs = (", ".join(sorted(names)[:5]) for names in (known, wanted))
        hint = "name both the same; config.json's id2label, or task.labels, names the model's"
        raise SourceError(f"no label is one that the model gives: it gives {ours}, the labels are {theirs}", hint)
    lost = {name: n for name, n in wanted.items() if name not in known}
    if not lost:
        return []
    what = "that the model does not have, counted as wrong" if own else "answered for no document"
    named = ", ".join(f"{name} ({n:,})" for name, n in sorted(lost.items(), key=lambda item: -item[1])[:5])
    return [f"{many(len(lost), 'label')} {what}: {named}"]


def _model_labels(output: Output) -> set[str]:
    """All labels of the model, where the output tells them, or the model's directory."""
    if output.task.get("labels"):
        return set(output.task["labels"])
    config = Path(str(output.task.get("model") or "")).expanduser() / "config.json"
    with suppress(OSError, ValueError):  # the model may be gone, or damaged: the rows are judged all the same
        tree = json.loads(config.read_text(encoding="utf-8"))
        named = tree.get("id2label") if isinstance(tree, dict) else None
        if isinstance(named, dict) and named and all(isinstance(name, str) for name in named.values()):
            return set(named.values())
    return {f.name for f in output.schema.field("scores").type} if "scores" in output.schema.names else set()


def _answered(output: Output) -> set[str]:
    """The labels that any document got."""
    name = "labels" if "labels" in output.schema.names else "label"
    column = output.read([name])[name].combine_chunks()
    return set((column.flatten() if is_list(column.type) else column).unique().to_pylist())


def _single(found: by_label.Labels) -> list[str]:
    truths = np.asarray(found.truth.sum(axis=0)).ravel()
    if (truths > 0).sum() != 1:
        return []
    return [
        f"all labels are {found.names[int(truths.argmax())]}: whoever always says so is perfect; judge by more classes"
    ]


def _no_probabilities(output: Output, kept: Joined, score: npt.NDArray[np.float64]) -> str:
    """Why the scores cannot be calibrated; "" where they can."""
    if not len(score):
        return ""
    if ((score < 0) | (score > 1)).any():
        return "no calibration error: the scores are no probabilities"
    if output.kind == "zero-shot":
        if "scores" not in kept.results.column_names:
            return "no calibration error: zero-shot scores may be similarities; task.scores=true tells"
        columns_ = kept.results["scores"].combine_chunks().flatten()
        if np.abs(np.sum([np.asarray(c, np.float64) for c in columns_], axis=0) - 1).max() > 1e-3:
            return "no calibration error: the scores are similarities"
    return ""


# --- ner


def _spans(all_: Joined, text_of: TextOf) -> Judged:
    assert all_.truth is not None
    truth = [[_span(s) for s in row if s is not None] for row in all_.truth.to_pylist()]
    notes: list[str] = []
    lengths: list[int | None] = [None] * len(truth)
    try:
        lengths = pc.utf8_length(text_of(all_.results["id"].combine_chunks())).to_pylist()
    except SourceError as error:
        notes.append(f"whether entities lie in their texts was not looked at: {error.message}")
    flaws = [spans.flaw(row, length) for row, length in zip(truth, lengths, strict=True)]
    rows = np.flatnonzero([not flaw for flaw in flaws])
    answers = [[_span(s) for s in row or ()] for row in all_.results["entities"].to_pylist()]
    found = spans.Spans([truth[i] for i in rows], [answers[i] for i in rows])
    problems = {f"entity {flaw}": n for flaw, n in Counter(filter(None, flaws)).items()}
    if never := {label for row in found.truth for *_, label in row} - {
        label for row in found.answers for *_, label in row
    }:
        notes.append(f"{many(len(never), 'label')} never answered: {', '.join(sorted(never)[:5])}")
    return Judged(found.sums, rows, spans=found, classes=found.classes(), problems=problems, notes=tuple(notes))


def _span(entity: dict[str, Any]) -> spans.Span:
    return int(entity["start"]), int(entity["end"]), str(entity["label"])


# --- texts


def _texts(output: Output, all_: Joined) -> Judged:
    assert all_.truth is not None
    references = [text_references(value) for value in all_.truth.to_pylist()]
    none = output.kind == "qa"  # where a question without an answer has a right answer all the same
    rows = np.flatnonzero([bool(wanted) or none for wanted in references])
    if not len(rows):
        raise SourceError("all reference texts are empty", "give texts that the answers can be held against")
    answers, chosen = _answers(output, all_), [references[i] for i in rows]
    given = [answers[i] for i in rows]
    wanted = LABELLED[output.kind]
    parts: list[Sums] = []
    signatures: dict[str, str] = {}
    if WORDS[0] in wanted:
        parts.append(texts.matches(given, chosen))
    if texts.ROUGE[0] in wanted:
        parts.append(texts.rouge(given, chosen))
    if TRANSLATION[0] in wanted:
        sums, signatures = texts.translation(given, chosen, str(output.task.get("target_language") or ""))
        parts.append(sums)
    if "logprobs" in all_.results.column_names:
        parts.append(_perplexity(all_).take(rows))
    empty = len(references) - len(rows)
    problems = {"empty reference": empty} if empty else {}
    return Judged(joined(parts), rows, signatures=signatures, problems=problems, notes=_several(all_))


def text_references(value: Any) -> list[str]:
    """The references of a document, less the blank ones."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if text is not None and text.strip()]


def _answers(output: Output, all_: Joined) -> list[str]:
    if "answers" in all_.results.column_names:
        return [(row or [{"text": ""}])[0]["text"] or "" for row in all_.results["answers"].to_pylist()]
    return [text or "" for text in all_.results[TEXT[output.kind]].to_pylist()]


def _several(all_: Joined) -> tuple[str, ...]:
    return ("of several answers to a document the first is judged",) if "answers" in all_.results.column_names else ()


def _perplexity(all_: Joined) -> Sums:
    return texts.perplexity([row or [] for row in all_.results["logprobs"].to_pylist()])


def _unlabelled(output: Output, all_: Joined) -> Judged:
    """What needs no labels."""
    every = np.arange(len(all_.results))
    if "logprobs" not in all_.results.column_names:
        raise SourceError(
            f"without labels there is nothing to judge {output.kind} by", "give evaluate.labels (--labels)"
        )
    return Judged(_perplexity(all_), every, notes=_several(all_))


# --- embed


def _vectors(all_: Joined) -> Judged:
    assert all_.truth is not None
    ids, vectors = all_.results["id"].to_pylist(), as_vectors(all_.results["embedding"])
    relevant: retrieval.Relevance
    notes, lists = [], is_list(all_.truth.type)
    if lists:
        relevant = ids_ = retrieval.ByIds([[str(v) for v in row] for row in all_.truth.to_pylist()], ids)
        if ids_.unknown:
            notes.append(f"{many(ids_.unknown, 'relevant id')} without a labelled result, which nothing can find")
    else:
        relevant = retrieval.ByLabel(all_.truth.cast(pa.string()).to_pylist())
    sums, asking = retrieval.retrieval(vectors, relevant)
    if few := int(relevant.asks.sum()) - len(asking):
        notes.append(f"{len(asking):,} documents asked, drawn at random; {few:,} did not")
    problems = {"nothing is relevant": n} if (n := int((~relevant.asks).sum())) else {}
    return Judged(sums, asking, problems=problems, notes=tuple(notes))


def known_metrics(kind: str, schema: pa.Schema, labelled: bool) -> list[str]:
    """The metrics that an evaluation of these results has."""
    found = list(LABELLED[kind]) if labelled else []
    if labelled and "labels" in schema.names and kind in ("classify", "zero-shot"):
        found.remove("ece")
    return [*found, *(["perplexity"] if "logprobs" in schema.names else []), *(["coverage"] if labelled else [])]
