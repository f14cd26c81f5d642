"""Round trips: whatever is written in any format comes back the same, in order, however the corpus is cut."""

import csv
import gzip
import io
import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchnlp.data.sources import Source, delimited
from batchnlp.types import Docs, Shard, SourceConfig

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=40)
LINES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1, max_size=12)
    .map(lambda text: text.rstrip("\r"))
    .filter(lambda text: text and not text.startswith("\ufeff")),
    max_size=40,
)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def config(*paths: Path | str, text: str = "text", **more: object) -> SourceConfig:
    return SourceConfig(tuple(str(path) for path in paths), text, **more)  # type: ignore[arg-type]


def read_all(source: Source, shards: list[Shard]) -> list[Docs]:
    docs = [source.read(shard) for shard in shards]
    for shard, doc in zip(shards, docs, strict=True):
        assert len(doc) == len(doc.text) == len(doc.row) == len(doc.file) == doc.keep.num_rows == shard.rows
    return docs


def texts_of(docs: list[Docs]) -> list[str | None]:
    return [text for doc in docs for text in doc.text.to_pylist()]


def jsonl(texts: list[str]) -> bytes:
    return "".join(
        json.dumps({"n": i, "text": t}, ensure_ascii=i % 2 == 0) + "\n" for i, t in enumerate(texts)
    ).encode()


def comma(texts: list[str], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    rows = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    rows.writerows([["n", "text"], *([i, text] for i, text in enumerate(texts))])
    return out.getvalue().encode()


def table(texts: list[str]) -> pa.Table:
    return pa.table({"n": pa.array(range(len(texts)), pa.int64()), "text": pa.array(texts, pa.string())})


def parquet(texts: list[str]) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(table(texts), out, row_group_size=7, write_page_checksum=True)
    return out.getvalue().to_pybytes()


def stream(texts: list[str]) -> bytes:
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, table([]).schema) as writer:
        writer.write_table(table(texts), max_chunksize=5)
    return out.getvalue().to_pybytes()


def feather(texts: list[str]) -> bytes:
    out = pa.BufferOutputStream()
    pyarrow.feather.write_feather(table(texts), out, compression="zstd", chunksize=6)
    return out.getvalue().to_pybytes()


WRITERS: dict[str, Callable[[list[str]], bytes]] = {
    "a.jsonl": jsonl,
    "a.jsonl.gz": lambda texts: gzip.compress(jsonl(texts)),
    "a.ndjson.zst": lambda texts: zstandard.compress(jsonl(texts[:5])) + zstandard.compress(jsonl(texts[5:])),
    "a.csv": comma,
    "a.csv.gz": lambda texts: gzip.compress(comma(texts)),
    "a.tsv": lambda texts: comma(texts, "\t"),
    "a.parquet": parquet,
    "a.arrow": stream,
    "a.feather": feather,
}


def numbers(name: str, texts: list[str]) -> list[int]:
    split = min(5, len(texts)) if name.endswith("zst") else len(texts)  # that one is two files in one
    return [*range(split), *range(len(texts) - split)]


