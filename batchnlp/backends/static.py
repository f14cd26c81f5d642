"""Generation in static batches of alike length, for what cannot be run in flight: beams, and models of other ways.

Rows that are done leave the batch at once; none enters before all have left. Beam search is transformers' own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from batchnlp.backends.base import Aborted, OnBatch
from batchnlp.backends.decoding import Chooser
from batchnlp.backends.generation import Job, Row
from batchnlp.backends.torch_model import give_up, is_out_of_memory, judge
from batchnlp.types import Completions, Feed, Pieces

ROWS = 32  # in a batch at most


class StaticBatches:
    """The jobs of a feed, one after the other."""

    def __init__(self, model: Any, chooser: Chooser, begin: int, budget: int, device: torch.device) -> None:
        self._model, self._chooser, self._begin = model, chooser, begin
        self._budget, self._device = budget, device
        self._seq2seq = bool(model.config.is_encoder_decoder)
        self._pad = int(model.config.pad_token_id or 0)
        self._beams = int(chooser.config.num_beams or 1)
        self._positions = "position_ids" in inspect.signature(model.forward).parameters and not self._seq2seq
        self._rows = ROWS
        self._worked = False
        self._padding = 0

    def run(
        self, feed: Feed, make: Callable[[Any, Pieces], Job], aborted: Callable[[], bool], on_batch: OnBatch
    ) -> Iterator[tuple[Any, Completions]]:
        """(key, completions) of each shard."""
        while (work := feed.take(wait=True)) is not None:
            job = make(*work)
            self._padding = 0
            while job.pending:
                if aborted():
                    raise Aborted
                began, tokens = perf_counter(), job.tokens
                batch = self._next(job)
                self._try(job, batch)
                job.seconds += (seconds := perf_counter() - began)
                rows = sum(1 + len(job.twins.get(piece, ())) for piece, _ in batch)
                on_batch(rows, job.tokens - tokens, job.tokens - tokens, seconds)
            yield job.key, job.result(self._padding)

    def _next(self, job: Job) -> list[tuple[int, int]]:
        """(piece, most new tokens) of the next batch, the longest first."""
        batch: list[tuple[int, int]] = []
        longest = 0
        while job.pending and len(batch) < self._rows:
            piece = job.pending[-1]
            limit = int(job.limits[piece])
            longest = max(longest, int(job.pieces.lengths[piece]) + limit)
            if batch and (len(batch) + 1) * self._beams * longest > self._budget:
                break
            job.pending.pop()
            batch.append((piece, limit))
        return batch

    def _try(self, job: Job, batch: list[tuple[int, int]]) -> None:
        """A batch that fails is halved, down to the one prompt that does it."""
        if not batch:
            return
        try:
            with torch.inference_mode():
                (self._beam if self._beams > 1 else self._greedy)(job, batch)
            self._worked = True
        except Exception as error:  # noqa: BLE001 - whatever a model raises, it is about these documents
            if len(batch) > 1:
                self._rows = max(len(batch) // 2, 1) if is_out_of_memory(error) else self._rows
                self._try(job, batch[: len(batch) // 2])
                self._try(job, batch[len(batch) // 2 :])
                return
            code, message = judge(error, self._device)
            job.fail(batch[0][0], code, message)
            give_up(len(job.failures), self._worked, error, message)

    def _padded(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """[B, L] ids and mask; on the left for decoders, which go on at the right."""
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._pad)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            where = slice(0, len(prompt)) if self._seq2seq else slice(longest - len(prompt), None)
            ids[i, where], mask[i, where] = torch.tensor(prompt), 1
        self._padding += ids.numel() - int(mask.sum())
        return ids.to(self._device), mask.to(self._device)

    def _beam(self, job: Job, batch: list[tuple[int, int]]) -> None:
        prompts = [job.prompt(piece) for piece, _ in batch]
        ids, mask = self._padded(prompts)
        config = self._chooser.config
        config.max_new_tokens = max(limit for _, limit in batch)
        config.max_length = None
        config.pad_token_id = self._pad
        out = self._model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        skip = 1 if self._seq2seq else ids.shape[1]
        for (piece, limit), row in zip(batch, out[:, skip:].tolist(), strict=True):
            end = next((i for i, token in enumerate(row) if token in self._chooser.eos), len(row))
            stopped = end < len(row) and end <= limit
            job.answer(piece, row[: min(end, limit)], "stop" if stopped else "length", [])
            job.tokens += min(end, limit)
        job.tokens += sum(map(len, prompts))

    def _greedy(self, job: Job, batch: list[tuple[int, int]]) -> None:
        """One token a step for the rows that are left; also for sampling."""
        rows = [Row.of(job, piece, self._chooser, self._begin if self._seq2seq else None) for piece, _ in batch]
        prompts = [row.source or row.prompt for row in rows]
        ids, mask = self._padded(prompts)
        job.tokens += sum(map(len, prompts))
        states = self._model.get_encoder()(input_ids=ids, attention_mask=mask) if self._seq2seq else None
        if self._seq2seq:
            ids = torch.full((len(rows), 1), self._begin, device=self._device)
        done: list[tuple[Row, str]] = []
        cache = None
        while rows:
            out = self._call(ids, mask, states, cache)
            cache = out.past_key_values
            chosen, logprobs = self._chooser.choose(out.logits[:, -1], [row.choice for row in rows])
            job.tokens += len(rows)
            keep = []
            for i, token in enumerate(chosen):
                if reason := rows[i].took(self._chooser, token, None if logprobs is None else logprobs[i]):
                    done.append((rows[i], reason))
                else:
                    keep.append(i)
            ids = torch.tensor(chosen, device=self._device)[:, None]
            if len(keep) < len(rows):
                rows = [rows[i] for i in keep]
                at = torch.tensor(keep, device=self._device, dtype=torch.long)
                ids, mask = ids[at], mask[at]
                if rows:
                    cache.batch_select_indices(at)
                    if states is not None:
                        states.last_hidden_state = states.last_hidden_state[at]
            if not self._seq2seq:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        for row, reason in done:  # only now: a batch that failed half-way is begun again
            job.answer(row.piece, row.new, reason, row.logprobs)

    def _call(self, ids: Tensor, mask: Tensor, states: Any, cache: Any) -> Any:
        if self._seq2seq:
            return self._model(
                encoder_outputs=states,
                attention_mask=mask,
                decoder_input_ids=ids,
                past_key_values=cache,
                use_cache=True,
            )
        more = {}
        if self._positions:
            more["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return self._model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
