"""What is looked at in the results of each task: a few measures over columns, in bounded memory.

    Names      how often each of some names is there           → Bars
    Spread     how numbers are spread                          → Histogram
    Share, Mean                                                → Number

A measure says which columns (or leaves of nested ones) it needs, takes tables that hold them, one after the other, and tells what
they come to. A new task is a function that lists its measures, and a line in `TASKS`; without one its text columns are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from batchnlp.data.parts import is_log
from batchnlp.report.page import Bars, Histogram, Number
from batchnlp.types import OP, REVISION

COUNTS = ("n_tokens", "n_tokens_used", "n_windows", "truncated")  # the columns that all tasks have
LISTED = 10  # names of Bars
KEPT = 20_000  # names counted at the same time; rarer ones are forgotten, so that texts without end cost no memory
LONGEST = 80  # characters of a name
VECTORS = 2_048  # embeddings held
LENGTHS = (0, 1, *sorted({2**k for k in range(1, 18)} | {3 * 2**k for k in range(16)}))  # two bins an octave
SCORES = tuple(round(i / 20, 2) for i in range(21))
COSINES = tuple(round(i / 20 - 1, 2) for i in range(41))
Array: TypeAlias = Any  # of pyarrow, in one piece or in chunks


class Measure(Protocol):
    """Something that is told of the results."""

    @property
    def columns(self) -> Sequence[str]:
        """What it needs, as Parquet names it."""

    def add(self, table: pa.Table) -> None:
        """Some more rows."""

    def told(self) -> Bars | Histogram | Number | None:
        """What they come to; None where there is nothing to tell."""


class Names:
    """How often each name is there. `pick` gives the names, one or several a row; null is no name."""

    def __init__(self, name: str, title: str, unit: str, columns: Sequence[str], pick: Callable[[pa.Table], Array],
                 *, of_rows: bool = False) -> None:  # fmt: skip
        self.name, self.title, self.unit, self.columns = name, title, unit, columns
        self._pick, self._of_rows = pick, of_rows  # shares of the rows, or of all names
        self._counts: Counter[str] = Counter()
        self._names = self._rows = 0

    def add(self, table: pa.Table) -> None:
        """Some more rows."""
        values = self._pick(table)
        self._rows += len(table)
        self._names += len(values) - values.null_count
        for pair in pc.value_counts(values.cast(pa.large_string())).to_pylist():
            if pair["values"] is not None:
                self._counts[pair["values"]] += pair["counts"]
        if len(self._counts) > 2 * KEPT:
            self._counts = Counter(dict(self._counts.most_common(KEPT)))

    def told(self) -> Bars | None:
        """The most frequent ones; None where each is there once, so that a few of them would say nothing."""
        most = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:LISTED]
        rest = self._names - sum(n for _, n in most)
        if not most or (rest and most[0][1] == 1):
            return None
        shown = tuple((_short(name), n) for name, n in most)
        return Bars(self.name, self.title, self.unit, shown, rest, self._rows if self._of_rows else self._names)


class Spread:
    """How numbers are spread; nulls and NaN are left out."""

    def __init__(self, name: str, title: str, unit: str, columns: Sequence[str], pick: Callable[[pa.Table], Any],
                 edges: Sequence[float]) -> None:  # fmt: skip
        self.name, self.title, self.unit, self.columns = name, title, unit, columns
        self._pick, self._edges = pick, edges
        self._values: list[Any] = []

    def add(self, table: pa.Table) -> None:
        """Some more rows."""
        values = self._pick(table)
        if not isinstance(values, np.ndarray):
            values = values.drop_null().to_numpy()
        self._values.append(values[np.isfinite(values)].astype(np.float32))

    def told(self) -> Histogram | None:
        """Counts of the bins; of lengths those between the shortest and the longest."""
        values = np.concatenate(self._values) if self._values else np.empty(0, np.float32)
        if not len(values):
            return None
        edges = self._chosen(values)
        counts, _ = np.histogram(np.clip(values, edges[0], np.nextafter(edges[-1], edges[0], dtype=np.float32)), edges)
        first, last = 0, len(counts)
        if self._edges is LENGTHS:  # from an even bin, because every other edge is a round number
            there = np.flatnonzero(counts)
            first, last = int(there[0]) // 2 * 2, int(there[-1]) + 1
        median, p95 = (float(q) for q in np.quantile(values, [0.5, 0.95]))
        return Histogram(
            self.name, self.title, self.unit, tuple(map(float, edges[first : last + 1])),
            tuple(map(int, counts[first:last])),
            median, p95, float(values.max()),
        )  # fmt: skip

    def _chosen(self, values: Any) -> Sequence[float]:
        return COSINES if self._edges is SCORES and values.min() < 0 else self._edges


class Mean:
    """The mean of numbers or, of truths, the share that is true; nulls are left out."""

    def __init__(self, name: str, title: str, columns: Sequence[str], pick: Callable[[pa.Table], Array]) -> None:
        self.name, self.title, self.columns, self._pick = name, title, columns, pick
        self._sum, self._of, self._share = 0.0, 0, False

    def add(self, table: pa.Table) -> None:
        """Some more rows."""
        values = self._pick(table)
        self._share = pt.is_boolean(values.type)
        self._sum += float(pc.sum(values.cast(pa.float64())).as_py() or 0)
        self._of += len(values) - values.null_count

    def told(self) -> Number | None:
        """The mean."""
        if not self._of:
            return None
        return Number(self.name, self.title, self._sum / self._of, "share" if self._share else "mean", self._of)


class Cosines:
    """How alike embeddings of different documents are: where they all are, they tell nothing apart.

    Not among `measures`, because vectors are wide: a few thousand are enough.
    """

    def __init__(self, column: str) -> None:
        self.columns = [column]
        self._held: list[Any] = []
        self.room = VECTORS

    def add(self, table: pa.Table) -> None:
        """Some more rows, as far as there is room."""
        vectors = table[self.columns[0]].slice(0, self.room).combine_chunks()
        if isinstance(vectors, pa.ChunkedArray):
            vectors = vectors.chunk(0)
        self._held.append(vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1))
        self.room -= len(vectors)

    def told(self) -> Histogram | None:
        """Over pairs, each vector with one that is far from it in the corpus."""
        vectors = np.concatenate(self._held) if self._held else np.empty((0, 1), np.float32)
        if len(vectors) < 2:
            return None
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        cosines = (unit * np.roll(unit, len(unit) // 2, axis=0)).sum(axis=1)
        spread = Spread("cosine", "How alike different documents are", "cosine of two", (), lambda _: cosines, SCORES)
        spread.add(pa.table({}))
        return spread.told()


def measures(kind: str, schema: pa.Schema, kept: Sequence[str]) -> list[Measure]:
    """What to look at in results of a task; `kept` columns are the source's, and are left alone."""
    own = own_fields(schema, kept)
    found = TASKS.get(kind, _others)(own)
    lengths = Spread("n_tokens", "Length of the documents", "tokens", ["n_tokens"], lambda t: t["n_tokens"], LENGTHS)
    windows = Mean("windowed", "read in several windows", ["n_windows"], lambda t: pc.greater(t["n_windows"], 1))
    cut = Mean("truncated", "cut off", ["truncated"], lambda t: t["truncated"])
    return [*found, lengths, windows, cut]


