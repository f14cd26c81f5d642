"""What all tasks with written answers share: the model's class, lengths, seeds, prompts that fit, and the columns.

summary | translation | text | reply      the answer
n_new_tokens, finish_reason               its tokens; stop, or length where it was cut off
logprobs                                  on request: the log-probability of every token
answers                                   with n > 1 instead of all of these: a list of them
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from batchnlp.errors import SpecError
from batchnlp.tasks.base import TextTask, Verdict
from batchnlp.templates import TemplateFault
from batchnlp.text.encode import Frame, offsets
from batchnlp.text.sentences import windows
from batchnlp.types import Completions, Counts, Decoding, Docs, Encoded, Failure, Int32, ModelFiles, OnLong, Pieces, Raw

MAX_NEW = 256
NO_FRAME = Frame(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int32), (0, 0))
TRIES = 8  # to make a prompt fit: tokens at the borders of a cut may come out otherwise than they went in
Render = Callable[[int, str], str]  # (row, text) -> prompt
Shape = Literal["decoder-only", "encoder-decoder"]


def shape_of(model: ModelFiles) -> Shape | None:
    """How the model writes; None when it does not."""
    names = model.config.get("architectures") or []
    if model.config.get("is_encoder_decoder"):
        heads = "ForConditionalGeneration", "MTModel", "LMHeadModel"
        return "encoder-decoder" if any(name.endswith(heads) for name in names) else None
    return "decoder-only" if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names) else None


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt on its way to a piece."""

    row: int
    ids: Int32  # without the frame
    weight: int  # content tokens of the document in it
    tail: str = ""  # white space that its part of the document ends with


@dataclass(frozen=True, slots=True)
class Asked(Encoded):
    """Prompts, and how to make more of them for the same rows."""

    render: Render | None = None


@dataclass(slots=True)
class Answer:
    """What the model wrote about a document: the pieces of its last round."""

    texts: list[str]
    lengths: list[int | None]  # None where a server does not tell
    finish: list[str]
    logprobs: list[list[float]]
    pieces: list[int]  # of that round

    @property
    def length(self) -> int | None:
        """Tokens of all its texts."""
        known = [n for n in self.lengths if n is not None]
        return sum(known) if len(known) == len(self.lengths) else None

    @property
    def ended(self) -> str:
        """length if any piece was cut off."""
        return "length" if "length" in self.finish else "stop"


