"""The lock: the dead do not hold it, the living do, wherever they are."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from batchnlp.data import lock as module
from batchnlp.data.lock import NAME, Holder, Lock, locked
from batchnlp.data.store import LocalStore, to_json
from batchnlp.errors import LockedError, StoppedError

NEVER = 3600.0  # a beat that no test outlives: whoever waits for one hangs, and the test fails

HOLD = """
import sys, threading
from batchnlp.data.lock import Lock
from batchnlp.data.store import LocalStore
if sys.argv[2]:
    open("/proc/self/comm", "w").write(sys.argv[2])
Lock(LocalStore(sys.argv[1]), "theirs").acquire()
print("held", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "out")


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", NEVER)


@contextmanager
def another_process(store: LocalStore, name: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that has taken the lock and keeps it."""
    command = [sys.executable, "-c", HOLD, store.root, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def holder(store: LocalStore) -> Holder | None:
    data = store.read(NAME)
    return Holder(**json.loads(data)) if data else None


def put(store: LocalStore, held: Holder) -> None:
    store.replace(NAME, to_json(asdict(held)))


def elsewhere(beat: int = 0) -> Holder:
    return replace(Holder.me("theirs"), host="another-host", boot="another-boot", beat=beat)


def test_taken_and_given_back(store: LocalStore) -> None:
    lock = Lock(store, "mine")
    lock.acquire()
    held = holder(store)
    assert held is not None
    assert (held.invocation, held.pid) == ("mine", os.getpid())
    lock.release()
    assert holder(store) is None
    again = Lock(store, "again")
    again.acquire()
    again.release()


def test_a_file_system_without_flock_has_the_lock_all_the_same(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = Lock(store, "mine")
    lock.acquire()
    with pytest.raises(LockedError):
        Lock(store, "theirs").acquire()
    lock.release()
    assert holder(store) is None


def test_the_living_hold_it_and_are_named(store: LocalStore) -> None:
    with another_process(store) as process:
        with pytest.raises(LockedError, match=f"in use by process {process.pid} on ") as caught:
            Lock(store, "mine").acquire()
        assert caught.value.exit_code == 75
        held = holder(store)
        assert held is not None
        assert held.invocation == "theirs", "a refusal changes nothing"


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "zombie"])
def test_the_dead_are_taken_over_from_at_once(store: LocalStore, reaped: bool) -> None:
    with another_process(store) as process:
        process.send_signal(signal.SIGKILL)
        if reaped:
            process.wait()
        else:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody has asked for it yet
        lock = Lock(store, "mine")
        lock.acquire()
        held = holder(store)
        assert held is not None
        assert held.invocation == "mine"
        lock.release()


def test_a_pid_that_was_given_away_again_is_not_the_holder(store: LocalStore) -> None:
    put(store, replace(Holder.me("theirs"), started=Holder.me("x").started - 100))
    lock = Lock(store, "mine")
    lock.acquire()
    lock.release()


def test_a_clock_that_is_set_does_not_free_the_lock(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil counts from 1970, so a process's start time moves with the clock."""
    with another_process(store):
        created = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: created(process) + 3600)
        with pytest.raises(LockedError):
            Lock(store, "mine").acquire()


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process names itself in what is read")
def test_a_holder_that_calls_itself_a_zombie_is_alive(store: LocalStore) -> None:
    with another_process(store, "x) Z 1 (y"), pytest.raises(LockedError):
        Lock(store, "mine").acquire()


def test_two_locks_of_one_process_exclude_each_other(store: LocalStore) -> None:
    first = Lock(store, "first")
    first.acquire()
    with pytest.raises(LockedError):
        Lock(store, "second").acquire()
    first.release()


