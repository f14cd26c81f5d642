"""A KubeRay RayJob: a Ray cluster for one run of the job, which goes when the run has ended."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from batchnlp.schedule.exports import kubernetes
from batchnlp.schedule.exports.base import Place, head, shell, slug
from batchnlp.schedule.exports.kubernetes import JOB
from batchnlp.schedule.jobs import Entry

NOTES = (
    "A RayJob runs once: kubectl create -f. By the clock, have Airflow or a CronJob create it; where KubeRay's RayCronJob is",
    "enabled, its jobTemplate is the spec below. It needs KubeRay 1.5, and the volume claim must be mountable by all pods.",
)
WORKERS = 1  # nodes, unless the job says how many replicas it has


def export(entry: Entry, place: Place) -> dict[str, str]:
    """The RayJob and the job's file, for kubectl create -f."""
    name = slug(entry.name)
    replicas = entry.spec.engine.replicas
    count = WORKERS if replicas == "auto" else replicas
    workers = {
        "groupName": "replicas", "replicas": count, "minReplicas": count, "maxReplicas": count, "rayStartParams": {},
        "template": pod(entry, place, "ray-worker", gpu=True),
    }  # fmt: skip
    cluster = {
        "rayVersion": version("ray"), "authOptions": {"mode": "token"},
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": pod(entry, place, "ray-head", gpu=False)},
        "workerGroupSpecs": [workers],
    }  # fmt: skip
    settings = ["--set", "engine.runner=ray", "--set", "engine.address=auto"]
    spec = {
        "entrypoint": shell(["batchnlp", "run", JOB, *settings]), "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600, "rayClusterSpec": cluster,
    }  # fmt: skip
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"generateName": f"{name}-"}, "spec": spec}
    top = head(entry, *NOTES, *kubernetes.NOTES, *kubernetes.secret_note(entry))
    return {f"{name}-rayjob.yaml": top + kubernetes.documents(kubernetes.config_map(entry), job)}


def pod(entry: Entry, place: Place, name: str, *, gpu: bool) -> dict[str, Any]:
    """The template of a node's pod; only those with replicas ask for GPUs, one each."""
    container = {"name": name, **kubernetes.worker(entry, place)}
    if "resources" in container:
        container["resources"] = {"limits": {"nvidia.com/gpu": 1}}
    if not gpu:
        container.pop("resources", None)
    return {
        "spec": {"enableServiceLinks": False, "containers": [container], "volumes": kubernetes.volumes(entry, place)}
    }
