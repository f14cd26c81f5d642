"""summarize: a summary a document, from an encoder-decoder, or from a decoder-only model through a prompt.

A document over the limit is summarized by map and reduce: its windows first, then their summaries, joined, as if they were
the document, until they fit. After `ROUNDS` rounds the rest is cut off, and the count columns tell it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from batchnlp.tasks.base import refuse
from batchnlp.tasks.chat_template import chat_template
from batchnlp.tasks.completions import NO_FRAME, Answer, Asked, Render, enumerate_parts
from batchnlp.tasks.generate import TemplatedTask, row_values
from batchnlp.text.encode import Frame
from batchnlp.types import Counts, Docs, Encoded, ModelFiles, Raw

ROUNDS = 4
ASK = "Summarize the following text in a few sentences.\n\n{{ text }}"
GO_ON = "{{ text }}\n\nTL;DR:"  # what GPT-2's authors used


class Summarize(TemplatedTask):
    """One summary a document."""

    column = "summary"

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        self._chat = chat_template(model) if not model.config.get("is_encoder_decoder") else None
        self.default = self._default(model)
        super().__init__(model, spec)
        if self.shape is None:
            hint = "use an encoder-decoder such as facebook/bart-large-cnn, or an instruction-tuned language model"
            raise refuse(model, "does not write text", hint)
        self.on_long = spec.on_long or "window"

    def _default(self, model: ModelFiles) -> str | None:
        """The template without the job's: for T5 its task prefix."""
        if not model.config.get("is_encoder_decoder"):
            return ASK if self._chat else GO_ON
        known = (model.config.get("task_specific_params") or {}).get("summarization") or {}
        prefix = known.get("prefix")
        return "{% raw %}" + prefix + "{% endraw %}{{ text }}" if prefix else None

    @property
    def special(self) -> Frame:
        """A chat template writes them itself."""
        return NO_FRAME if self._chat else super().special

    def renderer(self, docs: Docs) -> Render | None:
        """The template, as a user turn where the model was tuned on turns."""
        chat = self._chat
        if chat is None:
            return super().renderer(docs)
        return lambda row, text: chat.render([{"role": "user", "content": self.filled(text, row_values(docs, row))}])

    def again(self, encoded: Encoded, raw: Raw) -> Encoded | None:
        """The joined summaries of those documents that have several."""
        assert isinstance(encoded, Asked)
        dead = {failure.doc for failure in raw.failures}
        answers = self.answers(Encoded(encoded.pieces, encoded.counts), raw)
        many = {row: answer for row, answer in answers.items() if len(answer.texts) > 1 and row not in dead}
        texts = {row: text for row, answer in many.items() if (text := self.join(encoded, row, answer)).strip()}
        if not texts:
            return None
        tokens = self.tokenizer.encode(pa.array(texts.values(), pa.large_string()))
        sizes = tokens.lengths.tolist()
        last = _rounds(encoded) + 1 >= ROUNDS
        rows = list(texts)
        items, failures = self.ask(rows, list(texts.values()), sizes, encoded.render, "truncate" if last else "window")
        before = encoded.pieces.seed
        first = {row: 0 if before is None else int(before[answer.pieces[0]]) for row, answer in many.items()}
        seeds = [self.seed_of(first[item.row], part) for part, item in enumerate_parts(items)]
        counts = _less(encoded.counts, dict(zip(rows, sizes, strict=True)), items) if last else encoded.counts
        found = (*encoded.failures, *raw.failures, *failures)
        return Asked(self.pieces(items, seeds), counts, found, (encoded, raw), encoded.render)

    def join(self, encoded: Encoded, row: int, answer: Answer) -> str:
        """One summary a line."""
        return "\n".join(text for text in map(str.strip, answer.texts) if text)


def _rounds(encoded: Encoded) -> int:
    return 1 + (_rounds(encoded.earlier[0]) if encoded.earlier else 0)


def _less(counts: Counts, sizes: dict[int, int], items: Any) -> Counts:
    """The document's tokens stand for as much as the part of the joined summaries that was kept."""
    used = counts.n_tokens_used.copy()
    for item in items:
        if item.weight < sizes[item.row]:
            used[item.row] = min(used[item.row] * item.weight // sizes[item.row], counts.n_tokens[item.row] - 1)
    return Counts(counts.n_tokens, used.astype(np.int32), counts.n_windows)