def test_of_many_takers_of_a_dead_lock_one_wins(store: LocalStore) -> None:
    with another_process(store) as process:
        process.kill()
        process.wait()
    gate, taken, refused = threading.Barrier(6), [], []

    def take(i: int) -> None:
        lock = Lock(store, f"taker-{i}")
        gate.wait()
        try:
            lock.acquire()
            taken.append(lock)
        except LockedError:
            refused.append(i)

    threads = [threading.Thread(target=take, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 5)
    taken[0].release()


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"pid": 1}', b"null"])
def test_a_torn_lock_is_nobody_s(store: LocalStore, torn: bytes) -> None:
    store.replace(NAME, torn)
    lock = Lock(store, "mine")
    lock.acquire()
    lock.release()


# --- from another host, where no process can be seen


def test_a_silent_holder_elsewhere_is_outwaited(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.05)
    put(store, elsewhere(beat=7))
    lock = Lock(store, "mine")
    lock.acquire()
    held = holder(store)
    assert held is not None
    assert held.invocation == "mine"
    lock.release()


def test_a_holder_elsewhere_that_beats_keeps_it(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 1.0)
    put(store, elsewhere())
    stop = threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(0.01):
            count += 1
            put(store, elsewhere(beat=count))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LockedError, match="on another-host"):
            Lock(store, "mine").acquire()
    finally:
        stop.set()
        thread.join()
    held = holder(store)
    assert held is not None
    assert held.invocation == "theirs"


def test_a_holder_elsewhere_that_gives_it_back_while_watched(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT", 0.05)
    put(store, elsewhere())
    lock, taken = Lock(store, "mine"), threading.Event()
    thread = threading.Thread(target=lambda: (lock.acquire(), taken.set()))
    thread.start()
    store.remove(NAME)
    thread.join(60)
    assert taken.is_set()
    lock.release()


def test_a_holder_beats(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.02)
    lock, seen = Lock(store, "mine"), threading.Event()
    lock.acquire()

    def watch() -> None:
        while (held := holder(store)) is not None and held.beat < 3:
            seen.wait(0.005)
        seen.set()

    thread = threading.Thread(target=watch)
    thread.start()
    assert seen.wait(60)
    thread.join()
    lock.release()
    assert holder(store) is None


@pytest.mark.parametrize("error", [StoppedError("no space left"), OSError(errno.EIO, "input/output error")])
def test_a_holder_beats_on_when_the_disk_has_room_again(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(module, "BEAT", 0.02)
    lock, failed, beaten, replace_file = Lock(store, "mine"), [], threading.Event(), store.replace
    lock.acquire()

    def ailing(name: str, data: bytes) -> None:
        if len(failed) < 3:
            failed.append(name)
            raise error
        replace_file(name, data)
        beaten.set()

    monkeypatch.setattr(store, "replace", ailing)
    assert beaten.wait(60)
    lock.release()


def test_a_lock_that_was_taken_over_is_not_given_back(store: LocalStore) -> None:
    lock = Lock(store, "mine")
    lock.acquire()
    put(store, elsewhere())
    lock.release()
    held = holder(store)
    assert held is not None
    assert held.invocation == "theirs"


def test_a_beat_does_not_take_the_lock_back(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.02)
    lock = Lock(store, "mine")
    lock.acquire()
    with lock._guard():  # as a taker does
        put(store, elsewhere())
    lock._thread.join(60)
    assert not lock._thread.is_alive(), "who lost the lock stops counting"
    held = holder(store)
    assert held is not None
    assert held.invocation == "theirs"
    lock.release()


def test_what_breaks_once_the_lock_was_taken_away_says_so(store: LocalStore) -> None:
    """Another run sweeps away what belongs to nobody, under the hands of one that was thought dead."""

    def run(taken: bool, error: Exception) -> None:
        with locked(store):
            if taken:
                store.replace(NAME, to_json(asdict(replace(Holder.me("theirs"), host="elsewhere"))))
            raise error

    with pytest.raises(FileNotFoundError):
        run(taken=False, error=FileNotFoundError())
    with pytest.raises(LockedError, match="on elsewhere has taken") as caught:
        run(taken=True, error=FileNotFoundError())
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert store.read(NAME) is not None, "it is theirs"
    store.remove(NAME)
    with pytest.raises(StoppedError):  # an error of ours stays what it is
        run(taken=True, error=StoppedError("no space left", "make room"))
