"""Jobs handed to other schedulers, each file judged by a parser or a schema that is not ours. Airflow's is test_nightly.py's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from commands import invoke, last_json
from crontab import CronTab

from batchnlp.cli.main import TARGETS
from batchnlp.registry import EXPORTS
from batchnlp.schedule.exports.airflow import raw
from batchnlp.schedule.exports.base import LONGEST_NAME, slug

NEEDS = {
    "engine": {"backend": "http", "url": "https://host/v1", "api_key_env": "MODEL_KEY"},
    "task": {"kind": "chat", "model": "m", "prompt": "{{ text }} 100%"},
    "hooks": [{"webhook_env": "ALERT_URL", "token_env": "ALERT_TOKEN", "when": "success"}],
    "sinks": [{"kind": "postgres", "database": "postgresql://host/db", "table": "t"}],
}
NAMES = ["ALERT_TOKEN", "ALERT_URL", "MODEL_KEY", "PGPASSWORD"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the jobs run: a name that every format must quote."""
    made = tmp_path / "50% of $HOME's jobs"
    made.mkdir()
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def job(folder: Path) -> Callable[..., Path]:
    def write(name: str = "nightly", cron: str = "0 2 * * mon-fri", **more: Any) -> Path:
        tree = {
            "job": name, "schedule": {"cron": cron, "timezone": "Europe/Berlin"}, "source": {"path": "in/{{ ds }}"},
            "task": {"kind": "embed", "model": "m"}, "output": {"path": "out/{{ ds }}"}, **more,
        }  # fmt: skip
        path = folder / f"{name}'s 100% job.yaml"
        path.write_text("# What it is for.\n" + yaml.safe_dump(tree), encoding="utf-8")
        return Path(path.name)

    return write


def export(kind: str, *more: object) -> dict[str, str]:
    """Name and text of the files."""
    result = invoke("schedule", "export", *more, "--to", kind, "--json")
    assert result.exit_code == 0, result.output
    files = last_json(result)["files"]
    assert all(text.startswith("# The job ") for text in files.values())
    return dict(files)


def test_the_targets_are_those_there_are() -> None:
    assert list(EXPORTS) == TARGETS


# --- cron


def test_crontab(job: Callable[..., Path], folder: Path) -> None:
    ((name, text),) = export("cron", job(task={"kind": "embed", "model": "of/{{ ds }}"})).items()
    assert name == "batchnlp-nightly.crontab"
    table = CronTab(tab=text)
    (line,) = table
    assert line.is_valid()
    assert line.env["CRON_TZ"] == "Europe/Berlin"
    assert text.splitlines()[-1].startswith("0 2 * * 1-5 cd ")
    command = re.sub(r"\\%", "%", line.command)  # what cron hands to the shell
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 2
    assert re.search(r"no model of/\d{4}-\d\d-\d\d", done.stderr), (
        "it found the folder and the job, and put the date in"
    )


# --- systemd


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("cron", ["0 2 * * *", "*/20 9-17 1,15 * mon"])
def test_systemd(job: Callable[..., Path], tmp_path: Path, cron: str) -> None:
    out = tmp_path / "units"
    result = invoke("schedule", "export", job(cron=cron, **NEEDS), "--to", "systemd", "-o", out)
    assert result.exit_code == 0, result.output
    assert result.stderr == f"2 files in {out}\n"
    units = sorted(path.name for path in out.iterdir())
    assert units == ["batchnlp-nightly.service", "batchnlp-nightly.timer"]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(out / unit) for unit in units)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "batchnlp" in line]
    assert (done.returncode, ours) == (0, [])
    service = (out / units[0]).read_text()
    assert "EnvironmentFile=/etc/batchnlp/batchnlp-nightly.env\n" in service
    assert f"# That file holds {', '.join(NAMES)}; only root should read it.\n" in service
    timer = (out / units[1]).read_text()
    assert timer.count("OnCalendar=") == (2 if "mon" in cron else 1), "a day by number, or by weekday"
    assert timer.count(" Europe/Berlin\n") == timer.count("OnCalendar=")


# --- Kubernetes


def objects(text: str) -> dict[str, Any]:
    return {tree["kind"]: tree for tree in yaml.safe_load_all(text)}