class CompletionTask(TextTask):
    """A task whose answers are written."""

    needs = "completions"
    pieces_per_doc = 1
    column: ClassVar[str] = "text"

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        super().__init__(model, spec)
        self.prompt = ""  # a template here, not a prefix
        self.shape = shape_of(model)
        self.n: int = spec.n
        self._seed: int | None = spec.seed if spec.sample else None
        longest = self._answer_length(spec)
        decoder = self.shape == "decoder-only"
        self.room = model.max_length - longest if decoder else model.max_length  # for a prompt with its frame
        self._decoding = Decoding(
            max_new_tokens=longest, min_new_tokens=spec.min_new_tokens, sample=spec.sample,
            temperature=spec.temperature, top_k=spec.top_k, top_p=spec.top_p,
            repetition_penalty=spec.repetition_penalty, num_beams=spec.num_beams, stop=tuple(spec.stop),
            logprobs=spec.logprobs,
        )  # fmt: skip
        self._wants_logprobs: bool = spec.logprobs

    def _answer_length(self, spec: Any) -> int:
        """The job's limit, or 256, but no more than half of the positions that there are."""
        if self.shape == "decoder-only":
            positions = self.model.max_length
        else:
            positions = int(self.model.config.get("max_position_embeddings") or 1 << 20)
        longest: int = spec.max_new_tokens or max(min(MAX_NEW, positions // 2), spec.min_new_tokens)
        if longest >= positions:
            key = "max_new_tokens" if spec.max_new_tokens else "min_new_tokens"
            message = f"task.{key} {longest} leaves no room for a prompt: {self.model.name} has {positions} positions"
            raise SpecError(message, f"at most {positions - 1}, and less for longer documents")
        return longest

    @property
    def decoding(self) -> Decoding:
        """How to generate."""
        return self._decoding

    # --- prompts

    @property
    def special(self) -> Frame:
        """The special tokens around a prompt: what the tokenizer adds by itself."""
        return self.tokenizer.single

    def renderer(self, docs: Docs) -> Render | None:
        """What makes a prompt of a row; None where the text itself is the prompt."""
        return None

    def documents(self, docs: Docs) -> tuple[list[int], list[str], list[int], list[Failure]]:
        """(rows that have text, their texts, their content tokens, failures of the others)."""
        rows, tokens, failures = self._tokenise(docs.text, 1 << 62)
        texts = docs.text.take(pa.array(rows)).to_pylist()
        return rows.tolist(), texts, tokens.lengths.tolist(), list(failures)

    def encode(self, docs: Docs) -> Encoded:
        """Render, tokenise, and make fit."""
        rows, texts, sizes, failures = self.documents(docs)
        render = self.renderer(docs)
        items, more = self.ask(rows, texts, sizes, render, self.on_long)
        counts = count(len(docs), zip(rows, sizes, strict=True), items)
        seeds = [self.seed_of(str(docs.ids[item.row].as_py()), i) for i, item in enumerate_parts(items)]
        return Asked(self.pieces(items, seeds), counts, (*failures, *more), render=render)

    def ask(
        self, rows: Sequence[int], texts: Sequence[str], sizes: Sequence[int], render: Render | None, on_long: OnLong
    ) -> tuple[list[Item], list[Failure]]:
        """The prompts of some rows, each as long as the model takes at most; several a row with `window`."""
        kept, prompts, items, failures = [], [], [], []
        for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
            try:
                prompts.append(render(row, text) if render else text)
                kept.append(i)
            except TemplateFault as fault:
                failures.append(Failure(row, "encode", "template_error", f"the template breaks on this row: {fault}"))
        tokens = self.tokenizer.encode(pa.array(prompts, pa.large_string()))
        room = self.room - self.special.size
        for at, i in enumerate(kept):
            ids = tokens.ids[tokens.starts[at] : tokens.starts[at + 1]]
            if not 0 < len(ids) <= room:
                found = self._fit(rows[i], texts[i], len(ids), sizes[i], render, on_long, room)
                if isinstance(found, Failure):
                    failures.append(found)
                else:
                    items += found
            else:
                items.append(Item(rows[i], ids, sizes[i]))
        return items, failures

    def _fit(
        self, row: int, text: str, length: int, size: int, render: Render | None, on_long: OnLong, room: int
    ) -> list[Item] | Failure:
        """A document too long for its prompt, cut at token borders until it fits."""
        if not length:
            return Failure(row, "encode", "template_error", "the prompt of this row is empty")
        width, spans = room - (length - size), self.tokenizer.spans(text)
        for _ in range(TRIES if on_long != "fail" else 0):
            if width < 1 or not len(spans):
                break
            cuts = (
                windows(text, spans, width) if on_long == "window" else [(0, int(spans[min(width, len(spans)) - 1, 1]))]
            )
            try:
                prompts = [render(row, text[a:b]) if render else text[a:b] for a, b in cuts]
            except TemplateFault as fault:
                return Failure(row, "encode", "template_error", f"the template breaks on this row: {fault}")
            tokens = self.tokenizer.encode(pa.array(prompts, pa.large_string()))
            over = int(tokens.lengths.max()) - room
            if over <= 0:
                begins = spans[:, 0]
                weights = [int(np.searchsorted(begins, b) - np.searchsorted(begins, a)) for a, b in cuts]
                runs = np.split(tokens.ids, tokens.starts[1:-1])
                tails = [text[a + len(text[a:b].rstrip()) : b] for a, b in cuts]
                return [Item(row, *parts) for parts in zip(runs, weights, tails, strict=True)]
            width -= over
        return Failure(row, "encode", "too_long", f"a prompt of {length:,} tokens, the model takes {room:,}")

    def seed_of(self, *key: object) -> int:
        """The seed of a row's answer, the same in whatever shard and batch; 0 without sampling."""
        if self._seed is None:
            return 0
        name = "\0".join(map(str, (self._seed, *key)))
        return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "big") >> 1

    def pieces(self, items: Sequence[Item], seeds: Sequence[int]) -> Pieces:
        """The prompts in their frame, each `n` times."""
        special, n = self.special, self.n
        runs = [np.concatenate([special.before, item.ids, special.after]) for item in items for _ in range(n)]
        doc = np.array([item.row for item in items for _ in range(n)], np.int32)
        weight = np.array([item.weight for item in items for _ in range(n)], np.int32)
        seed = np.array([self.seed_of(s, k) if k else s for s in seeds for k in range(n)], np.int64)
        ids = np.concatenate(runs).astype(np.int32) if runs else np.empty(0, np.int32)
        starts = offsets(np.array([len(run) for run in runs], np.int64))
        return Pieces(ids, starts, doc, weight, seed=seed if self._seed is not None else None)

    # --- answers

    @property
    def fields(self) -> list[pa.Field]:
        """The result columns."""
        parts = [pa.field("n_new_tokens", pa.int32()), pa.field("finish_reason", pa.string())]
        if self._wants_logprobs:
            parts.append(pa.field("logprobs", pa.list_(pa.float32())))
        if self.n > 1:
            return [pa.field("answers", pa.list_(pa.struct([pa.field("text", pa.string()), *parts])))]
        return [pa.field(self.column, pa.string()), *parts]

    def decode(self, encoded: Encoded, raw: Raw) -> tuple[list[pa.Array], Verdict]:
        """One row a document, made of its pieces in the last round that it was in."""
        answers = self.answers(encoded, raw)
        rows = len(encoded.counts.n_tokens)
        if self.n > 1:
            return [pa.array([_structs(answers.get(row)) for row in range(rows)], self.fields[0].type)], ()
        texts = {row: self.join(encoded, row, answer) for row, answer in answers.items()}
        some = [answers.get(row) for row in range(rows)]
        columns: list[list[Any]] = [
            [texts.get(row) for row in range(rows)], [a and a.length for a in some], [a and a.ended for a in some],
            [a and [p for run in a.logprobs for p in run] for a in some],
        ]  # fmt: skip
        kinds = [field.type for field in self.fields[: 4 if self._wants_logprobs else 3]]
        arrays = [pa.array(values, kind) for values, kind in zip(columns, kinds, strict=False)]
        extra, failures = self.unfold(texts, rows)
        return arrays + extra, failures

    def join(self, encoded: Encoded, row: int, answer: Answer) -> str:
        """The answer's one text."""
        return " ".join(text for text in answer.texts if text)

    def unfold(self, texts: dict[int, str], rows: int) -> tuple[list[pa.Array], list[Failure]]:
        """(further columns made of the answers, answers of which none can be made)."""
        return [], []

    def answers(self, encoded: Encoded, raw: Raw) -> dict[int, Answer]:
        """By row; of several rounds the last one that a row was in."""
        found = self.answers(*encoded.earlier) if encoded.earlier else {}
        assert isinstance(raw, Completions)
        latest: dict[int, Answer] = {}
        texts = self.tokenizer.decode(raw.ids, raw.starts)
        for i, row in enumerate(encoded.pieces.doc.tolist()):
            answer = latest.setdefault(row, Answer([], [], [], [], []))
            start, stop = int(raw.starts[i]), int(raw.starts[i + 1])
            answer.texts.append(self._until_stop(texts[i]))
            answer.lengths.append(stop - start)
            answer.finish.append(raw.finish[i])
            answer.logprobs.append(raw.values[start:stop, 0].tolist() if self._wants_logprobs else [])
            answer.pieces.append(i)
        return found | latest

    def _until_stop(self, text: str) -> str:
        """Up to the first stop string, which may begin inside a token."""
        ends = [at for stop in self._decoding.stop if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text


def _structs(answer: Answer | None) -> list[dict[str, Any]] | None:
    if answer is None:
        return None
    names = "text", "n_new_tokens", "finish_reason", "logprobs"
    columns = answer.texts, answer.lengths, answer.finish, answer.logprobs
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def enumerate_parts(items: Iterable[Item]) -> Iterable[tuple[int, Item]]:
    """Each item with its number among those of its row."""
    seen: dict[int, int] = {}
    for item in items:
        seen[item.row] = seen.get(item.row, -1) + 1
        yield seen[item.row], item


def count(rows: int, sizes: Iterable[tuple[int, int]], items: Iterable[Item]) -> Counts:
    """Scatter over all rows what the documents have and what of it the prompts hold."""
    total, used, parts = (np.zeros(rows, np.int32) for _ in range(3))
    for row, size in sizes:
        total[row] = size
    for item in items:
        used[item.row] += item.weight
        parts[item.row] += 1
    return Counts(total, used, parts)
