"""What both ways of generating share: a shard as a set of prompts with answers to come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from batchnlp.backends.decoding import Choice, Chooser
from batchnlp.types import Completions, Decoding, Failure, Int64, Pieces

SHARED = 16  # tokens from which a common beginning is worth keeping


@dataclass(slots=True, eq=False)
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
            one = i
            if alike:
                prompt = pieces.ids[pieces.starts[i] : pieces.starts[i + 1]].tobytes()
                one = first.setdefault((prompt, int(limits[i])), i)
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


@dataclass(slots=True, eq=False)
class Row:
    """One prompt that is being answered; in flight its slot is its place in the list of rows."""

    job: Job
    piece: int
    prompt: list[int]  # what the decoder begins with
    source: list[int]  # what the encoder reads; empty for decoder-only models
    max_new: int
    choice: Choice
    length: int = 0  # positions in its slot
    new: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, job: Job, piece: int, chooser: Chooser, begin: int | None) -> Row:
        """A row as it begins; `begin` is the decoder's first token, None for decoder-only models."""
        ids, limit = job.prompt(piece), int(job.limits[piece])
        seed = 0 if job.pieces.seed is None else int(job.pieces.seed[piece])
        prompt, source = (ids, []) if begin is None else ([begin], ids)
        return cls(job, piece, prompt, source, limit, chooser.row(prompt, source or None, limit, seed))

    def took(self, chooser: Chooser, token: int, logprob: float | None) -> str:
        """Why the row ends with this token; empty when it goes on."""
        if token in chooser.eos:
            return "stop"
        self.new.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        return "stop" if chooser.stopped(self.new) else "length" if len(self.new) >= self.max_new else ""

    @property
    def need(self) -> int:
        """Positions it may come to, in both of its stores."""
        return len(self.prompt) + self.max_new + len(self.source)


def answer_limits(pieces: Pieces, decoding: Decoding, positions: int, *, seq2seq: bool) -> Int64:
    """[pieces] tokens that each answer may have: as asked for, and as there are positions left."""
    asked = decoding.max_new_tokens if pieces.max_new is None else pieces.max_new.astype(np.int64)
    taken = 1 if seq2seq else pieces.lengths
    room = np.broadcast_to(positions - taken, pieces.lengths.shape)
    return np.asarray(np.minimum(np.minimum(asked, decoding.max_new_tokens), room), np.int64)


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
