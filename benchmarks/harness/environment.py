"""What a figure depends on, apart from the scenario: the machine, its load, versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "bf16", "asimd", "sve")


def capture() -> dict[str, Any]:
    """The environment of a run; everything that it took from elsewhere is named by where it came from."""
    from batchnlp.backends.device import probe_hardware

    hardware = probe_hardware()
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), "python": platform.python_version(),
        "cpu": info.get("model name", platform.processor()), "family": info.get("cpu family"), "model": info.get("model"),
        "flags": [flag for flag in FLAGS if flag in flags], "cores": os.cpu_count(), "usable": hardware.cpus,
        "gpu": hardware.gpu_name, "fast_bfloat16": hardware.fast_bfloat16, "load": load(),
        "kernel": platform.release(),
    }  # fmt: skip


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes; above zero before a run, somebody else is at work."""
    return [round(value, 2) for value in os.getloadavg()]


def commit() -> str:
    """The commit, with + where the tree differs from it; empty outside of a repository."""

    def git(*args: str) -> str:
        where = Path(__file__).parent
        done = subprocess.run(["git", *args], check=False, capture_output=True, text=True, cwd=where)
        return done.stdout.strip() if not done.returncode else ""

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}
