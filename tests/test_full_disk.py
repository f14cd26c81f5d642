"""A disk that fills up in mid-run: a small tmpfs, for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Corpus


def on_a_small_disk(job: dict[str, Any], folder: Path, kilobytes: int) -> dict[str, Any]:
    """What `small_disk.py` has seen of the job, whose output lies on the disk."""
    (folder / "disk").mkdir()
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).with_name("small_disk.py")
    asked = [str(folder / "job.json"), str(folder / "disk"), str(kilobytes)]
    command = ["unshare", "-rm", sys.executable, str(script), *asked]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def no_small_disk() -> str:
    """Why no disk can be mounted here, or nothing."""
    if shutil.which("unshare") is None:
        return "there is no unshare"
    tried = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k none /tmp"]
    done = subprocess.run(tried, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"no tmpfs can be mounted: {done.stderr.strip()}"


def test_it_says_so_shows_nothing_half_and_goes_on_when_there_is_room(
    corpus: Corpus, classifier: str, tmp_path: Path
) -> None:
    if why := no_small_disk():
        pytest.skip(why)
    out = str(tmp_path / "disk" / "out")
    job = {
        "source": {"path": str(corpus()), "id": "doc_id", "rows_per_shard": 1},
        "task": {"kind": "classify", "model": classifier}, "engine": {"runner": "inline"}, "output": {"path": out},
    }  # fmt: skip
    seen = on_a_small_disk(job, tmp_path, 160)
    full, again = seen["full"], seen["again"]
    assert (full["status"], full["exit_code"]) == ("StoppedError", 3)
    assert full["said"].startswith("no space left below ")
    assert full["said"].endswith("(make room and run the same command again; it resumes)")
    assert (full["broken"], full["success"]) == ([], False)
    assert 0 < full["committed"] < 25
    assert (again["status"], again["broken"], again["success"], seen["problems"]) == ("done", [], True, [])
