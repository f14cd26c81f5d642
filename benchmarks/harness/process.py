"""The harness' side of the line protocol: contenders as processes that wait between their rounds."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

HERE = Path(__file__).parents[1]
QUIET = {  # who waits must not burn a core, and nobody asks a hub
    "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "true",
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token",
}  # fmt: skip


class Unavailable(Exception):
    """A contender that cannot run here, or not any more, and why."""


class Process:
    """A contender in an environment of its own."""

    def __init__(self, python: str, script: Path, setup: dict[str, Any], log: Path, *, seconds: float = 3600) -> None:
        threads = str(setup.get("threads", 1))
        paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        environ = os.environ | QUIET | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": paths}
        self._seconds, self._log = seconds, log
        self._lines = b""
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environ
            )
        self._send(json.dumps(setup))

    def ready(self) -> dict[str, Any]:
        """Wait until it has loaded; what it says of itself. Raises Unavailable."""
        return self._answer("ready")

    def round(self) -> dict[str, Any]:
        """One round; its facts. Raises Unavailable."""
        self._send("round")
        return self._answer("round")

    def cpu_seconds(self) -> float:
        """CPU time of the process and the children it has waited for; 0 where the system does not tell."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Unavailable(self._last_words()) from None

    def _answer(self, wanted: str) -> dict[str, Any]:
        tree = json.loads(self._line())
        if wanted not in tree:
            raise Unavailable(str(next(iter(tree.values()))))
        return dict(tree[wanted])

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        deadline = perf_counter() + self._seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._lines:
                if not selector.select(max(deadline - perf_counter(), 0)):
                    self._process.kill()
                    raise Unavailable(f"no answer in {self._seconds:.0f} s")
                data = os.read(self._process.stdout.fileno(), 1 << 16)
                if not data:
                    raise Unavailable(self._last_words())
                self._lines += data
        line, _, self._lines = self._lines.partition(b"\n")
        return line

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        code = self._process.poll()
        return f"ended with {code}: {lines[-1][:200] if lines else 'no message'}"


def own_python() -> str:
    """The interpreter of the harness, for the contenders that are ours."""
    return sys.executable
