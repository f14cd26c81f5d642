"""A Kubernetes CronJob, and the job's file as a ConfigMap."""

from __future__ import annotations

from typing import Any

import yaml

from batchnlp.schedule.exports.base import Place, head, secrets, slug, text_of
from batchnlp.schedule.jobs import Entry

DATA, JOB = "/data", "/etc/batchnlp/job.yaml"
SPARE = 30  # seconds beyond the job's own grace until a pod is killed
NOTES = (
    "The volume claim is mounted at /data, which paths in the job are relative to; models are kept there too.",
    "Add resource requests that fit the model.",
)


def export(entry: Entry, place: Place) -> dict[str, str]:
    """Both objects, for kubectl apply -f."""
    name = slug(entry.name)
    container = {"args": ["run", JOB], "command": ["batchnlp"], **worker(entry, place), "name": "batchnlp"}
    pod = {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": round(entry.spec.limits.grace_seconds) + SPARE,
        "enableServiceLinks": False,  # a Service called batchnlp would set BATCHNLP_..., which are keys of the job
        "containers": [container], "volumes": volumes(entry, place),
    }  # fmt: skip
    spec = {
        "schedule": str(entry.schedule.times), "timeZone": entry.schedule.timezone, "concurrencyPolicy": "Forbid",
        "jobTemplate": {"spec": {"backoffLimit": 0, "template": {"spec": pod}}},
    }  # fmt: skip
    cron = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": spec}
    return {f"{name}.yaml": head(entry, *NOTES, *secret_note(entry)) + documents(config_map(entry), cron)}


def worker(entry: Entry, place: Place) -> dict[str, Any]:
    """What every container with batchnlp in it has: image, folder, secrets by reference, a GPU if the job says so."""
    gpus = entry.spec.engine.replicas if entry.spec.engine.device.startswith("cuda") else 0
    limits = {"resources": {"limits": {"nvidia.com/gpu": 1 if gpus == "auto" else gpus}}} if gpus else {}
    plain = [{"name": "BATCHNLP_LOG", "value": "json"}, {"name": "HF_HOME", "value": f"{DATA}/.cache/huggingface"}]
    kept = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": slug(entry.name), "key": name}}}
        for name in secrets(entry.spec)
    ]
    mounts = [{"name": "data", "mountPath": DATA}, {"name": "job", "mountPath": JOB, "subPath": "job.yaml"}]
    return {"image": place.image, "workingDir": DATA, "env": plain + kept, "volumeMounts": mounts, **limits}


def volumes(entry: Entry, place: Place) -> list[dict[str, Any]]:
    """The data, and the job's file."""
    return [
        {"name": "data", "persistentVolumeClaim": {"claimName": place.claim}},
        {"name": "job", "configMap": {"name": slug(entry.name)}},
    ]


def config_map(entry: Entry) -> dict[str, Any]:
    """The job's file, so that the export is all that the cluster needs."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": slug(entry.name)},
        "data": {"job.yaml": text_of(entry)},
    }


def secret_note(entry: Entry) -> list[str]:
    """Which Secret must be there."""
    names = secrets(entry.spec)
    return [f"It needs a Secret {slug(entry.name)} with {', '.join(names)}."] if names else []


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as people write them."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def documents(*objects: dict[str, Any]) -> str:
    """Several objects in one file."""
    return "---\n".join(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=120) for tree in objects)
