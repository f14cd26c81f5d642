"""Jobs in processes of their own, to be struck."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from batchnlp.data.ledger import open_ledgers

DEADLINE = 120  # seconds after which a wait is a failure


def start(tmp_path: Path, spec: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
    """The job in a process of its own."""
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "batchnlp", "run", str(file), "--json"]
    environ = os.environ | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)


def wait_for_commits(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until so many shards are committed."""
    limit = time.monotonic() + DEADLINE
    while len(list(out.glob("_batchnlp/*/commits/*.json"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "no commits"
        time.sleep(0.01)


def commits(out: Path) -> dict[int, str]:
    """Shard and attempt of every commit."""
    return {shard: part.attempt for ledger in open_ledgers(str(out)) for shard, part in ledger.commits().items()}
