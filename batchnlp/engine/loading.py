"""Give a job's warehouses what they lack, once its results stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from batchnlp.engine.computing import RunResult
from batchnlp.engine.signals import Interrupt
from batchnlp.errors import BatchnlpError, StoppedError
from batchnlp.job.sinks import SinkSpec
from batchnlp.sinks.load import load


def load_all(result: RunResult, sinks: Sequence[SinkSpec], interrupt: Interrupt) -> RunResult:
    """A result that is done, with what became of each load; one that is under way is finished before a signal counts."""
    interrupt.defer()
    loads = [_load(result.output, sink, interrupt) for sink in sinks]
    if all(one["status"] != "failed" for one in loads):
        return replace(result, sinks=loads)
    code = interrupt.exit_code if interrupt.signal else StoppedError.exit_code
    message = "the same command loads what is missing, and computes nothing again"
    return replace(result, sinks=loads, status="stopped", exit_code=code, message=message)


def _load(root: str, sink: SinkSpec, interrupt: Interrupt) -> dict[str, Any]:
    """One that fails does not keep the others from getting theirs."""
    about = {"kind": sink.kind, "table": sink.table}
    if interrupt.signal:
        return {**about, "status": "failed", "message": "stopped before it began"}
    try:
        loaded = load(root, sink)
    except BatchnlpError as error:
        return {**about, "status": "failed", "message": str(error)}
    return {**asdict(loaded), "status": "loaded" if loaded.runs else "held"}
