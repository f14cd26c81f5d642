"""qa: the answer that a document gives to a question, from any AutoModelForQuestionAnswering.

The model sees the question, then a window of the document, and says of each token how likely the answer begins and ends
there. In a window, these logits become probabilities over the tokens of the document and the model's first token ([CLS]),
which stands for "not here". A span's score is the product of its two probabilities; the best of at most 30 tokens wins.

Over several windows:

- A span counts in the window that owns its first token, and in no other. It need not be owned to its end: half of the
  overlap follows every owned token, so that a span of that length is whole there. So what a window makes of an answer that
  its border cuts never competes, and no span counts twice.
- Scores of windows are compared as they are. Logits could not be: a softmax hides by how much those of a window are shifted,
  but not what is a window's own share for "not here", which models learn from windows without the answer.
- There is no answer if the document gives none anywhere: `no_answer_score`, the product for the first token, is the least
  over all windows. Where it is above the score of the best span, `answer`, `start` and `end` are null; that is a result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.data.sources.columns import is_string
from batchnlp.errors import SourceError, SpecError
from batchnlp.tasks.base import check_architecture, refuse, select
from batchnlp.tasks.passages import Passages, PassageTask, best_of_runs, scatter
from batchnlp.text.encode import Tokens, frame_pairs, offsets, ranges
from batchnlp.text.surface import surfaces
from batchnlp.types import Docs, Encoded, Failure, Float32, Int32, Int64, ModelFiles, Pieces, Raw

MAX_ANSWER = 30  # tokens, as in the evaluations of SQuAD
MIN_ROOM = 8  # tokens of the document that must fit beside a question


class Qa(PassageTask):
    """An answer a document, or none."""

    needs = "span_scores"
    token_bytes = 8 + 9 + 1  # two logits; place and word; segment

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        super().__init__(model, spec)
        if not check_architecture(model, "ForQuestionAnswering"):
            hint = "use an extractive model such as deepset/roberta-base-squad2"
            raise refuse(model, "has no question answering head", hint)
        self._column: str | None = spec.question_column
        self.columns = (self._column,) if self._column else ()
        self._question: Tokens | None = None
        if not self._column:
            self._question = self.tokenizer.encode(pa.array([spec.question], pa.large_string()))
            self._check_room(int(self._question.lengths[0]))

    def _check_room(self, size: int) -> None:
        """The job's question, against what the model takes."""
        if not size:
            raise SpecError("the tokenizer finds nothing in task.question", "ask in words that the model knows")
        room = int(self._room(np.array([size]))[0])
        if room < MIN_ROOM:
            left = f"leaves {max(room, 0)} of {self.model.max_length} for the document"
            raise SpecError(f"task.question has {size:,} tokens, which {left}", f"shorten it, {MIN_ROOM} are needed")

    def _room(self, size: Int64) -> Int64:
        """Tokens of the document that fit beside a question of `size` tokens."""
        return np.asarray(self.model.max_length - self.tokenizer.pair().size - size, np.int64)

    @property
    def fields(self) -> list[pa.Field]:
        """The result columns."""
        return [
            pa.field("answer", pa.string()), pa.field("start", pa.int32()), pa.field("end", pa.int32()),
            pa.field("score", pa.float32()), pa.field("no_answer_score", pa.float32()),
        ]  # fmt: skip

    def check(self, schema: pa.Schema) -> None:
        """Questions must be text."""
        if self._column and not is_string(kind := schema.field(self._column).type):
            message = f"the question column {self._column} is {kind}, not text"
            raise SourceError(message, "choose another task.question_column")

    def encode(self, docs: Docs) -> Encoded:
        """Question and window, for each window that fits beside the row's question."""
        questions, which, problems = self._questions(docs)
        size = np.zeros(len(docs), np.int64)
        size[which >= 0] = questions.lengths[which[which >= 0]]
        room = self._room(size)
        rows, tokens, failures = self._tokenise(docs.text, room)
        asked = which[rows] >= 0
        failures += tuple(problems[row] for row in rows[~asked].tolist())
        rows, tokens = rows[asked], select(tokens, asked)
        windows = self.windows(tokens, room[rows])
        q, special = which[rows][windows.text], self.tokenizer.pair()
        asking = questions.starts[q], questions.lengths[q]
        found = frame_pairs(questions.ids, asking, tokens.ids, (windows.start, windows.length), special)
        pieces = Pieces(*found[:2], rows[windows.text], windows.own.astype(np.int32), found[2])
        return Passages(
            pieces, self._count(len(docs), rows, tokens, windows), failures, texts=docs.text, rows=rows, tokens=tokens,
            windows=windows, head=len(special.before) + asking[1] + len(special.between),
        )  # fmt: skip

    def _questions(self, docs: Docs) -> tuple[Tokens, Int64, dict[int, Failure]]:
        """(the questions, [rows] which of them is a row's, or -1; why a row has none that can be asked)."""
        if self._question is not None:
            return self._question, np.zeros(len(docs), np.int64), {}
        assert self._column is not None
        texts = pc.fill_null(docs.columns[self._column].combine_chunks().cast(pa.large_string()), "")
        tokens = self.tokenizer.encode(texts)
        blank = np.asarray(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0))
        none = blank | (tokens.lengths == 0)
        long = ~none & (self._room(tokens.lengths) < MIN_ROOM)
        problems = {
            int(row): Failure(int(row), "encode", "no_question", f"{self._column} has no question in this row")
            for row in np.flatnonzero(none)
        }
        for row in np.flatnonzero(long).tolist():
            message = f"the question has {tokens.lengths[row]:,} tokens, the model takes {self.model.max_length:,}"
            problems[row] = Failure(row, "encode", "question_too_long", message)
        return tokens, np.where(none | long, -1, np.arange(len(docs))), problems

    def decode(self, encoded: Encoded, raw: Raw) -> tuple[list[pa.Array], npt.NDArray[np.bool_]]:
        """The best span of each document, and whether it is an answer."""
        assert isinstance(encoded, Passages)
        rows, at = len(encoded.counts.n_tokens), encoded.rows
        first, last, score, null = self._best(encoded, raw.values)
        finite = np.ones(rows, np.bool_)
        finite[at] = sound = np.isfinite(score) & np.isfinite(null)
        start, end = encoded.places.start[first], encoded.places.end[last]
        known = sound & (score >= null) & (start < end)
        answers = surfaces(encoded.texts, at[known], start[known], end[known])
        place = np.full(rows, -1, np.int64)
        place[at[known]] = np.arange(int(known.sum()))
        columns = [
            answers.take(pa.array(place, mask=place < 0)), scatter(rows, at, start, known), scatter(rows, at, end, known),
            scatter(rows, at, score, sound), scatter(rows, at, null, sound),
        ]  # fmt: skip
        return columns, finite

    def _best(self, passages: Passages, values: Float32) -> tuple[Int64, Int64, Float32, Float32]:
        """[documents] (position in `tokens` of the first token of the best span, of its last one, its score, the score of
        no answer); scores are not finite where the model's answers are not."""
        windows, pieces = passages.windows, passages.pieces
        if not len(windows.text):
            none = np.empty(0, np.int64), np.empty(0, np.float32)
            return none[0], none[0], none[1], none[1]
        base = offsets(windows.length)[:-1]  # where each window begins among the tokens of all of them
        seen = ranges(pieces.starts[:-1] + passages.head, windows.length)
        cls = values[pieces.starts[:-1]] if len(self.tokenizer.pair().before) else np.full((len(base), 2), -np.inf)
        (begin, no_begin), (end, no_end) = (
            log_softmax(values[seen, i], cls[:, i].astype(np.float32), base, windows.length) for i in (0, 1)
        )
        token = ranges(windows.start, windows.length)
        blank = passages.places.start[token] >= passages.places.end[token]
        begin[blank] = end[blank] = -np.inf
        left = np.repeat(base + windows.length, windows.length) - np.arange(len(token))
        best, more = best_end(end, left)
        owned = ranges(base + windows.skip, windows.own)
        total = (begin + best)[owned]
        starts = offsets(np.bincount(windows.text, windows.own).astype(np.int64))[:-1]  # of each document among them
        broken = np.logical_or.reduceat(np.isnan(total), starts)
        chosen = best_of_runs(np.nan_to_num(total, nan=-np.inf), starts)
        i = owned[chosen]
        null = np.minimum.reduceat(np.exp(no_begin + no_end), offsets(np.bincount(windows.text))[:-1])
        score = np.where(broken, np.nan, np.exp(total[chosen]))
        return token[i], token[i] + more[i], score.astype(np.float32), null


def log_softmax(logits: Float32, none: Float32, base: Int64, length: Int64) -> tuple[Float32, Float32]:
    """(log-probabilities of the tokens of all windows, [windows] of "not here"): a softmax over each window's tokens and
    its logit `none`."""
    highest = np.maximum(np.maximum.reduceat(logits, base), none)
    each = np.repeat(highest, length)
    total = np.add.reduceat(np.exp(logits - each), base, dtype=np.float64) + np.exp(none - highest)
    norm = highest + np.log(total)
    return np.asarray(logits - np.repeat(norm, length), np.float32), np.asarray(none - norm, np.float32)


def best_end(end: Float32, left: Int64) -> tuple[Float32, Int32]:
    """[tokens] (the highest of `end` from each token on, as far as an answer may go and its window, and how many tokens
    on); `left` are the tokens of the window from each one on."""
    best, more = end.copy(), np.zeros(len(end), np.int32)
    for step in range(1, min(MAX_ANSWER, int(left.max(initial=1)))):
        later = np.where(left[:-step] > step, end[step:], -np.inf)
        better = later > best[:-step]
        best[:-step][better] = later[better]
        more[:-step][better] = step
    return best, more