@pytest.mark.parametrize("name", WRITERS)
@few
@given(
    texts=TEXTS,
    rows=st.none() | st.integers(1, 50),
    most=st.integers(1, 50),
    size=st.integers(1, 400),
    tell=st.booleans(),
)
def test_round_trip(name: str, texts: list[str], rows: int | None, most: int, size: int, tell: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(WRITERS[name](texts))
        source = Source.open(config(path, keep=("n",)))
        shards = source.shards(rows, most, size)
        if tell:
            source.spool_into(str(Path(folder, "spool")))
        source = pickle.loads(pickle.dumps(source))
        docs = read_all(source, shards)
        assert texts_of(docs) == texts
        assert not any(doc.failures for doc in docs)
        assert [i for doc in docs for i in doc.ids.to_pylist()] == [f"{name}#{i}" for i in range(len(texts))]
        assert [n for doc in docs for n in doc.keep.column("n").to_pylist()] == numbers(name, texts)
        limit = rows or most
        assert all(0 < len(doc) <= limit for doc in docs)
        if rows:
            assert all(len(doc) == rows for doc in docs[:-1])
        assert set(source.sample(1000).text.to_pylist()) <= set(texts)


@few
@given(
    lines=LINES, rows=st.none() | st.integers(1, 50), size=st.integers(1, 200), end=st.booleans(), crlf=st.booleans()
)
def test_round_trip_of_text(lines: list[str], rows: int | None, size: int, end: bool, crlf: bool) -> None:
    newline = "\r\n" if crlf else "\n"
    content = newline.join(lines) + (newline + newline if end else "")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.txt").write_bytes(b"\xef\xbb\xbf" + content.encode())
        source = Source.open(config(Path(folder, "a.txt"), text="anything"))
        docs = read_all(source, source.shards(rows, 10, size))
        assert texts_of(docs) == lines


BAD_LINES = {
    b'{"text": "a"': "malformed_json",
    b"garbage": "malformed_json",
    b"   ": "malformed_json",
    b'{"text": "a"}{"text": "b"}': "malformed_json",
    b'{"text": "a\x00"}': "malformed_json",
    b"[" * 5000: "malformed_json",
    b'{"text": NaN}': "not_text",
    b'{"text": 5}': "not_text",
    b"[1]": "not_an_object",
    b'"text"': "not_an_object",
    b'{"text": "\xff"}': "invalid_utf8",
    b'{"text": "x", "other": "\xff"}': "invalid_utf8",
    b'{"text": "\\ud800"}': "invalid_unicode",
    b'{"text": "x", "n": "five"}': "bad_value",
    b'{"text": "x", "n": [1]}': "bad_value",
}


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(list(BAD_LINES)), max_size=30
    ),
    rows=st.none() | st.integers(1, 30),
)
def test_exactly_the_bad_json_lines_fail(lines: list[str | bytes], rows: int | None) -> None:
    lines = ["first", *lines]
    raw = [json.dumps({"n": 1, "text": line}).encode() if isinstance(line, str) else line for line in lines]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.jsonl").write_bytes(b"\n\r\n" + b"\n\n".join(raw))
        source = Source.open(config(Path(folder, "a.jsonl"), keep=("n",)))
        docs = read_all(source, source.shards(rows, 8, 100))
    assert texts_of(docs) == [line if isinstance(line, str) else None for line in lines]
    found = [(int(doc.row[f.doc]), doc.line(f.doc), f.code) for doc in docs for f in doc.failures]
    bad = [(i, line) for i, line in enumerate(lines) if isinstance(line, bytes)]
    assert found == [(i, 3 + 2 * i, BAD_LINES[line]) for i, line in bad]
    for doc in docs:
        assert all(failure.stage == "read" for failure in doc.failures)


BAD_RECORDS = {
    b"1": "ragged_row",
    b" ": "ragged_row",
    b"1,a,b": "ragged_row",
    b"five,a": "bad_value",
    b"007,a": "bad_value",
    b"1,\xff": "invalid_utf8",
    b"1,a\rb": "malformed_csv",
}


@settings(max_examples=60, deadline=None)
@given(
    records=st.lists(st.text('ab\n", \u2028\x85é', max_size=5) | st.sampled_from(list(BAD_RECORDS)), max_size=30),
    rows=st.none() | st.integers(1, 30),
)
def test_exactly_the_bad_csv_records_fail(records: list[str | bytes], rows: int | None) -> None:
    records = ["first", *records]
    raw = [b'1,"%s"' % r.replace('"', '""').encode() if isinstance(r, str) else r for r in records]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "FIRST", 1)  # so that the types come from the good record
        patch.setattr(delimited, "TOGETHER", 3)
        Path(folder, "a.csv").write_bytes(b"\xef\xbb\xbfn,text\r\n" + b"\r\n".join(raw))
        source = Source.open(config(Path(folder, "a.csv"), keep=("n",)))
        docs = read_all(source, source.shards(rows, 8, 100))
    assert texts_of(docs) == [record if isinstance(record, str) else None for record in records]
    found = [(int(doc.row[f.doc]), doc.line(f.doc), f.code) for doc in docs for f in doc.failures]
    starts = [2 + sum(part.count(b"\n") + 1 for part in raw[:i]) for i in range(len(raw))]
    assert found == [(i, starts[i], BAD_RECORDS[r]) for i, r in enumerate(records) if isinstance(r, bytes)]


