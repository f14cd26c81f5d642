"""Signals before any shard is under way: there is nothing to finish, so the program leaves, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from commands import Corpus, classify, invoke, last_json
from processes import DEADLINE, start

from batchnlp.cli import look
from batchnlp.data.lock import NAME as LOCK
from batchnlp.engine import driver
from batchnlp.engine.planner import Prepared, prepare
from batchnlp.engine.signals import STOPPING, watch_signals
from batchnlp.errors import Interrupted, Terminated
from batchnlp.job.spec import JobSpec


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
    assert STOPPING in stderr
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
    assert STOPPING in stderr
    last = json.loads(stdout)
    assert (last["status"], last["exit_code"], last["rows"]) == ("stopped", 143, 0)
    assert list(out.glob("_batchnlp/*/spool/*")) == []
    assert files(out) == {
        "plan.json",
        "current.json",
        "lock.json.guard",
        "run_results.json",
        "invocations.json",
        "_report.html",
    }


def test_in_preflight(corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "prepare", lambda spec: signal.raise_signal(signal.SIGTERM))
    result = classify(corpus(), tmp_path / "out", classifier, "--json")
    assert (result.exit_code, last_json(result)["error"]) == (143, "Terminated")
    assert not (tmp_path / "out").exists()


def test_what_others_make_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pydantic, being imported, makes a SchemaError of whatever is raised in it."""

    def elsewhere(out: str) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except Interrupted:
            raise ValueError("something broke") from None

    monkeypatch.setattr(look, "ledgers", elsewhere)
    result = invoke("status", tmp_path, "--json")
    assert (result.exit_code, last_json(result)["error"]) == (130, "Interrupted")
    assert "Traceback" not in result.stderr


def test_one_that_got_lost_is_not_forgotten(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(spec: JobSpec) -> Prepared:
        with suppress(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        return prepare(spec)

    monkeypatch.setattr(driver, "prepare", lost)
    assert classify(corpus(), tmp_path / "out", classifier).exit_code == 143
    assert not (tmp_path / "out").exists()


def test_of_any_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "ledgers", lambda out: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    result = invoke("status", tmp_path, "--json")
    assert (result.exit_code, last_json(result)["exit_code"]) == (143, 143)
    assert signal.getsignal(signal.SIGTERM) == before


def test_two_that_come_together_are_one(classifier: str, tmp_path: Path) -> None:
    """GNU timeout sends its signal to the process, and then to the group of the process."""
    (tmp_path / "huge.txt").touch()
    os.truncate(tmp_path / "huge.txt", 1 << 39)
    process = start(tmp_path, job(tmp_path / "huge.txt", tmp_path / "out", classifier))

    def first() -> bool:
        if reads(process.pid, "huge.txt"):
            process.send_signal(signal.SIGTERM)
            return True
        return False

    stdout, stderr = strike(process, signal.SIGTERM, first)
    assert process.returncode == 143, stderr
    assert stderr == f"\nSIGTERM: {STOPPING}\n"
    assert json.loads(stdout)["message"] == "stopped by SIGTERM"
    assert not (tmp_path / "out" / LOCK).exists(), "it left in good order"


BUSY = """
import ctypes
from batchnlp.engine.signals import watch_signals
with watch_signals() as interrupt:
    interrupt.defer()
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    print("busy", flush=True)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="another mutex")
def test_a_main_thread_that_never_comes_back_keeps_nobody_waiting() -> None:
    """As it is inside of Ray for seconds: no handler runs there."""
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGTERM)
    assert (process.stderr.readline(), process.stderr.readline()[:18]) == ("\n", "SIGTERM: finishing")
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    process.communicate()
    assert process.returncode == 143


WINDOW = """
import ctypes, os, signal, threading, time
from batchnlp.engine.signals import watch_signals
from batchnlp.engine.ray_runner import ray, start_ray

def handler():
    state = ctypes.create_string_buffer(256)
    ctypes.CDLL(None).sigaction(signal.SIGTERM, None, state)
    return state.raw[:8]

def strike():
    while handler() == ours:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)

with watch_signals() as interrupt:
    interrupt.defer()
    ours = handler()
    threading.Thread(target=strike, daemon=True).start()
    start_ray(None, 1, 0)
    assert handler() == ours
    ray.shutdown()
print(interrupt.exit_code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="another sigaction")
def test_while_ray_has_a_handler_of_its_own() -> None:
    """It aborts the process after three seconds, or leaves half of Ray to crash at the end, if it is let."""
    done = subprocess.run([sys.executable, "-c", WINDOW], capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (0, "143\n"), done.stderr
    assert "SIGTERM: finishing" in done.stderr


def test_one_that_nobody_watches_for_is_a_signal_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no failed run, which exit code 1 would be."""

    def late(out: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(look, "ledgers", late)
    assert invoke("status", tmp_path).exit_code == 130


@pytest.mark.parametrize(("code", "expected"), [(130, "said"), (1, "said late")])
def test_after_a_signal_nothing_is_waited_for(code: int, expected: str) -> None:
    """What libraries do at their end takes a second, in which nobody would hear another signal."""
    script = (
        "import atexit, sys; import batchnlp.__main__ as program; atexit.register(print, 'late', end='')\n"
        f"program.main = lambda: (print('said', end=' '), sys.exit({code})); program.program()"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (code, expected), done.stderr


def test_one_that_comes_while_the_watch_ends_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second Ctrl-C, when all is said and done: Python's own handler has it."""
    stop = signal.set_wakeup_fd

    def end(fd: int, **more: bool) -> int:
        before = stop(fd, **more)
        if fd == -1:
            os.kill(os.getpid(), signal.SIGINT)
        return before

    monkeypatch.setattr(signal, "set_wakeup_fd", end)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background have it ignored
    try:
        with pytest.raises(KeyboardInterrupt), watch_signals() as interrupt:
            interrupt.signal = signal.SIGINT  # the first
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_run_defers_is_not_deferred_after_it() -> None:
    with watch_signals() as outer:
        with watch_signals() as inner:
            assert inner is outer
            inner.defer()
            signal.raise_signal(signal.SIGTERM)
        outer.signal = 0
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
