"""From a job to a plan: files, shards, schema, fingerprint. Nothing is written, no model is loaded.

Everything that can be refused is refused here, in seconds: wrong paths, columns, models, mismatched tasks.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from batchnlp import __version__, registry
from batchnlp.backends.model_files import resolve_model
from batchnlp.data.remote import reason
from batchnlp.data.sources import Source
from batchnlp.errors import SourceError, SpecError
from batchnlp.evaluate.evaluation import asked, preflight
from batchnlp.job.identity import fingerprint, fingerprint_facts, job_name
from batchnlp.job.spec import RUN_DATE, JobSpec
from batchnlp.sinks.load import check
from batchnlp.tasks.base import COUNT_FIELDS, Task
from batchnlp.types import OP, REVISION, ModelFiles, Plan, Server

SHARD_ROWS = 20_000
SERVED_ROWS = 500  # what a crash loses was slow, or paid for; and requests flow on over the borders of shards
SHARD_BYTES = 32 << 20  # of text, with
TOKEN_BYTES = 8  # of a token's id on its way; less text where a task keeps more of each
RESULT_BYTES = 64 << 20  # of results: vectors can outweigh the text they stand for
SHARDS_A_REPLICA = 4  # so that the replicas end at about the same time
LOG_FIELDS = [pa.field(REVISION, pa.int32()), pa.field(OP, pa.string())]
MIN_ROWS = 2_000  # below it sorting by length has little to sort, and padding grows


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that passed preflight."""

    spec: JobSpec
    model: ModelFiles
    source: Source
    task: Task
    facts: dict[str, Any]
    fingerprint: str
    schema: pa.Schema

    @property
    def about(self) -> dict[str, Any]:
        """What plan and manifest say of the job."""
        return {
            "job": job_name(self.spec), "spec": self.spec.model_dump(mode="json"), "version": __version__,
            "model": {
                "name": self.model.name, "revision": self.model.revision, "weights": self.model.weights,
                "max_length": self.model.max_length, "card": self.model.card,
            },
        }  # fmt: skip


def prepare(spec: JobSpec) -> Prepared:
    """Preflight: model, task, corpus, schema. Raises UsageError; starts and writes nothing."""
    _check_ray(spec)
    model = find_model(spec)
    task: Task = registry.task(model, spec.task)
    _check_backend(spec, task)
    source = Source.open(spec.source.config(task.columns, task.turns), spec.output.path)
    task.check(source.schema)
    schema = result_schema(spec, source, task)
    for sink in spec.sinks:
        check(sink, schema, spec.output.partition_by)
    if asked(spec.evaluate, spec.gates):
        preflight(spec.evaluate, spec.gates, spec.task.kind, schema, spec.source.id or "id")
    facts = fingerprint_facts(spec, model, source.files)
    return identified(Prepared(spec, model, source, task, facts, "", schema), facts)


def identified(prepared: Prepared, facts: dict[str, Any]) -> Prepared:
    """The job as the run that these facts make of it; the files that it writes tell which."""
    print_, model = fingerprint(facts), prepared.model
    metadata = {
        "batchnlp.version": __version__, "batchnlp.job": job_name(prepared.spec), "batchnlp.run": print_[:8],
        "batchnlp.fingerprint": print_, "batchnlp.model": model.name, "batchnlp.model_revision": model.revision,
        "batchnlp.model_weights": model.weights,
    }  # fmt: skip
    return replace(prepared, facts=facts, fingerprint=print_, schema=prepared.schema.with_metadata(metadata))


def find_model(spec: JobSpec) -> ModelFiles:
    """The job's model: its checked files, or the server that says it has it. Raises ModelError."""
    if spec.engine.url is None:
        return resolve_model(spec.task.model, spec.task.revision, spec.task.max_length)
    from batchnlp.backends.openai_client import find_server

    return find_server(spec.engine.url, spec.engine.api_key_env, spec.task.model)


def _check_ray(spec: JobSpec) -> None:
    """Ray runs whatever it is sent, by whoever reaches its ports and has its token."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if spec.engine.runner != "ray" or spec.engine.insecure or mode == "token":
        return
    if mode:
        what = f"RAY_AUTH_MODE={mode} would let anybody who reaches Ray's ports run code here"
        raise SpecError(what, "unset it, or set engine.insecure=true in a network that you trust")
    if spec.engine.address and not ray_token():
        what = f"there is no token for the Ray cluster at {spec.engine.address}"
        raise SpecError(what, "set RAY_AUTH_MODE and RAY_AUTH_TOKEN as on the cluster, or engine.insecure=true")


def ray_token() -> bool:
    """Whether there is a token for a cluster to join."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or os.path.isfile(os.path.expanduser("~/.ray/auth_token"))


