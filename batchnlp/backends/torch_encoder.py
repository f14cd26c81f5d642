"""Encoders on torch: pieces in, logits or pooled vectors out, or values for each token, in padded batches sorted by length.

Batches that fail are halved, whatever the reason: when memory runs out the size that did not fit is remembered and not
tried again; any other error ends at the one document that causes it, which becomes a dead letter. A CUDA device on which a
kernel has failed does nothing any more, whatever the document: then the worker ends.

The same text is computed once: within a shard always, and over shards as far back as a small memory reaches.

Shapes: B rows of a batch, L padded length, H hidden size, W columns of the answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from batchnlp.backends.answer import Answer, Pooler
from batchnlp.backends.base import Aborted
from batchnlp.backends.canary import padding_changes
from batchnlp.backends.first_token import cut_last_layer
from batchnlp.backends.token_heads import BY_TOKEN, token_rows
from batchnlp.backends.torch_model import TorchBackend, give_up, is_out_of_memory, judge, load_model
from batchnlp.text.alike import Keys, Known, first_alike, keys
from batchnlp.text.batching import halve, pack
from batchnlp.text.encode import ranges
from batchnlp.types import Batch, Decoding, Failure, Feed, Float32, Int64, ModelFiles, Pieces, Raw, Resolved


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch that was launched, and where its answer will be."""

    batch: Batch
    host: Tensor  # [B, W] or [B, L, W] float32 in host memory
    wait: Callable[[], None]  # until the answer is there; raises what went wrong on the device meanwhile


class _Twins(NamedTuple):
    """Which pieces are the same."""

    keys: Keys
    first: Int64  # [pieces] the first piece of this shard that is the same
    known: Int64  # [pieces] where an earlier shard's answer is remembered, or -1
    asked: Int64  # the pieces that the model must be asked about


def _twins(pieces: Pieces, known: Known | None) -> _Twins:
    """What the model must be asked: each piece once, and none whose answer is known."""
    names = keys(pieces)
    first = first_alike(names)
    before = np.full(len(pieces), -1) if known is None else known.find(names)
    return _Twins(names, first, before, np.flatnonzero((first == np.arange(len(pieces))) & (before < 0)))


def _shared(twins: _Twins, values: Float32, known: Known | None) -> Float32:
    """The answers of the pieces that were asked about, handed on to those that are the same."""
    again = twins.known >= 0
    if known is not None:
        if again.any():
            values[again] = known.values(twins.known[again])
        known.add(twins.keys[twins.asked], values[twins.asked])
    return values[twins.first]


