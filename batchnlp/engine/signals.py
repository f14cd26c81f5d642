"""Signals: the first asks for an end, the second ends.

As long as no shard is under way there is nothing to finish: the first signal raises `Interrupted` wherever the program
is, which leaves what a crash there would. From `defer` on it only sets a flag: a handler that raised would come up
inside a blocking call of Ray, up to a minute later.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from batchnlp.errors import Interrupted, Terminated

LastWords = Callable[[Interrupted], None]
STDERR = 2  # not sys.stderr, which may be in the middle of a write


class Interrupt:
    """Which signal came, if any. `last_words` is called before a second one ends the process."""

    def __init__(self, last_words: LastWords = lambda error: None) -> None:
        self.signal = 0
        self._deferred = False
        self._last_words = last_words

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal

    def defer(self, *, deferred: bool = True) -> None:
        """From here on a signal only sets the flag."""
        self._deferred = deferred

    def handle(self, number: int, frame: FrameType | None) -> None:
        """First: leave, or remember. Second: take the children along and leave at once."""
        if self.signal:
            self._end(number)
        self.signal = number
        if self._deferred:
            _say(f"\n{_name(number)}: finishing what is under way; once more ends at once\n")
            return
        _say(f"\n{_name(number)}: leaving\n")
        raise _error(number)

    def _end(self, number: int) -> None:
        try:
            with suppress(OSError):  # nobody may be there to listen
                self._last_words(_error(number))
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):  # it may have gone by itself
                    child.kill()
        finally:
            os._exit(128 + number)


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else "SIGTERM"


def _error(number: int) -> Interrupted:
    kind = Interrupted if number == signal.SIGINT else Terminated
    return kind(f"stopped by {_name(number)}", "run the same command again")


def _say(text: str) -> None:
    with suppress(OSError):  # as above
        os.write(STDERR, text.encode())


@contextmanager
def watch_signals(last_words: LastWords = lambda error: None) -> Iterator[Interrupt]:
    """SIGINT and SIGTERM are ours as long as this lasts; off the main thread nothing is installed. Inside another of its
    kind the other's `Interrupt` serves on."""
    interrupt = Interrupt(last_words)
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
    before = {number: signal.signal(number, interrupt.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
        raise _error(signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)
