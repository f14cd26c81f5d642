"""The rows that a model has learnt from, where it was trained here: what lies beside its weights names them.

With them a baseline learns from the same rows as the model, and names that were learnt are told from those that were not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchnlp.data.sources import Source
from batchnlp.errors import SourceError
from batchnlp.evaluate.outputs import READ, Output
from batchnlp.job.identity import listing
from batchnlp.job.train import MEMBERSHIP, RECORD, TRAIN, TrainSpec


@dataclass(frozen=True, slots=True)
class Learnt:
    """Where they are. Filled from training.json."""

    spec: TrainSpec
    files: list[list[Any]]  # path, size and version of each file of the source, as it was
    ids: pa.Array

    @classmethod
    def of(cls, output: Output) -> Learnt | None:
        """None where the output's model was not trained here for this task; SourceError where nobody can tell any more."""
        folder = Path(str(output.task.get("model") or "")).expanduser()
        record, membership = folder / RECORD, folder / MEMBERSHIP
        if not record.is_file() or not membership.is_file():
            return None
        try:
            tree = json.loads(record.read_text(encoding="utf-8"))
            if tree["kind"] != output.kind:
                return None
            parts = pq.read_table(membership, filters=[("part", "=", TRAIN)])
            found = cls(
                TrainSpec.model_validate(tree["spec"]), tree["facts"]["files"],
                parts["id"].combine_chunks().cast(pa.string()),
            )  # fmt: skip
            weights = _weights(tree["files"])
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise SourceError(f"{record} cannot be read ({type(error).__name__})", "train the model again") from error
        if (output.tree.get("model") or {}).get("weights") not in (None, weights):
            raise SourceError(f"{folder} holds another model than the one of these results", "run the job again")
        return found

    def among(self, ids: pa.Array) -> int:
        """How many of these documents were learnt from."""
        return int(pc.sum(pc.is_in(ids.cast(pa.string()), self.ids)).as_py() or 0)

    def labelled(self, chosen: Any) -> tuple[list[str], list[str]]:
        """(texts, labels) of classify, of the rows at these positions of `ids`."""
        texts: list[str] = []
        labels: list[str] = []
        for text, label in self._rows(self.spec.label, self.ids.take(pa.array(chosen))):
            texts += text.to_pylist()
            labels += label.cast(pa.string()).to_pylist()
        return texts, labels

    def names(self) -> set[str]:
        """What the entities of ner are called."""
        wanted = set(self.spec.labels)
        return {
            text[span["start"] : span["end"]]
            for texts, entities in self._rows(self.spec.entities, self.ids)
            for text, some in zip(texts.to_pylist(), entities.to_pylist(), strict=True)
            for span in some
            if not wanted or span["label"] in wanted
        }

    def _rows(self, column: str, ids: pa.Array) -> Iterator[tuple[pa.Array, pa.Array]]:
        """(texts, a column beside them), a shard at a time. SourceError where the source is not as it was, or, at the end,
        where an id is there more than once."""
        source = Source.open(self.spec.source.config((column,)), self.spec.output.path)
        if listing(source.files) != self.files:
            raise SourceError("the files that the model learnt from have changed", "train it again, or bring them back")
        met = 0
        for shard in source.shards(None, *READ):
            docs = source.read(shard)
            beside = docs.columns.column(column).combine_chunks()
            mine = pc.is_in(docs.ids.cast(pa.string()), ids)
            met += int(pc.sum(mine).as_py() or 0)
            whole = pc.and_(mine, pc.and_(docs.text.is_valid(), beside.is_valid()))
            yield docs.text.filter(whole), beside.filter(whole)
        if met != len(ids):
            raise SourceError("the ids of the rows that the model learnt from are not unique", "name another source.id")


def _weights(files: dict[str, str]) -> str:
    """As a job's plan tells them: of the hashes of the files."""
    hashes = (files[name] for name in sorted(files) if name.endswith(".safetensors"))
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
