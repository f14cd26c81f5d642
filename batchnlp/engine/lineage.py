"""OpenLineage events: that a run began, and how it ended, with what it read and wrote.

Where they go is the environment's business, as with other programs that send them: OPENLINEAGE_URL, OPENLINEAGE_API_KEY,
OPENLINEAGE_CONFIG, OPENLINEAGE_NAMESPACE, OPENLINEAGE_DISABLED.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from batchnlp import __version__
from batchnlp.errors import MissingExtraError
from batchnlp.job.identity import job_name
from batchnlp.job.sinks import SinkSpec
from batchnlp.job.spec import JobSpec

TIMEOUT = 15.0  # seconds for an event
PRODUCER = f"urn:batchnlp:{__version__}"
STATES = {"success": "COMPLETE", "threshold": "FAIL", "failure": "FAIL"}


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment says where events go."""
    places = [
        name
        for name in environ
        if name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG") or "OPENLINEAGE__TRANSPORT" in name
    ]
    return bool(places) and environ.get("OPENLINEAGE_DISABLED", "").lower() not in ("1", "true")


class Events:
    """The events of one invocation."""

    def __init__(self, spec: JobSpec) -> None:
        self._spec, self._run = spec, str(uuid.uuid4())
        self._client: Any = None

    def start(self) -> None:
        """The run begins. MissingExtraError without the library."""
        try:
            from openlineage.client import OpenLineageClient
        except ImportError:
            raise MissingExtraError.of("openlineage-python", "openlineage") from None
        self._client = OpenLineageClient()
        self._emit("START", {}, {})

    def end(self, results: dict[str, Any]) -> None:
        """The run has ended."""
        if self._client is None:
            return  # which has been said at the start
        from openlineage.client.facet_v2 import error_message_run, output_statistics_output_dataset

        state = "ABORT" if results["status"] == "stopped" else STATES[results["event"]]
        error = error_message_run.ErrorMessageRunFacet(message=results["message"], programmingLanguage="python")
        rows = results.get("rows", 0) - results.get("dead", 0) - results.get("reused", 0)
        counted = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=rows)
        self._emit(state, {} if state == "COMPLETE" else {"errorMessage": error}, {"outputStatistics": counted})
        self._client.close()

    def _emit(self, state: str, run_facets: dict[str, Any], output_facets: dict[str, Any]) -> None:
        from openlineage.client import event_v2
        from openlineage.client.facet_v2 import processing_engine_run

        engine = processing_engine_run.ProcessingEngineRunFacet(version=__version__, name="batchnlp")
        spec = self._spec
        self._client.emit(
            event_v2.RunEvent(
                eventTime=datetime.now(UTC).isoformat(),
                producer=PRODUCER,
                eventType=event_v2.RunState(state),
                run=event_v2.Run(self._run, {"processing_engine": engine, **run_facets}),
                job=event_v2.Job(os.environ.get("OPENLINEAGE_NAMESPACE", "batchnlp"), job_name(spec)),
                inputs=[event_v2.InputDataset(*place(path)) for path in spec.source.path],
                outputs=[event_v2.OutputDataset(*place, outputFacets=output_facets) for place in outputs(spec)],
            )
        )


def outputs(spec: JobSpec) -> list[tuple[str, str]]:
    """The directory of results, and the tables of the sinks."""
    return [place(spec.output.path), *(_table(sink) for sink in spec.sinks)]


def _table(sink: SinkSpec) -> tuple[str, str]:
    if sink.kind == "postgres":  # whose names OpenLineage fixes
        parts = urlsplit(sink.database)
        schema, _, table = sink.table.rpartition(".")
        name = f"{parts.path.strip('/')}.{schema or 'public'}.{table}"
        return f"postgres://{parts.hostname or 'localhost'}:{parts.port or 5432}", name
    namespace, name = place(sink.database)
    return namespace, f"{name}/{sink.table}"


def place(path: str) -> tuple[str, str]:
    """Namespace and name of files, as OpenLineage names them."""
    parts = urlsplit(path)
    if "://" not in path:
        return "file", os.path.abspath(path)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", parts.path.strip("/") or "/"