def own_fields(schema: pa.Schema, kept: Sequence[str]) -> list[pa.Field]:
    """The task's own columns."""
    log = (REVISION, OP) if is_log(schema) else ()
    return [field for field in schema if field.name not in {"id", *kept, *COUNTS, *log}]


def _column(name: str) -> Callable[[pa.Table], Array]:
    return lambda table: table[name]


def _flat(name: str) -> Callable[[pa.Table], Array]:
    return lambda table: pc.list_flatten(table[name])


def _leaf(name: str, leaf: str) -> Callable[[pa.Table], Array]:
    return lambda table: pc.struct_field(pc.list_flatten(table[name]), leaf)


def _sizes(name: str) -> Callable[[pa.Table], Array]:
    return lambda table: pc.list_value_length(table[name])


def _labels(fields: Sequence[pa.Field]) -> list[Measure]:
    score = Spread("score", "Score of the best label", "score", ["score"], _column("score"), SCORES)
    if all(field.name != "labels" for field in fields):
        return [Names("label", "Labels", "documents", ["label"], _column("label")), score]
    none: Callable[[pa.Table], Array] = lambda table: pc.equal(pc.list_value_length(table["labels"]), 0)  # noqa: E731
    return [
        Names("labels", "Labels", "documents", ["labels"], _flat("labels"), of_rows=True), score,
        Mean("no_label", "without any label", ["labels"], none),
    ]  # fmt: skip


