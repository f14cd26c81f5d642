"""batchnlp itself: a whole run, inline, Parquet in to Parquet out. Start-up aside, from the first lease to the last commit,
unless the process is a fresh one; then all of it counts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from harness.contender import Facts, Settings, serve

import batchnlp


class Ours:
    """One run a round, into a directory that is removed."""

    def __init__(self, setup: Facts) -> None:
        self._setup = setup

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """`settings` are keys of the engine section."""
        work, out = self._setup["work"], Path(tempfile.mkdtemp(prefix="bench-"))
        job = {
            "source": {"path": work["sample" if sample else "corpus"], "id": "package"},
            "task": work["task"], "output": {"path": str(out)}, "limits": {"max_failed": "100%"},
            "engine": {"runner": "inline", "dtype": self._setup["dtype"], **settings},
        }  # fmt: skip
        try:
            result = batchnlp.run(job)
        finally:
            shutil.rmtree(out)
        facts: Facts = {
            "units": result.rows, "dead": result.dead, "padding": result.padding, "device_busy": result.device_busy,
            "executed_over_real": 1 / (1 - result.padding), "backend": result.resolved["backend"],
            "tokens_per_batch": result.resolved["tokens_per_batch"], "start_seconds": result.seconds["start"],
        }  # fmt: skip
        if not self._setup["fresh"]:
            facts["seconds"] = result.rows / result.docs_per_second
        return facts


if __name__ == "__main__":
    serve(Ours)
