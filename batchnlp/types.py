"""The nouns. Few, frozen, and each field says who fills it.

The data path is columns, not rows: token ids live in one flat array with offsets, text and results in Arrow. There is
no Python object per document or per token on the hot path; `Failure` is the exception, because failures are few.

This file imports numpy and pyarrow and nothing of batchnlp.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

OnLong = Literal["window", "truncate", "fail"]
OnBadFile = Literal["fail", "salvage"]
OnDuplicateId = Literal["fail", "keep_first", "suffix"]
OP, REVISION = "op", "revision"  # the columns of a change log: what is to be done, and by which run, counted from 0
UPSERT, DELETE = "upsert", "delete"
WIDTHS = ("hidden_size", "dim", "d_model", "n_embd", "emb_dim")  # what config.json calls the width of the states


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """Where the documents are and which of their columns matter. Filled by the job's `source` section."""

    paths: tuple[str, ...]  # files, directories, globs, URIs, datasets://org/name
    text: str  # the column with the documents
    id: str | None = None  # the column with their identities; without one `<file>#<row>`
    keep: tuple[str, ...] = ()  # columns carried into the results
    columns: tuple[str, ...] = ()  # columns that the task reads beside the text
    turns: bool = False  # whether the text column may hold conversations, list<struct<role, content>>
    filter: tuple[tuple[str, str, Any], ...] = ()  # (column, operator, value), all of which must hold
    format: str | None = None  # parquet, jsonl, csv, arrow, text; by file name without it
    unit: Literal["line", "file"] = "line"  # what a document is in a plain text file
    split: str | None = None  # of a data set that has several
    on_bad_file: OnBadFile = "fail"
    on_duplicate_id: OnDuplicateId = "fail"


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the corpus. Filled by the listing of the source."""

    path: str  # absolute path or URI, ready to open
    name: str  # relative to the corpus' common root, '/' separated; the first half of a generated id
    size: int  # bytes as stored
    version: str  # mtime in ns, or an etag: changes when the content does
    format: str  # parquet, jsonl, csv, arrow, text
    compression: str | None = None  # gz, zst, or None
    partitions: tuple[tuple[str, str], ...] = ()  # Hive keys and values in the path
    damage: str = ""  # why it can be read in part only; found by the scan, where salvage is asked for


@dataclass(frozen=True, slots=True)
class Segment:
    """A contiguous run of rows of one file. Filled by the planner from the reader's inspection."""

    file: int  # index into the source's files
    start: int  # first row, counted in the file from 0
    stop: int  # one past the last row
    rows: int  # rows that pass the filter and are selected; stop - start without either
    offset: int = 0  # first byte, for line formats; in decompressed bytes
    length: int = 0  # bytes of the run, for line formats
    line: int = 0  # number of the first line, from 0, for line formats
    lost: bool = False  # one row that stands for those that nobody can read, nor count
    selected: str = ""  # which of the rows that pass the filter are worked on (data/sources/selection); "" is all


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work, of commitment and of loss: some thousands of rows. Filled by the planner."""

    index: int
    segments: tuple[Segment, ...]  # one, or several tiny files joined
    dead: int | None = None  # of a retry: its dead letters, which alone are worked on

    @property
    def rows(self) -> int:
        """Rows that pass the filter and are selected: what the row contract counts as rows in."""
        return sum(segment.rows for segment in self.segments) if self.dead is None else self.dead


@dataclass(frozen=True, slots=True)
class Failure:
    """A document that has no result. Filled by whoever met it: reader, task or backend."""

    doc: int  # row inside the shard
    stage: str  # read, encode, forward, decode
    code: str  # snake_case, stable, grouped by in `status`
    message: str  # one sentence, without the document's text
    attempts: int = 1
    rows: int = 1  # rows that it stands for, if they were lost together


def _no_line(doc: int) -> int:
    return -1


@dataclass(frozen=True, slots=True)
class Docs:
    """One shard as read: every selected row once, in order, good and bad. Filled by the source's reader. Only rows that
    were lost together with a damaged file have one entry in common, whose failure tells how many they are.

    `ids`, `text`, `file`, `row` and `keep` have one entry a row. A row that could not be read has a null text and an
    entry in `failures` (with `doc` set), so that nothing shifts.
    """

    ids: pa.Array  # the id column in its own type, or generated strings
    text: pa.Array  # large_string, null where there is no text; for chat perhaps list<struct<role, content>>
    keep: pa.Table  # the kept columns
    columns: pa.Table  # what the task reads beside the text (questions, messages, what a template names)
    file: Int32  # index into the source's files
    row: Int64  # row in that file, from 0
    failures: tuple[Failure, ...] = ()
    line: Callable[[int], int] = _no_line  # row of the shard → line in its file, from 1; -1 where there are none. Slow

    def __len__(self) -> int:
        return len(self.ids)

    def text_at(self, doc: int) -> str | None:
        """The text of a document; of a conversation its JSON."""
        value = self.text[doc].as_py()
        return value if value is None or isinstance(value, str) else json.dumps(value)

    def take(self, index: Int64) -> Docs:
        """The rows `index`, in its order."""
        where, at = pa.array(index), {int(doc): i for i, doc in enumerate(index)}
        return Docs(
            self.ids.take(where), self.text.take(where), self.keep.take(where), self.columns.take(where),
            self.file[index], self.row[index],
            tuple(replace(failure, doc=at[failure.doc]) for failure in self.failures if failure.doc in at),
            lambda doc: self.line(int(index[doc])),
        )  # fmt: skip

    @classmethod
    def of(cls, texts: pa.Array, columns: pa.Table | None = None) -> Docs:
        """Documents that come from no file; their ids are their positions."""
        n = len(texts)
        nothing = pa.table({"none": pa.nulls(n)}).select([])
        row = np.arange(n, dtype=np.int64)
        return cls(pa.array(row), texts, nothing, columns or nothing, np.zeros(n, np.int32), row)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The tokenised shard, as columns. Filled by the task's `encode`.

    A piece is one sequence for the model; a long document is several pieces, a pair task makes several per document
    too. Token ids include the special tokens. A server tokenises by itself: its pieces are `requests`, without ids.
    """

    ids: Int32  # [tokens] all pieces, one after the other
    starts: Int64  # [pieces + 1] piece i is ids[starts[i]:starts[i + 1]]
    doc: Int32  # [pieces] row in the shard, not decreasing
    weight: Int32  # [pieces] content tokens that this piece owns
    type_ids: npt.NDArray[np.uint8] | None = None  # [tokens] segment ids, None when all are zero
    role: Int32 | None = None  # [pieces] what the task tells its pieces apart by (the label of an entailment pair)
    word: Int32 | None = None  # [tokens] place in the piece where the token's word begins, if words are judged as one
    max_new: Int32 | None = None  # [pieces] tokens that may be generated; the job's limit without it
    seed: Int64 | None = None  # [pieces] of the sampling, so that an answer does not depend on its batch
    requests: pa.Array | None = None  # [pieces] large_string prompts, or conversations, list<struct<role, content>>

    def __len__(self) -> int:
        return len(self.doc)

    @property
    def lengths(self) -> Int64:
        """[pieces] tokens of each piece, special tokens included."""
        return np.diff(self.starts)


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened to each document's tokens. Filled by the task's `encode`; becomes the count columns."""

    n_tokens: Int32  # [docs] content tokens the document has; -1 where nobody knows, which is written as null
    n_tokens_used: Int32  # [docs] content tokens the model saw
    n_windows: Int32  # [docs] windows the text was cut into


@dataclass(frozen=True, slots=True)
class Encoded:
    """A shard ready for the model. Filled by the task's `encode`."""

    pieces: Pieces
    counts: Counts
    failures: tuple[Failure, ...] = ()
    earlier: tuple[Encoded, Raw] | None = None  # the round before, of a task that asks the model again


