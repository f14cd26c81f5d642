"""Run the worker in Ray actors, one a replica. The only module that imports ray.

A queue actor leases shards; replicas pull from it and stream their parts back; this process, the driver, is told when
one dies. Then its leases return to the queue and a fresh actor takes its place (a restarted one may stay unreachable).
Results never travel through Ray: workers write files, and a Part is a few hundred bytes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
if "ray" not in sys.modules:  # it reads this when it is imported; set later, its processes would not know each other
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError, TaskCancelledError

from batchnlp.engine.leases import LeaseQueue
from batchnlp.engine.worker import Worker, WorkerSetup
from batchnlp.errors import UsageError, WorkerLostError
from batchnlp.types import Part, Shard

LOST = (ActorDiedError, ActorUnavailableError, RayActorError, TaskCancelledError)
OBJECT_STORE = 128 << 20  # bytes; only Parts pass through it


class Replica:
    """One worker in a process of its own."""

    def __init__(self, setup: WorkerSetup, name: str) -> None:
        self._setup, self._name = setup, name
        self._worker: Worker | None = None
        self._loading = threading.Lock()

    def load(self) -> Worker:
        """The worker, with its model. Loaded here and not in __init__, so that errors arrive whole."""
        with self._loading:
            if self._worker is None:
                self._worker = Worker(self._setup)
            return self._worker

    def ready(self) -> None:
        """Answers when the model is loaded."""
        self.load()

    def work(self, leases: Any) -> Iterator[Part]:
        """Parts until the queue is empty."""
        for part in self.load().run(lambda: ray.get(leases.lease.remote(self._name))):
            if part is not None:
                yield part

    def progress(self) -> dict[str, float]:
        """The worker's counters."""
        return self._worker.meter.snapshot() if self._worker is not None else {}

    def stop(self) -> None:
        """Begin no more shards."""
        if self._worker is not None:
            self._worker.stopping.set()

    def pid(self) -> int:
        """The process, for those who want to kill it."""
        return os.getpid()


@dataclass(slots=True)
class _Running:
    """A replica and the stream of its parts; the stream is None when it has run dry."""

    name: str
    actor: Any
    stream: Any
    progress: dict[str, float]
    asked: Any = None  # the answer to `progress` that is under way


class RayRunner:
    """Replicas on a local or an existing cluster."""

    def __init__(self, setup: WorkerSetup, shards: Sequence[Shard], replicas: int, address: str | None) -> None:
        self._setup, self._count = setup, 0
        self._mine = not ray.is_initialized()
        if self._mine:
            start_ray(address)
        self._lost: dict[str, float] = {}  # counters of replicas that are gone
        self._losses_in_a_row = 0
        self._leases = ray.remote(LeaseQueue).options(num_cpus=0).remote(list(shards))
        self._running = [self._launch() for _ in range(min(replicas, max(len(shards), 1)))]
        # Start-up ends when the first replica is ready; one that fails or dies tells so through its stream.
        ray.wait([replica.actor.ready.remote() for replica in self._running], num_returns=1)

    def wait(self, timeout: float) -> list[Part]:
        """Parts that got done; lost replicas are replaced on the way."""
        streams = {r.stream: r for r in self._running if r.stream is not None}
        if not streams:
            time.sleep(timeout)
            return self._revive()
        ready, _ = ray.wait(list(streams), num_returns=1, timeout=timeout)
        return [part for stream in ready for part in self._next(streams[stream])]

    def progress(self) -> dict[str, float]:
        """The counters of all replicas, added up; those of a busy replica may be a moment old."""
        total = dict(self._lost)
        for replica in self._running:
            self._ask(replica)
            for key, value in replica.progress.items():
                total[key] = total.get(key, 0) + value
        return total

    def stop(self) -> None:
        """Begin no more shards."""
        self._leases.close.remote()
        for replica in self._running:
            replica.actor.stop.remote()

    def idle(self) -> bool:
        """Whether all replicas have run dry."""
        return all(replica.stream is None for replica in self._running)

    def close(self) -> None:
        """End all replicas, and Ray too if it was started here."""
        for replica in self._running:
            ray.kill(replica.actor)
        ray.kill(self._leases)
        if self._mine:
            ray.shutdown()

    def _launch(self) -> _Running:
        name = f"replica-{self._count}"
        self._count += 1
        gpu = self._setup.resolved.device.startswith("cuda")
        cpus = min(self._setup.threads, 1) if gpu else self._setup.threads
        options = {"num_cpus": cpus, "num_gpus": 1 if gpu else 0, "max_restarts": 0, "max_concurrency": 3}
        actor = ray.remote(Replica).options(**options).remote(self._setup, name)
        return _Running(name, actor, self._work(actor), {})

    def _work(self, actor: Any) -> Any:
        return actor.work.options(num_returns="streaming").remote(self._leases)

    def _next(self, replica: _Running) -> list[Part]:
        try:
            part: Part = ray.get(next(replica.stream))
        except StopIteration:
            replica.stream = None
            return self._revive()
        except LOST as error:
            self._replace(replica, error)
            return []
        except RayTaskError as error:
            raise _cause(error) from None
        self._losses_in_a_row = 0
        self._leases.done.remote(replica.name, part.shard)
        return [part]

    def _revive(self) -> list[Part]:
        """Leases that came back after a replica had run dry are work for it."""
        if self.idle() and ray.get(self._leases.waiting.remote()):
            for replica in self._running:
                replica.stream = self._work(replica.actor)
        return []

    def _replace(self, replica: _Running, error: Exception) -> None:
        hopeless = ray.get(self._leases.release.remote(replica.name))
        self._losses_in_a_row += 1
        if hopeless or self._losses_in_a_row > 3 + len(self._running):
            what = (
                f"shard {hopeless[0]} took three replicas with it" if hopeless else "replicas die one after the other"
            )
            reason = " ".join(str(error).split())[:300]
            raise WorkerLostError(f"{what}: {reason}", "out of memory? fewer replicas or rows_per_shard may help")
        for key, value in replica.progress.items():
            self._lost[key] = self._lost.get(key, 0) + value
        self._running[self._running.index(replica)] = self._launch()
        ray.kill(replica.actor)

    def _ask(self, replica: _Running) -> None:
        """Take the last answer if it has come, and ask anew; never wait, because a replica may be loading or dead."""
        if replica.asked is None:
            replica.asked = replica.actor.progress.remote()
        if ray.wait([replica.asked], timeout=0)[0]:
            try:
                replica.progress = ray.get(replica.asked)
            except LOST:
                return  # its stream will say so
            finally:
                replica.asked = None


def start_ray(address: str | None) -> None:
    """Join the cluster at `address`, or start one on this machine, for this process only, with token authentication."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"no Ray cluster at {address}: {reason}", "check engine.address; ray status helps"
            ) from None
        return
    ray.init(include_dashboard=False, object_store_memory=OBJECT_STORE, _node_ip_address="127.0.0.1", **quiet)


def _cause(error: RayTaskError) -> BaseException:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error
