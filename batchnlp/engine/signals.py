"""Signals: the first asks for an end, the second ends.

As long as no shard is under way there is nothing to finish: the first signal raises `Interrupted` wherever the program
is, which leaves what a crash there would. From `defer` on it only sets a flag: a handler that raised would come up
inside a blocking call of Ray, up to a minute later.

Handlers run in the main thread, when that comes back to Python, which from inside Ray takes seconds. So a thread of
its own says at once that a signal came, and ends the process on a second one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import psutil

from batchnlp.errors import Interrupted, Terminated

FirstWords = Callable[[str], None]
LastWords = Callable[[Interrupted], None]
OURS = (signal.SIGINT, signal.SIGTERM)
STOPPING = "finishing what is under way, then leaving; once more leaves at once"
STDERR = 2  # not sys.stderr, which may be in the middle of a write
ONE = 0.2  # seconds in which a second signal is the first once more: `timeout` sends it to the process and to its group


def say(text: str) -> None:
    """On stderr, whatever Python may be writing there."""
    os.write(STDERR, f"\n{text}\n".encode())


class Interrupt:
    """Which signal came, if any. `first_words` is called when it comes, `last_words` before a second one ends the process."""

    def __init__(self, last_words: LastWords = lambda error: None, first_words: FirstWords = say) -> None:
        self.signal = 0
        self.raised = False
        self._noticed = 0.0
        self._deferred = False
        self._last_words, self._first_words = last_words, first_words

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal

    def defer(self, *, deferred: bool = True) -> None:
        """From here on a signal only sets the flag."""
        self._deferred = deferred

    def handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread: remember the first, and leave if nothing is under way."""
        if not self.signal:
            self.signal = number
            self.raised = not self._deferred
            if self.raised:
                raise _error(number)

    def check(self) -> None:
        """Raise what was raised once and got lost: Python only reports what comes up in a finaliser."""
        if self.raised:
            raise _error(self.signal)

    def notice(self, number: int) -> None:
        """In a thread of its own: say that the first came; on a second take the children along and leave at once."""
        if not self._noticed:
            self._noticed = time.monotonic()
            signal.alarm(0)  # that of Ray's own handler, in place while Ray starts, which would abort in three seconds
            with suppress(OSError):  # nobody may be there to listen
                self._first_words(f"{_name(number)}: {STOPPING}")
        elif time.monotonic() - self._noticed > ONE:
            self._end(number)

    def _end(self, number: int) -> None:
        try:
            with suppress(OSError):  # as above
                self._last_words(_error(number))
        finally:
            leave(128 + number)


def leave(code: int) -> NoReturn:
    """End the process at once, with its children."""
    try:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it may have gone by itself
                child.kill()
    finally:
        os._exit(code)


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else "SIGTERM"


def _error(number: int) -> Interrupted:
    kind = Interrupted if number == signal.SIGINT else Terminated
    return kind(f"stopped by {_name(number)}", "run the same command again")


@contextmanager
def watch_signals(last_words: LastWords = lambda error: None, first_words: FirstWords = say) -> Iterator[Interrupt]:
    """SIGINT and SIGTERM are ours as long as this lasts; off the main thread nothing is installed. Inside another of its
    kind the other's `Interrupt` serves on."""
    interrupt = Interrupt(last_words, first_words)
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(outer, Interrupt):
        try:
            yield outer
        finally:
            outer.defer(deferred=False)
        return
    try:
        # The handlers of before come back first: a second signal that only ours heard would be lost.
        with _noticing(interrupt), _handling(interrupt):
            yield interrupt
    except Exception as error:
        if interrupt.raised and not isinstance(error, Interrupted):  # what others made of it
            raise _error(interrupt.signal) from error
        raise


@contextmanager
def _handling(interrupt: Interrupt) -> Iterator[None]:
    before = {number: signal.signal(number, interrupt.handle) for number in OURS}
    try:
        yield
    finally:
        for number, handler in reversed(before.items()):  # that of Ctrl-C, which may raise at once, last
            signal.signal(number, handler)


@contextmanager
def _noticing(interrupt: Interrupt) -> Iterator[None]:
    """The thread that is told of signals at once: Python writes their numbers into a pipe when they come."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def notice() -> None:
        while numbers := os.read(reader, 64):
            for number in set(OURS).intersection(numbers):
                interrupt.notice(number)

    thread = threading.Thread(target=notice, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        try:
            signal.set_wakeup_fd(before)
        finally:
            os.close(writer)
            thread.join()
            os.close(reader)


@contextmanager
def keep_signals() -> Iterator[None]:
    """Around the start of Ray, which puts a handler of its own, one that exits, in the place of SIGTERM's.

    The old one comes back, and is told of a signal that Ray's handler took; then Terminated is raised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        if callable(before):
            before(signal.SIGTERM, None)
        raise _error(signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)
