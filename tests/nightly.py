"""A job over a corpus that changes from night to night, and what its log of changes comes to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tiny

import batchnlp
from batchnlp.data.changes import Changes
from batchnlp.data.collect import tables
from batchnlp.engine.computing import RunResult

Texts = Mapping[str, str | None]
Row = dict[str, Any]
TEXTS = tiny.texts(30)
ENGINE = {"runner": "inline", "dtype": "float32", "device": "cpu", "backend": "torch"}


class Nightly:
    """A job with `output.mode: incremental`; `now` is its corpus, id → text."""

    def __init__(self, folder: Path, model: str, texts: Texts, **sections: Any) -> None:
        self.folder, self.out, self.source = folder, folder / "out", folder / "corpus.parquet"
        self.now: dict[str, str | None] = dict(texts)
        self.model, self.sections = model, sections

    def spec(self, out: Path | None = None, **more: Any) -> dict[str, Any]:
        """The job, written to another output as one that begins from nothing."""
        output = {"path": str(out or self.out), "mode": "new" if out else "incremental"}
        tree: dict[str, Any] = {
            "job": "nightly", "source": {"path": str(self.source), "id": "doc_id", "keep": ["lang"]},
            "task": {"kind": "classify", "model": self.model}, "engine": ENGINE, "output": output,
        }  # fmt: skip
        for name, keys in {**self.sections, **more}.items():
            tree[name] = {**tree.get(name, {}), **keys} if isinstance(keys, dict) else keys
        return tree

    def write(self) -> None:
        """The corpus as a file, in groups of seven rows."""
        langs = [("en", "de", None)[len(name) % 3] for name in self.now]
        texts = pa.array(list(self.now.values()), pa.string())
        table = pa.table({"doc_id": list(self.now), "text": texts, "lang": pa.array(langs, pa.string())})
        pq.write_table(table, self.source, row_group_size=7)

    def run(self, **more: Any) -> RunResult:
        """A night."""
        self.write()
        return batchnlp.run(self.spec(**more))

    def again(self, **more: Any) -> RunResult:
        """The same command, with the corpus as it is."""
        return batchnlp.run(self.spec(**more))

    def scratch(self, **more: Any) -> dict[str, Row]:
        """What a run from nothing comes to, by id."""
        count = len(list(self.folder.glob("scratch*")))
        out = self.folder / f"scratch{count}"
        result = batchnlp.run(self.spec(out, **{**more, "sinks": []}))
        assert result.status == "done", result.message
        return {row["id"]: row for table in tables(str(out)) for row in table.to_pylist()}

    def log(self) -> list[Row]:
        """All rows of the log, as it is collected."""
        return [row for table in tables(str(self.out)) for row in table.to_pylist()]

    def view(self) -> dict[str, Row]:
        """What the log comes to, by id."""
        found: dict[str, Row] = {}
        for row in self.log():
            if row.pop("op") == "delete":
                del found[row["id"]]
            else:
                row.pop("revision")
                found[row["id"]] = row
        return found


def same(one: Mapping[str, Row], other: Mapping[str, Row]) -> bool:
    """Equal as runs are: scores as far as rounding goes."""
    if one.keys() != other.keys():
        return False
    pairs = ((one[name], other[name]) for name in one)
    return all(
        a.keys() == b.keys() and all(abs(a[k] - b[k]) < 1e-5 if isinstance(a[k], float) else a[k] == b[k] for k in a)
        for a, b in pairs
    )


def corpus(start: int, stop: int) -> dict[str, str]:
    return {f"doc-{i:02}": TEXTS[i] for i in range(start, stop)}


def second_night(job: Nightly) -> None:
    """Five rows more, three with another text, two fewer."""
    job.now |= corpus(20, 25)
    job.now |= {"doc-03": "something else", "doc-11": "a server", "doc-19": "a game"}
    del job.now["doc-00"], job.now["doc-12"]


def counts(**some: int) -> dict[str, int]:
    return {name: some.get(name, 0) for name in Changes.__dataclass_fields__}
