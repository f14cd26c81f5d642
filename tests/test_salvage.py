"""Damaged files with `on_bad_file: salvage`: what is whole is read, and what is lost is counted."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import Corpus

import batchnlp
from batchnlp.data.collect import read_dead, tables
from batchnlp.data.sources import Source
from batchnlp.data.verify import verify
from batchnlp.errors import CorruptError, SourceError
from batchnlp.types import Docs, SourceConfig


def config(*paths: Path | str, **more: Any) -> SourceConfig:
    return SourceConfig(tuple(str(path) for path in paths), "text", on_bad_file="salvage", **more)


def read(source: Source, rows: int | None = None) -> tuple[list[str | None], list[tuple[str, int, int]], int]:
    """(the ids of all rows that can be read, (id, row, rows) of the letters that stand for lost ones, rows in)"""
    shards = source.shards(rows, 1000, 1 << 20)
    docs = [source.read(shard) for shard in shards]
    letters = [(d, f) for d in docs for f in d.failures if f.code == "lost_rows"]
    lost = [(str(d.ids[f.doc].as_py()), int(d.row[f.doc]), f.rows) for d, f in letters]
    for shard, d in zip(shards, docs, strict=True):
        assert len(d) + sum(f.rows - 1 for f in d.failures) == shard.rows, "rows in = rows and lost rows"
    return [id_ for d in docs for id_ in _whole(d)], lost, sum(shard.rows for shard in shards)


def _whole(docs: Docs) -> list[str]:
    bad = {failure.doc for failure in docs.failures}
    return [id_ for doc, id_ in enumerate(docs.ids.to_pylist()) if doc not in bad]


def ids(name: str, rows: range) -> list[str]:
    return [f"{name}#{row}" for row in rows]


def strike(path: Path, one: bytes, other: bytes) -> None:
    """Other bytes of the same length, at the same time."""
    stat = path.stat()
    raw = path.read_bytes()
    assert one in raw
    path.write_bytes(raw.replace(one, other))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def damaged_parquet(path: Path, **more: Any) -> Path:
    """Three row groups of a thousand, the second one damaged at row 1,500."""
    table = pa.table({"text": [f"document {i}" for i in range(3000)], **more})
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(table, path, row_group_size=1000, **options)
    strike(path, b"document 1500", b"Document 1500")
    return path


@pytest.mark.parametrize("rows", [None, 3000, 700, 1])
def test_of_a_damaged_row_group_the_others_are_read(tmp_path: Path, rows: int | None) -> None:
    source = Source.open(config(damaged_parquet(tmp_path / "a.parquet")))
    if rows == 1:
        shards = source.shards(1, 1, 1)
        docs = [source.read(shards[row]) for row in (0, 999, 1000, 1999, 2000)]
        assert [[f.code for f in d.failures] for d in docs] == [[], [], ["lost_rows"], ["lost_rows"], []]
        return
    whole, lost, count = read(source, rows)
    assert whole == ids("a.parquet", range(1000)) + ids("a.parquet", range(2000, 3000))
    assert (count, sum(n for _, _, n in lost)) == (3000, 1000)
    assert lost[0][:2] == ("a.parquet#1000", 1000)


def test_batches_before_the_damage_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"document {i:06}" for i in range(10_000)]})
    pq.write_table(
        table, path, compression="none", use_dictionary=False, write_page_checksum=True, data_page_size=4096
    )  # fmt: skip
    strike(path, b"document 009000", b"Document 009000")
    whole, lost, count = read(Source.open(config(path)))
    assert whole == ids("a.parquet", range(8192)), "two batches"
    assert (count, sum(n for _, _, n in lost)) == (10_000, 1808)


@pytest.mark.parametrize("column", ["text", "k"])
def test_a_filter_counts_what_it_would_have_chosen(tmp_path: Path, column: str) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"document {i}" for i in range(3000)], "k": [f"key {i} {i % 3}" for i in range(3000)]})
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(table, path, row_group_size=1000, **options)
    one = {"text": b"document 1500", "k": b"key 1500 0"}[column]
    strike(path, one, one.swapcase())
    chosen = [f"key {i} {i % 3}" for i in range(0, 3000, 3)]
    source = Source.open(config(path, filter=(("k", "in", chosen),)))
    whole, lost, count = read(source)
    assert whole == ids("a.parquet", range(0, 1000, 3)) + ids("a.parquet", range(2001, 3000, 3))
    gone = 333 if column == "text" else 1000  # nobody knows which the filter would have chosen
    assert (count, sum(n for _, _, n in lost)) == (len(whole) + gone, gone)


def test_files_without_a_row_that_can_be_read_are_one_letter(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    pq.write_table(pa.table({"text": ["good"]}), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-20])
    with pa.ipc.new_file(tmp_path / "d.arrow", pa.schema([("text", pa.string())])) as out:
        out.write_table(pa.table({"text": ["x", "y"]}))
    (tmp_path / "d.arrow").write_bytes((tmp_path / "d.arrow").read_bytes()[:-30])
    (tmp_path / "e.jsonl.gz").write_bytes(b"no gzip at all")
    source = Source.open(config(tmp_path))
    whole, lost, count = read(source)
    assert (whole, count) == (["b.parquet#0"], 5)
    assert lost == [(f"{name}#0", 0, 1) for name in ("a.parquet", "c.parquet", "d.arrow", "e.jsonl.gz")]
    (shard,) = source.shards(None, 100, 1000)
    assert "a.parquet cannot be read" in source.read(shard).failures[0].message
    assert len(source.sample(5)) == 1


def test_a_corpus_of_damage_alone_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.parquet").write_bytes(b"")
    with pytest.raises(SourceError, match=r"^[ab]\.parquet cannot be read"):
        Source.open(config(tmp_path))


def jsonl(rows: int) -> bytes:
    return b"".join(json.dumps({"text": f"document {i} " + "x" * (i % 97)}).encode() + b"\n" for i in range(rows))


def csv(rows: int) -> bytes:
    return b"text,k\n" + b"".join(f'"document {i},\n{i % 7}",{i}\n'.encode() for i in range(rows))


PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize(("name", "make"), [("a.jsonl", jsonl), ("a.csv", csv), ("a.txt", jsonl)])
def test_a_cut_off_stream_gives_its_whole_lines(
    tmp_path: Path, pack: str, name: str, make: Callable[[int], bytes]
) -> None:
    raw = PACK[pack](make(20_000))
    path = tmp_path / f"{name}.{pack}"
    path.write_bytes(raw[: len(raw) * 2 // 3])
    with pytest.raises(SourceError, match=rf"{path.name} cannot be read"):
        Source.open(SourceConfig((str(path),), "text")).shards(None, 1000, 1 << 20)
    for spool in (None, str(tmp_path / "spool")):
        source = Source.open(config(path))
        shards = source.shards(None, 1000, 1 << 20)
        if spool:
            source.spool_into(spool)
        docs = [source.read(shard) for shard in shards]
        failures = [failure for d in docs for failure in d.failures]
        assert [f.code for f in failures] == ["lost_rows"]
        assert "in the middle of its compressed data" in failures[0].message
        texts = [text for d in docs for text in d.text.to_pylist()]
        whole = texts[:-1]
        assert texts[-1] is None
        assert 5_000 < len(whole) < 20_000
        first = [f"document {i}" for i in (0, len(whole) - 1)]
        for text, want in zip((whole[0], whole[-1]), first, strict=True):
            assert want in text


def test_a_plan_that_cuts_twice_finds_the_same_rows(tmp_path: Path, classifier: str) -> None:
    """As it does where shards of the largest size would be too few for all replicas."""
    path, lines = tmp_path / "a.jsonl.gz", [json.dumps({"text": f"document {i}"}) for i in range(5000)]
    raw = gzip.compress("\n".join(lines).encode())
    path.write_bytes(raw[: len(raw) // 2])
    source = Source.open(config(path))
    assert read(source) == read(source)
    result = batchnlp.run({
        "source": {"path": str(path), "on_bad_file": "salvage"}, "task": {"kind": "classify", "model": classifier},
        "engine": {"runner": "inline", "backend": "torch"}, "output": {"path": str(tmp_path / "out")},
    })  # fmt: skip
    assert (result.rows > 1000, result.codes) == (True, {"lost_rows": 1})


def test_damage_inside_a_stream_ends_it(tmp_path: Path) -> None:
    raw = bytearray(gzip.compress(jsonl(20_000)))
    raw[len(raw) // 2 : len(raw) // 2 + 50] = b"\xff" * 50
    (tmp_path / "a.jsonl.gz").write_bytes(raw)
    whole, lost, count = read(Source.open(config(tmp_path)))
    assert whole[:5_000] == ids("a.jsonl.gz", range(5_000))
    assert lost == [(f"a.jsonl.gz#{count - 1}", count - 1, 1)]
    assert len(whole) < count < 20_000, "lines that the damage made are dead letters like any other"


def test_several_streams_in_a_file_are_one(tmp_path: Path) -> None:
    for pack, compress in PACK.items():
        (tmp_path / f"a.jsonl.{pack}").write_bytes(compress(jsonl(1000)) + compress(jsonl(500)))
        whole, lost, _ = read(Source.open(config(tmp_path / f"a.jsonl.{pack}")))
        assert (len(whole), lost) == (1500, []), pack


def test_what_could_not_be_brought_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network or a disk that fails is no reason to count rows as lost."""
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    source = Source.open(config(tmp_path))
    (shard,) = source.shards(None, 10, 1000)

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with pytest.raises(OSError, match="Input/output error"):
        source.read(shard)


