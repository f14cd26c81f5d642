"""Damage: what is broken is named, what is whole is read, and nothing shifts."""

import errno
import gzip
import io
import os
import pickle
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnlp.data.sources import Source
from batchnlp.errors import CorruptError, SourceError, StoppedError
from batchnlp.types import SourceConfig


def config(*paths: Path | str, text: str = "text", **more: object) -> SourceConfig:
    return SourceConfig(tuple(str(path) for path in paths), text, **more)  # type: ignore[arg-type]


def raw_strings(values: list[bytes | None]) -> pa.Array:
    """A string column that nobody has looked at."""
    return pa.array(values, pa.binary()).view(pa.string())


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_a_column_file_that_is_none(tmp_path: Path, name: str) -> None:
    for content in (b"", b"garbage of some length"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            SourceError, match=rf"^{name} cannot be read: .* \(create the file again, or leave it out\)$"
        ):
            Source.open(config(tmp_path / name))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_invalid_utf8_in_columns(tmp_path: Path, name: str) -> None:
    values: list[bytes | None] = [b"ok", None, b"\xff", b"fine", b"\xc3"]
    table = pa.table({"text": raw_strings(values), "k": raw_strings([b"\xff", b"b", b"c", b"d", b"e"])})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.ipc.new_file(tmp_path / name, table.schema) as out:
            out.write_table(table)
    source = Source.open(config(tmp_path, keep=("k",)))
    (shard,) = source.shards(None, 10, 1000)
    docs = source.read(shard)
    assert docs.text.to_pylist() == [None, None, None, "fine", None]
    assert docs.keep.column("k").to_pylist() == [None, "b", "c", "d", "e"]
    assert [(f.doc, f.code, docs.line(f.doc)) for f in docs.failures] == [(i, "invalid_utf8", -1) for i in (0, 2, 4)]
    assert "\xff" not in "".join(f.message for f in docs.failures)


def test_invalid_utf8_in_binary_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([b"a", b"\xff", None], pa.binary())}), tmp_path / "a.parquet")
    source = Source.open(config(tmp_path))
    docs = source.read(source.shards(None, 10, 1000)[0])
    assert docs.text.to_pylist() == ["a", None, None]
    assert [f.doc for f in docs.failures] == [1]


def test_a_corrupt_page_is_named_with_its_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"document {i}" for i in range(3000)]})
    pq.write_table(table, path, row_group_size=1000, compression="none", use_dictionary=False, write_page_checksum=True)
    stat = path.stat()
    raw = path.read_bytes().replace(b"document 1500", b"Document 1500")
    path.write_bytes(raw)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    source = Source.open(config(path))
    shards = source.shards(500, 1, 1)
    assert source.read(shards[0]).text[0].as_py() == "document 0"
    with pytest.raises(CorruptError, match=r"^a\.parquet, row group 1 cannot be read: .*CRC.* \(create the file"):
        [source.read(shard) for shard in shards[1:4]]
    assert source.read(shards[4]).text[0].as_py() == "document 2000"
    with pytest.raises(SourceError, match="row group 1"):
        Source.open(config(path, filter=(("text", ">", "document 1"),))).shards(None, 500, 10**6)


def test_truncated_gzip_is_refused_by_the_plan(tmp_path: Path) -> None:
    whole = gzip.compress(os.urandom(40_000).hex("\n", 64).encode())
    (tmp_path / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
    source = Source.open(config(tmp_path))
    with pytest.raises(SourceError, match=r"a\.txt\.gz cannot be read: Truncated compressed stream"):
        source.shards(None, 10, 1000)
    with pytest.raises(CorruptError, match=r"a\.txt\.gz cannot be read"):
        source.spool_into(str(tmp_path / "spool"))
    assert os.listdir(tmp_path / "spool") == []


def test_a_full_disk_is_not_the_fault_of_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    source = Source.open(config(tmp_path / "*.gz"))

    class Full(io.BytesIO):
        def writelines(self, blocks: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda *args: Full())
    with pytest.raises(StoppedError, match=r"no space left below .*spool \(make room and run the same command again"):
        source.spool_into(str(tmp_path / "spool"))


def test_a_decompression_bomb_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchnlp.data.sources.storage.BOMB_BYTES", 1 << 20)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    (tmp_path / "b.txt.zst").write_bytes(pa.compress(b"\n" * (32 << 20), "zstd", asbytes=True))
    source = Source.open(config(tmp_path, format="text"))
    with pytest.raises(
        CorruptError, match=r"b\.txt\.zst grows more than 1,000 times .*looks like a decompression bomb"
    ):
        source.spool_into(str(tmp_path / "spool"))
    assert len(os.listdir(tmp_path / "spool")) == 1, "the harmless one"


def test_the_spool_is_made_once_and_used_everywhere(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt.gz").write_bytes(gzip.compress(b"one\ntwo\nthree\n"))
    source = Source.open(config(tmp_path / "*.gz"))
    shards = source.shards(2, 1, 1)
    spool = tmp_path / "deep" / "spool"
    source.spool_into(str(spool))
    copies = sorted(spool.iterdir())
    assert [copy.read_bytes() for copy in copies] == [b"one\ntwo\nthree\n"] * 2
    copies[0].write_bytes(b"ONE\ntwo\nthree\n")
    source.spool_into(str(spool))
    worker = pickle.loads(pickle.dumps(source))
    texts = [text for shard in shards for text in worker.read(shard).text.to_pylist()]
    assert sorted(texts) == sorted(["ONE", "two", "three", "one", "two", "three"])
    with_spool = Source(source.config, source.files, source.schema, str(spool))
    assert with_spool.read(shards[1]).text.to_pylist() == ["three"]
    for copy in copies:
        copy.unlink()  # another machine has none
    assert Source(source.config, source.files, source.schema, str(spool)).read(shards[3]).text.to_pylist() == ["three"]


def test_a_clean_run_loses_nothing_to_a_bad_one(tmp_path: Path) -> None:
    """An int that does not fit, in a column widened over two files, fails alone."""
    pq.write_table(pa.table({"text": ["x", "y"], "k": [2**60 + 1, 5]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["z"], "k": [0.5]}), tmp_path / "b.parquet")
    source = Source.open(config(tmp_path, keep=("k",)))
    docs = source.read(source.shards(None, 10, 1000)[0])
    assert docs.keep.column("k").to_pylist() == [None, 5.0, 0.5]
    assert [(f.code, f.doc) for f in docs.failures] == [("bad_value", 0)]


def test_scanning_holds_a_few_blocks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchnlp.data.sources.base.BLOCK", 1 << 16)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"some words in a line\n" * 500_000, 1))
    source = Source.open(config(tmp_path))
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    shards = source.shards(None, 20_000, 1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(shard.rows for shard in shards) == 500_000
    assert peak < 3 << 20
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_cut_short_after_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    source = Source.open(config(path))
    (shard,) = source.shards(None, 10, 100)
    stat = path.stat()
    path.write_text("one two\n")  # the same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(CorruptError, match=r"a\.txt has 1 rows where 2 were planned"):
        source.read(shard)
