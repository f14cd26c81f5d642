"""Build the benchmark corpus from Debian's package descriptions.

Purpose: a corpus of about 64,000 real, multi-topic English texts whose lengths run from one line to
several pages, which every Debian machine can rebuild from the package sources it already has configured.
It is built at run time and never committed.

    python benchmarks/corpus.py OUT.parquet [--rows N] [--repeat K]

Trade-offs:

* apt itself fetches and verifies the indexes, into a private directory: no mirror's name is known here,
  no root is needed and the system's own lists, caches and update hooks are left alone. The price is that
  it runs on Debian and its derivatives only.
* The rows follow the index, so they are the same for everyone on the same release and architecture, but
  a point release changes them; pass `--lists DIR` to keep the fetched indexes and build again from them.
* The whole corpus is held in memory once (a peak of about 300 MB while it is joined) so that it can be one
  row group; `--repeat` writes it again and again without holding more.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        pa.field("package", pa.string(), nullable=False),
        pa.field("section", pa.string(), nullable=False),
        pa.field("synopsis", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("tags", pa.list_(pa.field("element", pa.string(), nullable=False)), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)

Stanza = dict[str, str]
Row = dict[str, str | list[str]]

# A configuration file rather than `-o` options, because only a file can `#clear` the hooks that a system
# may run after every update (container images delete the system's package cache there).
APT_CONFIG = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::Languages;
Acquire::Languages {{ "en"; }};
Acquire::GzipIndexes "false";
APT::Sandbox::User "";
Dir::State::Lists "{lists}";
Dir::Cache "{cache}";
"""


def run_apt(lists: Path, *args: str) -> str:
    """Run apt-get on a private state directory and return what it printed."""
    cache = lists / "cache"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    config = lists / "private.conf"
    config.write_text(APT_CONFIG.format(lists=lists, cache=cache), encoding="utf-8")
    command = ["apt-get", "-q", "-c", str(config), *args]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return done.stdout


def index_files(lists: Path, created_by: str) -> list[Path]:
    """Return the fetched index files of one kind, main component only, in the order of the sources."""
    listing = run_apt(lists, "indextargets", "--format", "$(COMPONENT) $(FILENAME)", f"Created-By: {created_by}")
    pairs = (line.split(" ", 1) for line in listing.splitlines())
    paths = [Path(name) for component, name in pairs if component == "main"]
    return list(dict.fromkeys(path for path in paths if path.exists()))


