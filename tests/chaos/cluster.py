"""Several nodes, as raylets of this machine, and workers of different speed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import batchnlp
from batchnlp import failpoints
from batchnlp.engine.computing import Progress
from chaos.jobs import Job, commits, unless
from chaos.table import Outcome, Place, row


@contextmanager
def _nodes(count: int, points: str) -> Iterator[Any]:
    """A cluster of so many nodes with a CPU each; its workers have these failpoints."""
    import batchnlp.engine.ray_runner  # noqa: F401, I001 - its settings must come before ray's own import
    import ray
    from ray.cluster_utils import Cluster

    os.environ[failpoints.VARIABLE] = points
    try:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        for _ in range(count - 1):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
    finally:
        del os.environ[failpoints.VARIABLE]
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def _other_node(cluster: Any) -> Any:
    import ray

    here = ray.get_runtime_context().get_node_id()
    return next(node for node in cluster.list_all_nodes() if node.node_id != here)


@row("loss of a node, one of three")
def lost_node(place: Place) -> Outcome:
    """Its replica's shards are computed elsewhere; wall time at most half as much again, and 20 s."""
    job = Job(place, 9_000, 50, runner="ray", replicas=3)
    seconds: dict[str, float] = {}
    killed: list[int] = []

    def strike(cluster: Any) -> Any:
        def listen(progress: Progress) -> None:
            if progress.rows_now > 2_000 and not killed:
                killed.append(len(commits(job.out("out"))))
                cluster.remove_node(_other_node(cluster), allow_graceful=False)

        return listen

    for name in ("clean", "out"):
        with _nodes(3, "forward=sleep:1") as cluster:  # a GPU would be as busy
            job.more["address"] = cluster.address
            began = time.monotonic()
            result = batchnlp.run(job.spec(name), strike(cluster) if name == "out" else lambda progress: None)
            seconds[name] = time.monotonic() - began
    allowed = 1.5 * seconds["clean"] + 20
    broken = unless(
        (result.status == "done", result.message), (seconds["clean"] >= 60, "the clean run is too short to compare"),
        (seconds["out"] <= allowed, f"{seconds['out']:.0f} s, where {allowed:.0f} are allowed"),
    )  # fmt: skip
    broken += job.differs("out")
    return Outcome.of(
        job.out("out"), job.ids, len(killed), seconds=seconds["out"], clean=seconds["clean"], broken=broken
    )


@row("a node that joins in mid-run, where one more was asked for")
def joined_node(place: Place) -> Outcome:
    """The run starts with what is there, says so, and uses the new one."""
    job = Job(place, 3_000, 50, runner="ray", replicas=2)
    said: list[str] = []
    with _nodes(1, "forward=sleep:0.3") as cluster:
        job.more["address"] = cluster.address

        def listen(progress: Progress) -> None:
            said.extend([progress.message] * bool(progress.message))
            if progress.rows_now > 300 and len(cluster.list_all_nodes()) == 1:
                cluster.add_node(num_cpus=1)

        result = batchnlp.run(job.spec("out"), listen)
    broken = unless(
        ("there is room for 1 of 2 replicas" in said, f"it said {said}"),
        (result.status == "done", result.message),
        (not result.notes, f"at the end it said {result.notes}"),
    )
    return Outcome.of(job.out("out"), job.ids, 1, broken=broken)


@row("a worker 20 times slower than the rest")
def slow_worker(place: Place) -> Outcome:
    """Of four; the shards it has at the end are run elsewhere too, and the first commit wins."""
    job, each = Job(place, 20_000, 50, runner="ray", replicas=4), 0.3
    clean = job.run("clean", f"forward=sleep:{each}")
    ended = job.run("out", f"forward=sleep:{each}; forward=sleep:{19 * each}#{place.folder / 'slow'}")
    broken = unless(
        (clean.code == ended.code == 0, f"exit {ended.code}: {ended.stderr[-200:]}"),
        (ended.seconds <= 1.5 * clean.seconds, "more than half as much again"),
        (not ended.lost, "the slow one was ended"),
    )
    injected, seconds = int((place.folder / "slow").exists()), ended.seconds
    return Outcome.of(
        job.out("out"), job.ids, injected, seconds=seconds, clean=clean.seconds, broken=[*broken, *job.differs("out")]
    )
