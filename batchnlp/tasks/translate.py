"""translate: a translation a document, sentence by sentence, with the white space between sentences as it was.

Translation models are trained on sentences and lose line breaks; so every document is cut into sentences, each a piece,
and put together again. A sentence over the model's limit is cut (window), cut off (truncate), or fails its document.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from batchnlp.errors import SpecError
from batchnlp.tasks import languages
from batchnlp.tasks.base import refuse
from batchnlp.tasks.completions import Answer, CompletionTask, Item, count, enumerate_parts
from batchnlp.text.encode import Frame
from batchnlp.text.sentences import sentences
from batchnlp.text.slow import check_sentencepiece
from batchnlp.types import Decoding, Docs, Encoded, ModelFiles

PREFIXED = {"t5", "mt5", "umt5", "longt5", "switch_transformers"}


@dataclass(frozen=True, slots=True)
class Passages(Encoded):
    """Sentences, and what stands around them."""

    before: tuple[str, ...] = ()  # [pieces] the text between the piece before, or the document's start, and this one
    after: dict[int, str] | None = None  # row → what follows its last piece


class Translate(CompletionTask):
    """One translation a document."""

    column = "translation"

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        super().__init__(model, spec)
        if self.shape != "encoder-decoder":
            hint = "use one such as Helsinki-NLP/opus-mt-en-de; for an instruction-tuned model the task is chat"
            raise refuse(model, "is no encoder-decoder, as translation models are", hint)
        check_sentencepiece(model.path)
        self._source: str | None = None  # token before the text
        self._target: str | None = None  # token that the answer begins with
        self._codes: dict[str, str] = {}
        self._prefix = ""
        self._languages(model, spec.source_language, spec.target_language)

    def _languages(self, model: ModelFiles, source: str | None, target: str | None) -> None:
        kind = model.config.get("model_type")
        if kind in PREFIXED:
            self._prefix = languages.prefix(model, source, target)
            return
        if kind in languages.CODED and (found := languages.codes(model)):
            self._codes = found
            self._source = languages.chosen("source_language", source, found, model)
            self._target = languages.chosen("target_language", target, found, model)
            return
        found = languages.marian_codes(model) if kind == "marian" else {}
        if found:
            self._prefix = languages.chosen("target_language", target, found, model) + " "
            target = None
        for key, value in (("source_language", source), ("target_language", target)):
            if value is not None:
                raise SpecError(f"task.{key} means nothing to {model.name}, which knows its languages", "leave it out")

    @property
    def decoding(self) -> Decoding:
        """With the target language's token; it needs the tokenizer, so only a worker asks."""
        if self._target is None:
            return self._decoding
        target = self.tokenizer.token_id(self._target)
        starts_with_it = self.model.config.get("decoder_start_token_id") == target
        return self._decoding if starts_with_it else replace(self._decoding, forced_bos=target)

    @property
    def special(self) -> Frame:
        """What the tokenizer adds, with the source language's token in the place of whatever language stands there."""
        frame = self.tokenizer.single
        if self._source is None:
            return frame
        source = self.tokenizer.token_id(self._source)
        assert source is not None, "it is among the tokenizer's own tokens"
        ids = [self.tokenizer.token_id(token) for token in self._codes.values()]
        before, after = (
            np.array([source if i in ids else i for i in part], np.int32) for part in (frame.before, frame.after)
        )
        if source not in before and source not in after:
            before = np.r_[np.int32(source), before]
        return Frame(before, frame.between, after, frame.type_ids)

    def encode(self, docs: Docs) -> Encoded:
        """Sentences, each with the model's prefix and frame."""
        rows, texts, _, failures = self.documents(docs)
        owner, spans = [], []
        for row, text in zip(rows, texts, strict=True):
            found = sentences(text)
            owner += [row] * len(found)
            spans += found
        whole = dict(zip(rows, texts, strict=True))
        parts = [whole[row][a:b] for row, (a, b) in zip(owner, spans, strict=True)]
        sizes = self.tokenizer.encode(pa.array(parts, pa.large_string())).lengths.tolist()
        said = [i for i, size in enumerate(sizes) if size]  # what has no token stays as it is, with the white space
        prefix = self._prefix
        items, more = self.ask(
            said, [parts[i] for i in said], [sizes[i] for i in said],
            (lambda _, text: prefix + text) if prefix else None, self.on_long,
        )  # fmt: skip
        more = [replace(failure, doc=owner[failure.doc]) for failure in {owner[f.doc]: f for f in more}.values()]
        dead = {failure.doc for failure in more}
        items = [item for item in items if owner[item.row] not in dead]
        before, after = _gaps(items, owner, spans, whole)
        items = [replace(item, row=owner[item.row]) for item in items]
        seeds = [self.seed_of(str(docs.ids[item.row].as_py()), i) for i, item in enumerate_parts(items)]
        total: dict[int, int] = {}
        for row, size in zip(owner, sizes, strict=True):
            total[row] = total.get(row, 0) + size
        counts = count(len(docs), total.items(), items)
        return Passages(self.pieces(items, seeds), counts, (*failures, *more), before=before, after=after)

    def join(self, encoded: Encoded, row: int, answer: Answer) -> str:
        """The translations with what stood between their sentences."""
        assert isinstance(encoded, Passages)
        text = ""
        for piece, part in zip(answer.pieces, map(str.strip, answer.texts), strict=True):
            gap = encoded.before[piece]
            text += (" " if not gap and text[-1:].isascii() and part[:1].isascii() and text and part else gap) + part
        return text + (encoded.after or {}).get(row, "")


def _gaps(
    items: list[Item], owner: list[int], spans: list[tuple[int, int]], whole: dict[int, str]
) -> tuple[tuple[str, ...], dict[int, str]]:
    """(what stands before each item, what stands after the last one of each row)."""
    before: list[str] = []
    at: dict[int, int] = {}  # row → how far its text is accounted for
    last, tail = -1, ""
    for item in items:
        row, (start, end) = owner[item.row], spans[item.row]
        before.append(tail if item.row == last else whole[row][at.get(row, 0) : start])
        at[row], last, tail = end, item.row, item.tail
    return tuple(before), {row: whole[row][end:] for row, end in at.items()}
