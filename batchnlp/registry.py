"""Names to factories, imported only when used: asking for `embed` does not load what `classify` needs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from batchnlp.errors import SpecError
from batchnlp.types import Server
from batchnlp.words import nearest

TASKS = {
    "classify": "batchnlp.tasks.classify:Classify",
    "zero-shot": "batchnlp.tasks.zero_shot:make",
    "ner": "batchnlp.tasks.ner:Ner",
    "qa": "batchnlp.tasks.qa:Qa",
    "embed": "batchnlp.tasks.embed:Embed",
    "summarize": "batchnlp.tasks.summarize:Summarize",
    "translate": "batchnlp.tasks.translate:Translate",
    "generate": "batchnlp.tasks.generate:Generate",
    "chat": "batchnlp.tasks.chat:Chat",
}
SERVED = {  # the same, where a server has the model
    "summarize": "batchnlp.tasks.served:Summarize",
    "translate": "batchnlp.tasks.served:Translate",
    "generate": "batchnlp.tasks.served:Generate",
    "chat": "batchnlp.tasks.served:Chat",
}
ENCODER, GENERATOR = "batchnlp.backends.packed_encoder:make", "batchnlp.backends.torch_generator:TorchGenerator"
OPENVINO = "batchnlp.backends.openvino_encoder:make"
BACKENDS = {  # by the kind of raw answer
    "torch": {
        "scores": ENCODER, "vectors": ENCODER, "token_scores": ENCODER, "span_scores": ENCODER,
        "completions": GENERATOR,
    },
    "openvino": {
        "scores": OPENVINO, "vectors": OPENVINO, "token_scores": OPENVINO, "span_scores": OPENVINO,
        "completions": "batchnlp.backends.openvino_generator:make",
    },
    "vllm": {"completions": "batchnlp.backends.vllm_generator:VllmGenerator"},
    "http": {"replies": "batchnlp.backends.http:HttpBackend"},
}  # fmt: skip
RUNNERS = {
    "inline": "batchnlp.engine.inline:InlineRunner",
    "ray": "batchnlp.engine.ray_runner:RayRunner",
}
SINKS = {
    "duckdb": "batchnlp.sinks.duckdb:DuckDB",
    "delta": "batchnlp.sinks.delta:Delta",
    "iceberg": "batchnlp.sinks.iceberg:Iceberg",
    "postgres": "batchnlp.sinks.postgres:Postgres",
    "parquet": "batchnlp.sinks.parquet:Parquet",
}
STATEMENTS = {
    "bigquery": "batchnlp.sinks.bigquery:BigQuery",
    "snowflake": "batchnlp.sinks.snowflake:Snowflake",
    "clickhouse": "batchnlp.sinks.clickhouse:ClickHouse",
}
EXPORTS = {
    "cron": "batchnlp.schedule.exports.cron:export",
    "systemd": "batchnlp.schedule.exports.systemd:export",
    "kubernetes": "batchnlp.schedule.exports.kubernetes:export",
    "rayjob": "batchnlp.schedule.exports.rayjob:export",
    "airflow": "batchnlp.schedule.exports.airflow:export",
}


def task(model: Any, spec: Any) -> Any:
    """The task of a job's task section, for a model on disk or on a server."""
    if not isinstance(model, Server):
        return load(TASKS, spec.kind)(model, spec)
    if spec.kind not in SERVED:
        raise SpecError(f"the backend http cannot do {spec.kind}", f"it does {', '.join(SERVED)}")
    return load(SERVED, spec.kind)(model, spec)


def backend(model: Any, resolved: Any, task: Any, threads: int) -> Any:
    """The backend that answers a task, with its model loaded."""
    factory = load(BACKENDS[resolved.backend], task.needs)
    return factory(model, resolved, task.needs, threads, task.decoding)


def load(table: dict[str, str], name: str) -> Any:
    """The factory called `name` in one of the tables above."""
    if name not in table:
        near = nearest(name, list(table))
        raise SpecError(f"there is no {name}", f"did you mean {near}?" if near else f"there are: {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)
