"""Run the worker in Ray actors, one a replica. With `ray_cluster`, the only module that imports ray.

A queue actor leases shards; replicas pull from it and stream their parts back; this process, the driver, is told when
one dies, and ends one that does not move any more. Then its leases return to the queue and a fresh actor takes its place (a
restarted one may stay unreachable). Results never travel through Ray: workers write files, and a Part is a few hundred
bytes.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
if "ray" not in sys.modules:  # it reads this when it is imported; set later, its processes would not know each other
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
import ray._private.utils
import ray._private.worker
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchnlp import failpoints
from batchnlp.backends.device import probe_hardware
from batchnlp.data.store import CONTROL, open_store
from batchnlp.engine.deadlines import Watch
from batchnlp.engine.leases import LeaseQueue
from batchnlp.engine.losses import AGAIN, Losses
from batchnlp.engine.ray_cluster import LiveMetrics, has_room, no_room, nodes, sizes
from batchnlp.engine.signals import keep_signals
from batchnlp.engine.suspects import HUNG, LOST, known
from batchnlp.engine.worker import Worker, WorkerSetup
from batchnlp.errors import BatchnlpError, UsageError, WorkerLostError
from batchnlp.job.identity import job_name
from batchnlp.types import Part, Shard, many

GONE = (RayActorError, OutOfMemoryError, TaskCancelledError)
OBJECT_STORE = 128 << 20  # bytes; only Parts pass through it
KNOCK_SECONDS = 10.0  # for the first sign of life of a cluster
ROOM_SECONDS = 600.0  # that a cluster may take to bring a node with room for a replica; an autoscaler needs minutes
LOOK_SECONDS = 1.0  # between two looks at the replicas


class Replica:
    """One worker in a process of its own."""

    def __init__(self, setup: WorkerSetup, name: str) -> None:
        self._setup, self._name = setup, name
        self._worker: Worker | None = None

    def work(self, leases: Any) -> Iterator[Part | None]:
        """None when the model is loaded, which is not done in __init__ so that errors arrive whole; then parts until the
        queue is empty."""
        if self._worker is None:
            self._worker = Worker(self._setup)
        yield None
        name = self._name
        parts = self._worker.run(
            lambda: ray.get(leases.lease.remote(name)), lambda: ray.get(leases.suspect.remote(name))
        )
        for part in parts:
            if part is not None:
                yield part
                failpoints.reach("handed")

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
    watch: Watch
    placed: bool = False  # it has answered; before, it may wait for room
    loaded: bool = False
    proven: bool = False  # a part has come from it
    asked: Any = None  # the answer to `progress` that is under way


class RayRunner:
    """Replicas on a local or an existing cluster."""

    def __init__(self, setup: WorkerSetup, shards: Sequence[Shard], replicas: int, address: str | None) -> None:
        self._setup, self._count = setup, 0
        self._gpu = setup.resolved.device.startswith("cuda")
        self._cpus = min(setup.threads, 1) if self._gpu else setup.threads  # of a replica
        self._mine = not ray.is_initialized()
        self._most = max(len(shards), 1)
        try:
            if self._mine:
                start_ray(address, min(replicas, self._most) * self._cpus, probe_hardware().gpus if self._gpu else 0)
            self._roomless = not has_room(self._cpus, int(self._gpu))
        except BaseException:
            self._leave()
            raise
        self._grows = bool(address) and setup.spec.engine.replicas == "auto" and setup.resolved.device != "server"
        self._asked = max(self._room(), 1) if self._grows else replicas
        self._stopping = False
        self._room_until = time.monotonic() + ROOM_SECONDS
        self._losses, self._looked = Losses(), 0.0
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        store, control = open_store(setup.spec.output.path), f"{CONTROL}/{setup.plan.fingerprint}"
        suspects = known(store, control, setup.plan.generation)
        twice = setup.resolved.device != "server"  # where it would be paid for twice
        options = {"num_cpus": 0, "scheduling_strategy": here}
        self._leases = ray.remote(LeaseQueue).options(**options).remote(list(shards), suspects, twice=twice)
        self.replicas = min(self._asked, self._most)
        self._losses.events += self._lacking()
        self._running = [self._launch() for _ in range(self.replicas)]
        self._metrics = LiveMetrics(job_name(setup.spec))

    def ready(self, timeout: float) -> bool:
        """Whether a replica has loaded its model, or has failed and tells so in `wait`; those without room wait on.

        UsageError where no node can hold a replica and none comes, for which Ray itself would wait without end.
        """
        if self._roomless:
            self._roomless = not has_room(self._cpus, int(self._gpu))
            if self._roomless and time.monotonic() > self._room_until:
                raise no_room(ROOM_SECONDS, self._cpus, int(self._gpu))
        self._look()
        return bool(ray.wait([replica.stream for replica in self._running], num_returns=1, timeout=timeout)[0])

    def note(self) -> str:
        """That it waits for a node, as it does where a cluster may grow by itself."""
        return f"waiting for a node with {sizes(self._cpus, int(self._gpu))}" if self._roomless else ""

    def wait(self, timeout: float) -> list[Part]:
        """Parts that got done; lost replicas are replaced on the way."""
        self._look()
        streams = {r.stream: r for r in self._running if r.stream is not None}
        if not streams:
            time.sleep(timeout)
            return []
        ready, _ = ray.wait(list(streams), num_returns=1, timeout=timeout)
        if ready:  # and others with it: they are committed together
            ready, _ = ray.wait(list(streams), num_returns=len(streams), timeout=0)
        return [part for stream in ready for part in self._next(streams[stream])]

    def progress(self, timeout: float = 0.0) -> dict[str, float]:
        """The counters of all replicas, added up; without a `timeout` those of a busy replica may be a moment old."""
        if timeout:
            self._ask_anew(timeout)
        total = dict(self._losses.done)
        for replica in self._running:
            self._ask(replica)
            for key, value in replica.progress.items():
                total[key] = total.get(key, 0) + value
        self._metrics.tell(total, sum(r.loaded and r.stream is not None for r in self._running))
        return total

    def events(self) -> list[str]:
        """Replicas that were lost, ended, or came in mid-run."""
        events, self._losses.events = self._losses.events, []
        return events

    def summary(self) -> list[str]:
        """How many replicas did not end well, and how many found no room."""
        return [*self._losses.summary(), *self._lacking()]

    def _lacking(self) -> list[str]:
        room, want = self._room(), min(self._asked, self._most)
        return [f"there is room for {room} of {many(want, 'replica')}"] if room < want else []

    def stop(self) -> None:
        """Begin no more shards; there is nothing to wait for in a replica that has not begun."""
        self._stopping = True
        self._leases.close.remote()
        for replica in self._running:
            if replica.loaded:
                replica.actor.stop.remote()
            else:
                replica.stream = None
                ray.kill(replica.actor)

    def idle(self) -> bool:
        """Whether all replicas have run dry."""
        return all(replica.stream is None for replica in self._running)

    def close(self) -> None:
        """End all replicas, and Ray too if it was started here."""
        try:
            for actor in (*(replica.actor for replica in self._running), self._leases):
                with suppress(RayError):  # it is gone, or Ray is
                    ray.kill(actor)
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._mine:
            ray.shutdown()

    def _launch(self) -> _Running:
        name = f"replica-{self._count}"
        self._count += 1
        options = {"num_cpus": self._cpus, "num_gpus": int(self._gpu), "max_restarts": 0, "max_concurrency": 3}
        actor = ray.remote(Replica).options(**options).remote(self._setup, name)
        return _Running(name, actor, self._work(actor), {}, Watch(self._setup.batch_seconds))

    def _work(self, actor: Any) -> Any:
        return actor.work.options(num_returns="streaming").remote(self._leases)

    def _queue(self, method: str, *args: Any) -> Any:
        """What the queue answers, which is in a process of its own."""
        try:
            return ray.get(getattr(self._leases, method).remote(*args))
        except GONE as error:
            raise WorkerLostError(f"the queue of shards is lost: {_one_line(error)}", AGAIN) from None

    def _next(self, replica: _Running) -> list[Part]:
        try:
            part: Part | None = ray.get(next(replica.stream))
        except StopIteration:
            replica.stream = None
            return []
        except GONE as error:
            self._replace(replica, "lost", _one_line(error))
            return []
        except RayTaskError as error:
            cause = _cause(error)
            if isinstance(cause, GONE):  # what it asked, and that was the queue
                raise WorkerLostError(f"the queue of shards is lost: {_one_line(cause)}", AGAIN) from None
            if not isinstance(cause, WorkerLostError):
                raise cause from None
            self._replace(replica, "lost", _one_line(cause))
            return []
        if not replica.loaded:
            replica.loaded, replica.watch = True, Watch(self._setup.batch_seconds)
        if part is None:
            return []
        if not replica.proven:
            replica.proven = True
            self._losses.worked()
        self._leases.done.remote(replica.name, part.shard)
        return [part]

    def _look(self) -> None:
        """Now and then: is one stuck, is there work for one that is dry, is there room for one more?"""
        if self._stopping or time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for replica in [r for r in self._running if r.stream is not None]:
            self._ask(replica)
        slowest = max(
            counters.get("slowest", 0.0) for counters in (self._losses.done, *(r.progress for r in self._running))
        )
        limit = self._setup.spec.limits.shard_seconds
        late = self._queue("stuck", None if limit == "auto" else limit)
        for replica in [r for r in self._running if r.stream is not None and r.placed]:
            waited = replica.watch.waited(replica.progress.get("steps", 0.0) if replica.loaded else -1.0, slowest)
            if waited or replica.name in late:
                what = f"nothing moved for {waited:.0f} s" if waited else "a shard took far too long"
                self._replace(replica, "ended because it hung", what)
        self._feed()
        if self._grows:
            self._grow()

    def _feed(self) -> None:
        """Send the dry back to work: leases came back, or another one is late."""
        dry = [replica for replica in self._running if replica.stream is None]
        for replica in dry[: self._queue("waiting") if dry else 0]:
            replica.stream, replica.watch = self._work(replica.actor), Watch(self._setup.batch_seconds)

    def _grow(self) -> None:
        """A node that has joined is used."""
        room = min(self._room(), self._most)
        while len(self._running) < room and self._queue("waiting"):
            self._running.append(self._launch())
            self.replicas = self._asked = max(self._asked, len(self._running))
            self._losses.events.append(f"a node has joined: {many(len(self._running), 'replica')} now")

    def _room(self) -> int:
        """Replicas that the cluster could hold, if nothing else ran there."""
        each = max(self._cpus, 1)
        return sum(min(cpus // each, gpus if self._gpu else cpus) for cpus, gpus in nodes())

    def _replace(self, replica: _Running, how: str, reason: str) -> None:
        if self._stopping:  # what it held is left for the next run
            replica.stream = None
            return
        held, hopeless = self._queue("release", replica.name, HUNG if how != "lost" else LOST)
        self._losses.add(replica.name, how, reason, held, hopeless, replica.progress, proven=replica.proven)
        at = self._running.index(replica)
        ray.kill(replica.actor)
        if not self._losses.too_many(len(self._running)):
            self._running[at] = self._launch()
            return
        del self._running[at]
        if not any(other.loaded for other in self._running):
            raise WorkerLostError(f"replicas die one after the other, before they have done anything: {reason}", AGAIN)

    def _ask_anew(self, timeout: float) -> None:
        """An answer that is under way may be old; wait for new ones, but not for replicas that load."""
        loaded = [replica for replica in self._running if replica.loaded]
        for replica in loaded:
            replica.asked = replica.actor.progress.remote()
        if loaded:
            ray.wait([replica.asked for replica in loaded], num_returns=len(loaded), timeout=timeout)

    def _ask(self, replica: _Running) -> None:
        """Take the last answer if it has come, and ask anew; never wait, because a replica may be loading or dead."""
        if replica.asked is None:
            replica.asked = replica.actor.progress.remote()
        if ray.wait([replica.asked], timeout=0)[0]:
            try:
                replica.progress, replica.placed = ray.get(replica.asked), True
            except GONE:
                return  # its stream will say so
            finally:
                replica.asked = None


def start_ray(address: str | None, cpus: int, gpus: int) -> None:
    """Join the cluster at `address`, or start one on this machine, for this process only, with token authentication."""
    with keep_signals(), _no_exit_by_signal():
        _init(address, cpus, gpus)


@contextmanager
def _no_exit_by_signal() -> Iterator[None]:
    """Ray's own handler of SIGTERM exits from wherever Ray is, and what is half started then crashes at the end.

    What sets it is not public; in a Ray without it, `keep_signals` still tells a signal from an exit.
    """
    utils = ray._private.utils
    before = getattr(utils, "set_sigterm_handler", None)
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before


def _init(address: str | None, cpus: int, gpus: int) -> None:
    # Else Ray would say on stdout, where the one JSON object belongs, that a worker died, which we tell as well.
    ray._private.worker._worker_logs_enabled = False
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if address:
        try:
            _knock(address)
            ray.init(address=address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"no Ray cluster at {address}: {reason}", "check engine.address; ray status helps"
            ) from None
        return
    ray.init(
        address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, object_store_memory=OBJECT_STORE,
        _node_ip_address="127.0.0.1", **quiet,
    )  # fmt: skip


def _knock(address: str) -> None:
    """OSError where nobody answers at host:port, which Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _cause(error: RayTaskError) -> BaseException:
    """What a replica raised; where nobody foresaw it, with the traceback from there."""
    cause: BaseException = error.cause if isinstance(error.cause, BaseException) else error
    if cause is not error and not isinstance(cause, BatchnlpError):
        cause.add_note(error.traceback_str)
    return cause
