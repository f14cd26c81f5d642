"""The task section of a job: what the model is to do with each document."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from batchnlp.job.section import Section, as_list
from batchnlp.types import OnLong


def _as_labels(value: Any) -> Any:
    """Labels as a list, as `a,b`, or as a mapping from label to the description the model is shown."""
    names = as_list(value)
    if not isinstance(names, list | dict):
        return names
    pairs = list(names.items()) if isinstance(names, dict) else [(name, name) for name in names]
    for text in (text for pair in pairs for text in pair):
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            raise ValueError(f"task.labels: {text!r} is not text; put it in quotes (YAML takes yes, no, null for more)")
    counts = Counter(str(name) for name, _ in pairs)
    if twice := [name for name, n in counts.items() if n > 1]:
        raise ValueError(f"task.labels: {twice[0]!r} is there twice; name each label once")
    return {str(name): str(text) for name, text in pairs}


def _as_texts(value: Any) -> Any:
    """One string or a list of them; commas and white space count."""
    return [value] if isinstance(value, str) else value


def _as_schema(value: Any) -> Any:
    """A mapping, or the path of a JSON file with one: read here, so that the job's identity follows its content."""
    if not isinstance(value, str):
        return value
    try:
        with open(os.path.expanduser(value), encoding="utf-8") as handle:
            return json.load(handle)
    except (OSError, ValueError) as error:
        raise ValueError(f"task.json_schema: {value} cannot be read as JSON: {error}") from None


ANSWERS = ("summarize", "translate", "generate", "chat")
BELONGS: dict[str, tuple[str, ...]] = {  # key of the task section → the tasks that know it; all others are for all
    "labels": ("zero-shot",),
    "template": ("zero-shot",),
    "multi_label": ("classify", "zero-shot"),
    "threshold": ("classify", "zero-shot"),
    "scores": ("classify", "zero-shot"),
    "normalize": ("embed", "zero-shot"),
    "aggregation": ("ner",),
    "question": ("qa",),
    "question_column": ("qa",),
    "system": ("chat",),
    "source_language": ("translate",),
    "target_language": ("translate",),
    "n": ("generate", "chat"),
    "json_schema": ("generate", "chat"),
    "prompt": ("classify", "zero-shot", "embed", "summarize", "generate", "chat"),
} | dict.fromkeys(
    ("max_new_tokens", "min_new_tokens", "sample", "temperature", "top_k", "top_p", "repetition_penalty", "num_beams",
     "stop", "seed", "logprobs"), ANSWERS,
)  # fmt: skip


