"""The warehouses of a job get its results: after the run, and each for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from batchnlp.engine.signals import Interrupt
from batchnlp.errors import BatchnlpError, StoppedError
from batchnlp.job.sinks import SinkSpec
from batchnlp.sinks.load import load


def load_all(root: str, sinks: Sequence[SinkSpec], interrupt: Interrupt) -> list[dict[str, Any]]:
    """Give the warehouses the results; a load that is under way is finished before a signal counts."""
    return [_load(root, sink, interrupt) for sink in sinks]


def unloaded(sinks: Sequence[dict[str, Any]], interrupt: Interrupt) -> dict[str, Any]:
    """How a run ends that is done but for its warehouses."""
    if all(sink["status"] != "failed" for sink in sinks):
        return {}
    code = interrupt.exit_code if interrupt.signal else StoppedError.exit_code
    message = "the same command loads what is missing, and computes nothing again"
    return {"status": "stopped", "exit_code": code, "message": message}


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
