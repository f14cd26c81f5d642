"""A job's model, asked in this process about documents in memory."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from batchnlp import registry
from batchnlp.backends import device as devices
from batchnlp.engine.planner import find_model
from batchnlp.job.spec import JobSpec
from batchnlp.tasks.base import Task, answers
from batchnlp.types import Docs, Failure, ModelFiles


def answer(
    spec: JobSpec, files: ModelFiles, worker: Task, docs: Docs, failures: Sequence[Failure] = ()
) -> tuple[pa.Table, dict[int, str]]:
    """(the task's columns and the counts, one row a document, null where there is no result; why there is none, by row)."""
    hardware = devices.probe_hardware()
    resolved = devices.resolve(spec.engine, files, hardware, worker.needs)
    backend = registry.backend(files, resolved, worker, hardware.cpus)
    worker.prepare(backend.forward)
    encoded = worker.encode(docs)
    raw = backend.forward(encoded.pieces)
    while (more := worker.again(encoded, raw)) is not None:
        encoded, raw = more, backend.forward(more.pieces)
    found, failed = answers(worker, encoded, raw, failures)
    reasons = {failure.doc: f"{failure.code}: {failure.message}" for failure in reversed(failed)}
    return found.take(pa.array([doc if doc not in reasons else None for doc in range(len(docs))], pa.int64())), reasons


def labels_of(spec: JobSpec, texts: Sequence[str]) -> pa.Table:
    """What a classifying job answers about some texts, with the scores of all its labels."""
    asked = spec.model_copy(update={"task": spec.task.model_copy(update={"scores": True})})
    files = find_model(asked)
    worker: Task = registry.task(files, asked.task)
    return answer(asked, files, worker, Docs.of(pa.array(texts, pa.large_string())))[0]
