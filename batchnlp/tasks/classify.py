"""classify: a label for each document, from any AutoModelForSequenceClassification.

Softmax or sigmoid as the model's `problem_type` says. A long document is the mean of its windows' probabilities,
weighted by the tokens each window owns: probabilities, because logits of different windows are not on one scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchnlp.errors import ModelError
from batchnlp.tasks.base import TextTask, check_architecture, merge, refuse, sigmoid, softmax
from batchnlp.tasks.labels import LabelColumns
from batchnlp.types import Encoded, ModelFiles, Raw


def label_names(model: ModelFiles) -> list[str]:
    """The labels of config.json in the order of the logits."""
    names = model.config.get("id2label")
    if not names:
        return [f"LABEL_{i}" for i in range(int(model.config.get("num_labels") or 2))]
    return [str(names[key]) for key in sorted(names, key=int)]


class Classify(TextTask):
    """One label a document, or several where the model is multi-label."""

    needs = "scores"
    pieces_per_doc = 1

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        super().__init__(model, spec)
        if not check_architecture(model, "ForSequenceClassification"):
            hint = "fine-tune one, or use zero-shot or embed with this model"
            raise refuse(model, "has no classification head", hint)
        kind = model.config.get("problem_type")
        if kind == "regression":
            raise ModelError(f"{model.name} is a regression model, not a classifier")
        names = label_names(model)
        multi = spec.multi_label if spec.multi_label is not None else kind == "multi_label_classification"
        self._sigmoid = multi or len(names) == 1
        self._columns = LabelColumns(names, multi=multi, threshold=spec.threshold, scores=spec.scores)

    @property
    def fields(self) -> list[pa.Field]:
        """The result columns."""
        return self._columns.fields

    def decode(self, encoded: Encoded, raw: Raw) -> tuple[list[pa.Array], npt.NDArray[np.bool_]]:
        """Probabilities, merged over windows."""
        pieces = encoded.pieces
        probabilities = (sigmoid if self._sigmoid else softmax)(raw.values)
        return self._columns.columns(merge(probabilities, pieces.doc, pieces.weight, len(encoded.counts.n_tokens)))
