"""Whatever bytes a file holds, a reader gives every row once, as a document or as a failure, or refuses the file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batchnlp.data.sources import Source
from batchnlp.errors import CorruptError, SourceError
from batchnlp.types import Docs, SourceConfig

FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=4,
)
ODD = st.sampled_from(
    [b"", b"\0", b"\xff\xfe", b"\r", b"\x0b", b"{", b'"', b",", b"[]", b"\xed\xa0\x80", b"\xef\xbb\xbf"]
)


def good_line(text: str, key: Any) -> bytes:
    return json.dumps({"text": text, "k": key}).encode("utf-8", "surrogatepass")


LINE = st.one_of(
    st.builds(good_line, st.text(max_size=12), st.integers(0, 9)),
    st.builds(
        lambda a, b: json.dumps({"text": a, "k": b}, allow_nan=True).encode("utf-8", "surrogatepass"), JSON, JSON
    ),
    st.builds(lambda line, odd, at: line[:at] + odd + line[at:], st.just(good_line("abc", 1)), ODD, st.integers(0, 22)),
    st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"")),
    ODD,
)


def documents(path: Path, rows: int | None = None, **more: Any) -> list[Docs]:
    """The shards as read; refused files are none."""
    try:
        source = Source.open(SourceConfig((str(path),), "text", **more))
        shards = source.shards(rows, 1000, 1 << 20)
        docs = [source.read(shard) for shard in shards]
    except (SourceError, CorruptError):
        return []
    for shard, part in zip(shards, docs, strict=True):
        assert len(part) + sum(failure.rows - 1 for failure in part.failures) == shard.rows
        for failure in part.failures:
            assert part.text[failure.doc].as_py() is None
            assert failure.code
            assert "\n" not in failure.message
        part.text.validate(full=True)
        part.ids.validate(full=True)
    return docs


def outcome(docs: list[Docs]) -> list[tuple[str, Any, str]]:
    """(id, text, code) of each row."""
    rows = []
    for part in docs:
        codes = {failure.doc: failure.code for failure in part.failures}
        pairs = zip(part.ids.to_pylist(), part.text.to_pylist(), strict=True)
        rows += [(id_, text, codes.get(n, "")) for n, (id_, text) in enumerate(pairs)]
    return rows


@FUZZ
@given(st.lists(LINE, max_size=12), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
@example([b'{"text": "a"}', b"\xff", b'{"text": 1}', b'{"text": "b"}{"text": "c"}'], b"\n", False)
def test_json_lines(lines: list[bytes], end: bytes, last: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(end.join(lines) + (end if last else b""))
        found = documents(path)
        if not found:
            return
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        rows = [line.removesuffix(b"\r") for line in content.split(b"\n")]
        rows = [line for line in rows if line]
        got = outcome(found)
        assert len(got) == len(rows), "every line that is a row, once"
        for line, (_, text, code) in zip(rows, got, strict=True):
            want = _loaded(line)
            if code:
                assert want is None or not isinstance(want, str) or code == "bad_value"
            else:
                assert text == want
        numbers = [part.line(f.doc) for part in found for f in part.failures]
        assert numbers == sorted(numbers)
        assert outcome(documents(path, rows=3)) == got, "however it is cut"
        (path.parent / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        packed = outcome(documents(path.parent / "a.jsonl.gz", on_bad_file="salvage"))
        assert [row[1:] for row in packed] == [row[1:] for row in got], "and however it is packed"


def _loaded(line: bytes) -> Any:
    """The text on a line; None where there is none that can be."""
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    text = value.get("text") if isinstance(value, dict) else None
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError:
            return None
    return text


FIELD = st.one_of(st.text(max_size=8), st.sampled_from(['"', "a,b", "x\ny", "\r", "\0", " ", "''", "=1+1"]))
RECORD = st.one_of(st.lists(FIELD, min_size=2, max_size=2), st.lists(FIELD, max_size=4))


@FUZZ
@given(st.lists(RECORD, max_size=10), st.binary(max_size=6))
@example([["", ""], ["", ""]], b"\xef\xbb\xbf")  # a byte order mark where a shard begins is text
def test_csv(records: list[list[str]], tail: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, handle = Path(folder) / "a.csv", io.StringIO()
        writer = csv.writer(handle, lineterminator="\r\n")  # with "\n" a bare "\r" goes unquoted
        writer.writerow(["text", "k"])
        writer.writerows(records)
        path.write_bytes(handle.getvalue().encode("utf-8", "surrogatepass"))
        found = outcome(documents(path))
        if found:
            clean = [record for record in records if record]
            assert len(found) == len(clean)
            for record, (_, text, code) in zip(clean, found, strict=True):
                assert code == ("" if len(record) == 2 else "ragged_row") or code in ("invalid_utf8", "malformed_csv")
                if not code:
                    assert text == record[0]
        path.write_bytes(path.read_bytes() + tail)
        whole = outcome(documents(path))
        assert outcome(documents(path, rows=2)) == whole


@FUZZ
@given(st.binary(max_size=200), st.sampled_from(["line", "file"]))
def test_text(raw: bytes, unit: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_bytes(raw)
        found = outcome(documents(path, unit=unit))
        if unit == "file":
            assert len(found) == 1
            return
        lines = [line.removesuffix(b"\r") for line in raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
        lines = [line for line in lines if line]
        assert len(found) == len(lines)
        for line, (_, text, code) in zip(lines, found, strict=True):
            assert code == "invalid_utf8" if text is None else text == line.decode()


@FUZZ
@given(st.binary(max_size=120), st.sampled_from(["a.parquet", "a.arrow", "a.jsonl.gz", "a.csv.zst", "a.txt.gz"]))
def test_garbage_of_any_name(raw: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(raw)
        (Path(folder) / "z.parquet").write_bytes(_parquet())
        documents(Path(folder))
        kept = outcome(documents(Path(folder), on_bad_file="salvage"))
        if kept:  # refused where the columns of what can be read do not agree
            assert [text for id_, text, _ in kept if id_.startswith("z.")] == ["document 0", "document 1"]


def _parquet(rows: int = 2) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"text": [f"document {i}" for i in range(rows)], "k": [str(i) for i in range(rows)]})
    pq.write_table(table, sink, row_group_size=50, write_page_checksum=True)
    return sink.getvalue()


@FUZZ
@given(st.data())
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_bytes_struck_in_column_files(kind: str, data: st.DataObject) -> None:
    """With page checksums nothing that was struck is taken for text; without (Arrow) nothing crashes, and all is counted."""
    raw = bytearray(_parquet(200) if kind == "parquet" else _arrow())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(raw))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{kind}"
        path.write_bytes(bytes(raw[:cut]))
        (Path(folder) / "z.parquet").write_bytes(_parquet())
        for policy in ("fail", "salvage"):
            documents(Path(folder), on_bad_file=policy)


def _arrow() -> bytes:
    sink = io.BytesIO()
    table = pa.table({"text": [f"document {i}" for i in range(200)], "k": [str(i) for i in range(200)]})
    with pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table, 50)
    return sink.getvalue()
