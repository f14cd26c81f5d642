"""Signals: the first asks for an end, the second ends.

Handlers only set a flag. One that raised would come up inside a blocking call of Ray, up to a minute later.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

Handler = Callable[[int, FrameType | None], None]


class Interrupted(Exception):
    """A signal ended the start of something half-way."""


class Interrupt:
    """Which signal came, if any."""

    def __init__(self) -> None:
        self.signal = 0

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal

    def handle(self, number: int, frame: FrameType | None) -> None:
        """First: remember. Second: take the children along and leave."""
        if self.signal:
            try:
                for child in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):  # it may have gone by itself
                        child.kill()
            finally:
                os._exit(128 + number)
        self.signal = number
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        os.write(sys.stderr.fileno(), f"\n{name}: finishing what is under way; once more ends at once\n".encode())


@contextmanager
def watch_signals() -> Iterator[Interrupt]:
    """SIGINT and SIGTERM set a flag as long as this lasts; off the main thread nothing is installed."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
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

    The old one comes back, and is told of a signal that Ray's handler took; then Interrupted is raised.
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
        raise Interrupted from None
    finally:
        signal.signal(signal.SIGTERM, before)