def test_a_file_that_changed_is_not_salvaged(tmp_path: Path) -> None:
    source = Source.open(config(damaged_parquet(tmp_path / "a.parquet")))
    shards = source.shards(1000, 1, 1)
    os.utime(tmp_path / "a.parquet", (0, 0))
    with pytest.raises(CorruptError, match="changed since the plan"):
        source.read(shards[1])


def test_a_run_adds_up(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    folder, out = corpus(), str(tmp_path / "out")
    path = folder / "01.parquet"
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=5, compression="none", use_dictionary=False, write_page_checksum=True)
    text = table["text"][7].as_py().encode()
    strike(path, text, text.swapcase())
    job: dict[str, Any] = {
        "source": {"path": str(folder), "id": "doc_id", "keep": ["lang"]},
        "task": {"kind": "classify", "model": classifier}, "engine": {"runner": "inline"}, "output": {"path": out},
    }  # fmt: skip
    with pytest.raises(CorruptError, match=r"01\.parquet, row group 1 cannot be read"):
        batchnlp.run(job)
    job["source"]["on_bad_file"] = "salvage"
    result = batchnlp.run({**job, "output": {"path": out, "mode": "overwrite"}})
    assert (result.status, result.rows, result.dead, result.codes) == ("failed", 25, 5, {"lost_rows": 5})
    verdict = verify(out)
    assert (verdict.problems, verdict.rows, verdict.ok, verdict.dead) == ([], 25, 20, 5)
    (letters,) = tables(out, read_dead)
    (letter,) = letters.to_pylist()
    assert (letter["file"], letter["row"], letter["rows"], letter["id"]) == ("01.parquet", 5, 5, None)
    assert letter["message"].startswith("row group 1 cannot be read: ")
    allowed = {**job, "limits": {"max_failed": 5}, "output": {"path": out, "mode": "overwrite"}}
    assert batchnlp.run(allowed).status == "done"
