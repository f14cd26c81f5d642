"""What ner and qa share: documents in overlapping windows, and the way back from tokens to characters.

A long document is cut into windows that repeat a quarter of their room, which makes a third more work. So each token is
seen by a window that shows an eighth of its room at least on both sides of it, some 60 tokens with a model of 512: enough
for the model to judge it, and for an entity or an answer of that length to be whole in the window that owns its first
token. What other windows make of its parts at their borders does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchnlp.errors import ModelError
from batchnlp.tasks.base import TextTask
from batchnlp.text.characters import Places
from batchnlp.text.encode import Tokens, Windows, cut, ranges
from batchnlp.types import Encoded, Float32, Int32, Int64, ModelFiles

OVERLAP = 4  # a window repeats this part of its room


@dataclass(frozen=True, slots=True, kw_only=True)
class Passages(Encoded):
    """Pieces, and where their tokens are in the texts."""

    texts: pa.Array  # [rows] large_string
    rows: Int32  # [documents] those of the rows that became tokens
    tokens: Tokens  # [documents]
    windows: Windows  # [pieces] runs of `tokens`
    head: Int64  # [pieces] tokens of a piece before its window

    @property
    def places(self) -> Places:
        """Of `tokens`."""
        assert self.tokens.places is not None
        return self.tokens.places

    def owned(self) -> tuple[Int64, Int64]:
        """[tokens that a window owns] (their positions in `tokens`, and in `Pieces.ids`): every token of the documents
        once and in order, but for those cut off."""
        w, pieces = self.windows, self.pieces
        return ranges(w.start + w.skip, w.own), ranges(pieces.starts[:-1] + self.head + w.skip, w.own)


class PassageTask(TextTask):
    """A task that says where in the text something is."""

    places = True
    pieces_per_doc = 1

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        super().__init__(model, spec)
        if not (Path(model.path) / "tokenizer.json").is_file() and not self.tokenizer.knows_places:
            message = f"the tokenizer of {model.name} does not tell where in a text its tokens are"
            raise ModelError(message, "use a model with a tokenizer.json")

    def windows(self, tokens: Tokens, room: Int64 | int) -> Windows:
        """The texts cut into windows of `room` tokens (one number, or one a text)."""
        return cut(tokens, room, window=self.on_long == "window", overlap=room // OVERLAP)


def best_of_runs(values: Float32, starts: Int64) -> Int64:
    """[runs] position of the first largest of the values in each run; runs are not empty, and hold no NaN."""
    best = np.maximum.reduceat(values, starts)
    sizes = np.diff(starts, append=len(values))
    found = np.flatnonzero(values == np.repeat(best, sizes))
    run = np.searchsorted(starts, found, side="right")
    return np.asarray(found[np.r_[True, run[1:] != run[:-1]]], np.int64) if len(found) else found


def scatter(rows: int, at: Int32, values: npt.NDArray[np.generic], known: npt.NDArray[np.bool_]) -> pa.Array:
    """[rows] the `values` at the rows `at`, null where there is none or it is not `known`."""
    out, valid = np.zeros(rows, values.dtype), np.zeros(rows, np.bool_)
    out[at], valid[at] = values, known
    return pa.array(out, mask=~valid)