def test_text_is_split_at_newlines_only(tmp_path: Path) -> None:
    odd = "a\x0bb\x0cc\x1cd\x85e\u2028f"
    (tmp_path / "a.txt").write_bytes(f"{odd}\r\n\r\n \n\nlast".encode() + b"\n\xff\n")
    source = Source.open(config(tmp_path))
    (docs,) = read_all(source, source.shards(None, 100, 1000))
    assert docs.text.to_pylist() == [odd, " ", "last", None]
    assert [(f.code, f.doc, docs.line(f.doc)) for f in docs.failures] == [("invalid_utf8", 3, 6)]
    assert [docs.line(i) for i in range(4)] == [1, 3, 5, 6]


def test_a_text_file_can_be_one_document(tmp_path: Path) -> None:
    for name, content in {
        "a.txt": b"\xef\xbb\xbfone\ntwo\n",
        "b.md": b"",
        "c.txt": b"\xff",
        "d.txt.gz": gzip.compress(b"x\ny"),
    }.items():
        (tmp_path / name).write_bytes(content)
    source = Source.open(config(tmp_path, unit="file"))
    (docs,) = read_all(source, source.shards(None, 100, 1000))
    assert docs.ids.to_pylist() == ["a.txt#0", "b.md#0", "c.txt#0", "d.txt.gz#0"]
    assert docs.text.to_pylist() == ["one\ntwo\n", "", None, "x\ny"]
    assert [(source.files[docs.file[f.doc]].name, f.code) for f in docs.failures] == [("c.txt", "invalid_utf8")]
    assert source.sample(10).text.to_pylist() == ["one\ntwo\n", "x\ny"]


def test_csv_text_and_ids_stay_as_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,zip,text,x,flag\n1e5,01234,NA,1,true\n2e5,5,null,,false\n3e5,6,"",2.5,\n')
    source = Source.open(config(tmp_path, id="id", keep=("zip", "x", "flag")))
    (docs,) = read_all(source, source.shards(None, 100, 1000))
    assert docs.text.to_pylist() == ["NA", "null", ""]
    assert docs.ids.to_pylist() == ["1e5", "2e5", "3e5"]
    assert docs.keep.to_pydict() == {"zip": ["01234", "5", "6"], "x": [1.0, None, 2.5], "flag": [True, False, None]}


def test_json_types_come_from_the_first_rows(tmp_path: Path) -> None:
    rows = [
        "not json",
        {"text": None, "day": "2024-01-01", "x": 1, "tags": [], "o": {"a": 1}, "none": None},
        {"text": "t", "day": "2024-01-02T00:00:00Z", "x": 2.5, "tags": ["b"], "o": {"a": 2}},
        {"day": None},
    ]
    (tmp_path / "a.json").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    source = Source.open(config(tmp_path, keep=("day", "x", "tags", "o", "none")))
    assert [str(field.type) for field in source.schema][:3] == ["large_string", "string", "double"]
    (docs,) = read_all(source, source.shards(None, 100, 1000))
    assert docs.text.to_pylist() == [None, None, "t", None]
    assert [f.doc for f in docs.failures] == [0]  # a missing text is for the task to judge
    assert docs.keep.column("day").to_pylist()[1:3] == ["2024-01-01", "2024-01-02T00:00:00Z"]
    assert docs.keep.column("tags").to_pylist() == [None, [], ["b"], None]
    assert docs.keep.column("o").to_pylist()[1] == {"a": 1}
