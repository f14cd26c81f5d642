"""zero-shot: labels of your own, without training.

Two ways, chosen by what the model is:

- by entailment, when it is an NLI head: every window is paired with every label's sentence, and a label's score is how
much
  the text entails it. Exact, but a forward pass a label. Scores sum to one, or stand alone with `multi_label`.
- by similarity, with any embedding model: documents and label texts become vectors, a label's score is the cosine of
the
  two. One forward pass a document, however many labels. The score is a similarity in [-1, 1], not a probability.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchnlp.errors import ModelError, SpecError
from batchnlp.tasks.base import TextTask, Vectorise, check_architecture, merge, softmax
from batchnlp.tasks.classify import label_names
from batchnlp.tasks.embed import Embed, unit
from batchnlp.tasks.labels import LabelColumns, finite_rows
from batchnlp.text.encode import Frame, cut, frame_pairs
from batchnlp.types import Docs, Encoded, ModelFiles, Pieces, Raw


def make(model: ModelFiles, spec: Any) -> Similarity | Entailment:
    """The way that fits the model."""
    if not check_architecture(model, "ForSequenceClassification"):
        return Similarity(model, spec)
    if not any(name.lower().startswith("entail") for name in label_names(model)):
        labels = ", ".join(label_names(model)[:5])
        raise ModelError(
            f"{model.name} is a classifier for {labels}, none of which is entailment",
            "zero-shot takes an NLI model or an embedding model; to use this head, the task is classify",
        )
    return Entailment(model, spec)


def _label_texts(spec: Any, template: str) -> list[str]:
    return [(spec.template or template).replace("{}", text) for text in spec.labels.values()]


class Similarity(Embed):
    """Cosine of document and label vectors."""

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        super().__init__(model, spec)
        self._texts = _label_texts(spec, "{}")
        multi = bool(spec.multi_label)
        self._columns = LabelColumns(list(spec.labels), multi=multi, threshold=spec.threshold, scores=spec.scores)
        self._labels: npt.NDArray[np.float32] | None = None

    @property
    def fields(self) -> list[pa.Field]:
        """The result columns."""
        return self._columns.fields

    def prepare(self, forward: Vectorise) -> None:
        """The labels' own vectors; they go the way of any document, so windows and prompts apply."""
        encoded = self.encode(Docs.of(pa.array(self._texts, pa.large_string())))
        raw = forward(encoded.pieces)
        vectors = unit(self.vectors(encoded, raw))
        failures = [*encoded.failures, *raw.failures]
        if failures or not finite_rows(vectors).all():
            wrong = failures[0].doc if failures else int(np.flatnonzero(~finite_rows(vectors))[0])
            why = failures[0].message if failures else "the model answers with NaN"
            raise ModelError(f"there is no vector for the label {self._texts[wrong]!r}: {why}", "word it differently")
        self._labels = vectors

    def decode(self, encoded: Encoded, raw: Raw) -> tuple[list[pa.Array], npt.NDArray[np.bool_]]:
        """Cosines."""
        assert self._labels is not None, "prepare comes first"
        vectors = unit(self.vectors(encoded, raw))
        return self._columns.columns(np.clip(vectors @ self._labels.T, -1, 1))


class Entailment(TextTask):
    """A pair of window and label sentence for each label."""

    needs = "scores"

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        super().__init__(model, spec)
        if self.prompt:
            raise SpecError(f"task.prompt is for embedding models, and {model.name} is none", "use task.template")
        self._texts = _label_texts(spec, "This example is {}.")
        self._multi = bool(spec.multi_label)
        self._columns = LabelColumns(list(spec.labels), multi=self._multi, threshold=spec.threshold, scores=spec.scores)
        names = [name.lower() for name in label_names(model)]
        self._yes = next(i for i, name in enumerate(names) if name.startswith("entail"))
        contradictions = [i for i, name in enumerate(names) if name.startswith("contra")]
        self._no = contradictions[0] if contradictions else (0 if self._yes else len(names) - 1)
        self.pieces_per_doc = len(self._texts)

    @property
    def fields(self) -> list[pa.Field]:
        """The result columns."""
        return self._columns.fields

    def encode(self, docs: Docs) -> Encoded:
        """Windows as for a single text, but with room for the longest label; then each window with each label."""
        special = self.tokenizer.pair()
        labels = self.tokenizer.encode(pa.array(self._texts, pa.large_string()))
        room = self.model.max_length - special.size - int(labels.lengths.max())
        if room < 1:
            raise ModelError("a label sentence leaves no room for the text", "shorten task.labels or task.template")
        rows, tokens, failures = self._tokenise(docs.text, room)
        windows = cut(tokens, room, window=self.on_long == "window")
        ids, starts, type_ids = _pairs(tokens.ids, windows.start, windows.length, labels.ids, labels.starts, special)
        n = len(self._texts)
        pieces = Pieces(
            ids, starts, np.repeat(rows[windows.text], n), np.repeat(windows.own, n).astype(np.int32), type_ids,
            role=np.tile(np.arange(n, dtype=np.int32), len(windows.text)),
        )  # fmt: skip
        return Encoded(pieces, self._count(len(docs), rows, tokens, windows), failures)

    def decode(self, encoded: Encoded, raw: Raw) -> tuple[list[pa.Array], npt.NDArray[np.bool_]]:
        """Entailment against contradiction a label, or entailment among all labels; then the mean over windows."""
        n, pieces = len(self._texts), encoded.pieces
        logits = raw.values.reshape(-1, n, raw.values.shape[1])  # [windows, labels, classes]
        if self._multi or n == 1:
            scores = softmax(logits[:, :, [self._no, self._yes]])[:, :, 1]
        else:
            scores = softmax(logits[:, :, self._yes])
        merged = merge(scores, pieces.doc[::n], pieces.weight[::n], len(encoded.counts.n_tokens))
        return self._columns.columns(merged)


def _pairs(
    ids: Any, start: Any, length: Any, label_ids: Any, label_starts: Any, special: Frame
) -> tuple[Any, Any, Any]:
    """Every window with every label, window by window: (flat ids, starts, type ids or None)."""
    n, windows = len(label_starts) - 1, len(start)
    texts = np.repeat(start, n), np.repeat(length, n)
    labels = np.tile(label_starts[:-1], windows), np.tile(np.diff(label_starts), windows)
    return frame_pairs(ids, texts, label_ids, labels, special)
