"""The rows of a training: read as a job reads them, less those that cannot be learnt from, less copies, split.

Nothing is learnt here and no model is needed, so all that is wrong with the rows is said in seconds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchnlp.data.sources import Source
from batchnlp.errors import SourceError
from batchnlp.job.train import PARTS, TEST, TRAIN, VALIDATION, SplitSpec, TrainSpec
from batchnlp.tasks.base import present
from batchnlp.train.duplicates import copies, digests
from batchnlp.types import Docs, Int64, many

Bool = npt.NDArray[np.bool_]
SHARD_ROWS, SHARD_BYTES = 20_000, 32 << 20


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that can be learnt from. Filled by `read_rows`."""

    ids: pa.Array
    text: pa.Array  # large_string, no nulls
    columns: pa.Table  # what the kind asked for, the group's column and the kept ones

    def __len__(self) -> int:
        return len(self.text)

    def take(self, which: Bool | Int64) -> Rows:
        """Some of them."""
        if which.dtype == np.bool_:
            which = np.flatnonzero(which)
        at = pa.array(which)
        return Rows(self.ids.take(at), self.text.take(at), self.columns.take(at))

    def column(self, name: str) -> pa.Array:
        """One of the columns, whole."""
        column = self.columns.column(name).combine_chunks()
        return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column


@dataclass(frozen=True, slots=True)
class Composition:
    """What became of the rows. Filled by `read_rows` and `split`; stands in training.json."""

    rows: int  # read
    unusable: dict[str, int]  # by code: no text, no label, ...
    left_out: dict[str, int]  # as asked for: rows with labels that are not to be learnt
    copies: int
    near_copies: int
    parts: dict[str, int] = field(default_factory=dict)  # rows of train, validation, test
    groups: dict[str, int] = field(default_factory=dict)  # the same of groups, where there is a column


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a kind says of rows: a code for each that it cannot learn from."""

    code: Mapping[int, str]  # row → why it is unusable
    left_out: Mapping[int, str]  # row → why it was asked to be left out


def read_rows(source: Source, spec: TrainSpec, judge: Any) -> tuple[Rows, Composition]:
    """All usable rows of the source. `judge(rows)` is the kind's `Verdict`. SourceError where too many are not usable."""
    found: list[Rows] = []
    unusable: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    first, read = "", 0
    for shard in source.shards(None, SHARD_ROWS, SHARD_BYTES):
        docs = source.read(shard)
        read += len(docs)
        rows, dead = _usable(docs, judge, left_out)
        unusable.update(code for _, code in dead)
        if dead and not first:
            at = dead[0][0]
            first = f"the first is row {docs.row[at]} of {source.files[docs.file[at]].name}: {dead[0][1]}"
        found.append(rows)
    _check_unusable(spec, read, unusable, first)
    joined = _join(found)
    if not len(joined) and left_out:
        some = ", ".join(spec.labels[:3])
        raise SourceError(
            f"no row has one of the labels to learn ({some})", f"check how the column {spec.label} writes them"
        )
    if not len(joined):
        raise SourceError("no row is left to learn from", "check source.filter, and the columns that the kind reads")
    exact, near = copies(joined.text, spec.split.duplicates, spec.split.similarity)
    counts = Composition(read, dict(unusable), dict(left_out), int(exact.sum()), int(near.sum()))
    return joined.take(~(exact | near)), counts


def _usable(docs: Docs, judge: Any, left_out: Counter[str]) -> tuple[Rows, list[tuple[int, str]]]:
    """(the good rows of a shard, row and code of each unusable one)."""
    has, blank = present(docs.text)
    codes = {failure.doc: failure.code for failure in (*blank, *docs.failures)}
    at = np.flatnonzero(has)
    rows = Rows(docs.ids, docs.text, _beside(docs)).take(at)
    verdict = judge(rows)
    codes |= {int(at[row]): code for row, code in verdict.code.items()}
    left_out.update(verdict.left_out.values())
    good = np.ones(len(rows), np.bool_)
    good[[*verdict.code, *verdict.left_out]] = False
    return rows.take(good), sorted(codes.items())


def _beside(docs: Docs) -> pa.Table:
    """The columns that the kind asked for, then the kept ones."""
    table = docs.columns
    for name in docs.keep.column_names:
        if name not in table.column_names:
            table = table.append_column(docs.keep.schema.field(name), docs.keep.column(name))
    return table


def _join(found: list[Rows]) -> Rows:
    if not found:
        return Rows(pa.array([], pa.string()), pa.array([], pa.large_string()), pa.table({}))
    return Rows(
        pa.concat_arrays([r.ids for r in found]), pa.concat_arrays([r.text for r in found]),
        pa.concat_tables([r.columns for r in found]),
    )  # fmt: skip


def _check_unusable(spec: TrainSpec, read: int, codes: Counter[str], first: str) -> None:
    total = sum(codes.values())
    if total <= spec.failed_allowed(read):
        return
    what = ", ".join(f"{n:,} {code}" for code, n in sorted(codes.items()))
    message = f"{total:,} of {many(read, 'row')} cannot be learnt from ({what}); {first}"
    raise SourceError(message, "mend them, leave them out with source.filter, or raise max_failed")


def split(rows: Rows, spec: SplitSpec, counts: Composition) -> tuple[dict[str, Rows], Composition]:
    """Rows by part. A row's part follows from its group's name, else from its text: the same one in every training with
    the same seed and shares, wherever the row stands."""
    keys = digests(rows.text) if spec.group is None else digests(rows.column(spec.group).cast(pa.large_string()))
    at = np.array([_place(key, spec.seed) for key in keys])
    part = np.where(at < spec.test, 2, np.where(at < spec.test + spec.validation, 1, 0))
    parts = {name: rows.take(part == i) for i, name in enumerate(PARTS)}
    for name, share in ((TRAIN, 1.0), (VALIDATION, spec.validation), (TEST, spec.test)):
        if share and not len(parts[name]):
            hint = "bring more rows, or change split.validation and split.test"
            raise SourceError(f"the {name} part has none of the {many(len(rows), 'row')}", hint)
    named = np.array(keys)
    groups = {name: len(set(named[part == i])) for i, name in enumerate(PARTS)} if spec.group else {}
    sizes = {name: len(some) for name, some in parts.items()}
    return parts, Composition(
        counts.rows, counts.unusable, counts.left_out, counts.copies, counts.near_copies, sizes, groups
    )


def _place(key: bytes, seed: int) -> float:
    """A number in [0, 1) that only the key and the seed decide."""
    found = hashlib.blake2b(key, digest_size=8, salt=str(seed).encode()[:16]).digest()
    return int.from_bytes(found, "big") / 2**64


def open_source(spec: TrainSpec, columns: Iterable[str]) -> Source:
    """The source with the columns that the kind reads and the group's; every problem is a SourceError."""
    group = [spec.split.group] if spec.split.group else []
    return Source.open(spec.source.config((*columns, *group)), spec.output.path)