@dataclass(frozen=True, slots=True)
class Decoding:
    """How text is generated. Filled by the task from the job; what is None is as the model's generation_config says."""

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    sample: bool = False  # greedy (or beams, where the model asks for them) unless asked
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    num_beams: int | None = None
    stop: tuple[str, ...] = ()  # strings that end an answer, and are cut off it
    forced_bos: int | None = None  # token that an answer begins with (the language, for translation)
    json_schema: str | None = None  # of the answer, as JSON text
    logprobs: bool = False  # tell the log-probability of every token
    n: int = 1  # answers to each request of a server; elsewhere each is a piece of its own


@dataclass(frozen=True, slots=True)
class Batch:
    """Pieces that go through the model together. Filled by the batcher."""

    index: Int64  # [rows] indices of pieces
    length: int  # the longest of them, which all are padded to
    packed: int = 0  # tokens of all of them, where they go one after the other instead

    @property
    def tokens(self) -> int:
        """Tokens executed, padding included."""
        return self.packed or len(self.index) * self.length


@dataclass(frozen=True, slots=True)
class Raw:
    """The model's answer for the pieces of one shard. Filled by the backend, in the order of the pieces.

    `kind` says what `values` holds, and is how tasks and backends meet. Rows of failed pieces are NaN.

        scores         [pieces, labels]  logits of a sequence classifier
        vectors        [pieces, dim]     pooled states before any normalisation
        token_scores   [tokens, 2]       the likeliest label of each of `Pieces.ids` and its probability; where there is
                                         `Pieces.word`, of the mean of its word's probabilities
        span_scores    [tokens, 2]       start and end logits of an extractive reader, for each of `Pieces.ids`
        completions    [new tokens, 1]   log-probabilities where asked for; the tokens are in `Completions`
        replies        nothing           the texts are in `Replies`
    """

    kind: str
    values: Float32
    failures: tuple[Failure, ...] = ()  # `doc` is the document, not the piece
    tokens: int = 0  # real tokens that went through the model, special tokens included
    executed: int = 0  # the same with padding
    seconds: float = 0.0  # device time