def test_kubernetes(job: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "planted")
    path = job(**NEEDS)
    ((name, text),) = export("kubernetes", path, "--image", "registry/batchnlp:1", "--claim", "corpus").items()
    assert name == "batchnlp-nightly.yaml"
    assert "planted" not in text
    found = objects(text)
    for tree in found.values():
        kubernetes_validate.validate(tree, "1.34", strict=True)
    assert found["ConfigMap"]["data"]["job.yaml"] == (folder / path).read_text(), "the job, with its comments"
    spec = found["CronJob"]["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == ("0 2 * * 1-5", "Europe/Berlin", "Forbid")
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry/batchnlp:1"
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "corpus"}
    refs = {var["name"]: var["valueFrom"]["secretKeyRef"] for var in container["env"] if "valueFrom" in var}
    assert refs == {name: {"name": "batchnlp-nightly", "key": name} for name in NAMES}
    assert f"# It needs a Secret batchnlp-nightly with {', '.join(NAMES)}.\n" in text
    assert "resources" not in container


def test_gpus_are_asked_for_where_the_job_does(job: Callable[..., Path]) -> None:
    path = job(engine={"device": "cuda", "replicas": 4})
    pod = objects(export("kubernetes", path)["batchnlp-nightly.yaml"])["CronJob"]["spec"]["jobTemplate"]["spec"][
        "template"
    ]
    assert pod["spec"]["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 4}}
    cluster = objects(export("rayjob", path)["batchnlp-nightly-rayjob.yaml"])["RayJob"]["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 4, 4)
    assert group["template"]["spec"]["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    assert "resources" not in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


TEXT, COUNT, POD = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}
PARAMETERS = {"type": "object", "additionalProperties": TEXT}
RAYJOB = closed(  # the envelope of KubeRay's ray.io/v1 RayJob, as far as its reference has what we use; no more is allowed
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata={"type": "object", "required": ["generateName"]},
    spec=closed(
        ["entrypoint", "rayClusterSpec"],
        entrypoint=TEXT, shutdownAfterJobFinishes={"type": "boolean"}, ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=closed(
            ["headGroupSpec"],
            rayVersion=TEXT, authOptions=closed([], mode={"enum": ["disabled", "token"]}),
            headGroupSpec=closed(["template"], rayStartParams=PARAMETERS, template=POD),
            workerGroupSpecs={"type": "array", "items": closed(
                ["groupName", "template", "minReplicas", "maxReplicas"],
                groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, rayStartParams=PARAMETERS, template=POD,
            )},
        ),
    ),
)  # fmt: skip


def test_rayjob(job: Callable[..., Path], folder: Path) -> None:
    path = job(**NEEDS)
    ((name, text),) = export("rayjob", path).items()
    assert name == "batchnlp-nightly-rayjob.yaml"
    found = objects(text)
    jsonschema.validate(found["RayJob"], RAYJOB)
    kubernetes_validate.validate(found["ConfigMap"], "1.34", strict=True)
    cluster = found["RayJob"]["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.34", strict=True)
        (container,) = pod["spec"]["containers"]
        assert {var["name"] for var in container["env"] if "valueFrom" in var} == set(NAMES)
    assert found["RayJob"]["spec"]["entrypoint"] == (
        "batchnlp run /etc/batchnlp/job.yaml --set engine.runner=ray --set engine.address=auto"
    )


# --- Airflow


def test_airflow_is_python(job: Callable[..., Path], folder: Path) -> None:
    ((name, text),) = export("airflow", job(**NEEDS)).items()
    assert name == "batchnlp_nightly.py"
    compile(text, name, "exec")
    assert 'CronTriggerTimetable("0 2 * * 1-5", timezone="Europe/Berlin")' in text
    assert json.dumps(str(folder)) in text
    assert "# It needs PGPASSWORD in the worker's environment.\n" in text


def test_a_command_is_no_template() -> None:
    assert raw("run 'a b.yaml'") == "run 'a b.yaml'"
    assert raw("run '{{ x }}.yaml'") == "{% raw %}run '{{ x }}.yaml'{% endraw %}"


# --- all


@pytest.mark.parametrize("kind", TARGETS)
def test_several_jobs_are_told_apart(kind: str, job: Callable[..., Path], folder: Path) -> None:
    names = ["nightly", "Nightly", "nightly_", "n" * 100]
    for name in names:
        job(name)
    files = export(kind, folder)
    assert len(files) == len(names) * (2 if kind == "systemd" else 1)
    printed = invoke("schedule", "export", folder, "--to", kind)
    assert all(f"# {name}\n{text}" in printed.stdout for name, text in files.items())


def test_names_are_those_that_kubernetes_allows() -> None:
    names = ["nightly", "Nightly", "nightly_", "n" * 100, "_", "a.b", "ünchen"]
    found = [slug(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= LONGEST_NAME for name in found), (
        found
    )
    assert slug("nightly", "_") == "batchnlp_nightly"
