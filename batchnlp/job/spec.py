"""The job: what a user writes, validated, and nothing else.

One model a section. Field descriptions are the reference: `jobs/schema.json` and the README are made from them. What
the program can know by itself is `auto`; what it made of that is written into the plan, not back into the spec.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections import Counter
from decimal import Decimal
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from batchnlp.job.nightly import HookSpec, ScheduleSpec
from batchnlp.job.section import Names, Section, as_list
from batchnlp.job.sinks import SinkSpec
from batchnlp.types import OnLong, SourceConfig

Format = Literal["parquet", "jsonl", "csv", "arrow", "text"]
RUN_DATE = "run_date"  # in output.partition_by: the run's date, a column of the results then
FilterTerm = tuple[str, Literal["=", "==", "!=", "<", ">", "<=", ">=", "in", "not in"], Any]


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


Paths = Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v), Field(min_length=1)]


class SourceSpec(Section):
    """The corpus."""

    path: Paths = Field(description="Files, directories, globs or URIs; datasets://org/name for a hub data set.")
    text: str = Field("text", description="The column with the documents.")
    id: str | None = Field(None, description="The column with their ids; without one, <file>#<row>.")
    keep: Names = Field(default_factory=list, description="Columns carried into the results.")
    filter: list[FilterTerm] = Field(
        default_factory=list, description='Conditions that must all hold, as [[lang, "==", en], [year, ">", 2020]].'
    )
    format: Format | None = Field(None, description="The format of all files; read from their names without it.")
    unit: Literal["line", "file"] = Field("line", description="What a document is in a plain text file.")
    split: str | None = Field(None, description="The split of a data set that has several; train without it.")
    rows_per_shard: int | None = Field(None, ge=1, description="Shard size by hand; chosen by size without it.")

    def config(self, columns: tuple[str, ...] = (), turns: bool = False) -> SourceConfig:
        """The part of this section that readers need, with the `columns` that the task asks for, and whether it takes
        conversations."""
        return SourceConfig(
            paths=tuple(self.path), text=self.text, id=self.id, keep=tuple(self.keep), columns=columns,
            turns=turns, filter=tuple(self.filter),
            format=self.format, unit=self.unit, split=self.split,
        )  # fmt: skip


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


class EngineSpec(Section):
    """Where and how it runs. Nothing here changes the results beyond rounding."""

    runner: Literal["ray", "inline"] = Field("ray", description="ray: one actor a replica. inline: in this process.")
    address: str | None = Field(None, description="A Ray cluster to join; a local one is started without it.")
    replicas: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Model copies; auto: one a GPU."
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu or cuda.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the hardware computes in it."
    )
    backend: Literal["auto", "torch", "openvino", "vllm", "http"] = Field(
        "auto",
        description="What runs the model; auto: on a CPU OpenVINO, where installed and fit for the model, else torch.",
    )
    url: str | None = Field(None, description="http: base of an OpenAI-compatible API, as http://localhost:8000/v1.")
    api_key_env: str | None = Field(
        None, description="http: the environment variable with the API key, never the key itself; no key without it."
    )
    tokens_per_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Padded tokens in a batch; a longer document is a batch of its own."
    )

    @field_validator("api_key_env")
    @classmethod
    def _check_key(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):  # it may be the key: never show it
            raise ValueError("engine.api_key_env names an environment variable, as OPENAI_API_KEY; it is not the key")
        return value

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
        except ValueError:
            raise ValueError("engine.url is no address; write it as https://host/v1") from None
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("engine.url is a plain base, as https://host/v1; a key goes by engine.api_key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("engine.url is no http:// or https:// address; write it as https://host/v1")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _check(self) -> EngineSpec:
        served = self.backend == "http"
        if served and self.url is None:
            raise ValueError("engine.url is needed for engine.backend=http: a base as http://localhost:8000/v1")
        idle = dict.fromkeys(("device", "dtype", "tokens_per_batch"), "means nothing to a server")
        if not served:
            idle = dict.fromkeys(("url", "api_key_env"), "belongs to engine.backend=http")
        if self.backend == "vllm":
            idle["tokens_per_batch"] = "means nothing to vLLM, which makes its own batches"
        for key, why in idle.items():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"engine.{key} {why}; leave it out")
        return self


class OutputSpec(Section):
    """Where the results go."""

    path: str = Field(description="A directory of this job's own.")
    partition_by: Names = Field(
        default_factory=list, description="Kept columns, and run_date, that become key=value directories."
    )
    mode: Literal["new", "append", "overwrite", "incremental"] = Field(
        "new",
        description="Another job's results in the same place: refuse, add to them, or replace them when done. incremental: "
        "a log of changes, of which each run computes what is new or changed since the last good one.",
    )
    report: bool = Field(True, description="Write a page about the run, _report.html, when it ends.")

    @field_validator("path")
    @classmethod
    def _check(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("output.path is empty; name a directory")
        if "://" in value:
            raise ValueError(f"output.path: {value} is a URI, and results can only be written to local paths for now")
        return os.path.expanduser(value)


class CacheSpec(Section):
    """A directory of results by content, which any jobs may share."""

    path: str = Field(min_length=1, description="A local directory.")
    max_bytes: int = Field(
        10_000_000_000, ge=1, description="What it may hold; results that were used longest ago go first."
    )

    @field_validator("path")
    @classmethod
    def _check(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(f"cache.path: {value} is a URI; a cache is a local directory")
        return os.path.expanduser(value)


Seconds = Annotated[float, Field(gt=0)] | Literal["auto"]


class LimitsSpec(Section):
    """When to stop, when to give a worker up, and when done is not good enough."""

    max_failed: int | str = Field("1%", description="Dead letters from which the run counts as failed: 100, or 0.1%.")
    grace_seconds: float = Field(
        30.0, ge=0, description="After a signal, or at the end of a budget: time for shards under way to finish."
    )
    max_minutes: float | None = Field(None, gt=0, description="Minutes after which a run stops, to be resumed.")
    max_tokens: int | None = Field(
        None, ge=1, description="Tokens through the model, read and written, after which a run stops, to be resumed."
    )
    batch_seconds: Seconds = Field(
        "auto",
        description="Time without a batch after which a worker hangs; auto: 20 times the slowest so far, 60 at least.",
    )
    shard_seconds: Seconds = Field(
        "auto",
        description="Time for a shard after which its worker hangs; auto: 50 times the slowest so far, 600 at least.",
    )

    @field_validator("max_failed", mode="before")
    @classmethod
    def _check(cls, value: Any) -> Any:
        if isinstance(value, bool) or not re.fullmatch(r"\d+|\d+(\.\d+)?%", str(value)):
            raise ValueError(f"limits.max_failed is a count (100) or a share (0.1%), not {value!r}")
        return value

    def failed_allowed(self, rows: int) -> int:
        """The most dead letters a run of `rows` rows may have."""
        if isinstance(self.max_failed, str) and self.max_failed.endswith("%"):
            return int(rows * Decimal(self.max_failed[:-1]) / 100)  # 0.57% of 10,000 is 57, not 56.99
        return int(Decimal(self.max_failed))


class JobSpec(Section):
    """A job: a corpus, a task, an engine, an output."""

    job: str | None = Field(None, pattern=r"^[\w.-]{1,100}$", description="The job's name, for logs and warehouses.")
    source: SourceSpec
    task: TaskSpec
    engine: EngineSpec = Field(default_factory=EngineSpec)
    output: OutputSpec
    sinks: Annotated[list[SinkSpec], BeforeValidator(lambda v: [v] if isinstance(v, dict) else v)] = Field(
        default_factory=list, description="Warehouses that get the results after the run."
    )
    cache: Annotated[CacheSpec | None, BeforeValidator(lambda v: {"path": v} if isinstance(v, str) else v)] = Field(
        None, description="Where results are kept for this and other jobs: the same text, model and parameters once."
    )
    limits: LimitsSpec = Field(default_factory=LimitsSpec)
    date: datetime.date | None = Field(
        None,
        description="The run's date, where the job names it as {{ ds }} or run_date; today in schedule.timezone without it.",
    )
    schedule: ScheduleSpec | None = Field(None, description="When batchnlp schedule runs it; not part of what it is.")
    hooks: Annotated[list[HookSpec], BeforeValidator(lambda v: [v] if isinstance(v, dict) else v)] = Field(
        default_factory=list, description="Who is told how a run ended."
    )

    @model_validator(mode="after")
    def _check(self) -> JobSpec:
        missing = [name for name in self.output.partition_by if name not in (*self.source.keep, RUN_DATE)]
        if missing:
            raise ValueError(f"output.partition_by names {missing[0]!r}, which source.keep does not; add it there")
        if self.output.mode == "incremental" and self.source.id is None:
            raise ValueError("source.id is needed for output.mode=incremental: rows are known again by it")
        if self.writes_date and self.date is None:
            raise ValueError("date is needed for output.partition_by run_date")
        if self.schedule is not None and self.job is None:  # made from output.path, it might be another every night
            raise ValueError("job is needed beside schedule: the name under which its nights are remembered")
        return self

    @property
    def writes_date(self) -> bool:
        """Whether the results have the run's date as a column."""
        return RUN_DATE in self.output.partition_by and RUN_DATE not in self.source.keep
