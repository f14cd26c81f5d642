"""What a task is: encode, decode, schema, and the one kind of raw answer it needs.

    encode(texts) -> Encoded        tokenise, cut into pieces, count; some documents may fail here
    decode(encoded, raw) -> table   merge the pieces of each document, one row a document
    fields                          the result columns, in order, written down and never inferred

A task knows nothing of devices and files. It is built once a worker, from the job's task section and the model's files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.errors import ModelError
from batchnlp.text.encode import Tokenizer, Tokens, Windows, cut, frame, led_by, offsets
from batchnlp.types import (
    Counts,
    Decoding,
    Docs,
    Encoded,
    Failure,
    Float32,
    Int32,
    Int64,
    ModelFiles,
    OnLong,
    Pieces,
    Raw,
)

COUNT_FIELDS = [
    pa.field("n_tokens", pa.int32()),
    pa.field("n_tokens_used", pa.int32()),
    pa.field("n_windows", pa.int32()),
    pa.field("truncated", pa.bool_()),
]


class Vectorise(Protocol):
    """A backend as a task may use it while it is set up: pooled states for some pieces."""

    def __call__(self, pieces: Pieces) -> Raw:
        """One row of values a piece."""


class Task(Protocol):
    """Encode, decode, schema."""

    needs: str  # the kind of Raw that decode takes
    pieces_per_doc: int  # at the least; the planner makes shards smaller by it
    token_bytes: int  # what a token weighs until it is decoded, beside its id; the planner makes shards smaller by it
    columns: tuple[str, ...]  # of the source, read beside the text
    turns: bool  # whether a document may be a conversation
    note: str  # what a user should know of how the model is read; empty where nothing is odd

    @property
    def decoding(self) -> Decoding | None:
        """How to generate, for tasks that need completions."""

    @property
    def fields(self) -> list[pa.Field]:
        """The task's own result columns."""

    def check(self, schema: pa.Schema) -> None:
        """SourceError where one of `columns` has a type that the task cannot read; for the plan."""

    def prepare(self, forward: Vectorise) -> None:
        """Compute, once a worker, what needs the model itself (the vectors of labels)."""

    def encode(self, docs: Docs) -> Encoded:
        """Tokenise `docs.text` (large_string; null where there is none), one entry a row of the shard."""

    def again(self, encoded: Encoded, raw: Raw) -> Encoded | None:
        """What to ask the model next, with `earlier` set; None when `decode` can answer (see summarize)."""

    def decode(self, encoded: Encoded, raw: Raw) -> tuple[list[pa.Array], Verdict]:
        """(one array a field, one entry a row of the shard; which rows have an answer)."""

    def counts(self, encoded: Encoded, raw: Raw) -> Counts:
        """The counts to write: those of `encode`, unless the answer knows better."""


Verdict = npt.NDArray[np.bool_] | Sequence[Failure]  # which rows have a finite answer, or why some have none


def answers(task: Task, encoded: Encoded, raw: Raw, failures: Iterable[Failure] = ()) -> tuple[pa.Table, list[Failure]]:
    """(the task's columns and the counts, one row a document; all failures, those that were known before first)."""
    columns, verdict = task.decode(encoded, raw)
    found = [*failures, *encoded.failures, *raw.failures]
    failed = {failure.doc for failure in found}
    found += [failure for failure in _unanswered(verdict) if failure.doc not in failed]
    return result_table(task.fields, columns, task.counts(encoded, raw)), found


def result_table(fields: list[pa.Field], columns: Sequence[pa.Array], counts: Counts) -> pa.Table:
    """The task's columns and the counts."""
    numbers = counts.n_tokens, counts.n_tokens_used, counts.n_windows
    arrays = [*columns, *(pa.array(values, mask=values < 0) for values in numbers)]
    arrays.append(pa.array(counts.n_tokens_used < counts.n_tokens))
    schema = pa.schema([*fields, *COUNT_FIELDS])
    return pa.table(arrays, names=schema.names).cast(schema)


def _unanswered(verdict: Verdict) -> list[Failure]:
    if not isinstance(verdict, np.ndarray):
        return list(verdict)
    message = "the model answered with NaN or infinity"
    return [Failure(int(doc), "decode", "non_finite", message) for doc in np.flatnonzero(~verdict)]


def check_architecture(model: ModelFiles, suffix: str) -> bool:
    """Whether config.json says the model was saved with such a head. One without it would answer at random."""
    return any(suffix in name for name in model.config.get("architectures") or [])


def refuse(model: ModelFiles, what: str, hint: str) -> ModelError:
    """The error for a model of the wrong class."""
    has = ", ".join(model.config.get("architectures") or ["none"])
    return ModelError(f"{model.name} {what} (architectures: {has})", hint)