def _check_backend(spec: JobSpec, task: Task) -> None:
    name = "torch" if spec.engine.backend == "auto" else spec.engine.backend
    if task.needs not in registry.BACKENDS[name]:
        raise SpecError(f"the backend {name} cannot do {spec.task.kind}", "use engine.backend=auto")


def result_schema(spec: JobSpec, source: Source, task: Task) -> pa.Schema:
    """id, kept columns, the task's columns, counts, those of a change log; a name that is there twice is refused."""
    kept = [source.schema.field(name) for name in dict.fromkeys(spec.source.keep)]
    date = [pa.field(RUN_DATE, pa.date32())] if spec.writes_date else []
    log = LOG_FIELDS if spec.output.mode == "incremental" else []
    fields = [pa.field("id", source.id_type), *kept, *date, *task.fields, *COUNT_FIELDS, *log]
    double = [name for name, n in Counter(field.name for field in fields).items() if n > 1]
    if double:
        hint = "leave it out of source.keep; the id is always there" if double[0] == "id" else "rename it in the source"
        raise SourceError(f"the kept column {double[0]!r} has the name of a result column", hint)
    schema = pa.schema([pa.field(f.name, _plain(f.type)) for f in fields])
    _check_written(schema)
    _check_partitions(schema, spec.output.partition_by)
    return schema


def _check_written(schema: pa.Schema) -> None:
    """Parquet takes no empty structs, intervals and unions: asked here, not after hours."""
    for field in schema:
        try:
            pq.write_table(pa.schema([field]).empty_table(), io.BytesIO())
        except pa.ArrowException as error:
            message = f"the column {field.name!r} is {field.type}, which Parquet cannot hold: {reason(error)}"
            raise SourceError(message, "leave it out of source.keep, or convert it in the source") from None


def _check_partitions(schema: pa.Schema, keys: list[str]) -> None:
    """Only values with one exact and readable way to be written make a directory's name."""
    for key in keys:
        kind = schema.field(key).type
        exact = pt.is_string, pt.is_large_string, pt.is_integer, pt.is_boolean, pt.is_temporal, pt.is_decimal
        if not any(check(kind) for check in exact):
            hint = "partition by strings, whole numbers, booleans or dates"
            raise SourceError(f"output.partition_by names {key!r}, which is {kind}", hint)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def make_plan(prepared: Prepared, replicas: int) -> Plan:
    """Cut the corpus into shards."""
    spec, source = prepared.spec, prepared.source
    rows = most_rows(prepared)
    text = SHARD_BYTES * TOKEN_BYTES // (TOKEN_BYTES + prepared.task.token_bytes)
    shards = source.shards(spec.source.rows_per_shard, rows, text)
    enough = enough_rows(prepared, sum(shard.rows for shard in shards), replicas)
    if spec.source.rows_per_shard is None and enough < rows:
        shards = source.shards(None, enough, text)
    return Plan(prepared.fingerprint, source.files, tuple(shards), prepared.schema)


def find_repeats(prepared: Prepared, plan: Plan) -> tuple[Plan, pa.Table]:
    """The plan, and the rows whose id is there before them; SourceError where the job does not allow any."""
    found = prepared.source.find_repeats(plan.shards)
    return replace(plan, repeats=len(found)), found


def most_rows(prepared: Prepared) -> int:
    """The most rows that a shard may have."""
    most = SERVED_ROWS if isinstance(prepared.model, Server) else SHARD_ROWS
    return max(1, min(most // max(prepared.task.pieces_per_doc, 1), RESULT_BYTES // _row_bytes(prepared.schema)))


def enough_rows(prepared: Prepared, total: int, replicas: int) -> int:
    """The rows of a shard of which every replica gets some, where there are so many in all."""
    return max(-(-total // (replicas * SHARDS_A_REPLICA)), min(MIN_ROWS, most_rows(prepared)))


def _row_bytes(schema: pa.Schema) -> int:
    """Bytes of the fixed-size results of a row."""
    return 64 + sum(int(f.type.list_size) * 4 for f in schema if pa.types.is_fixed_size_list(f.type))