def _entities(fields: Sequence[pa.Field]) -> list[Measure]:
    label, text = "entities.list.element.label", "entities.list.element.text"

    def named(table: pa.Table) -> Array:
        return pc.binary_join_element_wise(_leaf("entities", "text")(table), _leaf("entities", "label")(table), " · ")

    return [
        Names("entity_label", "Entities by label", "entities", [label], _leaf("entities", "label")),
        Names("entity", "Most frequent entities", "entities", [label, text], named),
        Spread("entities", "Entities a document", "entities", [label], _sizes("entities"), LENGTHS),
        Mean("no_entity", "without an entity", [label], lambda table: pc.equal(_sizes("entities")(table), 0)),
    ]  # fmt: skip


def _answers(fields: Sequence[pa.Field]) -> list[Measure]:
    places = ["start", "end"]
    return [
        Mean("answered", "answered", ["start"], lambda table: pc.is_valid(table["start"])),
        Names("answer", "Most frequent answers", "answers", ["answer"], _column("answer")),
        Spread("score", "Score of the best span", "score", ["score"], _column("score"), SCORES),
        Spread("answer_length", "Length of the answers", "characters", places,
               lambda table: pc.subtract(table["end"], table["start"]), LENGTHS),
    ]  # fmt: skip


def _written(fields: Sequence[pa.Field]) -> list[Measure]:
    """The answers of a model that writes: one a row, or a list of them; then the columns of JSON answers."""
    many = fields[0].name == "answers"
    path, pick = ("answers.list.element.", _leaf) if many else ("", lambda _, leaf: _column(leaf))
    new, finish = pick("answers", "n_new_tokens"), pick("answers", "finish_reason")
    return [
        Spread("n_new_tokens", "Length of the answers", "tokens", [f"{path}n_new_tokens"], new, LENGTHS),
        Names("finish_reason", "How answers end", "answers", [f"{path}finish_reason"], finish),
        Mean("empty", "empty answers", [f"{path}n_new_tokens"], lambda table: pc.equal(new(table), 0)),
        *_others([field for field in fields[3:] if field.name != "logprobs"]),
    ]  # fmt: skip


def _others(fields: Sequence[pa.Field]) -> list[Measure]:
    found: list[Measure] = []
    for field in fields:
        pick = _column(field.name)
        if pt.is_string(field.type) or pt.is_boolean(field.type):
            found.append(Names(field.name, field.name, "documents", [field.name], pick))
        elif pt.is_integer(field.type) or pt.is_floating(field.type):
            found.append(Mean(field.name, f"mean {field.name}", [field.name], pick))
    return found


TASKS: dict[str, Callable[[Sequence[pa.Field]], list[Measure]]] = {
    "classify": _labels, "zero-shot": _labels, "ner": _entities, "qa": _answers,
    **dict.fromkeys(("summarize", "translate", "generate", "chat"), _written),
}  # fmt: skip


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
