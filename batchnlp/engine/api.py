"""The Python door: whole jobs, and single tables for notebooks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from batchnlp import registry
from batchnlp.data.sources.columns import TURNS, is_turns
from batchnlp.engine.computing import Listener, RunResult
from batchnlp.engine.driver import run_job
from batchnlp.engine.memory import answer
from batchnlp.engine.planner import find_model
from batchnlp.errors import SourceError
from batchnlp.job.load import build_spec, load_spec
from batchnlp.job.spec import JobSpec
from batchnlp.tasks.base import COUNT_FIELDS, Task
from batchnlp.types import Docs, Failure
from batchnlp.words import nearest

Job = JobSpec | Mapping[str, Any] | str | os.PathLike[str]


def as_spec(job: Job) -> JobSpec:
    """A job from a spec, a nested mapping, or the path of a YAML file."""
    if isinstance(job, JobSpec):
        return job
    return build_spec(job) if isinstance(job, Mapping) else load_spec(job)


def run(job: Job, listen: Listener = lambda progress: None) -> RunResult:
    """Run a job, or resume it. `status` is done, failed (over limits.max_failed, or below a gate) or stopped (by a
    signal), and `exit_code` that of the command; errors are raised (see `batchnlp.errors`)."""
    return run_job(as_spec(job), listen)


def apply(
    kind: str, data: Sequence[str | None] | pa.Table | pa.Array, *, model: str, text_column: str = "text",
    engine: Mapping[str, Any] | None = None, **task: Any,
) -> pa.Table:  # fmt: skip
    """Apply a task to texts in memory, in this process: one row for each text, in order.

    A text without a result has nulls and the reason in the column `error`. A table keeps its columns. `task` takes the
    keys of the spec's task section (`labels`, `on_long`, ...), `engine` those of the engine section.
    """
    texts, failures = _texts(data, text_column, kind == "chat")
    sections = {"task": {"kind": kind, "model": model, **task}, "engine": {"runner": "inline", **(engine or {})}}
    flags = {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
    spec = build_spec({"source": {"path": "memory"}, "output": {"path": "memory"}}, flags=flags)
    files = find_model(spec)
    worker: Task = registry.task(files, spec.task)
    result = _beside(texts, data if isinstance(data, pa.Table) else None, worker)
    worker.check(result.schema)
    found, reasons = answer(spec, files, worker, Docs.of(texts, result), failures)
    errors = [reasons.get(doc) for doc in range(len(texts))]
    for field, column in zip(found.schema, found.columns, strict=True):
        result = result.append_column(field, column)
    return result.append_column("error", pa.array(errors, pa.string()))


def _beside(texts: pa.Array, table: pa.Table | None, task: Task) -> pa.Table:
    """What the results are put beside, with all the columns that the task reads and none of those it writes."""
    written = ["error", *(field.name for field in (*task.fields, *COUNT_FIELDS))]
    beside = table if table is not None else pa.table({"document" if "text" in written else "text": texts})
    for name in task.columns:
        _check_column(name, beside.column_names)
    if double := [name for name in written if name in beside.column_names]:
        raise SourceError(f"the table's column {double[0]!r} has the name of a result column", "rename it")
    return beside


def _check_column(name: str, there: Sequence[str]) -> None:
    if name not in there:
        near = nearest(name, there)
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(there)}"
        raise SourceError(f"the table has no column {name!r}", hint)


def _texts(data: Any, column: str, turns: bool) -> tuple[pa.Array, list[Failure]]:
    if isinstance(data, pa.Table):
        _check_column(column, data.column_names)
        data = data[column]
    if isinstance(data, pa.Array | pa.ChunkedArray):
        data = data if turns and is_turns(data.type) else data.cast(pa.large_string())
        return (data.combine_chunks() if isinstance(data, pa.ChunkedArray) else data), []
    if isinstance(data, str):
        raise SourceError("texts is one string", "pass a list of texts")
    values, failures = list(data), []
    if turns and any(isinstance(value, list) for value in values):
        return pa.array(values, TURNS), []
    for i, value in enumerate(values):
        problem = _problem(value)
        if problem:
            failures.append(Failure(i, "read", *problem))
            values[i] = None
    return pa.array(values, pa.large_string()), failures


def _problem(value: Any) -> tuple[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return "not_text", f"the value is of the type {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "invalid_unicode", "the text has a lone surrogate"
    return None
