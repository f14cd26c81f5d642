"""Two processes that run the same job into the same output at the same moment."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any


class Pair:
    """The two, which live on from round to round."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections

    def run(self, job: dict[str, Any], *, lock: bool = True) -> list[tuple[str, str]]:
        """(how it ended, what it said) of each; the holder's pid is in it where one was locked out."""
        for connection in self._connections:
            connection.send((job, lock))
        return [tuple(connection.recv()) for connection in self._connections]


@contextmanager
def rivals() -> Iterator[Pair]:
    """Start them, and end them."""
    context = multiprocessing.get_context("spawn")
    barrier, pipes = context.Barrier(2), [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=_rival, args=(theirs, barrier), daemon=True) for _, theirs in pipes]
    for process in processes:
        process.start()
    try:
        yield Pair([ours for ours, _ in pipes])
    finally:
        for ours, _ in pipes:
            ours.send(None)
        for process in processes:
            process.join()


def _rival(connection: Connection, barrier: Any) -> None:
    import os

    import batchnlp
    from batchnlp.data.lock import Lock
    from batchnlp.errors import BatchnlpError

    acquire = Lock.acquire
    while (task := connection.recv()) is not None:
        job, lock = task
        Lock.acquire = acquire if lock else lambda self: None  # type: ignore[method-assign]
        barrier.wait()
        try:
            result = batchnlp.run(job)
            connection.send((result.status, str(os.getpid())))
        except (BatchnlpError, OSError) as error:  # without the lock one's files may go when the other is done
            connection.send((type(error).__name__, str(error)))
