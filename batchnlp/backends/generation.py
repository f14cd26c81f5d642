"""What both ways of generating share: a shard as a set of prompts with answers to come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from batchnlp.types import Completions, Failure, Int64, Pieces

SHARED = 16  # tokens from which a common beginning is worth keeping
HOPELESS = 8  # documents failing one by one before anything succeeded: then it is the model, not the documents
OnBatch = Callable[[int, int, int, float], None]  # answers, tokens, tokens with padding, seconds


@dataclass(slots=True)
class Job:
    """One shard on its way: what was asked, what is still to begin, what came back."""

    key: Any
    pieces: Pieces
    limits: Int64  # [pieces] tokens that each answer may have
    pending: list[int]  # pieces not begun, the longest last
    twins: dict[int, list[int]]  # piece → others with the same prompt
    prefix: list[int]
    left: int
    answers: list[list[int]]
    finish: list[str]
    logprobs: list[list[float]]
    failures: list[Failure] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, key: Any, pieces: Pieces, limits: Int64, *, alike: bool, prefix: bool) -> Job:
        """A shard as it begins. `alike`: the same prompt has the same answer; `prefix`: a common one can be used.

        A prompt that leaves no position for an answer fails here.
        """
        n = len(pieces)
        job = cls(key, pieces, limits, [], {}, [], n, [[]] * n, [""] * n, [[]] * n)
        first: dict[tuple[bytes, int], int] = {}
        for i in np.argsort(pieces.lengths + limits, kind="stable").tolist():
            if limits[i] < 1:
                job.fail(i, "too_long", f"{pieces.lengths[i]:,} tokens leave no room for an answer")
                continue
            name = pieces.ids[pieces.starts[i] : pieces.starts[i + 1]].tobytes(), int(limits[i])
            one = first.setdefault(name, i) if alike else i
            if one == i:
                job.pending.append(i)
            else:
                job.twins.setdefault(one, []).append(i)
        if prefix:
            job.prefix = common_prefix(pieces, job.pending)
        return job

    def prompt(self, piece: int) -> list[int]:
        """The tokens of a piece."""
        return list(self.pieces.ids[self.pieces.starts[piece] : self.pieces.starts[piece + 1]].tolist())

    def answer(self, piece: int, tokens: list[int], finish: str, logprobs: list[float]) -> None:
        """The answer of a piece, and of those with the same prompt."""
        for each in (piece, *self.twins.get(piece, ())):
            self.answers[each], self.finish[each], self.logprobs[each] = tokens, finish, logprobs
            self.left -= 1

    def fail(self, piece: int, code: str, message: str) -> None:
        """No answer for a piece."""
        docs = {int(self.pieces.doc[each]) for each in (piece, *self.twins.get(piece, ()))}
        self.failures += [Failure(doc, "forward", code, message) for doc in sorted(docs)]
        self.answer(piece, [], "", [])

    def result(self, padding: int = 0) -> Completions:
        """All answers as columns."""
        starts = np.zeros(len(self.answers) + 1, np.int64)
        np.cumsum([len(answer) for answer in self.answers], out=starts[1:])
        ids = np.array([token for answer in self.answers for token in answer], np.int32)
        values = np.array([p for row in self.logprobs for p in row], np.float32).reshape(-1, 1)
        return Completions(
            "completions", values, tuple(self.failures), self.tokens, self.tokens + padding, self.seconds, ids, starts,
            tuple(self.finish),
        )  # fmt: skip


def common_prefix(pieces: Pieces, index: list[int]) -> list[int]:
    """What all these pieces begin with, if it is long enough; at least one token of each is left over."""
    if len(index) < 2:
        return []
    length = int(pieces.lengths[index].min()) - 1
    first = pieces.ids[pieces.starts[index[0]] :][: max(length, 0)]
    for i in index[1:]:
        other = pieces.ids[pieces.starts[i] :][: len(first)]
        differs = np.flatnonzero(first != other)
        first = first[: differs[0]] if len(differs) else first
        if len(first) < SHARED:
            return []
    return list(first.tolist()) if len(first) >= SHARED else []
