"""One run at a time in one output, and nobody locked out by the dead.

On the same host the holder is dead when its process is: pid, start time and boot id no longer match. Then the lock is
taken over at once, under `flock` where there is one, so that of two takers one wins. From another host no process can
be seen; the holder counts up every `BEAT` seconds, and who does not count for three beats, on the watcher's own monotonic
clock, is dead. Clocks are never compared.

This is courtesy, so that two runs do not do the same work. Safety comes from exclusive commits.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from batchnlp.data.store import Store, to_json
from batchnlp.errors import BatchnlpError, CorruptError, LockedError, OutputError

NAME = "_batchnlp/lock.json"
BEAT = 5.0  # seconds
BROKEN = (OSError, OutputError, CorruptError)  # what becomes of a run whose files go


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock."""

    invocation: str
    pid: int
    started: float  # when the process started, on a clock that nobody sets
    host: str
    boot: str  # boot id and pid namespace: only inside one can pids be compared
    beat: int = 0

    @classmethod
    def me(cls, invocation: str) -> Holder:
        """This process."""
        return cls(invocation, os.getpid(), _started(os.getpid()), socket.gethostname(), _boot_id())

    def here(self) -> bool:
        """Whether the holder's process would be visible from this one."""
        return self.host == socket.gethostname() and self.boot == _boot_id()

    def alive(self) -> bool:
        """Whether the holder, which is `here`, still runs."""
        return self.started == _started(self.pid)


def _started(pid: int) -> float:
    """When a process started; 0 where there is none, or only a zombie.

    On Linux in ticks since the boot, which no setting of the clock moves, as it moves psutil's seconds since 1970.
    """
    if sys.platform == "linux":
        try:  # the name, in parentheses, may hold spaces and parentheses of its own
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return 0.0
        return 0.0 if fields[0] in "ZX" else float(fields[19])
    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return 0.0


def _boot_id() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return str(psutil.boot_time())


class Lock:
    """Held from `acquire` to `release`; a thread counts the beats."""

    def __init__(self, store: Store, invocation: str) -> None:
        self._store = store
        self._mine = Holder.me(invocation)
        self._taken = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._count, name="lock-beat", daemon=True)

    def acquire(self) -> None:
        """Take the lock, or LockedError naming the holder."""
        with self._guard():
            held: Holder | None = None
            self._taken = True  # it may be ours from now on: `release` looks
            if not self._store.create(NAME, to_json(asdict(self._mine))):
                held = self._read()
                if held is not None and held.here():
                    if held.alive():
                        raise _locked(self._store.root, held)
                    held = None
                if held is None:
                    self._take()
        if held is not None:
            self._outwait(held)
        self._thread.start()

    def release(self) -> None:
        """Give the lock back, if it is ours, and still is."""
        if not self._taken:
            return
        self._released.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._guard():
            held = self._read()
            if held is not None and held.invocation == self._mine.invocation:
                self._store.remove(NAME)

    def lost(self) -> LockedError | None:
        """What to say where the lock, once acquired, is not ours any more."""
        try:
            held = self._read()
        except BatchnlpError:
            return None  # of a store that is down nobody knows
        if held is not None and held.invocation == self._mine.invocation:
            return None
        root, hint = self._store.root, "run this again when nobody else uses it; what is committed counts"
        if held is None:
            return LockedError(f"the lock of {root} is gone: another run took it over, or somebody removed it", hint)
        return LockedError(f"process {held.pid} on {held.host} has taken {root} over, and thought this run dead", hint)

    def _outwait(self, held: Holder) -> None:
        """Watch a holder on another host for three beats."""
        deadline = time.monotonic() + 3 * BEAT
        while time.monotonic() < deadline:
            time.sleep(BEAT / 10)
            now = self._read()
            if now is not None and (now.invocation, now.beat) != (held.invocation, held.beat):
                raise _locked(self._store.root, now)
        with self._guard():
            now = self._read()
            if now is not None and (now.invocation, now.beat) != (held.invocation, held.beat):
                raise _locked(self._store.root, now)
            self._take()

    def _count(self) -> None:
        while not self._released.wait(BEAT):
            # A full or ailing disk is no reason to fall silent for ever: another host would take us for dead.
            with suppress(OSError, BatchnlpError), self._guard():
                held = self._read()
                if held is None or held.invocation != self._mine.invocation:
                    return  # taken over by somebody who thought us dead; commits stay exclusive
                self._mine = replace(self._mine, beat=self._mine.beat + 1)
                self._write()

    def _read(self) -> Holder | None:
        return _holder(self._store)

    def _take(self) -> None:
        """Take the lock of a dead holder; without a guard the last one who does so has it."""
        self._write()
        now = self._read()
        if now is not None and now.invocation != self._mine.invocation:
            raise _locked(self._store.root, now)

    def _write(self) -> None:
        self._store.replace(NAME, to_json(asdict(self._mine)))

    def _guard(self) -> AbstractContextManager[None]:
        """Between processes of one host: who looks and then writes is alone."""
        return self._store.guard(NAME)


@contextmanager
def locked(store: Store) -> Iterator[str]:
    """Hold the lock meanwhile, under a new name. LockedError where another run has it; or where one took it away in the
    meantime and something broke: its files go when another run begins."""
    lock = Lock(store, invocation := uuid.uuid4().hex[:12])
    try:
        lock.acquire()
        try:
            yield invocation
        except Exception as error:
            if isinstance(error, BROKEN) and (lost := lock.lost()):
                raise lost from error
            raise
    finally:
        lock.release()


def _holder(store: Store) -> Holder | None:
    data = store.read(NAME)
    try:
        return Holder(**json.loads(data)) if data else None
    except (ValueError, TypeError):
        return None  # a torn lock is nobody's


def running(store: Store) -> Holder | None:
    """Who works in this output, as far as can be seen from this host without waiting."""
    held = _holder(store)
    return held if held is not None and (not held.here() or held.alive()) else None


def _locked(root: str, held: Holder) -> LockedError:
    where = f"process {held.pid} on {held.host}"
    return LockedError(f"{root} is in use by {where}", "wait for it, or stop it and run this again")
