"""ner: the label of each token, from spans of characters.

Labels are BIO. A long document becomes windows that overlap as those of a job do, and a token is learnt in the window in
which it is farthest from a border. A token that is only partly inside a span counts as inside; such spans are counted,
because no answer of the model can hit them exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from batchnlp.data.sources.columns import is_string
from batchnlp.errors import SourceError
from batchnlp.job.train import TRAIN, TrainSpec
from batchnlp.tasks.label_schemes import OUTSIDE
from batchnlp.tasks.passages import OVERLAP
from batchnlp.text.encode import Tokens, cut, frame, ranges
from batchnlp.train.corpus import Rows, Verdict
from batchnlp.train.examples import NOTHING, Examples, Ragged
from batchnlp.train.kind import Kind, Tensors
from batchnlp.train.metrics import Span, span_f1
from batchnlp.types import Int32, Int64


class Ner(Kind):
    """AutoModelForTokenClassification."""

    head, task = "AutoModelForTokenClassification", "TOKEN_CLS"
    metric, greater = "f1", True

    def __init__(self, spec: TrainSpec) -> None:
        super().__init__(spec)
        self.columns = (spec.entities,)

    def check(self, schema: pa.Schema) -> None:
        """Entities are lists of structs with label, start and end."""
        kind = schema.field(self.spec.entities).type
        fields = kind.value_type if pt.is_list(kind) or pt.is_large_list(kind) else None
        if (
            fields is None
            or not pt.is_struct(fields)
            or any(fields.get_field_index(n) < 0 for n in ("label", "start", "end"))
        ):
            hint = "it must be list<struct<label, start, end>>, places in characters of the text"
            raise SourceError(f"the entities column {self.spec.entities} is {kind}", hint)
        places = (fields.field("start").type, fields.field("end").type)
        if not all(map(pt.is_integer, places)) or not is_string(fields.field("label").type):
            message = f"the entities column {self.spec.entities} has labels or places of another type: {fields}"
            raise SourceError(message, "label is a string, start and end are whole numbers")

    def judge(self, rows: Rows) -> Verdict:
        """Rows with spans that are null, empty, outside of their text, or that overlap."""
        spans = rows.column(self.spec.entities).to_pylist()
        lengths = (len(text) for text in rows.text.to_pylist())
        found = ((i, wrong(some, length)) for i, (some, length) in enumerate(zip(spans, lengths, strict=True)))
        return Verdict({i: code for i, code in found if code}, {})

    def settle(self, parts: dict[str, Rows]) -> None:
        """The labels. SourceError where there are none, or one that is never learnt."""
        names = {name: _label_names(rows.column(self.spec.entities), self.spec.labels) for name, rows in parts.items()}
        if not names[TRAIN]:
            raise SourceError("no row to learn from has an entity", "check the entities column, and labels")
        for part, found in names.items():
            if unseen := sorted(found - names[TRAIN]):
                hint = "bring more rows with it, or learn others only: labels=[...]"
                raise SourceError(f"the label {unseen[0]!r} is in the {part} part, and not in train", hint)
        self.labels = (OUTSIDE, *(f"{part}-{name}" for name in sorted(names[TRAIN]) for part in "BI"))

    def config(self) -> dict[str, Any]:
        """The labels by name, for whoever runs the model."""
        id2label = dict(enumerate(self.labels))
        names = {"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}}
        return {"num_labels": len(self.labels), **names}

    def encode(self, rows: Rows, *, train: bool) -> Examples:
        """Windows, and the label of each token that the window owns."""
        special = self.tokenizer.single
        room = self.start.max_length - special.size
        tokens = self.tokenizer.encode(rows.text, places=True)
        windows = cut(tokens, room, window=True, overlap=room // OVERLAP)
        ids, starts = frame(tokens, windows, special)
        label, loose = self._labelled(tokens, rows.column(self.spec.entities).to_pylist())
        targets = np.full(len(ids), NOTHING, np.int32)
        own = ranges(starts[:-1] + len(special.before) + windows.skip, windows.own)
        targets[own] = label[ranges(windows.start + windows.skip, windows.own)]
        counts = (
            ("spans", sum(map(len, rows.column(self.spec.entities).to_pylist()))),
            ("spans_between_tokens", loose),
        )
        return Examples(Ragged(ids, starts), windows.text, Ragged(targets, starts), counts=counts)

    def _labelled(self, tokens: Tokens, spans: Iterable[Iterable[dict[str, Any]]]) -> tuple[Int32, int]:
        """([tokens] labels, spans whose borders are inside of tokens)."""
        assert tokens.places is not None
        start, end = tokens.places.start, tokens.places.end
        out, loose = np.zeros(len(start), np.int32), 0
        number = {name: i for i, name in enumerate(self.labels)}
        for doc, some in enumerate(spans):
            base, stop = int(tokens.starts[doc]), int(tokens.starts[doc + 1])
            for span in some:
                if f"B-{span['label']}" not in number:
                    continue
                inside = base + np.flatnonzero(
                    (start[base:stop] < span["end"])
                    & (end[base:stop] > span["start"])
                    & (start[base:stop] < end[base:stop])
                )
                if len(inside):
                    out[inside] = number[f"I-{span['label']}"]
                    out[inside[0]] = number[f"B-{span['label']}"]
                whole = len(inside) and (start[inside[0]], end[inside[-1]]) == (span["start"], span["end"])
                loose += not whole
        return out, loose

    def tensors(self, examples: Examples, index: Int64) -> Tensors:
        """With the labels of the tokens."""
        import torch

        assert examples.targets is not None
        labels = torch.from_numpy(examples.targets.padded(index, NOTHING))
        return {**super().tensors(examples, index), "labels": labels}

    def measure(self, model: Any, examples: Examples) -> dict[str, float]:
        """Loss, and strict precision, recall and F1 of spans of tokens."""
        import torch

        assert examples.targets is not None
        truth, starts = examples.targets.flat, examples.inputs.starts
        found = np.zeros(len(truth), np.int32)
        nats, judged = 0.0, truth != NOTHING
        for index, tensors, outputs in self.answers(model, examples):
            logits = outputs["logits"].float()
            nats += float(torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), tensors["labels"].reshape(-1), ignore_index=NOTHING, reduction="sum"
            ))  # fmt: skip
            best = logits.argmax(-1).cpu().numpy()
            lengths = examples.inputs.lengths[index]
            found[ranges(starts[index], lengths)] = best[np.arange(best.shape[1]) < lengths[:, None]]
        row = np.repeat(examples.row, examples.inputs.lengths)
        pair = (spans(labels[judged], row[judged]) for labels in (truth, found))
        return {"loss": nats / max(int(judged.sum()), 1), **span_f1(*pair)}


def wrong(some: Any, length: int) -> str:
    """Why the spans of a text of `length` characters cannot be learnt from; empty where they can."""
    if some is None or any(span is None for span in some):
        return "null_entities"
    if any(span[key] is None for span in some for key in ("label", "start", "end")):
        return "null_entities"
    places = sorted((span["start"], span["end"]) for span in some)
    if any(start >= end for start, end in places):
        return "empty_span"
    if places and (places[0][0] < 0 or max(end for _, end in places) > length):
        return "span_outside"
    return "spans_cross" if any(a[1] > b[0] for a, b in itertools.pairwise(places)) else ""


def spans(labels: Int32, row: Int32) -> list[Span]:
    """(row, type, first token, one past the last) of the BIO labels of tokens, in which B- has the odd numbers."""
    kind: npt.NDArray[np.int32] = (labels + 1) // 2
    begins = (labels % 2 == 1) & (labels > 0)
    change = np.r_[True, (kind[1:] != kind[:-1]) | (row[1:] != row[:-1])] if len(labels) else np.zeros(0, bool)
    first = np.flatnonzero((kind > 0) & (begins | change))
    border = np.flatnonzero(begins | change)
    last = np.searchsorted(border, first, side="right")
    stop = np.r_[border, len(labels)][last]
    return [(int(row[a]), int(kind[a]), int(a), int(b)) for a, b in zip(first, stop, strict=True)]


def _label_names(entities: pa.Array, wanted: list[str]) -> set[str]:
    found = {str(span["label"]) for some in entities.to_pylist() for span in some}
    return found & set(wanted) if wanted else found
