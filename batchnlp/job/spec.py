"""The job: what a user writes, validated, and nothing else.

One model a section. Field descriptions are the reference: `jobs/schema.json` and the README are made from them. What
the program can know by itself is `auto`; what it made of that is written into the plan, not back into the spec.
"""

from __future__ import annotations

import datetime
import os
import re
from decimal import Decimal
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from batchnlp.job.evaluate import EvaluateSpec, Gate
from batchnlp.job.nightly import HookSpec, ScheduleSpec
from batchnlp.job.section import Names, Section
from batchnlp.job.sinks import SinkSpec
from batchnlp.job.task import TaskSpec
from batchnlp.types import OnBadFile, OnDuplicateId, SourceConfig

Format = Literal["parquet", "jsonl", "csv", "arrow", "text"]
RUN_DATE = "run_date"  # in output.partition_by: the run's date, a column of the results then
FilterTerm = tuple[str, Literal["=", "==", "!=", "<", ">", "<=", ">=", "in", "not in"], Any]


def _refuse_password(value: str, key: str) -> None:
    """Paths are written into plans and logs: a secret in one would be too. It is not shown here either."""
    authority = value.partition("://")[2].partition("/")[0]
    if ":" in authority.rpartition("@")[0]:
        raise ValueError(f"{key} holds a password; leave it to the environment, as AWS_SECRET_ACCESS_KEY")


def _plain_paths(value: list[str]) -> list[str]:
    for path in value:
        _refuse_password(path, "source.path")
    return value


Paths = Annotated[
    list[str],
    BeforeValidator(lambda v: [v] if isinstance(v, str) else v),
    AfterValidator(_plain_paths),
    Field(min_length=1),
]


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
    on_bad_file: OnBadFile = Field(
        "fail", description="A damaged file: refuse it, or salvage what is whole and count the rest as dead letters."
    )
    on_duplicate_id: OnDuplicateId = Field(
        "fail", description="An id that is there twice: refuse, keep_first (dead letters), or suffix (id~2, id~3, ...)."
    )
    rows_per_shard: int | None = Field(None, ge=1, description="Shard size by hand; chosen by size without it.")

    def config(self, columns: tuple[str, ...] = (), turns: bool = False) -> SourceConfig:
        """The part of this section that readers need, with the `columns` that the task asks for, and whether it takes
        conversations."""
        return SourceConfig(
            paths=tuple(self.path), text=self.text, id=self.id, keep=tuple(self.keep), columns=columns,
            turns=turns, filter=tuple(self.filter),
            format=self.format, unit=self.unit, split=self.split,
            on_bad_file=self.on_bad_file, on_duplicate_id=self.on_duplicate_id,
        )  # fmt: skip


class EngineSpec(Section):
    """Where and how it runs. Nothing here changes the results beyond rounding."""

    runner: Literal["ray", "inline"] = Field("ray", description="ray: one actor a replica. inline: in this process.")
    address: str | None = Field(None, description="A Ray cluster to join; a local one is started without it.")
    insecure: bool = Field(False, description="Ray without token authentication: whoever reaches its ports runs code.")
    replicas: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Model copies; auto: one a GPU."
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu or cuda.")
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="auto: bfloat16 where the hardware computes in it. int8: encoders on OpenVINO, faster; not mere rounding.",
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

    path: str = Field(description="A directory of this job's own, or a URI as s3://bucket/folder.")
    partition_by: Names = Field(
        default_factory=list, description="Kept columns, and run_date, that become key=value directories."
    )
    dead_text: bool = Field(False, description="Write the texts of dead letters too, for their owner's eyes only.")
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
        _refuse_password(value, "output.path")
        value = value.removeprefix("file://")
        if "://" not in value:
            return os.path.expanduser(value)
        if re.search(r"[*?\[\]]", value):
            raise ValueError(f"output.path: {value} reads like a pattern; choose an address without * ? [ ]")
        return value.rstrip("/")


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
    evaluate: EvaluateSpec = Field(default_factory=EvaluateSpec)
    gates: dict[str, Gate] = Field(
        default_factory=dict, description="Metrics and their bounds; outside of them no warehouse gets the results."
    )
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
        loose = [key for key in ("on_bad_file", "on_duplicate_id") if getattr(self.source, key) != "fail"]
        if self.output.mode == "incremental" and loose:
            raise ValueError(
                f"source.{loose[0]} must be fail with output.mode=incremental: a row left out reads as deleted"
            )
        if self.writes_date and self.date is None:
            raise ValueError("date is needed for output.partition_by run_date")
        if self.schedule is not None and self.job is None:  # made from output.path, it might be another every night
            raise ValueError("job is needed beside schedule: the name under which its nights are remembered")
        return self

    @property
    def writes_date(self) -> bool:
        """Whether the results have the run's date as a column."""
        return RUN_DATE in self.output.partition_by and RUN_DATE not in self.source.keep
