"""The rows that a model has learnt from, where it was trained here: what lies beside its weights names them.

With them a baseline learns from the same rows as the model, and names that were learnt are told from those that were not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchnlp.data.sources import Source
from batchnlp.errors import SourceError
from batchnlp.evaluate.outputs import READ, Output
from batchnlp.job.train import MEMBERSHIP, RECORD, TRAIN, TrainSpec


@dataclass(frozen=True, slots=True)
class Learnt:
    """Where they are. Filled from training.json."""

    spec: TrainSpec
    files: list[list[object]]  # path, size and version of each file of the source, as it was
    ids: pa.Array

    @classmethod
    def of(cls, output: Output) -> Learnt | None:
        """None where the output's model was not trained here for this task."""
        folder = Path(str(output.task.get("model") or "")).expanduser()
        record, membership = folder / RECORD, folder / MEMBERSHIP
        if not record.is_file() or not membership.is_file():
            return None
        tree = json.loads(record.read_text(encoding="utf-8"))
        if tree["kind"] != output.kind:
            return None
        parts = pq.read_table(membership, filters=[("part", "=", TRAIN)])
        ids = parts["id"].combine_chunks().cast(pa.string())
        return cls(TrainSpec.model_validate(tree["spec"]), tree["facts"]["files"], ids)

    def rows(self, column: str) -> Iterator[tuple[pa.Array, pa.Array]]:
        """(texts, a column beside them), a shard at a time. SourceError where the source is not as it was."""
        source = Source.open(self.spec.source.config((column,)), self.spec.output.path)
        if [[f.path, f.size, f.version] for f in source.files] != self.files:
            raise SourceError("the files that the model learnt from have changed", "train it again, or bring them back")
        for shard in source.shards(None, *READ):
            docs = source.read(shard)
            mine = pc.is_in(docs.ids.cast(pa.string()), self.ids)
            yield docs.text.filter(mine), docs.columns.column(column).combine_chunks().filter(mine)

    def labelled(self) -> tuple[list[str], list[str]]:
        """(texts, labels) of classify."""
        texts: list[str] = []
        labels: list[str] = []
        for text, label in self.rows(self.spec.label):
            texts += text.to_pylist()
            labels += label.cast(pa.string()).to_pylist()
        return texts, labels

    def names(self) -> set[str]:
        """What the entities of ner are called."""
        return {
            text[span["start"] : span["end"]]
            for texts, entities in self.rows(self.spec.entities)
            for text, some in zip(texts.to_pylist(), entities.to_pylist(), strict=True)
            for span in some
        }
