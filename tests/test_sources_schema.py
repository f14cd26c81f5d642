"""One schema for all files: what may differ, what may not, and how the difference is told."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnlp.data.sources import Source
from batchnlp.errors import SourceError
from batchnlp.types import Docs, SourceConfig


def config(*paths: Path | str, text: str = "text", **more: object) -> SourceConfig:
    return SourceConfig(tuple(str(path) for path in paths), text, **more)  # type: ignore[arg-type]


def put(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def read(source: Source) -> Docs:
    (shard,) = source.shards(None, 10_000, 10**8)
    return source.read(shard)


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.binary(),
        pa.large_binary(),
        pa.string_view(),
    ],
)
def test_types_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    put(tmp_path / "a.parquet", text=pa.array(["ä", None, ""], pa.string()).cast(kind))
    docs = read(Source.open(config(tmp_path)))
    assert docs.text.type == pa.large_string()
    assert docs.text.to_pylist() == ["ä", None, ""]
    assert not docs.failures


def test_text_that_is_not_text(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", text=[1])
    with pytest.raises(SourceError, match=r"a\.parquet: the text column text is int64, not text \(choose another"):
        Source.open(config(tmp_path))


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", body=["x"], lang=["de"])
    with pytest.raises(SourceError, match=r"^a\.parquet has no column bdy, only body, lang \(did you mean body\?\)$"):
        Source.open(config(tmp_path, text="bdy"))
    with pytest.raises(SourceError, match=r"no column lnag, .* \(did you mean lang\?\)"):
        Source.open(config(tmp_path, text="body", filter=(("lnag", "==", "de"),)))
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "b.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(
        SourceError, match=r"^b\.jsonl has no column text, only body \(.* in source\.text \(--text-column\), or"
    ):
        Source.open(config(tmp_path))
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "c.csv").write_text("text,x,x\na,b,c\n")
    with pytest.raises(SourceError, match=r"c\.csv has 2 columns named x"):
        Source.open(config(tmp_path, keep=("x",)))
    assert read(Source.open(config(tmp_path))).text.to_pylist() == ["a"]


def test_drift_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", text=["x"], k=[1])
    put(tmp_path / "b.parquet", text=["x"], k=["1"])
    with pytest.raises(SourceError, match=r"^b\.parquet: column k is string, but int64 in a\.parquet \(make the types"):
        Source.open(config(tmp_path, keep=("k",)))
    Source.open(config(tmp_path))  # nobody asked for k


@pytest.mark.parametrize(
    ("one", "two", "both"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.null(), pa.int32(), pa.int32()),
        (pa.string(), pa.null(), pa.string()),
        (pa.null(), pa.null(), pa.string()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.int32(), pa.float64(), pa.float64()),
        (pa.int64(), pa.uint64(), None),
        (pa.bool_(), pa.int64(), None),
        (pa.list_(pa.int32()), pa.list_(pa.int64()), None),
    ],
)
def test_types_are_widened_where_nothing_is_lost(
    tmp_path: Path, one: pa.DataType, two: pa.DataType, both: pa.DataType | None
) -> None:
    put(tmp_path / "a.parquet", text=["x"], k=pa.nulls(1, one))
    put(tmp_path / "b.parquet", text=["x"], k=pa.nulls(1, two))
    if both is None:
        with pytest.raises(SourceError, match="column k is"):
            Source.open(config(tmp_path, keep=("k",)))
    else:
        assert read(Source.open(config(tmp_path, keep=("k",)))).keep.schema.field("k").type == both


def test_ids_are_never_made_to_look_different(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", text=["x"], k=[1])
    put(tmp_path / "b.parquet", text=["x"], k=[1.5])
    with pytest.raises(SourceError, match="column k is double, but int64"):
        Source.open(config(tmp_path, id="k"))
    put(tmp_path / "b.parquet", text=["x"], k=[[1]])
    with pytest.raises(SourceError, match="the id column k is list"):
        Source.open(config(tmp_path / "b.parquet", id="k"))


def test_kept_columns_survive_and_count_once(tmp_path: Path) -> None:
    tags, person = [["a", "b"], [], None], [{"name": "x", "age": 1}, None, {"name": None, "age": 2}]
    lang = pa.array(["de", None, "fr"]).dictionary_encode()
    put(tmp_path / "a.parquet", text=["x", "y", "z"], tags=tags, person=person, lang=lang, n=[1, 2, 3])
    source = Source.open(config(tmp_path, id="n", keep=("lang", "tags", "text", "person", "lang", "n")))
    assert source.schema.names == ["text", "n", "lang", "tags", "person"]
    docs = read(source)
    assert docs.keep.column_names == ["lang", "tags", "text", "person", "n"]
    assert docs.keep.to_pydict() == {
        "lang": ["de", None, "fr"],
        "tags": tags,
        "text": ["x", "y", "z"],
        "person": person,
        "n": [1, 2, 3],
    }
    assert docs.keep.schema.field("lang").type == pa.string()
    assert docs.ids.type == source.id_type == pa.int64()


def test_generated_and_null_ids(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": "x", "k": "one"}\n{"text": "y"}\n')
    source = Source.open(config(tmp_path, id="k"))
    docs = read(source)
    assert docs.ids.to_pylist() == ["one", None]
    assert docs.text.to_pylist() == ["x", None]
    assert [(f.doc, f.code, docs.line(f.doc)) for f in docs.failures] == [(1, "null_id", 3)]
    assert Source.open(config(tmp_path)).id_type == pa.string()


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", text=["p"], n=pa.array([1], pa.int32()))
    (tmp_path / "b.jsonl").write_text('{"text": "j", "n": 2}\n')
    (tmp_path / "c.csv").write_text("n,text\n3,c\n")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "empty.csv").write_bytes(b"")
    docs = read(Source.open(config(tmp_path, id="n")))
    assert docs.text.to_pylist() == ["p", "j", "c"]
    assert docs.ids.to_pylist() == [1, 2, 3]


def test_a_file_without_a_readable_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{\n  1\n}\n")
    with pytest.raises(SourceError, match=r"a\.jsonl: none of the first rows can be read \(check source\.format\)"):
        Source.open(config(tmp_path))
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n')
    docs = read(Source.open(config(tmp_path)))
    assert [f.code for f in docs.failures] == ["malformed_json", "not_an_object", "malformed_json"]


def test_an_empty_corpus_has_no_shards(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.csv", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    put(tmp_path / "d.parquet", text=pa.array([], pa.string()))
    source = Source.open(config(tmp_path))
    assert source.shards(None, 10, 100) == []
    assert source.shards(5, 10, 100) == []
    assert len(source.sample(10)) == 0


def test_drift_is_found_fast(tmp_path: Path) -> None:
    for i in range(200):
        put(tmp_path / f"{i:04}.parquet", text=["x"] * 50)
    (tmp_path / "zz.jsonl").write_text(json.dumps({"text": 1}) + "\n")
    start = time.monotonic()
    with pytest.raises(SourceError, match="the text column text is int64"):
        Source.open(config(tmp_path))
    assert time.monotonic() - start < 5
