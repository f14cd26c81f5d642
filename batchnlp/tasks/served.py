"""Tasks whose answers a server writes: prompts and conversations go out as they are, and texts come back.

The server tokenises, so nothing is counted or cut here: what is over its limit becomes a dead letter, and the counts are
those of its answers. `summarize` and `translate` ask in words.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from batchnlp.data.sources.columns import TURNS
from batchnlp.errors import SpecError
from batchnlp.tasks.base import present
from batchnlp.tasks.chat import Turns, answerable, conversation, last_words
from batchnlp.tasks.completions import Answer
from batchnlp.tasks.generate import TemplatedTask, row_values
from batchnlp.tasks.languages import named
from batchnlp.tasks.summarize import ASK
from batchnlp.templates import TemplateFault
from batchnlp.types import Counts, Docs, Encoded, Failure, Int32, ModelFiles, Pieces, Raw, Replies

UNSENT = ("min_new_tokens", "top_k", "repetition_penalty", "num_beams")  # the API has no such parameters


class ServedTask(TemplatedTask):
    """A task that a server does."""

    needs = "replies"
    kind = TURNS  # of the requests: conversations, or prompts

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        for key in UNSENT:
            if getattr(spec, key) != type(spec).model_fields[key].default:
                raise SpecError(f"task.{key} means nothing to a server: its API has no such parameter", "leave it out")
        if spec.on_long not in (None, "fail") or spec.max_length is not None:
            key = "max_length" if spec.max_length is not None else "on_long"
            raise SpecError(f"task.{key} cannot be kept: a server counts tokens by itself", "leave it out")
        if spec.revision is not None:
            raise SpecError("task.revision means nothing to a server", "leave it out")
        super().__init__(model, spec)
        self._decoding = replace(self._decoding, n=spec.n)

    # --- requests

    def encode(self, docs: Docs) -> Encoded:
        """Render a request for each document."""
        rows, failures = self.rows(docs)
        kept, requests = [], []
        for row in rows:
            try:
                words = self.words(docs, row)
            except TemplateFault as fault:
                failures.append(Failure(row, "encode", "template_error", f"the template breaks on this row: {fault}"))
                continue
            if words.strip():
                kept.append(row)
                requests.append(self.request(docs, row, words))
            else:
                failures.append(Failure(row, "encode", "template_error", "the prompt of this row is empty"))
        n = len(kept)
        seed = np.array([self.seed_of(str(docs.ids[row].as_py())) for row in kept], np.int64)
        pieces = Pieces(
            np.empty(0, np.int32), np.zeros(n + 1, np.int64), np.array(kept, np.int32), np.ones(n, np.int32),
            seed=seed if self._seed is not None else None, requests=pa.array(requests, self.kind),
        )  # fmt: skip
        windows = np.zeros(len(docs), np.int32)
        windows[pieces.doc] = 1
        unknown = np.full(len(docs), -1, np.int32)
        return Encoded(pieces, Counts(unknown, unknown, windows), tuple(failures))

    def rows(self, docs: Docs) -> tuple[list[int], list[Failure]]:
        """(rows that can be asked about, failures of the others)."""
        has, failures = present(docs.text)
        return np.flatnonzero(has).tolist(), failures

    def request(self, docs: Docs, row: int, words: str) -> str | Turns:
        """The filled template of a row as what the user says."""
        return conversation(docs, row, words, None)

    def words(self, docs: Docs, row: int) -> str:
        """The filled template of a row."""
        value = docs.text[row].as_py()
        return self.filled(value if isinstance(value, str) else last_words(value), row_values(docs, row))

    # --- replies

    def answers(self, encoded: Encoded, raw: Raw) -> dict[int, Answer]:
        """By row; of several answers at once only the sum of their tokens is known, unless each tells its own."""
        assert isinstance(raw, Replies)
        found: dict[int, Answer] = {}
        for piece, (row, reply) in enumerate(zip(encoded.pieces.doc.tolist(), raw.replies, strict=True)):
            if reply.texts:
                lengths = [len(run) for run in reply.logprobs] if self._wants_logprobs else [reply.n_new_tokens]
                told = len(lengths) == len(reply.texts) and min(lengths) >= 0
                texts, logprobs = [self._until_stop(text) for text in reply.texts], list(map(list, reply.logprobs))
                found[row] = Answer(
                    texts, list(lengths) if told else [None] * len(texts), list(reply.finish),
                    logprobs or [[] for _ in texts], [piece],
                )  # fmt: skip
        return found

    def counts(self, encoded: Encoded, raw: Raw) -> Counts:
        """The tokens of the requests, as the server counted them."""
        assert isinstance(raw, Replies)
        tokens: Int32 = encoded.counts.n_tokens.copy()
        tokens[encoded.pieces.doc] = [reply.n_tokens for reply in raw.replies]
        return Counts(tokens, tokens, encoded.counts.n_windows)


class Generate(ServedTask):
    """The server goes on from a prompt."""

    kind = pa.large_string()

    def request(self, docs: Docs, row: int, words: str) -> str:
        """The filled template itself."""
        return words


class Chat(ServedTask):
    """One reply a row, or `n`."""

    column = "reply"
    turns = True

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        super().__init__(model, spec)
        self._system: str | None = spec.system

    def rows(self, docs: Docs) -> tuple[list[int], list[Failure]]:
        """Texts, or conversations that the user has the last word in."""
        return answerable(docs.text) if pt.is_nested(docs.text.type) else super().rows(docs)

    def request(self, docs: Docs, row: int, words: str) -> Turns:
        """The conversation with the filled template as what the user said last."""
        return conversation(docs, row, words, self._system)


class Summarize(ServedTask):
    """A summary, asked for in words."""

    column = "summary"
    default = ASK


class Translate(ServedTask):
    """A translation, asked for in words."""

    column = "translation"

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        target = named("target_language", spec.target_language)
        source = f" from {named('source_language', spec.source_language)}" if spec.source_language else ""
        self.default = (
            "{% raw %}" + f"Translate the following text{source} into {target}. Answer with the translation alone."
            "{% endraw %}\n\n{{ text }}"
        )
        super().__init__(model, spec)
