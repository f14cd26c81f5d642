"""A model behind an OpenAI-compatible server: requests in flight, over the borders of shards.

This thread takes shards, begins as many requests as pay, and hands answers back; the requests themselves run in another
one (`openai_client`), in an event loop.
"""

from __future__ import annotations

import json
import queue
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from batchnlp.backends.base import HOPELESS, Aborted, Backend, One
from batchnlp.backends.openai_api import Refused
from batchnlp.backends.openai_client import Line, read_key
from batchnlp.errors import ModelError
from batchnlp.types import Decoding, Failure, Feed, ModelFiles, Pieces, Replies, Reply, Resolved, Server

OPEN = 32  # shards under way: those behind a request that hangs shall not fill the memory
TICK = 0.1  # seconds until it looks around


@dataclass(slots=True, eq=False)
class _Job:
    """A shard on its way."""

    key: Any
    pieces: Pieces
    waiting: deque[int]  # pieces not asked yet
    twins: dict[int, list[int]]  # piece → others with the same request
    replies: list[Reply]
    left: int
    failures: list[Failure] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, key: Any, pieces: Pieces, *, alike: bool) -> _Job:
        """A shard as it begins. `alike`: the same request has the same answer, and is sent once."""
        requests = pieces.requests
        assert requests is not None, "a server is asked in words"
        first: dict[str, int] = {}
        twins: dict[int, list[int]] = {}
        for i, asked in enumerate(requests.to_pylist() if alike else ()):
            one = first.setdefault(json.dumps(asked), i)
            if one != i:
                twins.setdefault(one, []).append(i)
        n, others = len(pieces), {i for same in twins.values() for i in same}
        return cls(key, pieces, deque(i for i in range(n) if i not in others), twins, [Reply()] * n, n)

    def settle(self, piece: int, outcome: Reply | Refused) -> int:
        """The outcome for a piece and those with the same request; how many they are."""
        same = (piece, *self.twins.get(piece, ()))
        for each in same:
            if isinstance(outcome, Reply):
                self.replies[each] = outcome
            else:
                doc = int(self.pieces.doc[each])
                self.failures.append(Failure(doc, "forward", outcome.code, outcome.message, outcome.tries))
        self.left -= len(same)
        return len(same)

    def result(self) -> Replies:
        """All replies of the shard."""
        nothing = np.empty((0, 1), np.float32)
        failures = tuple(self.failures)
        return Replies("replies", nothing, failures, self.tokens, self.tokens, self.seconds, tuple(self.replies))


class HttpBackend(Backend):
    """One client of a server."""

    def __init__(
        self, model: ModelFiles, resolved: Resolved, kind: str, threads: int, decoding: Decoding | None = None
    ) -> None:
        super().__init__()
        assert isinstance(model, Server)
        self._server, self._decoding, self.note = model, decoding or Decoding(), ""
        self._key = read_key(model.key_env)
        self._hopeless = 0

    def forward(self, pieces: Pieces) -> Replies:
        """The answers to the pieces of one shard."""
        return next(iter(self.run(One(pieces))))[1]

    def run(self, feed: Feed) -> Iterator[tuple[Any, Replies]]:
        """(key, answers) of each shard, in the order they get done."""
        with Line(self._server, self._decoding, self._key) as line:
            yield from self._flow(feed, line)

    def _flow(self, feed: Feed, line: Line) -> Iterator[tuple[Any, Replies]]:
        jobs: list[_Job] = []
        done: queue.SimpleQueue[tuple[_Job, int, Future[Reply | Refused]]] = queue.SimpleQueue()
        last = perf_counter()
        while True:
            if self.aborted():
                raise Aborted
            if len(jobs) < OPEN and not any(job.waiting for job in jobs):
                work = feed.take(wait=not jobs)
                last = last if jobs else perf_counter()
                if work is not None:
                    jobs.append(_Job.of(*work, alike=not self._decoding.sample))
            for job in jobs:
                while job.waiting and line.has_room:
                    self._ask(line, job, job.waiting.popleft(), done)
            for job, piece, future in _arrived(done, wait=any(job.left for job in jobs)):
                line.under_way -= 1
                now = perf_counter()
                self._settle(line, job, piece, future.result(), now - last)
                last = now
            for job in [job for job in jobs if not job.left]:
                jobs.remove(job)
                yield job.key, job.result()
            if not jobs and feed.ended:
                return

    @staticmethod
    def _ask(line: Line, job: _Job, piece: int, done: queue.SimpleQueue[Any]) -> None:
        pieces = job.pieces
        assert pieces.requests is not None
        seed = None if pieces.seed is None else int(pieces.seed[piece]) & 0x7FFFFFFF  # some servers take 32 bits
        future = line.ask(pieces.requests[piece].as_py(), seed)
        future.add_done_callback(lambda future: done.put((job, piece, future)))

    def _settle(self, line: Line, job: _Job, piece: int, outcome: Reply | Refused, seconds: float) -> None:
        rows = job.settle(piece, outcome)
        tokens = 0 if isinstance(outcome, Refused) else max(outcome.n_tokens, 0) + max(outcome.n_new_tokens, 0)
        job.tokens += tokens
        job.seconds += seconds
        self.on_batch(rows, tokens, tokens, seconds)
        if isinstance(outcome, Refused) and outcome.code in ("refused", "bad_answer") and not line.worked:
            self._hopeless += 1
            if self._hopeless >= HOPELESS:
                what = f"{self._server.url} answers no request: {outcome.message}"
                raise ModelError(what, "change what it names in the task section")


def _arrived(done: queue.SimpleQueue[Any], *, wait: bool) -> Iterator[Any]:
    """All that is there; with `wait` the first of it is waited for, for a moment."""
    try:
        yield done.get(wait, TICK)
        while True:
            yield done.get_nowait()
    except queue.Empty:
        return
