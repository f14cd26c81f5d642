"""Rows enter and leave the batch one by one, over the borders of shards.

A finished row gives its slot to the last one at once; others enter when a tenth of the places is free, the longest
first, as many as there is memory for their keys and values. What all prompts of a shard begin with is computed once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
import torch

from batchnlp.backends.base import Aborted, OnBatch
from batchnlp.backends.decoding import Chooser
from batchnlp.backends.generation import Job, Row
from batchnlp.backends.packed_attention import PackedModel, Span
from batchnlp.backends.torch_model import give_up, is_out_of_memory, judge
from batchnlp.errors import BackendError
from batchnlp.types import Completions, Feed, Pieces

ROWS = {"cpu": 64, "cuda": 256}  # in flight at most: beyond it a step costs as much as its rows
FREE = 0.1  # share of the places that must be free before others enter, so that prefills are not of one row each


class InFlight:
    """The rows in flight of one model; `begin` is the token its decoder starts with, `budget` the positions that there
    is memory for."""

    def __init__(self, slots: PackedModel, chooser: Chooser, begin: int, budget: int, tokens_per_batch: int) -> None:
        self._slots, self._chooser = slots, chooser
        self._begin = begin if slots.seq2seq else None
        self._budget, self._tokens_per_batch = budget, tokens_per_batch
        self._stretched = stretched_from(slots.model.config)
        self.most = self._limit = ROWS[slots.device.type]
        self.row_steps = self.prefilled = 0  # rows computed one token on, prompt tokens computed: for benchmarks
        self._worked = False
        self._jobs: list[Job] = []
        self._rows: list[Row] = []
        self._suspects: set[tuple[int, int]] = set()  # job and piece of rows that are begun again after a failure
        self._prefix: list[int] = []
        self._on_batch: OnBatch = lambda rows, tokens, executed, seconds: None

    def run(
        self, feed: Feed, make: Callable[[Any, Pieces], Job], aborted: Callable[[], bool], on_batch: OnBatch
    ) -> Iterator[tuple[Any, Completions]]:
        """(key, completions) of each shard, in the order they get done."""
        self._jobs, self._rows, self._on_batch = [], [], on_batch
        self._suspects.clear()
        while True:
            if aborted():
                raise Aborted
            if not any(job.pending for job in self._jobs):
                work = feed.take(wait=not self._jobs)
                if work is not None:
                    self._jobs.append(make(*work))
            with torch.inference_mode():
                self._work()
            for job in [job for job in self._jobs if not job.left]:
                self._jobs.remove(job)
                yield job.key, job.result()
            if not self._jobs and feed.ended:
                return

    # --- one turn: let rows enter, compute a step, let rows leave

    def _work(self) -> None:
        entering = self._entering()
        try:
            if entering:
                self._enter(entering)
            elif self._rows:
                entering = self._rows
                self._step()
            self._worked = True
        except Exception as error:  # noqa: BLE001 - whatever a model raises, it is about these documents
            self._fail(error, entering)
        self._leave()

    def _entering(self) -> list[Row]:
        """The rows that enter now: none while few places are free, or while there is no memory for one more."""
        room = self._limit - len(self._rows)
        job = next((job for job in self._jobs if job.pending), None)
        if job is None or (self._rows and room < max(1, FREE * self._limit)):
            return []
        rows: list[Row] = []
        tokens, need = 0, max((row.need for row in self._rows), default=0)
        while job.pending and len(rows) < room:
            piece = job.pending[-1]
            size = int(job.pieces.lengths[piece])
            need = max(need, size + int(job.limits[piece]) + self._slots.seq2seq)
            if (rows or self._rows) and (
                need > self._stretched  # it, or the one that is there, must be alone
                or (len(self._rows) + len(rows) + 1) * need > self._budget
                or (rows and tokens + size > self._tokens_per_batch)
            ):
                break
            job.pending.pop()
            rows.append(Row.of(job, piece, self._chooser, self._begin))
            tokens += size
        return rows

    def _enter(self, rows: list[Row]) -> None:
        slots, base, began = self._slots, len(self._rows), perf_counter()
        job = rows[0].job
        past = 0 if rows[0].need > self._stretched else self._shared(job)
        slots.reserve(base + len(rows), max(len(row.prompt) for row in rows), max(len(row.source) for row in rows))
        if past:
            slots.put_prefix(list(range(base, base + len(rows))))
        states, sources = self._encoded(rows)
        spans: list[Span] = []
        ids: list[int] = []
        for i, row in enumerate(rows):
            spans.append(Span(base + i, len(ids), len(ids) + len(row.prompt) - past, past, sources[i]))
            ids += row.prompt[past:]
            row.length = len(row.prompt)
        logits = slots.prefill(torch.tensor(ids, device=slots.device), spans, states)
        self.prefilled += len(ids)
        self._rows += rows
        self._take(logits, rows, len(ids) + sum(len(row.source) for row in rows), began)

    def _shared(self, job: Job) -> int:
        """Length of what the job's prompts begin with, which is then in the slots' prefix."""
        if job.prefix and job.prefix != self._prefix:
            slots, slot, length = self._slots, len(self._rows), len(job.prefix)
            slots.reserve(slot + 1, length)
            slots.prefill(torch.tensor(job.prefix, device=slots.device), [Span(slot, 0, length)])
            slots.keep_prefix(slot, length)
            self._prefix = job.prefix
            self.prefilled += length
            job.tokens += length
        return len(job.prefix)

    def _encoded(self, rows: list[Row]) -> tuple[Any, list[tuple[int, int]]]:
        """(packed encoder states, each row's part of them); nothing for decoder-only models."""
        slots = self._slots
        if not slots.seq2seq:
            return None, [(0, 0)] * len(rows)
        ids = [token for row in rows for token in row.source]
        ends = np.cumsum([len(row.source) for row in rows]).tolist()
        parts = list(zip([0, *ends[:-1]], ends, strict=True))
        states = slots.encode(torch.tensor(ids, device=slots.device), [Span(0, a, b) for a, b in parts])
        return states, parts

    def _step(self) -> None:
        slots, rows, began = self._slots, self._rows, perf_counter()
        longest = max(row.length for row in rows) + 1
        slots.reserve(len(rows), longest)
        ids = torch.tensor([row.new[-1] for row in rows], device=slots.device)
        positions = torch.tensor([row.length for row in rows], device=slots.device)
        sources = torch.tensor([len(row.source) for row in rows], device=slots.device) if slots.seq2seq else None
        logits = slots.decode(ids, positions, longest, sources)
        for row in rows:
            row.length += 1
        self.row_steps += len(rows)
        self._take(logits, rows, len(rows), began)

    def _take(self, logits: torch.Tensor, rows: list[Row], tokens: int, began: float) -> None:
        """Choose each row's next token, and finish the rows that are done."""
        chosen, logprobs = self._chooser.choose(logits, [row.choice for row in rows])
        finished = 0
        for i, (row, token) in enumerate(zip(rows, chosen, strict=True)):
            if reason := row.took(self._chooser, token, None if logprobs is None else logprobs[i]):
                finished += self._finish(row, reason)
        seconds = perf_counter() - began
        jobs = Counter(id(row.job) for row in rows)
        for job in self._jobs:
            share = jobs[id(job)] / len(rows)
            job.seconds += seconds * share
            job.tokens += round(tokens * share)
        self._on_batch(finished, tokens, tokens, seconds)

    def _finish(self, row: Row, reason: str) -> int:
        row.job.answer(row.piece, row.new, reason, row.logprobs)
        row.max_new = 0
        if self._suspects:
            self._suspects.discard((id(row.job), row.piece))
            self._limit = self._limit if self._suspects else self.most  # none of them failed again
        return 1 + len(row.job.twins.get(row.piece, ()))

    def _leave(self) -> None:
        """Give the slots of finished rows to the last ones."""
        rows, i = self._rows, 0
        while i < len(rows):
            if rows[i].max_new:
                i += 1
                continue
            last = rows.pop()
            if i < len(rows):
                self._slots.move(len(rows), i, last.length, len(last.source))
                rows[i] = last

    def _remember(self, together: list[Row], rows: list[Row]) -> None:
        """What did not fit is not tried again: so many positions, and so many prompt tokens at once where rows entered.

        Positions, not rows: one long prompt must not leave its short companions to go one by one.
        """
        self._budget = min(self._budget, len(together) * max(row.need for row in together) // 2)
        if entered := sum(len(row.prompt) + len(row.source) for row in rows if not row.new):
            self._tokens_per_batch = min(self._tokens_per_batch, max(entered // 2, 1))

    def _forget(self) -> None:
        """Give the memory of all rows back, those that are to come again among them."""
        self._slots.clear()
        self._prefix = []
        if self._slots.device.type == "cuda":
            torch.cuda.empty_cache()

    def _fail(self, error: Exception, rows: list[Row]) -> None:
        """Give up a row that is alone; otherwise begin those that were at work again, half as many at a time."""
        if isinstance(error, Aborted | BackendError):
            raise error
        memory = is_out_of_memory(error)
        together = [row for row in dict.fromkeys([*self._rows, *rows]) if row.max_new]  # less those that are answered
        crowded = memory and self._slots.held > 2 * sum(row.need for row in together)  # by what others have left behind
        self._rows = []
        if memory:
            self._forget()
        code, message = judge(error, self._slots.device)
        if not together:
            raise error
        if len(together) == 1 and not crowded:
            row = together[0]
            row.job.fail(row.piece, code, message)
            self._suspects.clear()
            self._limit = self.most
            give_up(sum(len(job.failures) for job in self._jobs), self._worked, error, message)
            return
        if memory and len(together) > 1:
            self._remember(together, rows)
        if not memory:
            self._limit = max(len(together) // 2, 1)
            self._suspects.update((id(row.job), row.piece) for row in together)
        for row in reversed(together):
            row.job.pending.append(row.piece)


def stretched_from(config: Any) -> int:
    """Positions beyond which a model (of longrope) computes all of them otherwise, by the longest row of the call: then
    what shares a call, or a prefix, would change answers."""
    ropes = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    found = [
        rope for rope in (ropes, *ropes.values()) if isinstance(rope, dict) and rope.get("rope_type") == "longrope"
    ]
    return min((int(rope["original_max_position_embeddings"]) for rope in found), default=1 << 62)
