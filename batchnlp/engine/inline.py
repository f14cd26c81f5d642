"""Run the worker in this process: for debugging, notebooks, and machines without Ray.

Nobody is there who could end a document that hangs, or go on after one that ends the process. So every shard is noted on
disk before it begins; what was not done when the process ended is suspected by the next one, which isolates it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from batchnlp.data.store import CONTROL, open_store
from batchnlp.engine.deadlines import Watch
from batchnlp.engine.leases import LeaseQueue
from batchnlp.engine.suspects import HUNG, Suspect, known
from batchnlp.engine.worker import Worker, WorkerSetup
from batchnlp.errors import WorkerLostError
from batchnlp.types import Part, Shard

ME = "inline"


class InlineRunner:
    """One worker, its stages in threads of this process."""

    replicas = 1

    def __init__(self, setup: WorkerSetup, shards: Sequence[Shard], replicas: int, address: str | None) -> None:
        self._plan, self._store = setup.plan, open_store(setup.spec.output.path)
        self._leases = LeaseQueue(shards, known(self._store, self._control, self._plan.generation))
        self._lock = threading.Lock()
        self._noted: set[int] = set()  # shards that are under way among others
        self._lost = False
        self._worker = Worker(setup)
        self._watch = Watch(setup.batch_seconds)
        self._limit = setup.spec.limits.shard_seconds
        self._parts: Iterator[Part | None] = self._worker.run(self._lease, self._suspect)

    def ready(self, timeout: float) -> bool:
        """The model is loaded when this is constructed."""
        return True

    def note(self) -> str:
        """Nothing keeps it from working."""
        return ""

    def wait(self, timeout: float) -> list[Part]:
        """Parts that got done, at most `timeout` seconds from now; WorkerLostError where it does not move any more."""
        try:
            part = next(self._parts, None)
        except WorkerLostError:
            self._lost = True
            raise
        if part is None:
            self._look()
            return []
        with self._lock:
            self._leases.done(ME, part.shard)
        if part.shard in self._noted:
            self._noted.discard(part.shard)
            self._case(part.shard).close()
        return [part]

    def progress(self, timeout: float = 0.0) -> dict[str, float]:
        """The worker's counters."""
        return self._worker.meter.snapshot()

    def events(self) -> list[str]:
        """There is one worker, and it does not come and go."""
        return []

    def summary(self) -> list[str]:
        """The same."""
        return []

    def stop(self) -> None:
        """Begin no more shards."""
        self._worker.stopping.set()

    def idle(self) -> bool:
        """Whether the worker has ended; only after `stop` or when all is done."""
        return getattr(self._parts, "gi_frame", None) is None

    def close(self) -> None:
        """End at once; what was under way in good order is not suspected."""
        self._worker.aborting.set()
        close = getattr(self._parts, "close", None)
        if close is not None:
            close()
        if not self._lost:
            for shard in self._noted:
                self._case(shard).close()

    def _lease(self) -> Shard | None:
        with self._lock:
            shard = self._leases.lease(ME)
        if shard is not None:
            self._noted.add(shard.index)
            self._case(shard.index).note()
        return shard

    def _suspect(self) -> tuple[Shard, str] | None:
        with self._lock:
            return self._leases.suspect(ME)

    @property
    def _control(self) -> str:
        return f"{CONTROL}/{self._plan.fingerprint}"

    def _case(self, shard: int) -> Suspect:
        return Suspect(self._store, self._control, shard, self._plan.generation)

    def _look(self) -> None:
        """Leave where nothing moves: a thread cannot be ended."""
        meter = self._worker.meter
        seconds = self._watch.waited(meter.steps, meter.slowest)
        with self._lock:
            held = self._leases.held(ME)
            late = self._leases.stuck(None if self._limit == "auto" else self._limit)
        if not held or not (seconds or late):
            return
        for shard in held:
            self._case(shard).note(HUNG)
        self._lost = self._worker.stuck = True
        what = f"nothing has moved for {seconds:.0f} s" if seconds else "limits.shard_seconds has passed"
        hint = "the same command looks for the document that does it; with engine.runner=ray that goes by itself"
        raise WorkerLostError(f"{what}, with shard {', '.join(map(str, held))} under way", hint)