class TorchEncoder(TorchBackend):
    """One model on one device."""

    def __init__(
        self, model: ModelFiles, resolved: Resolved, kind: str, threads: int, decoding: Decoding | None = None, *,
        dtype: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(resolved, threads)
        self.kind = kind
        self._model = load_model(model, getattr(torch, dtype or resolved.dtype), kind).to(self.device)
        pooler = Pooler(model, self.device) if kind == "vectors" else None
        self._answer = Answer(self._model, kind, pooler)
        self._cut = cut_last_layer(self._model, model.max_length) if self._first_only else []
        self._pad = int(self._model.config.pad_token_id or 0)
        self._worked = False
        self._even = padding_changes(
            self._answer.whole, self._model.config, model.max_length, self.device, dtype or resolved.dtype
        )
        if self._even:
            self.note = "batches of one length each, because padding would change this model's answers"
        self._ahead = int(self.device.type == "cuda")  # batches that are launched before the last one is awaited

    def run(self, feed: Feed) -> Iterator[tuple[Any, Raw]]:
        """(key, answer) for each shard of the feed, in order."""
        known = Known()
        while (work := feed.take(wait=True)) is not None:
            key, pieces = work
            yield key, self.forward(pieces, known)

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is not followed by mypy
    def forward(self, pieces: Pieces, known: Known | None = None) -> Raw:
        """All pieces of a shard."""
        began = perf_counter()
        twins = _twins(pieces, known)
        answers, failed = self._answers(pieces, twins.asked)
        self.on_batch(len(pieces) - len(twins.asked), 0, 0, 0.0)
        values, by_token = self._gather(answers, pieces), self.kind in BY_TOKEN
        values = (
            values[ranges(pieces.starts[twins.first], pieces.lengths)] if by_token else _shared(twins, values, known)
        )
        failures = [
            Failure(doc, "forward", *reason)
            for piece, reason in failed.items()
            for doc in np.unique(pieces.doc[twins.first == piece]).tolist()
        ]
        tokens = sum(int(pieces.lengths[batch.index].sum()) for batch, _ in answers)
        executed = sum(batch.tokens for batch, _ in answers)
        return Raw(self.kind, values, tuple(failures), tokens, executed, perf_counter() - began)

    def _answers(self, pieces: Pieces, asked: Int64) -> tuple[list[tuple[Batch, Any]], dict[int, tuple[str, str]]]:
        """(what each batch was answered, why pieces have no answer); a GPU computes one while the next is made ready."""
        lengths, last = pieces.lengths, perf_counter()
        waiting = deque(replace(batch, index=asked[batch.index]) for batch in self._batches(lengths[asked]))
        flying: deque[_Flight] = deque()
        answers: list[tuple[Batch, Any]] = []
        failed: dict[int, tuple[str, str]] = {}
        try:
            while waiting or flying:
                if self.aborted():
                    raise Aborted
                launch = bool(waiting) and len(flying) <= self._ahead
                batch = waiting.popleft() if launch else flying[0].batch
                if launch and batch.tokens > self.tokens_per_batch and len(batch.index) > 1:
                    waiting.extendleft(reversed(halve(batch, lengths)))  # the budget has shrunk since it was packed
                    continue
                try:
                    if launch:
                        flying.append(self._launch(pieces, batch, lengths))
                        continue
                    answers.append((batch, _landed(flying.popleft())))
                except Exception as error:  # noqa: BLE001 - whatever a model raises, it is about these documents
                    self._fail(error, batch, pieces, waiting, failed)
                    continue
                self._worked, now = True, perf_counter()
                self.on_batch(len(batch.index), int(lengths[batch.index].sum()), batch.tokens, now - last)
                last = now
        finally:
            for flight in flying:  # where the run ends early: their memory is written to until they are done
                with suppress(Exception):
                    flight.wait()
        return answers, failed

    def _fail(
        self, error: Exception, batch: Batch, pieces: Pieces, waiting: deque[Batch], failed: dict[int, tuple[str, str]]
    ) -> None:
        """Halve the batch, or, when it is one document alone, give that one up."""
        memory = is_out_of_memory(error)
        if memory and self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch.index) > 1:
            if memory:
                self.tokens_per_batch = min(self.tokens_per_batch, max(batch.tokens // 2, 1))
            waiting.extendleft(reversed(halve(batch, pieces.lengths)))
            return
        code, message = judge(error, self.device)
        failed[int(batch.index[0])] = code, message
        give_up(len({int(pieces.doc[piece]) for piece in failed}), self._worked, error, message)

    @property
    def _first_only(self) -> bool:
        """Whether nothing but the first token's state is read."""
        pooler = self._answer.pooler
        return self.kind == "scores" or (pooler is not None and pooler.modes == ["cls"])

    def _batches(self, lengths: Int64) -> Iterator[Batch]:
        """What goes through the model together."""
        return pack(lengths, self.tokens_per_batch, even=self._even)

    def _launch(self, pieces: Pieces, batch: Batch, lengths: Any) -> _Flight:
        """Begin with a batch; its answer comes to host memory by itself, so that its errors show one batch later."""
        answer = self._computed(pieces, batch, lengths)
        if self.device.type != "cuda":
            return _Flight(batch, answer, lambda: None)
        host = torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True)
        host.copy_(answer, non_blocking=True)
        return _Flight(batch, host, torch.cuda.current_stream(self.device).record_event().synchronize)

    def _computed(self, pieces: Pieces, batch: Batch, lengths: Any) -> Tensor:
        """[B, W] or [B, L, W], on the device."""
        return self._answer(**self._inputs(pieces, batch, lengths))

    def _inputs(self, pieces: Pieces, batch: Batch, lengths: Any) -> dict[str, Tensor]:
        """What the model is called with, [B, L] on the device; a mask only where something is padded."""
        size, n = lengths[batch.index], len(batch.index)
        where = ranges(pieces.starts[batch.index], size)
        full = int(size.min()) == batch.length
        mask = None if full else np.arange(batch.length) < size[:, None]
        ids = self._padded(pieces.ids[where], mask, n, batch.length, self._pad)
        inputs = {"input_ids": ids}
        if mask is not None:  # without padding there is no mask, and attention takes its faster way
            inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64)).to(self.device, non_blocking=True)
        if pieces.type_ids is not None:
            inputs["token_type_ids"] = self._padded(pieces.type_ids[where], mask, n, batch.length, 0)
        if pieces.word is not None:
            last = batch.length - 1  # padding is there wherever it does not count
            inputs["word"] = self._padded(pieces.word[where], mask, n, batch.length, last)
        return inputs

    def _padded(self, flat: Any, mask: Any, rows: int, length: int, pad: int) -> Tensor:
        """[B, L] int64 on the device."""
        if mask is None:
            table = flat.reshape(rows, length).astype(np.int64)
        else:
            table = np.full((rows, length), pad, np.int64)
            table[mask] = flat
        tensor = torch.from_numpy(table)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _gather(self, answers: list[tuple[Batch, Any]], pieces: Pieces) -> Any:
        """All answers in the order of the pieces, or of their tokens; NaN where there is none."""
        by_token = self.kind in BY_TOKEN
        width = answers[0][1].shape[-1] if answers else self.width
        out = np.full((len(pieces.ids) if by_token else len(pieces), width), np.nan, np.float32)
        for batch, answer in answers:
            where, rows = self._rows(pieces, batch, answer) if by_token else (batch.index, answer)
            out[where] = rows
        return out

    def _rows(self, pieces: Pieces, batch: Batch, answer: Any) -> tuple[Int64, Float32]:
        """(positions in `Pieces.ids`, what was answered for them)."""
        return token_rows(pieces, batch, answer)

    @property
    def width(self) -> int:
        """Columns of the answer."""
        return self._answer.width


def _landed(flight: _Flight) -> Any:
    """The answer, copied out of pinned memory, which the next batches use again."""
    flight.wait()
    return flight.host.numpy().copy()
