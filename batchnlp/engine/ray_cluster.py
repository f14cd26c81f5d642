"""What a Ray cluster has room for, and what it is told of a run. Imported by `ray_runner`, which sets Ray up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import ray
from ray.util.metrics import Counter as RayCounter
from ray.util.metrics import Gauge as RayGauge

from batchnlp.errors import UsageError

METRICS = {  # by the worker's counter: what Ray calls ray_batchnlp_..._total
    "docs": ("batchnlp_documents", "Documents through the model."),
    "dead": ("batchnlp_dead_letters", "Documents without a result."),
    "tokens": ("batchnlp_tokens", "Real tokens through the model."),
    "executed": ("batchnlp_executed_tokens", "Tokens through the model, padding included."),
    "busy": ("batchnlp_device_busy_seconds", "Seconds in which devices computed."),
    "idle": ("batchnlp_device_idle_seconds", "Seconds in which devices waited for a shard."),
}


class LiveMetrics:
    """A run under way, as metrics of Ray: it hands them to the Prometheus that watches the cluster."""

    def __init__(self, job: str) -> None:
        self._tags = {"name": job}  # `job` is Prometheus' own label
        self._counters = {key: RayCounter(name, text, ("name",)) for key, (name, text) in METRICS.items()}
        self._replicas = RayGauge("batchnlp_replicas", "Replicas whose model is loaded.", ("name",))
        self._told = dict.fromkeys(METRICS, 0.0)

    def tell(self, counters: Mapping[str, float], replicas: int) -> None:
        """What has come since the last time; a lost replica may take some of its last counts with it."""
        self._replicas.set(replicas, self._tags)
        for key, counter in self._counters.items():
            more = counters.get(key, 0.0) - self._told[key]
            if more > 0:
                counter.inc(more, self._tags)
                self._told[key] += more


def has_room(cpus: int, gpus: int) -> bool:
    """Whether some node of the cluster could hold a replica, if nothing else ran there."""
    return any(node[0] >= cpus and node[1] >= gpus for node in nodes())


def nodes() -> list[tuple[int, int]]:
    """(CPUs, GPUs) of every node."""
    return [(int(r.get("CPU", 0)), int(r.get("GPU", 0))) for n in ray.nodes() if n["Alive"] for r in [n["Resources"]]]


def sizes(cpus: int, gpus: int) -> str:
    """A replica's or a node's, in words."""
    return f"{cpus} CPUs + {gpus} GPUs"


def no_room(seconds: float, cpus: int, gpus: int) -> UsageError:
    """What is said when no node came in so many seconds that could hold a replica."""
    there = nodes()
    have = ", ".join(f"{n} x {sizes(*node)}" for node, n in Counter(there).most_common(5))
    fewer = "with more engine.replicas each asks for fewer CPUs" if cpus > 1 else "join a cluster with more CPUs"
    hint = "use engine.device=cpu" if gpus and not any(node[1] for node in there) else fewer
    what = f"a replica asks for {sizes(cpus, gpus)}, and no node of the Ray cluster has them: {have}"
    return UsageError(f"{what}; none came in {seconds / 60:.0f} minutes", hint)
