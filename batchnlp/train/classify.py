"""classify: one label a row, from a column."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from batchnlp.errors import SourceError
from batchnlp.job.train import TRAIN, TrainSpec
from batchnlp.train.corpus import Rows, Verdict
from batchnlp.train.examples import Examples
from batchnlp.train.kind import Kind, Loss, Tensors
from batchnlp.train.metrics import accuracy, macro_f1
from batchnlp.types import Int32, Int64


class Classify(Kind):
    """AutoModelForSequenceClassification."""

    head, task = "AutoModelForSequenceClassification", "SEQ_CLS"
    metric, greater = "macro_f1", True

    def __init__(self, spec: TrainSpec) -> None:
        super().__init__(spec)
        self.columns = (spec.label,)
        self.weights: tuple[float, ...] = ()  # of the labels, where they are balanced

    def check(self, schema: pa.Schema) -> None:
        """A label is a word, a number or a truth value."""
        kind = schema.field(self.spec.label).type
        if pt.is_nested(kind) or pt.is_floating(kind):
            hint = "choose a column of strings, whole numbers or booleans as label"
            raise SourceError(f"the label column {self.spec.label} is {kind}; classify learns one label a row", hint)

    def judge(self, rows: Rows) -> Verdict:
        """Rows without a label, and those with one that is not to be learnt."""
        names = self._names(rows)
        wanted = set(self.spec.labels)
        missing = {i: "null_label" for i, name in enumerate(names) if name is None or not name.strip()}
        other = {i: "other_label" for i, name in enumerate(names) if i not in missing and wanted and name not in wanted}
        return Verdict(missing, other)

    def _names(self, rows: Rows) -> list[str | None]:
        found: list[str | None] = pc.cast(rows.column(self.spec.label), pa.string()).to_pylist()
        return found

    def settle(self, parts: dict[str, Rows]) -> None:
        """The labels, in alphabetical order. SourceError where there is one alone, or one that is never learnt."""
        counts = {name: Counter(str(label) for label in self._names(rows)) for name, rows in parts.items()}
        learnt = counts[TRAIN]
        for part, found in counts.items():
            if unseen := sorted(found.keys() - learnt.keys()):
                message = f"the label {unseen[0]!r} is in the {part} part ({found[unseen[0]]} rows), and not in train"
                more = f"; and {len(unseen) - 1} more labels" if len(unseen) > 1 else ""
                hint = "bring more rows of it, or learn others only: labels=[...], source.filter"
                raise SourceError(message + more, hint)
        if len(learnt) < 2:
            message = f"all rows have the label {next(iter(learnt))!r}: there is nothing to tell apart"
            raise SourceError(message, "is the label column the right one, or source.filter too narrow?")
        if absent := sorted(set(self.spec.labels) - learnt.keys()):
            hint = "leave it out of labels, or check how it is written"
            raise SourceError(f"no row to learn from has the label {absent[0]!r}", hint)
        self.labels = tuple(sorted(learnt))
        if self.spec.class_weights == "balanced":
            total = learnt.total()
            self.weights = tuple(total / (len(self.labels) * learnt[name]) for name in self.labels)

    def encode(self, rows: Rows, *, train: bool) -> Examples:
        """The number of each row's label beside its tokens."""
        number = {name: i for i, name in enumerate(self.labels)}
        label = np.array([number[str(name)] for name in self._names(rows)], np.int32)
        return replace(super().encode(rows, train=train), label=label)

    def config(self) -> dict[str, Any]:
        """The labels by name, for whoever runs the model."""
        id2label = dict(enumerate(self.labels))
        names = {"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}}
        return {"num_labels": len(self.labels), "problem_type": "single_label_classification", **names}

    def tensors(self, examples: Examples, index: Int64) -> Tensors:
        """With the labels."""
        import torch

        assert examples.label is not None
        return {**super().tensors(examples, index), "labels": torch.from_numpy(examples.label[index].astype(np.int64))}

    def loss(self) -> Loss | None:
        """Cross-entropy in which rare labels weigh more."""
        if not self.weights:
            return None
        import torch

        def weighted(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
            logits = outputs["logits"].float()
            weight = torch.tensor(self.weights, device=logits.device)
            total = torch.nn.functional.cross_entropy(logits, labels, weight=weight, reduction="sum")
            return total / (num_items_in_batch if num_items_in_batch is not None else len(labels))

        return weighted

    def measure(self, model: Any, examples: Examples) -> dict[str, float]:
        """Loss, accuracy, macro-F1 over the labels that the model knows."""
        import torch

        assert examples.label is not None
        found: Int32 = np.zeros(len(examples), np.int32)
        nats = 0.0
        for index, tensors, outputs in self.answers(model, examples):
            logits = outputs["logits"].float()
            nats += float(torch.nn.functional.cross_entropy(logits, tensors["labels"], reduction="sum"))
            found[index] = logits.argmax(-1).cpu().numpy()
        label = examples.label
        return {
            "loss": nats / len(examples), "accuracy": accuracy(label, found),
            "macro_f1": macro_f1(label, found, len(self.labels)),
        }  # fmt: skip
