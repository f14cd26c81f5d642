"""How runs ended, as Prometheus reads it: one file a job for node_exporter's textfile collector.

What to watch is `time() - batchnlp_last_success_timestamp_seconds`, which also grows when nothing runs at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from batchnlp.data.store import LocalStore

SUCCESS = "batchnlp_last_success_timestamp_seconds"
# metric, key of the results, help
METRICS = (
    (
        "batchnlp_run_exit_code",
        "exit_code",
        "How the last run ended: 0 done, 1 over the limit of dead letters or below a gate, else broken.",
    ),
    ("batchnlp_run_rows", "rows", "Rows of the last run, of all its invocations."),
    ("batchnlp_run_dead_letters", "dead", "Rows of the last run that have no result."),
    ("batchnlp_run_docs_per_second", "docs_per_second", "Documents a second in the last invocation."),
    ("batchnlp_run_tokens_per_second", "tokens_per_second", "Real tokens a second in the last invocation."),
    (
        "batchnlp_run_device_busy_ratio",
        "device_busy",
        "Share of the time that the device computed in the last invocation.",
    ),
)


def write(folder: str, results: dict[str, Any]) -> None:
    """The file of the results' job, in the place of the old one; of that only the last success is kept."""
    os.makedirs(folder, exist_ok=True)
    store, name = LocalStore(folder), f"batchnlp-{results['job']}.prom"
    before = (store.read(name) or b"").decode(errors="replace")
    store.replace(name, "".join(_lines(results, before)).encode())


def _lines(results: dict[str, Any], before: str) -> Iterator[str]:
    labels = (
        f'{{name="{results["job"]}"}}'  # a job's name has no characters to be escaped; `job` is Prometheus' own label
    )
    for metric, key, text in METRICS:
        if key in results:
            yield _gauge(metric, labels, results[key], text)
    began, ended = (datetime.fromisoformat(results[key]) for key in ("began", "ended"))
    yield _gauge("batchnlp_run_seconds", labels, (ended - began).total_seconds(), "Length of the last invocation.")
    yield _gauge("batchnlp_last_end_timestamp_seconds", labels, ended.timestamp(), "When the last run ended.")
    success = ended.timestamp() if results["event"] == "success" else _kept(before)
    if success:
        yield _gauge(SUCCESS, labels, success, "When a run last ended well.")


def _gauge(metric: str, labels: str, value: float, text: str) -> str:
    return f"# HELP {metric} {text}\n# TYPE {metric} gauge\n{metric}{labels} {value}\n"


def _kept(before: str) -> float:
    found = re.search(rf"^{SUCCESS}{{.*}} ([0-9.]+)$", before, re.MULTILINE)
    return float(found[1]) if found else 0.0