def open_index(path: Path) -> Iterator[str]:
    """Yield the lines of an index file, decompressed by apt where it kept the file compressed."""
    if path.suffix not in {".lz4", ".gz", ".xz", ".bz2", ".zst"}:
        with path.open(encoding="utf-8") as lines:
            yield from lines
        return
    command = ["/usr/lib/apt/apt-helper", "cat-file", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise SystemExit(f"cannot read {path}")


def stanzas(path: Path) -> Iterator[Stanza]:
    """Yield the stanzas of an index file; a field's continuation lines keep their leading space."""
    stanza: Stanza = {}
    field = ""
    for raw in open_index(path):
        line = raw.rstrip("\n")
        if not line:
            if stanza:
                yield stanza
            stanza = {}
        elif line[0] in " \t":
            stanza[field] += "\n" + line
        else:
            field, _, value = line.partition(":")
            stanza[field] = value.strip()
    if stanza:
        yield stanza


def split_description(field: str) -> tuple[str, str]:
    """Split a description field into its synopsis and its long text, without the index's indentation."""
    synopsis, _, body = field.partition("\n")
    # Policy: one space marks a continuation, " ." is a blank line, and deeper indentation is verbatim.
    lines = ["" if line.strip() == "." else line[1:].rstrip() for line in body.split("\n")]
    return synopsis.strip(), "\n".join(lines).strip("\n")


def parse_tags(field: str) -> list[str]:
    """Return the debtags facets of a Tag field, expanding the `facet::{a,b}` shorthand."""
    grouped = re.sub(r"([\w:+.-]+::)\{([^}]*)\}", _expand_group, field)
    return [tag for tag in (part.strip() for part in grouped.replace("\n", " ").split(",")) if tag]


def _expand_group(match: re.Match[str]) -> str:
    return ", ".join(match[1] + tag.strip() for tag in match[2].split(","))


def descriptions(lists: Path) -> dict[tuple[str, str], str]:
    """Return the English descriptions by package and description hash."""
    found: dict[tuple[str, str], str] = {}
    for path in index_files(lists, "Translations"):
        for stanza in stanzas(path):
            if "Description-en" in stanza:
                found[stanza["Package"], stanza["Description-md5"]] = stanza["Description-en"]
    return found


def rows(lists: Path) -> Iterator[Row]:
    """Yield one row a package: the first that an index gives, in the order of the indexes."""
    translated = descriptions(lists)
    seen: set[str] = set()
    for path in index_files(lists, "Packages"):
        for stanza in stanzas(path):
            package = stanza["Package"]
            field = translated.get((package, stanza.get("Description-md5", "")), stanza.get("Description", ""))
            synopsis, body = split_description(field)
            # A few transitional packages have a synopsis and nothing else: it is all the text there is.
            text = body or synopsis
            if not text or package in seen:
                continue
            seen.add(package)
            tags = parse_tags(stanza.get("Tag", ""))
            section = stanza.get("Section", "")
            source = stanza.get("Source", package).partition(" ")[0]  # perhaps with its version after it
            yield {
                "package": package, "section": section, "synopsis": synopsis, "text": text, "tags": tags, "source": source,
            }  # fmt: skip


def write(table: pa.Table, out: Path, repeat: int) -> None:
    """Write the corpus `repeat` times over, one row group each time."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(out, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for number in range(1, repeat + 1):
            part = table if repeat == 1 else with_suffix(table, f"~{number}")
            writer.write_table(part, row_group_size=max(1, part.num_rows))


def with_suffix(table: pa.Table, suffix: str) -> pa.Table:
    """Return the table with every package id suffixed (no Debian package name has a `~`)."""
    names = pc.binary_join_element_wise(table.column("package"), pa.scalar(suffix), "")
    return table.set_column(0, SCHEMA.field("package"), names)


def build(lists: Path, out: Path, limit: int | None, repeat: int, *, update: bool) -> str:
    """Fetch the indexes where asked to, write the corpus and return a line about it."""
    if update:
        run_apt(lists, "update")
    records = list(rows(lists))[:limit]
    if not records:
        raise SystemExit("no package descriptions found: is a Debian package source configured?")
    write(pa.Table.from_pylist(records, schema=SCHEMA), out, repeat)
    lengths = [len(record["text"]) for record in records]  # characters, as every count of the line but `bytes`
    return (
        f"rows={len(records) * repeat} chars_min={min(lengths)} chars_median={statistics.median(lengths):g} "
        f"chars_max={max(lengths)} chars_total={sum(lengths) * repeat} bytes={out.stat().st_size}"
    )


def positive(text: str) -> int:
    """Parse a command-line count, which must be 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Build the benchmark corpus from Debian's package descriptions.")
    parser.add_argument("out", type=Path, metavar="OUT.parquet")
    parser.add_argument("--rows", type=positive, metavar="N", help="only the first N packages")
    parser.add_argument("--repeat", type=positive, default=1, metavar="K", help="write the corpus K times over")
    parser.add_argument("--lists", type=Path, metavar="DIR", help="keep the indexes here, and use those found here")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="corpus-") as scratch:
        lists = (args.lists or Path(scratch)).resolve()
        kept = any(lists.glob("*_Packages*"))
        print(build(lists, args.out, args.rows, args.repeat, update=not kept))
    return 0


if __name__ == "__main__":
    sys.exit(main())
