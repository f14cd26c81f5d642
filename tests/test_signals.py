"""Signals before any shard is under way: there is nothing to finish, so the program leaves, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from commands import Corpus, classify, invoke, last_json
from processes import DEADLINE, start

from batchnlp.cli import look
from batchnlp.engine import driver
from batchnlp.engine.signals import watch_signals
from batchnlp.errors import Terminated


def job(source: Path, out: Path, model: str) -> dict[str, Any]:
    return {
        "source": {"path": str(source)}, "task": {"kind": "classify", "model": model},
        "engine": {"runner": "inline", "dtype": "float32", "device": "cpu"}, "output": {"path": str(out)},
    }  # fmt: skip


def strike(process: subprocess.Popen[str], number: signal.Signals, when: Callable[[], bool]) -> tuple[str, str]:
    """Send the signal as soon as `when` holds; (stdout, stderr) of the end."""
    limit = time.monotonic() + DEADLINE
    while not when():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "nothing to strike at"
        time.sleep(0.001)
    process.send_signal(number)
    return process.communicate(timeout=DEADLINE)


def reads(pid: int, name: str) -> bool:
    """Whether the process looks into the file."""
    return any(Path(place.path).name == name for place in psutil.Process(pid).memory_maps())


def files(top: Path) -> set[str]:
    return {path.name for path in top.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_while_planning(number: signal.Signals, code: int, classifier: str, tmp_path: Path) -> None:
    """Half a terabyte on a single line, which takes many minutes to look through."""
    (tmp_path / "huge.txt").touch()
    os.truncate(tmp_path / "huge.txt", 1 << 39)
    out = tmp_path / "out"
    process = start(tmp_path, job(tmp_path / "huge.txt", out, classifier))
    stdout, stderr = strike(process, number, lambda: reads(process.pid, "huge.txt"))
    assert process.returncode == code, stderr
    assert stderr.endswith(": leaving\n")
    last = json.loads(stdout)
    assert (last["status"], last["exit_code"], last["hint"]) == ("stopped", code, "run the same command again")
    assert files(out) == {"lock.json.guard"}, "no plan, and no lock to stand in anyone's way"


def test_while_spooling(classifier: str, tmp_path: Path) -> None:
    """The plan stands by then, so that this is a run that was stopped; half a copy is none."""
    with pa.CompressedOutputStream(str(tmp_path / "big.txt.zst"), "zstd") as stream:
        for _ in range(64):
            stream.write(bytes(8 << 20))
    out = tmp_path / "out"
    process = start(tmp_path, job(tmp_path / "big.txt.zst", out, classifier))
    stdout, stderr = strike(process, signal.SIGTERM, lambda: any(out.glob("_batchnlp/*/spool/*")))
    assert process.returncode == 143, stderr
    assert stderr.splitlines()[1] == "SIGTERM: leaving"
    last = json.loads(stdout)
    assert (last["status"], last["exit_code"], last["rows"]) == ("stopped", 143, 0)
    assert list(out.glob("_batchnlp/*/spool/*")) == []
    assert files(out) == {"plan.json", "current.json", "lock.json.guard"}


def test_in_preflight(corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "prepare", lambda spec: signal.raise_signal(signal.SIGTERM))
    result = classify(corpus(), tmp_path / "out", classifier, "--json")
    assert (result.exit_code, last_json(result)["error"]) == (143, "Terminated")
    assert not (tmp_path / "out").exists()


def test_of_any_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "open_ledgers", lambda out: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    result = invoke("status", tmp_path, "--json")
    assert (result.exit_code, last_json(result)["exit_code"]) == (143, 143)
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_a_run_defers_is_not_deferred_after_it() -> None:
    with watch_signals() as outer:
        with watch_signals() as inner:
            assert inner is outer
            inner.defer()
            signal.raise_signal(signal.SIGTERM)
        outer.signal = 0
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
