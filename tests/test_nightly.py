"""What needs an environment of its own, and so a package index and minutes: Airflow, and Ray with its agents.

pytest -m nightly tests/test_nightly.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from commands import invoke, rows_of
from test_schedule import write_job

ROOT = Path(__file__).parents[1]
INLINE = {"runner": "inline", "dtype": "float32", "device": "cpu", "backend": "torch"}

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]


def environment(path: Path, *packages: str, over_ours: bool = False) -> Path:
    """The Python of a new environment with these packages; perhaps over those that the tests run with."""
    subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
    python = path / "bin/python"
    if over_ours:
        site = path / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (site / "ours.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True, capture_output=True)
    return python


def said(*command: object, cwd: Path = ROOT, **environ: str) -> str:
    """What a program says on stdout; it must end well."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=os.environ | environ, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_airflow_runs_the_dag(tmp_path: Path, corpus: Any, classifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half past midnight in Berlin, so that the date is not UTC's."""
    monkeypatch.chdir(tmp_path)
    corpus(name="in")
    write_job(
        tmp_path / "50% {{ job }}.yaml", cron="30 0 * * *", source={"path": "in", "id": "doc_id"},
        task={"kind": "classify", "model": classifier}, engine=INLINE,
    )  # fmt: skip
    result = invoke("schedule", "export", "50% {{ job }}.yaml", "--to", "airflow", "-o", "dags")
    assert result.exit_code == 0, result.output
    airflow = environment(tmp_path / "airflow", "apache-airflow>=3.1", "apache-airflow-providers-standard").with_name(
        "airflow"
    )
    environ = {
        "AIRFLOW_HOME": str(tmp_path / "home"), "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false", "PYTHONPATH": str(ROOT),  # the last is for the job's own process
    }  # fmt: skip
    for words in (["db", "migrate"], ["dags", "test", "batchnlp_nightly", "2026-11-23T23:30:00+00:00"]):
        said(airflow, *words, cwd=tmp_path, **environ)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["2026-11-24"]
    assert len(rows_of(tmp_path / "out/2026-11-24")) == 25


RAY = """
import json, sys, time, urllib.request
from batchnlp.engine import ray_runner
from batchnlp.engine.api import run

ray_runner.start_ray(None, 2, 0)
port = ray_runner.ray.nodes()[0]["MetricsExportPort"]

def metrics():
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    return [line for line in text.splitlines() if line.startswith("ray_batchnlp_")]

result = run(json.loads(sys.argv[1]))
assert result.status == "done", result
until = time.monotonic() + 120
while not any(line.startswith("ray_batchnlp_documents_total{") for line in metrics()) and time.monotonic() < until:
    time.sleep(0.2)
print("\\n".join(metrics()))
"""


def test_ray_hands_a_run_s_progress_to_prometheus(tmp_path: Path, corpus: Any, classifier: str) -> None:
    python = environment(tmp_path / "ray", f"ray[default]=={version('ray')}", over_ours=True)
    job = {
        "job": "live", "source": {"path": str(corpus()), "id": "doc_id"}, "task": {"kind": "classify", "model": classifier},
        "engine": {**INLINE, "runner": "ray", "replicas": 1}, "output": {"path": str(tmp_path / "out")},
    }  # fmt: skip
    text = said(python, "-c", RAY, json.dumps(job), PYTHONPATH=str(ROOT), RAY_metrics_report_interval_ms="200")
    found = {m[1]: float(m[2]) for m in re.finditer(r'^ray_(\w+)\{.*\bname="live".*\} (\S+)$', text, re.MULTILINE)}
    assert found["batchnlp_documents_total"] == pytest.approx(25), text
    assert found["batchnlp_tokens_total"] > 25
    assert found["batchnlp_device_busy_seconds_total"] > 0