class TaskSpec(Section):
    """What the model is to do with each document."""

    kind: Literal["classify", "zero-shot", "ner", "qa", "embed", "summarize", "translate", "generate", "chat"] = Field(
        description="The task."
    )
    model: str = Field(description="A hub name, a directory, or package:NAME for a model shipped as a Python package.")
    revision: str | None = Field(
        None, description="The hub revision, a commit at best; or sha256:HEX of the weights of a directory or package."
    )
    on_long: OnLong | None = Field(
        None, description="A document over the limit: window, truncate, or fail (dead letter); window where it can be."
    )
    max_length: int | None = Field(
        None, ge=4, description="Tokens a sequence may have, special tokens included; read from the model without it."
    )
    labels: Annotated[dict[str, str] | None, BeforeValidator(_as_labels)] = Field(
        None, description="zero-shot: the labels, or a mapping from each label to the text the model is shown for it."
    )
    template: str | None = Field(
        None, description='zero-shot: the sentence a label is put into; "This example is {}." for entailment models.'
    )
    multi_label: bool | None = Field(
        None, description="Each label on its own; for classify read from the model's problem type without it."
    )
    threshold: float = Field(0.5, ge=0, le=1, description="Multi-label: the score from which a label is given.")
    scores: bool = Field(False, description="Write the scores of all labels too.")
    prompt: str | None = Field(
        None,
        description="embed: put before every document; the model's default prompt without it. generate, chat, summarize: "
        "a jinja2 template, {{ text }} is the document, other names are columns of the source.",
    )
    normalize: bool | None = Field(None, description="embed: unit length; read from the model without it.")
    aggregation: Literal["simple", "first", "average", "max"] = Field(
        "simple", description="ner: labels of tokens, or of words: its first token's, the mean's, the surest's."
    )
    question: str | None = Field(None, description="qa: the question that is asked of every document.")
    question_column: str | None = Field(None, description="qa: the column with a question for each document.")
    system: str | None = Field(None, description="chat: the system prompt, where a row brings none.")
    source_language: str | None = Field(None, description="translate: the documents' language, as the model names it.")
    target_language: str | None = Field(None, description="translate: the language to translate into.")
    max_new_tokens: int | None = Field(
        None, ge=1, description="Tokens an answer may have; 256, or half of the model's positions, without it."
    )
    min_new_tokens: int = Field(0, ge=0, description="Tokens an answer must have.")
    sample: bool = Field(False, description="Draw tokens at random, seeded for each row; otherwise the likeliest.")
    temperature: float | None = Field(None, gt=0, description="Sampling: above 1 bolder, below 1 tamer.")
    top_k: int | None = Field(None, ge=1, description="Sampling: only among the k likeliest tokens.")
    top_p: float | None = Field(None, gt=0, le=1, description="Sampling: only among the likeliest that make up p.")
    repetition_penalty: float | None = Field(None, gt=0, description="Above 1 makes repeated tokens less likely.")
    num_beams: int | None = Field(None, ge=1, description="Beams to search with; as the model says without it.")
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_texts)] = Field(
        default_factory=list, description="Strings that end an answer, and are cut off it."
    )
    n: int = Field(1, ge=1, le=100, description="Answers a document, in the column answers; needs sample.")
    seed: int = Field(0, description="Sampling: another seed, other answers.")
    logprobs: bool = Field(False, description="Write the log-probability of every token.")
    json_schema: Annotated[dict[str, Any] | None, BeforeValidator(_as_schema)] = Field(
        None, description="generate, chat: a JSON Schema, or a file with one; answers keep to it and become columns."
    )

    @model_validator(mode="after")
    def _check(self) -> TaskSpec:
        if self.kind == "zero-shot" and not self.labels:
            raise ValueError("task.labels is needed for zero-shot: the labels to choose from")
        for key, kinds in BELONGS.items():
            field = type(self).model_fields[key]
            if self.kind not in kinds and getattr(self, key) != field.get_default(call_default_factory=True):
                raise ValueError(f"task.{key} belongs to {' and '.join(kinds)}, not to {self.kind}")
        if self.kind == "qa":
            self._check_question()
        if self.template is not None and "{}" not in self.template:
            raise ValueError("task.template needs a {} where the label goes")
        if self.kind in ANSWERS:
            self._check_answers()
        return self

    def _check_question(self) -> None:
        if not self.question and not self.question_column:
            raise ValueError("task.question is needed for qa, or task.question_column for a question in each row")
        if self.question is not None and self.question_column is not None:
            raise ValueError("task.question and task.question_column are both given; leave one out")
        if self.question is not None and not self.question.strip():
            raise ValueError("task.question is blank; ask something, or name task.question_column")

    def _check_answers(self) -> None:
        if self.on_long == "window" and self.kind in ("generate", "chat"):
            raise ValueError(f"task.on_long: {self.kind} cannot answer in windows; use truncate or fail")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError("task.min_new_tokens is more than task.max_new_tokens")
        idle = [key for key in ("temperature", "top_k", "top_p") if getattr(self, key) is not None]
        if idle and not self.sample:
            raise ValueError(f"task.{idle[0]} does nothing without task.sample=true")
        if self.n > 1 and not self.sample:
            raise ValueError("task.n: without task.sample=true all answers would be the same")
        if self.n > 1 and self.json_schema is not None:
            raise ValueError("task.n and task.json_schema do not go together: one answer becomes the columns of a row")
