"""ner: the entities of each document, with their places, from any AutoModelForTokenClassification.

The windows of a long document overlap, and each token has the label that the window gave it in which it is farthest from a
border. So labels run through the whole document, and an entity is whole wherever windows end.

Labels become entities as in transformers' token classification pipeline, which also tells what a word is:

    simple    each token has its own label
    first     a word has the label of its first token
    average   a word has the likeliest label of the mean of its tokens' probabilities
    max       a word has the label of its surest token

An entity's score is the mean of its tokens' (words') probabilities. Other than there, E- and S- labels are understood (see
label_schemes), and borders lie between whole characters and not in white space (see text/characters).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchnlp.tasks.base import check_architecture, refuse
from batchnlp.tasks.classify import label_names
from batchnlp.tasks.label_schemes import LabelScheme
from batchnlp.tasks.labels import names_of
from batchnlp.tasks.passages import Passages, PassageTask, best_of_runs
from batchnlp.text.characters import Bool
from batchnlp.text.encode import frame, offsets, ranges
from batchnlp.text.surface import surfaces
from batchnlp.types import Docs, Encoded, Float32, Int32, Int64, ModelFiles, Pieces, Raw

ENTITY = pa.struct([
    ("label", pa.string()), ("text", pa.string()), ("start", pa.int32()), ("end", pa.int32()), ("score", pa.float32()),
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Units:
    """Tokens, or words, as columns: what entities are made of."""

    row: Int32
    start: Int32  # in the text
    end: Int32
    label: Int32
    score: Float32
    inner: Bool  # whether it is a token within a word


class Ner(PassageTask):
    """A list of entities a document."""

    needs = "token_scores"
    token_bytes = 8 + 9 + 4  # label and probability; place and word; its word in the piece

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        super().__init__(model, spec)
        if not check_architecture(model, "ForTokenClassification"):
            raise refuse(model, "has no token classification head", "use a NER model such as dslim/bert-base-NER")
        self._scheme = LabelScheme.of(label_names(model))
        self._aggregation: str = spec.aggregation
        self.note = self._scheme.note

    @property
    def fields(self) -> list[pa.Field]:
        """The result column."""
        return [pa.field("entities", pa.list_(ENTITY))]

    def encode(self, docs: Docs) -> Encoded:
        """Tokenise, cut into overlapping windows, frame, count."""
        special = self.tokenizer.single
        room = self.model.max_length - special.size
        rows, tokens, failures = self._tokenise(docs.text, room)
        windows = self.windows(tokens, room)
        ids, starts = frame(tokens, windows, special)
        type_ids = np.full(len(ids), special.type_ids[0], np.uint8) if special.type_ids[0] else None
        head = np.full(len(windows.text), len(special.before), np.int64)
        pieces = Pieces(ids, starts, rows[windows.text], windows.own.astype(np.int32), type_ids)
        found = Passages(
            pieces, self._count(len(docs), rows, tokens, windows), failures,
            texts=docs.text, rows=rows, tokens=tokens, windows=windows, head=head,
        )  # fmt: skip
        return with_words(found) if self._aggregation == "average" else found

    def decode(self, encoded: Encoded, raw: Raw) -> tuple[list[pa.Array], npt.NDArray[np.bool_]]:
        """Labels of tokens to labels of words to entities."""
        assert isinstance(encoded, Passages)
        token, answer = encoded.owned()
        values = raw.values[answer]
        row = np.repeat(encoded.rows[encoded.windows.text], encoded.windows.own)
        finite = np.ones(len(encoded.counts.n_tokens), np.bool_)
        finite[row[~np.isfinite(values[:, 1])]] = False
        values = np.where(finite[row][:, None], values, 0)
        begins = encoded.places.word[token]
        begins[1:] |= row[1:] != row[:-1]
        begins[:1] = True
        first, last, judge = self._units(values[:, 1], begins)
        units = Units(
            row[first], encoded.places.start[token[first]], encoded.places.end[token[last]],
            values[judge, 0].astype(np.int32), values[judge, 1], ~begins[first],
        )  # fmt: skip
        return [self._entities(units, encoded.texts)], finite

    def _units(self, score: Float32, begins: Bool) -> tuple[Int64, Int64, Int64]:
        """[tokens or words] (the first token of each, its last one, the one whose answer counts)."""
        if self._aggregation == "simple":
            each = np.arange(len(score), dtype=np.int64)
            return each, each, each
        first = np.flatnonzero(begins)
        last = np.append(first, len(score))[1:] - 1
        return first, last, best_of_runs(score, first) if self._aggregation == "max" else first

    def _entities(self, units: Units, texts: pa.Array) -> pa.Array:
        """[rows] the entities of each."""
        begins = self._scheme.borders(units.label, units.inner)
        begins[1:] |= units.row[1:] != units.row[:-1]
        first = np.flatnonzero(begins)
        after = np.append(first, len(begins))[1:]
        kind, start, end = self._scheme.type[units.label[first]], units.start[first], units.end[after - 1]
        score = np.add.reduceat(units.score, first, dtype=np.float64) / (after - first)
        kept = (kind != 0) & (start < end)  # nothing but white space is no entity
        row, kind, start, end = (column[kept] for column in (units.row[first], kind, start, end))
        columns = [
            names_of(self._scheme.types, kind), surfaces(texts, row, start, end), pa.array(start), pa.array(end),
            pa.array(score[kept].astype(np.float32)),
        ]  # fmt: skip
        starts = offsets(np.bincount(row, minlength=len(texts))).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(starts), pa.StructArray.from_arrays(columns, fields=list(ENTITY)))


def with_words(passages: Passages) -> Passages:
    """The same, with where in its piece the word of each token begins; in a window that begins inside a word, there."""
    pieces, windows = passages.pieces, passages.windows
    begins = np.ones(len(pieces.ids), np.bool_)  # special tokens are words of their own
    inside = ranges(pieces.starts[:-1] + passages.head, windows.length)
    begins[inside] = passages.places.word[ranges(windows.start, windows.length)]
    begins[pieces.starts[:-1] + passages.head] = True
    at = np.arange(len(begins), dtype=np.int64)
    word = np.maximum.accumulate(np.where(begins, at, 0)) - np.repeat(pieces.starts[:-1], pieces.lengths)
    return replace(passages, pieces=replace(pieces, word=word.astype(np.int32)))
