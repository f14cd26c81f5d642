"""What a path may be, what files are called, and what is said when there is nothing to read."""

import errno
import json
import os
import sys
import types
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnlp.data.sources import Source
from batchnlp.errors import CorruptError, MissingExtraError, SourceError
from batchnlp.types import SourceConfig


def config(*paths: Path | str, text: str = "text", **more: object) -> SourceConfig:
    return SourceConfig(tuple(str(path) for path in paths), text, **more)  # type: ignore[arg-type]


def put(path: Path, *texts: str, **columns: list[object]) -> Path:
    """A file whose format is that of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": pa.array(texts, pa.string()), **columns}), path)
    elif path.suffix == ".csv":
        path.write_text("text\n" + "\n".join(texts))
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def contents(source: Source) -> list[str]:
    return [text for shard in source.shards(None, 100, 10**6) for text in source.read(shard).text.to_pylist()]


def names(source: Source) -> list[str]:
    return [file.name for file in source.files]


def test_a_directory_is_read_recursively_in_order(tmp_path: Path) -> None:
    for name in (
        "b/2.jsonl",
        "b/1.csv",
        "a.parquet",
        "_batchnlp/x.jsonl",
        ".git/x.jsonl",
        "_x.jsonl",
        ".x.jsonl",
        "x.bin",
    ):
        put(tmp_path / name, name)
    source = Source.open(config(tmp_path))
    assert names(source) == ["a.parquet", "b/1.csv", "b/2.jsonl"]
    assert contents(source) == names(source)
    assert [file.format for file in source.files] == ["parquet", "csv", "jsonl"]


def test_results_inside_the_corpus_are_no_part_of_it(tmp_path: Path) -> None:
    """A second job over the same directory, or the first one again, must not read what the first one wrote."""
    put(tmp_path / "a.parquet", "a")
    put(tmp_path / "mine" / "lang=de" / "part-0.parquet", "mine")
    put(tmp_path / "other" / "part-0.parquet", "of another job")
    put(tmp_path / "other" / "_batchnlp" / "fp" / "dead" / "dead-0.parquet", "dead")
    (tmp_path / "other" / "_SUCCESS").touch()

    def read(*paths: Path | str) -> list[str]:
        return contents(Source.open(config(*paths), str(tmp_path / "mine")))

    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert read(tmp_path) == ["a"]
    for pattern in ("**/*.parquet", "**", "*", "[am]*"):
        assert read(tmp_path / pattern) == ["a"], pattern
    for pattern in ("other", "other/part-*.parquet", "other/**/*.parquet", "*/part-0.parquet"):
        assert read(tmp_path / pattern) == ["of another job"], "named"
    with pytest.raises(SourceError, match=r"matches no file .*outputs of batchnlp must be named"):
        read(tmp_path / "oth*")
    for path in ("mine", "mine/lang=de", "mine/lang=de/*.parquet", "link", "other/../mine"):
        with pytest.raises(
            SourceError, match=r"lies in the output of this job, .*/mine \(choose an output\.path beside"
        ):
            read(tmp_path / path)
    with pytest.raises(SourceError, match=r"is among the control files of a run \(its results are beside them\)"):
        read(tmp_path / "other/_batchnlp/fp/dead/*.parquet")


def test_links_to_results_are_no_corpus_of_their_own(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", "a")
    put(tmp_path / "mine" / "part-0.parquet", "mine")
    put(tmp_path / "other" / "part-0.parquet", "of another job")
    (tmp_path / "other" / "_batchnlp").mkdir()
    (tmp_path / "b.parquet").symlink_to(tmp_path / "mine" / "part-0.parquet")
    (tmp_path / "c.parquet").symlink_to(tmp_path / "other" / "part-0.parquet")
    source = Source.open(config(tmp_path, tmp_path / "other"), str(tmp_path / "mine"))
    assert contents(source) == ["a", "of another job"], "the link names it, and it counts once"


def test_links_to_files_count_once_but_for_those_into_a_cache_by_content(tmp_path: Path) -> None:
    put(tmp_path / "2024.jsonl", "x")
    (tmp_path / "latest.jsonl").symlink_to(tmp_path / "2024.jsonl")
    assert names(Source.open(config(tmp_path))) == ["2024.jsonl"]
    put(tmp_path / "cache" / "blobs" / "abc", "y")
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / "cache" / name).symlink_to(tmp_path / "cache" / "blobs" / "abc")
    assert names(Source.open(config(tmp_path / "cache"))) == ["test.jsonl", "train.jsonl"]


def test_links_to_directories_are_followed_and_count_once(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "x.jsonl", "x")
    put(tmp_path / "corpus" / "a" / "y.jsonl", "y")
    (tmp_path / "corpus" / "far").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "z-again").symlink_to(tmp_path / "corpus" / "a")
    (tmp_path / "corpus" / "a" / "loop").symlink_to(tmp_path / "corpus")
    assert names(Source.open(config(tmp_path / "corpus"))) == ["a/y.jsonl", "far/x.jsonl"]


@pytest.mark.parametrize("path", ["", "*.jsonl", "b.jsonl"])
def test_a_link_to_nothing_is_no_document_lost_in_silence(tmp_path: Path, path: str) -> None:
    put(tmp_path / "a.jsonl", "a")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(SourceError, match=r"b\.jsonl is a link to nothing \(mend it, or leave it out\)"):
        Source.open(config(tmp_path / path))


def test_a_directory_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a" / "a.jsonl", "a")
    put(tmp_path / "b" / "b.jsonl", "b")
    scandir = os.scandir

    def denied(path: str) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(SourceError, match=r"/b cannot be listed: Permission denied \(make it readable, or leave"):
        Source.open(config(tmp_path))


@pytest.mark.parametrize("pattern", ["**/*.jsonl", "*/*.jsonl", "b/*.jsonl", "[b]/deep/*.jsonl"])
def test_a_pattern_loses_no_directory_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    put(tmp_path / "a" / "a.jsonl", "a")
    put(tmp_path / "b" / "deep" / "b.jsonl", "b")
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).rstrip("/").endswith("/b"))
    with pytest.raises(SourceError, match=r"/b cannot be listed: Permission denied \(make it readable, or leave"):
        Source.open(config(tmp_path / pattern))
    assert contents(Source.open(config(tmp_path / "a/*.jsonl"))) == ["a"]


def test_a_place_that_cannot_be_looked_at_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: str) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(SourceError, match=r"x\.jsonl does not exist \(.* cannot be listed: Permission denied\)"):
        Source.open(config(tmp_path / "x.jsonl"))


def test_globs_and_files_count_once(tmp_path: Path) -> None:
    for name in ("a/1.jsonl", "a/b/2.jsonl", "c/3.jsonl", "c/4.csv"):
        put(tmp_path / name, name)
    assert names(Source.open(config(tmp_path / "**/*.jsonl"))) == ["a/1.jsonl", "a/b/2.jsonl", "c/3.jsonl"]
    assert names(Source.open(config(tmp_path / "c/?.jsonl"))) == ["3.jsonl"]
    assert names(Source.open(config(tmp_path / "[ab]"))) == ["1.jsonl", "b/2.jsonl"]
    twice = Source.open(
        config(tmp_path / "c" / "4.csv", tmp_path / "c/*", tmp_path / "a", f"{tmp_path}/a/../a/*.jsonl")
    )
    assert names(twice) == ["c/4.csv", "c/3.jsonl", "a/1.jsonl", "a/b/2.jsonl"]


def test_the_format_can_be_forced(tmp_path: Path) -> None:
    (tmp_path / "data").write_text('{"text": "x"}\n')
    assert contents(Source.open(config(tmp_path / "data", format="jsonl"))) == ["x"]
    with pytest.raises(SourceError, match=r"data: the name does not say its format \(set source\.format"):
        Source.open(config(tmp_path / "data"))
    with pytest.raises(SourceError, match=r"'xml' is unknown"):
        Source.open(config(tmp_path / "data", format="xml"))


def test_uris(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/a.jsonl", b'{"text": "one"}\n')
    memory.pipe("/corpus/b/c.jsonl", b'{"text": "two"}\n')
    with memory.open("/corpus/d.parquet", "wb") as out:
        pq.write_table(pa.table({"text": ["three"]}), out)
    source = Source.open(config("memory://corpus"))
    assert names(source) == ["a.jsonl", "b/c.jsonl", "d.parquet"]
    assert contents(source) == ["one", "two", "three"]
    assert names(Source.open(config("memory://corpus/*.jsonl"))) == ["a.jsonl"]
    put(tmp_path / "x.jsonl", "four")
    mixed = Source.open(config("memory://corpus/b/c.jsonl", f"file://{tmp_path}/x.jsonl"))
    assert contents(mixed) == ["two", "four"]
    assert len(set(names(mixed))) == 2
    shards = source.shards(None, 100, 1000)
    memory.pipe("/corpus/a.jsonl", b'{"text": "changed"}\n')
    with pytest.raises(CorruptError, match=r"a\.jsonl changed since the plan"):
        source.read(shards[0])
    with pytest.raises(SourceError, match="memory://nothing does not exist"):
        Source.open(config("memory://nothing"))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtraError, match=r"s3fs \(pip install 'batchnlp\[s3\]'\)"):
        Source.open(config("s3://bucket/a.parquet"))


def test_data_sets_saved_to_disk(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(30)], "n": list(range(30))})
    one.save_to_disk(tmp_path / "one", num_shards=2)
    source = Source.open(config(tmp_path / "one", keep=("n",)))
    assert contents(source) == one["text"][:]
    assert names(source) == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    datasets.DatasetDict({"train": one, "test": one.select(range(3))}).save_to_disk(tmp_path / "two")
    assert len(contents(Source.open(config(tmp_path / "two")))) == 30
    assert contents(Source.open(config(tmp_path / "two", split="test"))) == ["t0", "t1", "t2"]
    with pytest.raises(SourceError, match=r"no split 'tset', only train, test \(did you mean test\?\)"):
        Source.open(config(tmp_path / "two", split="tset"))
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(SourceError, match=r"arrow cannot be read: No such file"):
        Source.open(config(tmp_path / "one"))
    datasets.DatasetDict({"dev": one}).save_to_disk(tmp_path / "three")
    assert len(contents(Source.open(config(tmp_path / "three")))) == 30


def test_data_sets_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(tmp_path / "cache")
    asked = []

    def load(name: str, split: str) -> object:
        asked.append((name, split))
        if name != "org/name":
            raise ValueError("no such data set")
        return types.SimpleNamespace(cache_files=[{"filename": str(next((tmp_path / "cache").glob("*.arrow")))}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert contents(Source.open(config("datasets://org/name"))) == ["one", "two"]
    Source.open(config("datasets://org/name", split="test"))
    assert asked == [("org/name", "train"), ("org/name", "test")]
    with pytest.raises(SourceError, match="datasets://org/none cannot be loaded: no such data set"):
        Source.open(config("datasets://org/none"))


def test_nothing_to_read(tmp_path: Path) -> None:
    put(tmp_path / "corpus.jsonl", "x")
    (tmp_path / "empty").mkdir()
    cases = {
        "corpsu.jsonl": r"corpsu\.jsonl does not exist \(did you mean .*/corpus\.jsonl\?\)$",
        "zzz": r"zzz does not exist \(nothing in .* has a name like it\)$",
        "no/such": r"such does not exist \(there is no directory .*/no\)$",
        "empty": r"empty holds no readable file \(known are \.parquet",
        "*.csv": r"\*\.csv matches no file \(check the pattern",
    }
    for name, message in cases.items():
        with pytest.raises(SourceError, match=message) as caught:
            Source.open(config(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match=r"source\.path is empty"):
        Source.open(config())


def test_hive_partitions(tmp_path: Path) -> None:
    places = [
        "lang=de/year=2023/month=01",
        "lang=a%2Fb/year=-1/month=12",
        "lang=__HIVE_DEFAULT_PARTITION__/year=2024/month=02",
    ]
    for i, place in enumerate(places):
        put(tmp_path / place / "a.jsonl", str(i))
    source = Source.open(config(tmp_path, keep=("lang", "year", "month"), filter=(("year", ">", 0),)))
    assert [str(source.schema.field(name).type) for name in ("lang", "year", "month")] == ["string", "int64", "string"]
    (shard,) = source.shards(None, 100, 1000)
    docs = source.read(shard)
    rows = {(r["lang"], r["year"], r["month"]) for r in docs.keep.to_pylist()}
    assert rows == {("de", 2023, "01"), (None, 2024, "02")}
    everything = Source.open(config(tmp_path, keep=("lang",)))
    assert "a/b" in everything.read(everything.shards(None, 100, 1000)[0]).keep.column("lang").to_pylist()
    with pytest.raises(SourceError, match=r"year == '2023' does not fit the column's type int64"):
        Source.open(config(tmp_path, filter=(("year", "==", "2023"),)))


def test_a_column_in_the_file_goes_before_its_partition(tmp_path: Path) -> None:
    put(tmp_path / "lang=xx" / "a.parquet", "t", lang=["de"])
    put(tmp_path / "lang=fr" / "b.jsonl", "u")
    source = Source.open(config(tmp_path, keep=("lang",)))
    docs = source.read(source.shards(None, 100, 1000)[0])
    assert sorted(docs.keep.column("lang").to_pylist()) == ["de", "fr"]


def test_a_file_that_changed_or_went_is_noticed(tmp_path: Path) -> None:
    path = put(tmp_path / "a.parquet", "x")
    source = Source.open(config(path))
    (shard,) = source.shards(None, 100, 1000)
    os.utime(path, ns=(1, 1))
    with pytest.raises(CorruptError, match=r"a\.parquet changed since the plan"):
        source.read(shard)
    path.unlink()
    with pytest.raises(CorruptError, match=r"a\.parquet is gone since the plan"):
        source.read(shard)


def test_a_directory_that_two_paths_reach_counts_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("one\ntwo\n")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b")
    config = SourceConfig(paths=(str(tmp_path / "a"), str(tmp_path / "b")), text="text")
    assert len(Source.open(config).files) == 2
