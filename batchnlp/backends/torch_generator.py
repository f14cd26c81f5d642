"""Text generation on torch: rows enter and leave the batch one by one, over the borders of shards.

A static batch goes on until its longest answer is done, and most of what it computes is thrown away. Here a finished
row gives its place at once to the next prompt, the longest first, as many at a time as there is memory for their keys
and values. What all prompts begin with is computed once; so is a prompt that is there twice, when decoding is greedy.

Models that cannot be run so (a canary compares them with themselves), and beam search, go in static batches of alike
length; `note` says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import torch

from batchnlp.backends.decoding import Choice, Chooser
from batchnlp.backends.slots import SlotModel, Span, Unsupported
from batchnlp.backends.static import StaticBatches
from batchnlp.backends.torch_model import Aborted, device_works, is_out_of_memory, load_model
from batchnlp.errors import BackendError, WorkerLostError
from batchnlp.types import Completions, Decoding, Failure, Feed, ModelFiles, Pieces, Resolved

ROWS = {"cpu": 64, "cuda": 256}  # in flight at most: beyond it a step costs as much as its rows
MEMORY = 0.25  # of what is free, for keys and values
SHARED = 16  # tokens from which a common beginning is worth keeping
FREE = 0.1  # share of the places that must be free before others enter, so that prefills are not of one row each
HOPELESS = 8


@dataclass(slots=True)
class Job:
    """One shard on its way: what was asked, what is still to begin, what came back."""

    key: Any
    pieces: Pieces
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

    def prompt(self, piece: int) -> list[int]:
        """The tokens of a piece."""
        return self.pieces.ids[self.pieces.starts[piece] : self.pieces.starts[piece + 1]].tolist()

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


@dataclass(slots=True)
class Row:
    """One prompt in flight; its slot is its place in the list of rows."""

    job: Job
    piece: int
    prompt: list[int]
    max_new: int
    choice: Choice
    length: int = 0  # positions in its slot
    source: int = 0  # tokens of its source, for encoder-decoder models
    new: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def need(self) -> int:
        """Positions it may come to."""
        return len(self.prompt) + self.max_new


class TorchGenerator:
    """One model on one device."""

    def __init__(
        self, model: ModelFiles, resolved: Resolved, kind: str, threads: int, decoding: Decoding | None = None
    ) -> None:
        if resolved.device == "cpu":
            torch.set_num_threads(threads)
        self.device = torch.device(resolved.device)
        self.tokens_per_batch = resolved.tokens_per_batch
        self.decoding = decoding or Decoding()
        self.on_batch: Callable[[int, int, int, float], None] = lambda rows, tokens, executed, seconds: None
        self.aborted: Callable[[], bool] = lambda: False
        self.note = ""
        self.row_steps = self.prefilled = 0  # rows computed one token on, prompt tokens computed: for benchmarks
        self._positions = model.max_length
        self._model = load_model(model, getattr(torch, resolved.dtype), kind).to(self.device)
        self._chooser = Chooser(self._model, self.decoding, model.path)
        self._begin = _decoder_start(self._model, self._chooser.config)
        self._budget = kv_tokens(self._model, self.device)
        self._limit = ROWS[self.device.type]
        self._worked = False
        self._jobs: list[Job] = []
        self._rows: list[Row] = []
        self._prefix: list[int] = []
        self._slots = self._in_flight_model()

    def _in_flight_model(self) -> SlotModel | None:
        if (beams := self._chooser.config.num_beams or 1) > 1:
            self.note = f"{beams} beams: static batches"
            return None
        before = self._model.config._attn_implementation
        try:
            slots = SlotModel(self._model)
            _canary(slots, self._begin)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong with the canary, static batches are right
            self._model.set_attn_implementation(before)
            reason = str(error) if isinstance(error, Unsupported) else f"{type(error).__name__}: {error}"
            self.note = f"static batches, because this model cannot be run in flight: {reason}"[:200]
            return None
        slots.clear()
        return slots

    def forward(self, pieces: Pieces) -> Completions:
        """The answers to the pieces of one shard."""
        return next(iter(self.run(_One(pieces))))[1]

    def run(self, feed: Feed) -> Iterator[tuple[Any, Completions]]:
        """(key, answers) of each shard, in the order they get done."""
        if self._slots is not None:
            return self._in_flight(self._slots, feed)
        return StaticBatches(self._model, self._chooser, self._begin, self._budget, self.device).run(
            feed, self._job, self._limits, self.aborted, self.on_batch
        )

    def _in_flight(self, slots: SlotModel, feed: Feed) -> Iterator[tuple[Any, Completions]]:
        self._jobs, self._rows = [], []
        while True:
            if self.aborted():
                raise Aborted
            if not any(job.pending for job in self._jobs):
                work = feed.take(wait=not self._jobs)
                if work is not None:
                    self._jobs.append(self._job(*work))
            with torch.inference_mode():
                self._work(slots)
            for job in [job for job in self._jobs if not job.left]:
                self._jobs.remove(job)
                yield job.key, job.result()
            if not self._jobs and feed.ended:
                return

    def _job(self, key: Any, pieces: Pieces) -> Job:
        """A shard as it begins."""
        n, lengths = len(pieces), pieces.lengths
        first: dict[bytes, int] = {}
        twins: dict[int, list[int]] = {}
        order = np.argsort(lengths + self._max_new(pieces), kind="stable")
        pending: list[int] = []
        for i in map(int, order):
            name = pieces.ids[pieces.starts[i] : pieces.starts[i + 1]].tobytes() + bytes(
                str(self._limits(pieces, i)), "ascii"
            )
            one = i if self.decoding.sample else first.setdefault(name, i)
            if one == i:
                pending.append(i)
            else:
                twins.setdefault(one, []).append(i)
        prefix = [] if self._model.config.is_encoder_decoder else common_prefix(pieces, pending)
        return Job(key, pieces, pending, twins, prefix, n, [[]] * n, [""] * n, [[]] * n)

    def _max_new(self, pieces: Pieces) -> Any:
        if pieces.max_new is None:
            return np.full(len(pieces), self.decoding.max_new_tokens, np.int64)
        return np.minimum(pieces.max_new, self.decoding.max_new_tokens)

    def _limits(self, pieces: Pieces, piece: int) -> int:
        """Tokens that may be generated: what is asked for, as far as there are positions."""
        asked = self.decoding.max_new_tokens
        if pieces.max_new is not None:
            asked = min(asked, int(pieces.max_new[piece]))
        taken = 1 if self._model.config.is_encoder_decoder else int(pieces.lengths[piece])
        return min(asked, self._positions - taken)

    # --- one turn: let rows enter, compute a step, let rows leave

    def _work(self, slots: SlotModel) -> None:
        entering = self._entering()
        try:
            if entering:
                self._enter(slots, entering)
            elif self._rows:
                entering = self._rows
                self._step(slots)
            self._worked = True
        except Exception as error:  # noqa: BLE001 - whatever a model raises, it is about these documents
            self._fail(error, entering)
        self._leave(slots)

    def _entering(self) -> list[Row]:
        """The rows that enter now: none while few places are free, or while there is no memory for one more."""
        room = self._limit - len(self._rows)
        job = next((job for job in self._jobs if job.pending), None)
        if job is None or (self._rows and room < max(1, FREE * self._limit)):
            return []
        rows: list[Row] = []
        tokens, need = 0, max((row.need + row.source for row in self._rows), default=0)
        while job.pending and len(rows) < room:
            row = self._row(job, job.pending[-1])
            if row is None:
                continue
            need = max(need, row.need + row.source)
            size = max(len(row.prompt), row.source)
            if (rows or self._rows) and (
                (len(self._rows) + len(rows) + 1) * need > self._budget
                or (rows and tokens + size > self.tokens_per_batch)
            ):
                break
            job.pending.pop()
            rows.append(row)
            tokens += size
        return rows

    def _row(self, job: Job, piece: int) -> Row | None:
        """A row for the piece; None, and a failure, where there is no position left for an answer."""
        ids, limit = job.prompt(piece), self._limits(job.pieces, piece)
        if limit < 1:
            job.pending.pop()
            job.fail(piece, "too_long", f"{len(ids):,} tokens leave no room for an answer in {self._positions:,}")
            return None
        seed = 0 if job.pieces.seed is None else int(job.pieces.seed[piece])
        if not self._model.config.is_encoder_decoder:
            return Row(job, piece, ids, limit, self._chooser.row(ids, None, limit, seed))
        choice = self._chooser.row([self._begin], ids, limit, seed)
        return Row(job, piece, [self._begin], limit, choice, source=len(ids))

    def _enter(self, slots: SlotModel, rows: list[Row]) -> None:
        base, began = len(self._rows), perf_counter()
        job = rows[0].job
        past = self._shared(slots, job)
        slots.reserve(base + len(rows), max(len(row.prompt) for row in rows), max(row.source for row in rows))
        if past:
            slots.put_prefix(list(range(base, base + len(rows))))
        states, sources = self._encoded(slots, rows)
        spans, ids = [], []
        for i, row in enumerate(rows):
            spans.append(Span(base + i, len(ids), len(ids) + len(row.prompt) - past, past, sources[i]))
            ids += row.prompt[past:]
            row.length = len(row.prompt)
        logits = slots.prefill(torch.tensor(ids, device=self.device), spans, states)
        self.prefilled += len(ids)
        self._rows += rows
        self._take(logits, rows, len(ids) + sum(row.source for row in rows), began)

    def _shared(self, slots: SlotModel, job: Job) -> int:
        """Length of what the job's prompts begin with, which is then in the slots' prefix."""
        if job.prefix and job.prefix != self._prefix:
            slot, length = len(self._rows), len(job.prefix)
            slots.reserve(slot + 1, length)
            slots.prefill(torch.tensor(job.prefix, device=self.device), [Span(slot, 0, length)])
            slots.keep_prefix(slot, length)
            self._prefix = job.prefix
            self.prefilled += length
            job.tokens += length
        return len(job.prefix)

    def _encoded(self, slots: SlotModel, rows: list[Row]) -> tuple[Any, list[tuple[int, int]]]:
        """(packed encoder states, each row's part of them); nothing for decoder-only models."""
        if not slots.seq2seq:
            return None, [(0, 0)] * len(rows)
        ids = [token for row in rows for token in row.job.prompt(row.piece)]
        ends = np.cumsum([row.source for row in rows]).tolist()
        parts = list(zip([0, *ends[:-1]], ends, strict=True))
        states = slots.encode(torch.tensor(ids, device=self.device), [Span(0, a, b) for a, b in parts])
        return states, parts

    def _step(self, slots: SlotModel) -> None:
        rows, began = self._rows, perf_counter()
        longest = max(row.length for row in rows) + 1
        slots.reserve(len(rows), longest)
        ids = torch.tensor([row.new[-1] for row in rows], device=self.device)
        positions = torch.tensor([row.length for row in rows], device=self.device)
        sources = torch.tensor([row.source for row in rows], device=self.device) if slots.seq2seq else None
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
            if token in self._chooser.eos:
                finished += self._finish(row, "stop")
                continue
            row.new.append(token)
            if logprobs is not None:
                row.logprobs.append(logprobs[i])
            if self._chooser.stopped(row.new):
                finished += self._finish(row, "stop")
            elif len(row.new) >= row.max_new:
                finished += self._finish(row, "length")
        seconds = perf_counter() - began
        jobs = Counter(id(row.job) for row in rows)
        for job in self._jobs:
            share = jobs[id(job)] / len(rows)
            job.seconds += seconds * share
            job.tokens += round(tokens * share)
        self.on_batch(finished, tokens, tokens, seconds)

    @staticmethod
    def _finish(row: Row, reason: str) -> int:
        row.job.answer(row.piece, row.new, reason, row.logprobs)
        row.max_new = 0
        return 1 + len(row.job.twins.get(row.piece, ()))

    def _leave(self, slots: SlotModel) -> None:
        """Give the slots of finished rows to the last ones."""
        rows, i = self._rows, 0
        while i < len(rows):
            if rows[i].max_new:
                i += 1
                continue
            last = rows.pop()
            if i < len(rows):
                slots.move(len(rows), i, last.length, last.source)
                rows[i] = last

    def _fail(self, error: Exception, rows: list[Row]) -> None:
        """Give up a row that is alone; otherwise begin those that were at work again, half as many at a time."""
        if isinstance(error, Aborted | BackendError):
            raise error
        memory = is_out_of_memory(error)
        if memory and self.device.type == "cuda":
            torch.cuda.empty_cache()
        if not memory and not device_works(self.device):
            raise WorkerLostError(
                f"{self.device} does nothing any more: {error}", "the same command goes on"
            ) from error
        together = [*self._rows, *(row for row in rows if row not in self._rows)] if rows else []
        if len(together) == 1:
            row = together[0]
            message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            row.job.fail(row.piece, "device_oom" if memory else "forward_error", message)
            self._rows = []
            if not memory:
                self._limit = ROWS[self.device.type]
            if not self._worked and sum(len(job.failures) for job in self._jobs) >= HOPELESS:
                raise BackendError(f"the model fails on every document: {message}") from error
            return
        self._limit = max(len(together) // 2, 1)
        for row in reversed(together):
            row.job.pending.append(row.piece)
        self._rows = []


class _One:
    """A feed of one shard."""

    def __init__(self, pieces: Pieces) -> None:
        self._work: list[Pieces] = [pieces]

    @property
    def ended(self) -> bool:
        """Whether it was taken."""
        return not self._work

    def take(self, *, wait: bool) -> tuple[Any, Pieces] | None:
        """The shard, once."""
        return (None, self._work.pop()) if self._work else None


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


def kv_tokens(model: Any, device: torch.device) -> int:
    """Positions that there is memory for, over all rows."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = (
        getattr(config, "head_dim", None)
        or getattr(config, "d_kv", None)
        or config.hidden_size // config.num_attention_heads
    )
    layers = (
        getattr(config, "decoder_layers", None)
        or getattr(config, "num_decoder_layers", None)
        or config.num_hidden_layers
    )
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(free * MEMORY) // (2 * layers * heads * size * model.dtype.itemsize)


def _decoder_start(model: Any, config: Any) -> int:
    """The token that a decoder begins with; 0 for decoder-only models, which do not ask."""
    for value in (
        config.decoder_start_token_id,
        getattr(model.config, "decoder_start_token_id", None),
        config.bos_token_id,
    ):
        if value is not None:
            return int(value[0] if isinstance(value, list) else value)
    return 0


def _canary(slots: SlotModel, begin: int) -> None:
    """Compare two rows, the second entering while the first is under way, with the model as transformers runs it."""
    vocabulary = slots.model.get_output_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(5)
    first, second, new = (torch.randint(vocabulary, (n,), generator=generator).to(slots.device) for n in (7, 12, 3))
    with torch.inference_mode():
        slots.reserve(2, 16, 16)
        got = [_entered(slots, first, 0, begin)]
        base = [1 if slots.seq2seq else len(ids) for ids in (first, second)]
        got.append(_stepped(slots, new[:1], [base[0]], [first])[0])
        other = [_entered(slots, second, 1, begin)]
        together = _stepped(slots, new[[1, 0]], [base[0] + 1, base[1]], [first, second])
        got, other = torch.stack([*got, together[0]]), torch.stack([*other, together[1]])
        with slots.plain() as model:
            wanted = [_alone(model, ids, new[:n], begin, slots.seq2seq) for ids, n in ((first, 2), (second, 1))]
    for a, b in ((got, wanted[0]), (other, wanted[1])):
        a, b = a.float(), b.float()
        far = float((a - b).abs().max() / b.std().clamp(min=1e-6))
        if not far <= (1e-2 if slots.dtype == torch.float32 else 0.5):
            raise Unsupported(f"packed answers differ from padded ones by {far:.2g} standard deviations")


def _entered(slots: SlotModel, ids: torch.Tensor, slot: int, begin: int) -> torch.Tensor:
    n = len(ids)
    if not slots.seq2seq:
        return slots.prefill(ids, [Span(slot, 0, n)])[0]
    states = slots.encode(ids, [Span(0, 0, n)])
    return slots.prefill(torch.tensor([begin], device=ids.device), [Span(slot, 0, 1, source=(0, n))], states)[0]


def _stepped(slots: SlotModel, ids: torch.Tensor, lengths: list[int], sources: list[torch.Tensor]) -> torch.Tensor:
    positions = torch.tensor(lengths, device=ids.device)
    ends = torch.tensor([len(source) for source in sources], device=ids.device)
    return slots.decode(ids, positions, max(lengths) + 1, ends)


def _alone(model: Any, ids: torch.Tensor, new: torch.Tensor, begin: int, seq2seq: bool) -> torch.Tensor:
    """[steps, vocabulary] logits of the padded model for one row."""
    if seq2seq:
        decoder = torch.cat([torch.tensor([begin], device=ids.device), new])
        return torch.as_tensor(model(input_ids=ids[None], decoder_input_ids=decoder[None]).logits[0])
    return torch.as_tensor(model(input_ids=torch.cat([ids, new])[None]).logits[0, len(ids) - 1 :])