@dataclass(frozen=True, slots=True)
class Completions(Raw):
    """Generated tokens: the answer to piece i is `ids[starts[i]:starts[i + 1]]`, the end token not included."""

    ids: Int32 = field(default_factory=lambda: np.empty(0, np.int32))  # [new tokens]
    starts: Int64 = field(default_factory=lambda: np.zeros(1, np.int64))  # [pieces + 1]
    finish: tuple[str, ...] = ()  # [pieces] stop, length, or "" where there is no answer


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answers to one request; all of it is empty where there is no answer."""

    texts: tuple[str, ...] = ()  # as many as were asked for
    finish: tuple[str, ...] = ()  # of each: stop or length
    logprobs: tuple[tuple[float, ...], ...] = ()  # of each, where asked for
    n_tokens: int = -1  # of the request, as the server counts them; -1 where it does not
    n_new_tokens: int = -1  # of all texts together


@dataclass(frozen=True, slots=True)
class Replies(Raw):
    """Texts from a server: the answers to piece i are `replies[i]`."""

    replies: tuple[Reply, ...] = ()


class Feed(Protocol):
    """What a backend pulls its work from: the pieces of one shard after the other. Filled by the worker."""

    def take(self, *, wait: bool) -> tuple[Any, Pieces] | None:
        """(a key, pieces) of the next shard; None when there is none. Without `wait` that may mean: not yet."""

    @property
    def ended(self) -> bool:
        """Whether there will be no more."""


@dataclass(frozen=True, slots=True)
class PartFile:
    """One file of a part. Filled by the part writer."""

    name: str  # relative to the attempt's directory; also where it is published below the output
    rows: int
    size: int
    sha256: str
    kind: Literal["rows", "dead", "order", "text", "delete"] = "rows"  # order: the file of each row


@dataclass(frozen=True, slots=True)
class Part:
    """What one shard became. Filled by the worker, written as `part.json`, made to count by a commit."""

    shard: int
    attempt: str  # unique: which execution of the shard this is
    rows: int  # rows in = ok + dead
    ok: int
    dead: int
    ids_hash: str  # order-free hash of all ids, results and dead letters together
    files: tuple[PartFile, ...]
    tokens: int
    executed: int
    seconds: dict[str, float]  # encode, forward, write
    codes: dict[str, int] = field(default_factory=dict)  # dead letters by code
    note: str = ""  # what the backend did otherwise than it would, and why
    cached: int = 0  # rows whose results came from the cache
    after: str = ""  # of a retry: the attempt whose dead letters it tried again
    invocation: str = field(default="", compare=False)  # who committed it; filled with the commit, as is
    committed: float = field(default=0.0, compare=False)  # when, in Unix time: to be looked at, nothing depends on it


@dataclass(frozen=True, slots=True)
class Retried(Part):
    """A shard whose dead letters were tried again: all its parts as one. Filled by the ledger."""

    layers: tuple[Part, ...] = ()  # the first one and its retries, each after the one before


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on disk that passed preflight. Filled by the planner; nothing in it needs torch."""

    name: str  # as the user wrote it
    path: str  # directory with config.json, tokenizer and safetensors
    revision: str  # commit hash, or "local"
    weights: str  # sha256 over the weight files' hashes
    tokenizer: str  # sha256 over the tokenizer files
    config: dict[str, Any]  # config.json
    max_length: int  # tokens a sequence may have, special tokens included
    modules: tuple[dict[str, Any], ...] = ()  # sentence-transformers modules after the transformer, in order
    card: str = ""  # sha256 of the model card beside the weights, where there is one

    @property
    def hidden_size(self) -> int:
        """Width of the model's states; 0 where config.json does not tell it."""
        configs = self.config, self.config.get("text_config") or {}
        return int(next((c[name] for c in configs for name in WIDTHS if c.get(name)), 0))


@dataclass(frozen=True, slots=True)
class Server(ModelFiles):
    """A model behind an API: what it is, only the server knows. Filled by the planner, with a `config` that is empty."""

    url: str = ""  # the base, as http://localhost:8000/v1
    key_env: str | None = None  # the environment variable with the key, which itself is never kept


@dataclass(frozen=True, slots=True)
class Resolved:
    """What every `auto` became. Filled once, at the first start; kept in plan.json, so that a resume uses the same."""

    device: str  # cpu, cuda, cuda:0, ...; or server
    dtype: str  # float32, bfloat16; empty where the server decides
    backend: str
    tokens_per_batch: int  # 0 where the backend makes its own batches
    why: str  # one sentence for the user


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done: fixed, before any model is loaded. Filled by the planner."""

    fingerprint: str
    files: tuple[InputFile, ...]
    shards: tuple[Shard, ...]
    schema: pa.Schema  # of the results
    generation: int = 0  # how often dead letters are tried again with it
    repeats: int = 0  # rows whose id a row before them has

    @property
    def rows(self) -> int:
        """Rows in, over all shards."""
        return sum(shard.rows for shard in self.shards)


def many(count: int, noun: str) -> str:
    """1 shard, 2,000 shards."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
