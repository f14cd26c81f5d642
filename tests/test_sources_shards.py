"""How a corpus is cut: near-equal shards, tiny files joined, row groups respected, filters counted exactly."""

import datetime
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnlp.data.sources import Source, base, lines, parquet
from batchnlp.data.sources.columnar import Cursor
from batchnlp.errors import SourceError
from batchnlp.types import Segment, Shard, SourceConfig


def config(*paths: Path | str, text: str = "text", **more: object) -> SourceConfig:
    return SourceConfig(tuple(str(path) for path in paths), text, **more)  # type: ignore[arg-type]


def put(path: Path, rows: int, group: int = 1 << 20, size: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{i:0{size}}" for i in range(rows)]
    if path.suffix == ".parquet":
        table = pa.table({"text": names, "n": pa.array(range(rows), pa.int64()), "lang": ["de", "en"] * (rows // 2)})
        pq.write_table(table, path, row_group_size=group)
    else:
        path.write_text("".join(json.dumps({"text": name, "n": i}) + "\n" for i, name in enumerate(names)))
    return path


def sizes(shards: list[Shard]) -> list[int]:
    return [shard.rows for shard in shards]


def spans(shards: list[Shard]) -> list[tuple[int, int]]:
    return [(segment.start, segment.stop) for shard in shards for segment in shard.segments]


def test_large_files_are_cut_into_near_equal_shards(tmp_path: Path) -> None:
    source = Source.open(config(put(tmp_path / "a.jsonl", 1000)))
    assert sizes(source.shards(None, 1000, 10**9)) == [1000]
    assert sizes(source.shards(None, 999, 10**9)) in ([496, 504], [500, 500], [504, 496], [558, 442])
    assert max(sizes(source.shards(None, 300, 10**9))) - min(sizes(source.shards(None, 300, 10**9))) <= 20
    assert sizes(source.shards(300, 7, 7)) == [300, 300, 300, 100]
    small = Source.open(config(put(tmp_path / "b.jsonl", 25)))
    assert sizes(small.shards(None, 10, 10**9)) == [8, 9, 8]
    assert [shard.index for shard in small.shards(None, 10, 10**9)] == [0, 1, 2]


def test_bytes_limit_shards_too(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", 1000, size=100)
    shards = Source.open(config(path)).shards(None, 10**6, 20_000)
    assert all(sum(segment.length for segment in shard.segments) <= 20_000 for shard in shards)
    assert len(shards) <= path.stat().st_size // 20_000 + 2
    parquet_shards = Source.open(config(put(tmp_path / "a.parquet", 1000, size=100))).shards(None, 10**6, 20_000)
    assert 5 <= len(parquet_shards) <= 7
    assert max(sizes(parquet_shards)) - min(sizes(parquet_shards)) <= 1


def test_row_groups_are_kept_whole_where_they_fit(tmp_path: Path) -> None:
    source = Source.open(config(put(tmp_path / "a.parquet", 1000, group=100)))
    assert spans(source.shards(None, 350, 10**9)) == [(0, 300), (300, 700), (700, 1000)] or all(
        start % 100 == 0 for start, _ in spans(source.shards(None, 350, 10**9))
    )
    assert max(sizes(source.shards(None, 350, 10**9))) <= 350
    big = Source.open(config(put(tmp_path / "b.parquet", 1000, group=500)))
    assert spans(big.shards(None, 200, 10**9)) == [(i, j) for base in (0, 500) for i, j in _thirds(base)]
    assert spans(big.shards(300, 1, 1)) == [(0, 300), (300, 600), (600, 900), (900, 1000)]


def _thirds(base: int) -> list[tuple[int, int]]:
    return [(base, base + 166), (base + 166, base + 333), (base + 333, base + 500)]


def test_tiny_files_are_joined_but_not_by_hand(tmp_path: Path) -> None:
    for i in range(10):
        put(tmp_path / f"{i}.jsonl", 3)
    put(tmp_path / "9.parquet", 4)
    source = Source.open(config(tmp_path))
    shards = source.shards(None, 10, 10**6)
    assert sizes(shards) == [9, 9, 9, 7]
    assert [len(shard.segments) for shard in shards] == [3, 3, 3, 2]
    docs = source.read(shards[-1])
    assert docs.file.tolist() == [9] * 3 + [10] * 4
    assert docs.row.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert docs.ids.to_pylist()[2:4] == ["9.jsonl#2", "9.parquet#0"]
    assert sizes(source.shards(100, 10, 10**6)) == [3] * 10 + [4]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz"])
def test_filters_count_exactly(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    put(tmp_path / name.removesuffix(".gz"), 1000, group=100)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    source = Source.open(config(path, filter=(("n", ">=", 250), ("n", "<", 800), ("n", "not in", [300, 301]))))
    assert source.schema.names == ["text"]
    expected = [i for i in range(250, 800) if i not in (300, 301)]
    for shards in (source.shards(None, 120, 10**6), source.shards(70, 1, 1)):
        docs = [source.read(shard) for shard in shards]
        assert sizes(shards) == [len(doc) for doc in docs]
        assert min(sizes(shards)) > 0
        assert [int(row) for doc in docs for row in doc.row] == expected
        assert [text for doc in docs for text in doc.text.to_pylist()] == [str(i) for i in expected]
    assert set(source.sample(50).text.to_pylist()) <= {str(i) for i in expected}


def test_dates_in_filters_may_be_text(tmp_path: Path) -> None:
    days = [datetime.date(2026, 3, day) for day in range(1, 31)]
    columns = {"text": [str(day) for day in days], "day": days, "at": pa.array(days).cast(pa.timestamp("us"))}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=10)
    for column in ("day", "at"):
        for part in ((column, "==", "2026-03-05"), (column, "in", ["2026-03-05"]), (column, "==", days[4])):
            (shard,) = (source := Source.open(config(tmp_path, filter=(part,)))).shards(None, 100, 10**6)
            assert source.read(shard).text.to_pylist() == ["2026-03-05"]
    with pytest.raises(SourceError, match=r"day == 'monday' does not fit the column's type date32"):
        Source.open(config(tmp_path, filter=(("day", "==", "monday"),)))


def test_groups_that_statistics_exclude_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source.open(config(put(tmp_path / "a.parquet", 1000, group=100), filter=(("n", "==", 555),)))
    read: list[tuple[int, tuple[str, ...]]] = []
    take = Cursor.take

    def spy(self: Cursor, rows: int) -> list[pa.RecordBatch]:
        read.append((self.group(self.row), self.columns))
        return take(self, rows)

    monkeypatch.setattr(Cursor, "take", spy)
    (shard,) = source.shards(None, 50, 10**6)
    assert {group for group, _ in read} == {5}
    assert {columns for _, columns in read} == {("n",)}
    assert source.read(shard).text.to_pylist() == ["555"]


def test_neighbouring_shards_decode_a_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source.open(config(put(tmp_path / "a.parquet", 1000, group=600)))
    opened: list[int] = []
    cursor = parquet.ParquetReader.cursor
    monkeypatch.setattr(parquet.ParquetReader, "cursor", lambda *args: opened.append(args[3]) or cursor(*args))
    shards = source.shards(100, 1, 1)
    assert [text for s in shards for text in source.read(s).text.to_pylist()] == [str(i) for i in range(1000)]
    assert opened == [0]
    assert source.read(shards[3]).text[0].as_py() == "300"  # back
    assert source.read(shards[4]).text[0].as_py() == "400"  # on, in the same group
    assert source.read(shards[8]).text[0].as_py() == "800"  # on, but in another group
    assert opened == [0, 300, 800]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.integers(1, 9), st.integers(1, 5))
def test_lines_are_found_across_blocks(lengths: list[int], block: int, most: int) -> None:
    raw = b"\n".join(b"\r" if n == 0 else b"x" * (n - 1) + b"y\r" for n in lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "BLOCK", block)
        runs = list(lines.cut_runs(0, lines.find_lines(pa.BufferReader(raw)), base.Limits(most, 1, exact=True)))
    found = [line for s, _ in runs for _, line in lines.split_rows(raw[s.offset : s.offset + s.length])]
    assert found == [b"x" * (n - 1) + b"y" for n in lengths if n]
    assert [row for s, _ in runs for row in range(s.start, s.stop)] == list(range(len(found)))
    assert all(raw[: s.offset].count(b"\n") == s.line for s, _ in runs)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
@pytest.mark.parametrize("rows", [None, 3, 100])
def test_a_huge_record_fails_alone_and_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: int | None
) -> None:
    monkeypatch.setattr(base, "MAX_RECORD", 1000)
    texts = ["one", "two", "x" * 5000, "three", "four"]
    if name == "a.jsonl":
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    else:
        content = ("text\n" if name == "a.csv" else "") + "\n".join(texts)
    (tmp_path / name).write_text(content)
    source = Source.open(config(tmp_path / name))
    asked: list[int] = []
    bytes_at = source._store.bytes_at
    shards = source.shards(rows, 100, 10**6)
    monkeypatch.setattr(source._store, "bytes_at", lambda *args: asked.append(args[2]) or bytes_at(*args))
    docs = [source.read(shard) for shard in shards]
    assert [text for doc in docs for text in doc.text.to_pylist()] == ["one", "two", None, "three", "four"]
    found = [(f.code, int(doc.row[f.doc]), doc.line(f.doc)) for doc in docs for f in doc.failures]
    assert found == [("record_too_large", 2, 4 if name == "a.csv" else 3)]
    assert max(asked) < 1000


def test_a_quoted_record_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_RECORD", 1000)
    (tmp_path / "a.csv").write_text('text,n\na,1\n"' + "b\n" * 600 + "c,2\n")
    source = Source.open(config(tmp_path, keep=("n",)))
    docs = [source.read(shard) for shard in source.shards(None, 10**4, 10**6)]
    codes = [failure.code for doc in docs for failure in doc.failures]
    assert codes[0] == "record_too_large"
    assert set(codes[1:]) == {"ragged_row"}
    assert [text for doc in docs for text in doc.text.drop_null().to_pylist()] == ["a", "c"]


def test_bad_rows_pass_every_filter_they_cannot_be_asked(tmp_path: Path) -> None:
    rows = [
        '{"text": "a", "n": 1}',
        "garbage",
        '{"text": "b", "n": 2}',
        '{"text": "c", "n": []}',
        '{"text": 5, "n": 2}',
    ]
    rows += ['{"text": "d", "n": 1, "k": 0}', '{"text": 6, "n": 1}', '{"text": "\\ud800", "n": 2}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    for size in (1, 3, 100):
        source = Source.open(config(tmp_path, filter=(("n", "==", 1),)))
        shards = source.shards(None, size, 10**6)
        docs = [source.read(shard) for shard in shards]
        assert sizes(shards) == [len(doc) for doc in docs]
        assert [int(row) for doc in docs for row in doc.row] == [0, 1, 3, 5, 6]
        found = [(int(doc.row[f.doc]), f.code) for doc in docs for f in doc.failures]
        assert found == [(1, "malformed_json"), (3, "bad_value"), (6, "not_text")]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (("n", "==", "five"), r"n == 'five' does not fit the column's type int64"),
        (("n", "in", ["five"]), r"does not fit the column's type int64"),
        (("n", "in", 5), r"does not fit the column's type int64"),
        (("n", "~", 5), r"not a valid operator"),
        (("text", "==", 5), r"text == 5 does not fit the column's type large_string"),
        (("m", "==", 5), r"no column m, only .* \(did you mean n\?\)|no column m"),
    ],
)
def test_filters_that_make_no_sense(tmp_path: Path, part: tuple[str, str, object], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Source.open(config(put(tmp_path / "a.parquet", 10), filter=(part,)))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_samples_are_spread_and_repeatable(tmp_path: Path, name: str) -> None:
    for part in ("x", "y", "z"):
        put(tmp_path / part / name, 3000, group=100)
    source = Source.open(config(tmp_path))
    sample = source.sample(200).text.to_pylist()
    assert sample == Source.open(config(tmp_path)).sample(200).text.to_pylist()
    assert 150 <= len(sample) <= 200
    assert len({int(text) // 500 for text in sample}) >= 4
    few = Source.open(config(put(tmp_path / "few" / name, 10)))
    assert sorted(map(int, few.sample(1000).text.to_pylist())) == list(range(10))


def test_segments_know_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\n\none\n\r\ntwo")
    (shard,) = Source.open(config(tmp_path)).shards(None, 10, 100)
    assert shard.segments == (Segment(0, 0, 2, 2, 5, 9, 2),)
