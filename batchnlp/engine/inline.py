"""Run the worker in this process: for debugging, notebooks, and machines without Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from batchnlp.engine.leases import LeaseQueue
from batchnlp.engine.worker import Worker, WorkerSetup
from batchnlp.types import Part, Shard


class InlineRunner:
    """One worker, its stages in threads of this process."""

    def __init__(self, setup: WorkerSetup, shards: Sequence[Shard], replicas: int, address: str | None) -> None:
        self._leases = LeaseQueue(shards)
        self._lock = threading.Lock()
        self._worker = Worker(setup)
        self._parts: Iterator[Part | None] = self._worker.run(self._lease)

    def ready(self, timeout: float) -> bool:
        """The model is loaded when this is constructed."""
        return True

    def note(self) -> str:
        """Nothing keeps it from working."""
        return ""

    def wait(self, timeout: float) -> list[Part]:
        """Parts that got done, at most `timeout` seconds from now."""
        part = next(self._parts, None)
        return [part] if part is not None else []

    def progress(self, timeout: float = 0.0) -> dict[str, float]:
        """The worker's counters."""
        return self._worker.meter.snapshot()

    def stop(self) -> None:
        """Begin no more shards."""
        self._worker.stopping.set()

    def idle(self) -> bool:
        """Whether the worker has ended; only after `stop` or when all is done."""
        return getattr(self._parts, "gi_frame", None) is None

    def close(self) -> None:
        """End at once."""
        self._worker.aborting.set()
        close = getattr(self._parts, "close", None)
        if close is not None:
            close()

    def _lease(self) -> Shard | None:
        with self._lock:
            return self._leases.lease("inline")
