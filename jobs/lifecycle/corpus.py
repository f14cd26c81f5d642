"""The rows of the lifecycle, in one form whatever they come from: id, text, label, title, source, entities.

    python jobs/lifecycle/corpus.py OUT.parquet                                the documentation that ships: 882 rows
    python jobs/lifecycle/corpus.py OUT.parquet --debian FILE [--rows N]       Debian's packages, from benchmarks/corpus.py

`title` is a one-line summary (the heading, the package's synopsis), `source` what belongs together (the source package),
and `entities` are the names of other rows in a text (functions and modules, packages): found by looking every word up in
the list of all names, which is what makes it a label and not an opinion. Names that are plain words are left out, because
nobody can tell whether they are meant.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DOCS = Path(__file__).parents[1] / "data" / "python-docs.parquet"
SPAN = pa.struct([("label", pa.string()), ("start", pa.int32()), ("end", pa.int32())])
SCHEMA = pa.schema([
    ("id", pa.string()), ("text", pa.string()), ("label", pa.string()), ("title", pa.string()), ("source", pa.string()),
    ("entities", pa.list_(SPAN)),
])  # fmt: skip
WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+.-]*[A-Za-z0-9_+]")
PARTED = re.compile(r"[a-z0-9][-._][a-z0-9]|\d", re.IGNORECASE)  # no plain word looks like this


def spans(text: str, names: set[str], label: str) -> list[dict[str, Any]]:
    """Where names stand in a text."""
    return [{"label": label, "start": m.start(), "end": m.end()} for m in WORD.finditer(text) if m.group() in names]


def documentation() -> Iterator[dict[str, Any]]:
    """Python's documentation; the names are those of what it documents."""
    rows = pq.read_table(DOCS).to_pylist()
    names = {row["title"] for row in rows if PARTED.search(row["title"]) and WORD.fullmatch(row["title"])}
    for row in rows:
        yield {"id": row["doc_id"], "text": row["text"], "label": row["section"], "title": row["title"],
               "source": row["doc_id"], "entities": spans(row["text"], names, "NAME")}  # fmt: skip


def debian(file: Path) -> Iterator[dict[str, Any]]:
    """Package descriptions. A corpus of before there was the source package has the package's first word instead."""
    rows = pq.read_table(file).to_pylist()
    names = {row["package"] for row in rows if PARTED.search(row["package"])}
    for row in rows:
        yield {"id": row["package"], "text": row["text"], "label": row["section"].rpartition("/")[2], "title": row["synopsis"],
               "source": row.get("source") or row["package"].split("-")[0],
               "entities": spans(row["text"], names, "PACKAGE")}  # fmt: skip


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description="Build the rows of the lifecycle.")
    parser.add_argument("out", type=Path, metavar="OUT.parquet")
    parser.add_argument("--debian", type=Path, metavar="FILE", help="a corpus of benchmarks/corpus.py")
    parser.add_argument("--rows", type=int, metavar="N", help="every so many rows, N in all")
    args = parser.parse_args()
    rows = list(debian(args.debian) if args.debian else documentation())
    step = max(len(rows) // args.rows, 1) if args.rows else 1
    rows = rows[::step][: args.rows]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), args.out, compression="zstd", write_page_checksum=True)
    mentions = sum(len(row["entities"]) for row in rows)
    print(f"{args.out}: {len(rows):,} rows, {len({row['label'] for row in rows})} labels, {mentions:,} names mentioned")  # noqa: T201


if __name__ == "__main__":
    main()