class TextTask:
    """What all tasks over single texts share: which documents have text, the windows, the counts."""

    lower_case = False  # whether texts are lowercased first, beside what the tokenizer does by itself
    places = False  # whether the places of the tokens in the texts are needed
    token_bytes = 0
    columns: tuple[str, ...] = ()
    turns = False
    note = ""

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        self.model = model
        self.on_long: OnLong = spec.on_long or "window"
        self.prompt: str = spec.prompt or ""
        self._loaded: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Loaded at first use, because the planner asks a task only for its schema."""
        if self._loaded is None:
            self._loaded = Tokenizer.load(self.model.path, lower_case=self.lower_case)
        return self._loaded

    @property
    def decoding(self) -> Decoding | None:
        """Nothing is generated."""
        return None

    def check(self, schema: pa.Schema) -> None:
        """Any column will do."""

    def prepare(self, forward: Vectorise) -> None:
        """Nothing to prepare."""

    def again(self, encoded: Encoded, raw: Raw) -> Encoded | None:
        """One round is enough."""
        return None

    def counts(self, encoded: Encoded, raw: Raw) -> Counts:
        """What `encode` counted."""
        return encoded.counts

    def encode(self, docs: Docs) -> Encoded:
        """Tokenise, cut, frame, count."""
        special = self.tokenizer.single
        room = self.model.max_length - special.size
        rows, tokens, failures = self._tokenise(docs.text, room)
        windows = cut(tokens, room - tokens.lead, window=self.on_long == "window")
        ids, starts = frame(tokens, windows, special)
        type_ids = np.full(len(ids), special.type_ids[0], np.uint8) if special.type_ids[0] else None
        pieces = Pieces(ids, starts, rows[windows.text], windows.own.astype(np.int32), type_ids)
        return Encoded(pieces, self._count(len(docs), rows, tokens, windows), failures)

    def _tokenise(self, texts: pa.Array, room: Int64 | int) -> tuple[Int32, Tokens, tuple[Failure, ...]]:
        """(row of each document that has tokens, their tokens, failures of the others); `room`, one number or one a
        row, is the prompt's too."""
        has, failures = present(texts)
        docs = np.flatnonzero(has).astype(np.int32)
        chosen = texts.filter(pa.array(has))
        tokens = self._prompted(chosen, room) if self.prompt else self.tokenizer.encode(chosen, places=self.places)
        good = tokens.lengths > 0
        failures += [
            Failure(int(i), "encode", "no_tokens", "the tokenizer finds nothing in this text") for i in docs[~good]
        ]
        if self.on_long == "fail":
            rooms = np.broadcast_to(room, len(texts))[docs] - tokens.lead
            for i in np.flatnonzero(tokens.lengths > rooms):
                message = f"{tokens.lengths[i]:,} tokens, the model takes {rooms[i]:,}"
                failures.append(Failure(int(docs[i]), "encode", "too_long", message))
            good &= tokens.lengths <= rooms
        if not good.all():
            docs, tokens = docs[good], select(tokens, good)
        return docs, tokens, tuple(failures)

    def _prompted(self, texts: pa.Array, room: Int64 | int) -> Tokens:
        """Prompt and text are tokenised as one, because that is what the model was trained with."""
        prompt, nothing = (pa.scalar(text, pa.large_string()) for text in (self.prompt, ""))
        alone = self.tokenizer.encode(pa.array([self.prompt], pa.large_string())).ids
        if len(alone) >= np.min(room):
            raise ModelError("task.prompt leaves no room for the text", "shorten it")
        return led_by(self.tokenizer.encode(pc.binary_join_element_wise(prompt, texts, nothing)), alone)

    @staticmethod
    def _count(rows: int, docs: Int32, tokens: Tokens, windows: Windows) -> Counts:
        """Scatter what is known of the tokenised documents over all rows."""
        total, used, count = (np.zeros(rows, np.int32) for _ in range(3))
        total[docs] = tokens.lengths
        used[docs] = np.bincount(windows.text, windows.own, len(docs))
        count[docs] = np.bincount(windows.text, minlength=len(docs))
        return Counts(total, used, count)


def present(texts: pa.Array) -> tuple[npt.NDArray[np.bool_], list[Failure]]:
    """(which rows have a text, failures of the others)."""
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0).fill_null(False)
    has = np.asarray(pc.and_not(pc.is_valid(texts), blank))
    return has, [Failure(int(i), "encode", *_no_text(texts[int(i)])) for i in np.flatnonzero(~has)]


def _no_text(value: Any) -> tuple[str, str]:
    if not value.is_valid:
        return "null_text", "the text is null"
    return (
        ("empty_text", "the text is empty") if value.as_py() == "" else ("blank_text", "the text is only white space")
    )


def select(tokens: Tokens, good: npt.NDArray[np.bool_]) -> Tokens:
    """The `good` texts of all, [texts]."""
    lengths = np.diff(tokens.starts)
    lead = np.broadcast_to(tokens.lead, len(good))[good]
    kept = np.repeat(good, lengths)
    return Tokens(tokens.ids[kept], offsets(lengths[good]), lead, tokens.places and tokens.places.take(kept))


def merge(values: Float32, owner: Int32, weight: Int32, rows: int) -> Float32:
    """Weighted mean of the `values` [pieces, width] of each owner: [rows, width], NaN where a row owns nothing.

    Owners do not decrease, so each row's pieces are one run, and one pass of `add.reduceat` sums them all.
    """
    out = np.full((rows, values.shape[1]), np.nan, np.float32)
    if not len(owner):
        return out
    first = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    if len(first) == len(owner):  # every document is one piece: no arithmetic, so no rounding either
        out[owner] = values
        return out
    w = weight.astype(np.float32)
    total = np.add.reduceat(w, first)
    out[owner[first]] = np.add.reduceat(values * w[:, None], first, axis=0) / total[:, None]
    return out


def softmax(logits: Float32) -> Float32:
    """Softmax over the last axis."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), np.float32)


def sigmoid(logits: Float32) -> Float32:
    """Logistic function, element by element."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float32)
