"""One shard's results as files in a staging directory, `part.json` last: a part without it was never finished.

Results are Parquet with zstd and page checksums (without them a damaged page can come back as wrong text and no error).
Dead letters are Parquet too; they carry the id, the place and a hash of the text. The text itself is written only where the
job asks for it, into a file of its own that its owner alone can read.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchnlp import failpoints
from batchnlp.data.store import Store, sha256_of, to_json
from batchnlp.types import OP, Docs, Failure, InputFile, Int32, Part, PartFile

ROW_GROUP = 120_000
LATER = ("note", "cached", "after", "invocation", "committed")  # fields that older parts do not have
LONGEST_NAME = 180  # bytes of a quoted partition value; file systems take 255 for key=value

DEAD_SCHEMA = pa.schema([
    pa.field("id", pa.string()),
    pa.field("file", pa.string()),
    pa.field("row", pa.int64()),  # from 0
    pa.field("line", pa.int64()),  # from 1, for line formats
    pa.field("stage", pa.string()),
    pa.field("code", pa.string()),
    pa.field("message", pa.string()),
    pa.field("attempts", pa.int32()),
    pa.field("text_sha256", pa.string()),
    pa.field("rows", pa.int64()),  # that it stands for: 1, or those lost together in a damaged file
])  # fmt: skip


TEXT_SCHEMA = pa.schema([*(DEAD_SCHEMA.field(n) for n in ("id", "file", "row")), pa.field("text", pa.large_string())])


def ids_hash(ids: pa.Array | pa.ChunkedArray) -> int:
    """A hash of a set of ids that does not depend on their order: 64-bit hashes, added up.

    Sums instead of exclusive-or, so that an id that is there twice does not cancel out.
    """
    return sum(hash_each(ids)) % 2**64


def hash_each(ids: pa.Array | pa.ChunkedArray) -> list[int]:
    """A 64-bit hash of each id."""
    return [NULL_ID if v is None else _hash(v.encode()) for v in ids.cast(pa.large_string()).to_pylist()]


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


NULL_ID = _hash(b"\0null")  # of a dead letter that has none


def dead_table(docs: Docs, failures: Iterable[Failure], files: Sequence[InputFile]) -> pa.Table:
    """Dead letters in row order, one a row: of several failures of a document the first one counts."""
    first: dict[int, Failure] = {}
    for failure in failures:
        first.setdefault(failure.doc, failure)
    ids = docs.ids.cast(pa.string())
    rows = []
    for doc in sorted(first):
        f, text, line = first[doc], docs.text_at(doc), docs.line(doc)
        rows.append({
            "id": ids[doc].as_py(), "file": files[docs.file[doc]].name, "row": int(docs.row[doc]),
            "line": line if line > 0 else None, "stage": f.stage, "code": f.code, "message": f.message[:500],
            "attempts": f.attempts, "text_sha256": None if text is None else hashlib.sha256(text.encode()).hexdigest(),
            "rows": f.rows,
        })  # fmt: skip
    return pa.Table.from_pylist(rows, DEAD_SCHEMA)


def _by_code(dead: pa.Table) -> dict[str, int]:
    """Rows of each reason."""
    counts: Counter[str] = Counter()
    for code, rows in zip(dead["code"].to_pylist(), dead["rows"].to_pylist(), strict=True):
        counts[code] += rows or 1
    return dict(counts)


def dead_texts(docs: Docs, failures: Iterable[Failure], files: Sequence[InputFile]) -> pa.Table:
    """The texts of dead letters that have one, in row order."""
    ids = docs.ids.cast(pa.string())
    rows = [
        {"id": ids[doc].as_py(), "file": files[docs.file[doc]].name, "row": int(docs.row[doc]), "text": text}
        for doc in sorted({failure.doc for failure in failures})
        if (text := docs.text_at(doc)) is not None
    ]
    return pa.Table.from_pylist(rows, TEXT_SCHEMA)


def is_log(schema: pa.Schema) -> bool:
    """Whether results are a log of changes, whose last columns say which run changes a row, and how."""
    return bool(schema.names[-1:] == [OP])


def log_columns(schema: pa.Schema, rows: int, op: str) -> list[pa.Array]:
    """The last columns of a log of changes; none of other results."""
    if not is_log(schema):
        return []
    revision = int((schema.metadata or {}).get(b"batchnlp.revision", b"0"))
    return [pa.repeat(pa.scalar(revision, pa.int32()), rows), pa.repeat(op, rows)]


def write_parquet(table: pa.Table, path: str) -> None:
    """Write a table as all our files are written."""
    pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP, write_page_checksum=True)


class PartWriter:
    """Writes the parts of one run."""

    def __init__(self, store: Store, fingerprint: str, partition_by: Sequence[str], generation: int = 0) -> None:
        self._store, self._partition_by, self._generation = store, list(partition_by), generation
        self._control, self._fp8 = f"_batchnlp/{fingerprint}", fingerprint[:8]

    def write(
        self, shard: int, attempt: str, table: pa.Table, dead: pa.Table, measured: dict[str, Any],
        texts: pa.Table | None = None, order: Callable[[Int32], pa.Table] | None = None,
    ) -> Part:  # fmt: skip
        """Write all files of a shard, fsync them, then `part.json`. `measured` fills tokens, executed, seconds and note, and
        in a retry `after`; `order` then tells the places of the results from which of the files each is in. `texts` are those
        of dead letters, if they are asked for."""
        folder = staging_folder(self._control, shard, attempt, self._generation)
        files = [self._file(folder, name, t, kind) for name, t, kind in self._tables(shard, table, dead, texts, order)]
        lost = pc.sum(dead["rows"].fill_null(1), min_count=0).as_py()
        part = Part(
            shard=shard, attempt=attempt, rows=len(table) + lost, ok=len(table), dead=lost,
            ids_hash=f"{(ids_hash(table['id']) + ids_hash(dead['id'])) % 2**64:016x}", files=tuple(files),
            codes=_by_code(dead), **measured,
        )  # fmt: skip
        failpoints.reach("write")
        self._store.replace(f"{folder}/part.json", to_json(asdict(part)))
        failpoints.reach("written")
        return part

    def _tables(
        self, shard: int, table: pa.Table, dead: pa.Table, texts: pa.Table | None,
        order: Callable[[Int32], pa.Table] | None,
    ) -> Iterator[tuple[str, pa.Table, Any]]:  # fmt: skip
        name = f"{shard_name(shard, self._generation)}-{self._fp8}.parquet"
        which = np.zeros(len(table), np.int32)
        if self._partition_by and len(table):
            folders, which = self._folders(table)
            for i, folder in enumerate(folders):
                yield f"{folder}/part-{name}", table.filter(pa.array(which == i)), "rows"
        elif len(table) or not (self._partition_by or self._generation):
            yield f"part-{name}", table, "rows"
        if order is not None or (self._partition_by and len(table)):
            places = pa.table({"file": pa.array(which)}) if order is None else order(which)
            yield f"{self._control}/order/order-{name}", places, "order"
        if len(dead):
            yield f"{self._control}/dead/dead-{name}", dead, "dead"
        if texts is not None and len(texts):
            yield f"{self._control}/dead/text-{name}", texts, "text"

    def _folders(self, table: pa.Table) -> tuple[list[str], Int32]:
        """A folder for each combination of values, and which of them each row goes to."""
        values, which = np.unique(np.array(partition_folders(table, self._partition_by)), return_inverse=True)
        return values.tolist(), which.astype(np.int32)

    def _file(self, folder: str, name: str, table: pa.Table, kind: Any) -> PartFile:
        with self._store.writing(f"{folder}/{name}", private=kind == "text") as path:
            write_parquet(table, path)
            with open(path, "rb") as handle:
                return PartFile(name, len(table), os.path.getsize(path), sha256_of(handle), kind)


def shard_name(shard: int, generation: int = 0) -> str:
    """What the files of a shard are called by; `generation` is that of its plan."""
    return f"r{generation}-{shard:05d}" if generation else f"{shard:05d}"


def staging_folder(control: str, shard: int, attempt: str, generation: int = 0) -> str:
    """Where an attempt writes."""
    return f"{control}/staging/{shard_name(shard, generation)}.{attempt}"


def partition_folders(table: pa.Table, keys: list[str]) -> list[str]:
    """`key=value/key=value` of each row, nothing without keys; values are quoted, so that none can leave the output."""
    parts = []
    for key in keys:
        values = pc.dictionary_encode(table[key].cast(pa.string()), null_encoding="encode").combine_chunks()
        if isinstance(values, pa.ChunkedArray):
            values = values.chunk(0)
        names = [f"{_quote(key)}={_quote(v)}" for v in values.dictionary.to_pylist()]
        parts.append([names[i] for i in values.indices.to_pylist()])
    return ["/".join(row) for row in zip(*parts, strict=True)]


def _quote(value: str | None) -> str:
    """A folder name for a value: quoted, so that it cannot leave the output, and no longer than file systems take."""
    if value is None:
        return "__HIVE_DEFAULT_PARTITION__"
    quoted = urllib.parse.quote(value, safe=" ")
    if set(value) <= {"."}:
        quoted = quoted.replace(".", "%2E")
    if len(quoted) <= LONGEST_NAME:
        return quoted
    return f"{quoted[:LONGEST_NAME]}-{hashlib.sha256(value.encode()).hexdigest()[:8]}"  # whole in the file's column


def part_from_json(tree: dict[str, Any]) -> Part:
    """The Part in a `part.json` or a commit."""
    fields = {name: tree[name] for name in Part.__dataclass_fields__ if name not in LATER or name in tree}
    return Part(**{**fields, "files": tuple(PartFile(**f) for f in tree["files"])})
