"""Ids that are there more than once: found before anything is computed, and done with as the job says."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchnlp
from batchnlp.data.collect import read_dead, tables
from batchnlp.data.sources import Source, repeats
from batchnlp.data.sources.repeats import Ids, find_repeats, hashes
from batchnlp.data.verify import verify
from batchnlp.errors import SourceError
from batchnlp.evaluate.outputs import Output
from batchnlp.types import SourceConfig

NAMES = st.lists(
    st.one_of(st.none(), st.sampled_from(["a", "b", "", "ab", "ba", "a~2"]), st.text(max_size=20)), max_size=60
)


@given(NAMES, st.integers(1, 7), st.sampled_from([1, 5, 1 << 20]))
def test_they_are_what_counting_finds(names: list[str | None], step: int, memory: int) -> None:
    blocks = [
        Ids(start // step, np.arange(len(part)), pa.array(part, pa.string()))
        for start in range(0, len(names), step)
        if (part := names[start : start + step])
    ]
    before, repeats.IN_MEMORY = repeats.IN_MEMORY, memory
    try:
        found = find_repeats(blocks, len(names)).to_pylist()
    finally:
        repeats.IN_MEMORY = before
    first: dict[str, tuple[int, int]] = {}
    count: Counter[str] = Counter()
    want = []
    for at, name in enumerate(names):
        if name is None:
            continue
        place = divmod(at, step)
        count[name] += 1
        if count[name] > 1:
            want.append((*place, count[name], *first[name]))
        first.setdefault(name, place)
    assert [tuple(row.values()) for row in found] == want


@given(st.lists(st.text(), unique=True, max_size=50), st.integers(1, 40))
def test_other_ids_have_other_hashes(names: list[str], block: int) -> None:
    before, repeats.BLOCK = repeats.BLOCK, block
    try:
        a, b = hashes(pa.array(["left out", *names, "left out"], pa.large_string()).slice(1, len(names)))
    finally:
        repeats.BLOCK = before
    assert len(set(a.tolist())) == len(set(b.tolist())) == len(names)
    alone = [hashes(pa.array([name], pa.large_string()))[0][0] for name in names]
    assert alone == a.tolist(), "whatever stands beside it"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three ids a file; x in all of them, twice in the first."""
    top = tmp_path / "in"
    top.mkdir()
    for i, ids in enumerate((["x", "a", "x"], ["b", "x", None], ["c", "d", "x"])):
        pq.write_table(pa.table({"doc": ids, "text": [f"text {i} {j}" for j in range(3)]}), top / f"{i}.parquet")
    return top


def job(folder: Path, out: Path, model: str, **source: Any) -> dict[str, Any]:
    return {
        "source": {"path": str(folder), "id": "doc", "rows_per_shard": 2, **source},
        "task": {"kind": "classify", "model": model}, "engine": {"runner": "inline"},
        "output": {"path": str(out)}, "limits": {"max_failed": 1},
    }  # fmt: skip


def test_fail_names_the_first_and_starts_nothing(folder: Path, tmp_path: Path, classifier: str) -> None:
    with pytest.raises(SourceError) as error:
        batchnlp.run(job(folder, tmp_path / "out", classifier))
    assert str(error.value) == (
        "0.parquet: row 2 has the id of row 0 of 0.parquet; 3 rows of the corpus repeat an id (set "
        "source.on_duplicate_id to keep_first or suffix, or name another source.id)"
    )
    assert not (tmp_path / "out" / "_batchnlp" / "current.json").exists()
    assert not list((tmp_path / "out").rglob("plan.json"))


def test_keep_first_makes_the_others_dead_letters_that_count_for_nothing(
    folder: Path, tmp_path: Path, classifier: str
) -> None:
    out = tmp_path / "out"
    result = batchnlp.run(job(folder, out, classifier, on_duplicate_id="keep_first"))
    assert (result.status, result.rows, result.dead) == ("done", 9, 4)
    assert result.codes == {"duplicate_id": 3, "null_id": 1}
    assert [id_ for table in tables(str(out)) for id_ in table["id"].to_pylist()] == ["x", "a", "b", "c", "d"]
    letters = [row for table in tables(str(out), read_dead) for row in table.to_pylist()]
    assert [(r["id"], r["file"], r["row"], r["code"]) for r in letters] == [
        ("x", "0.parquet", 2, "duplicate_id"), ("x", "1.parquet", 1, "duplicate_id"),
        (None, "1.parquet", 2, "null_id"), ("x", "2.parquet", 2, "duplicate_id"),
    ]  # fmt: skip
    assert letters[3]["message"] == "row 0 of 0.parquet has the same id"
    assert verify(str(out)).problems == []


def test_suffix_numbers_them(folder: Path, tmp_path: Path, classifier: str) -> None:
    out = tmp_path / "out"
    result = batchnlp.run(job(folder, out, classifier, on_duplicate_id="suffix"))
    assert (result.status, result.rows, result.dead) == ("done", 9, 1)
    found = [id_ for table in tables(str(out)) for id_ in table["id"].to_pylist()]
    assert found == ["x", "a", "x~2", "b", "x~3", "c", "d", "x~4"]
    verdict = verify(str(out))
    assert (verdict.problems, verdict.duplicate_ids) == ([], 0)


def test_their_texts_are_found_by_the_ids_that_they_got(folder: Path, tmp_path: Path, classifier: str) -> None:
    """Which evaluations ask for."""
    batchnlp.run(job(folder, tmp_path / "out", classifier, on_duplicate_id="suffix"))
    found = Output.at(str(tmp_path / "out")).texts(pa.array(["x~3", "x", "c"]))
    assert found.to_pylist() == ["text 1 1", "text 0 0", "text 2 0"]


def test_a_shard_of_nothing_but_lost_rows_has_none(tmp_path: Path, classifier: str) -> None:
    lines = "".join(f'{{"doc": "{name}", "text": "text {i}"}}\n' for i, name in enumerate("abab"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-8])
    more: dict[str, Any] = {"on_duplicate_id": "keep_first", "on_bad_file": "salvage"}
    result = batchnlp.run(job(tmp_path / "a.jsonl.gz", tmp_path / "out", classifier, **more))
    assert (result.status, result.codes) == ("done", {"duplicate_id": 2, "lost_rows": 1})
    assert verify(str(tmp_path / "out")).problems == []


def test_a_suffix_that_is_taken_is_refused(tmp_path: Path, classifier: str) -> None:
    pq.write_table(pa.table({"doc": ["x", "x~2", "x"], "text": ["a", "b", "c"]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"has an id that a repeated one would get, as x~2 for x"):
        batchnlp.run(job(tmp_path / "a.parquet", tmp_path / "out", classifier, on_duplicate_id="suffix"))


def test_numbers_become_strings_where_they_get_a_suffix(tmp_path: Path, classifier: str) -> None:
    pq.write_table(pa.table({"doc": [7, 8, 7], "text": ["a", "b", "c"]}), tmp_path / "a.parquet")
    batchnlp.run(job(tmp_path / "a.parquet", tmp_path / "out", classifier, on_duplicate_id="suffix"))
    (one, two) = tables(str(tmp_path / "out"))
    assert [*one["id"].to_pylist(), *two["id"].to_pylist()] == ["7", "8", "7~2"]


def test_only_rows_that_the_filter_chooses_count(tmp_path: Path) -> None:
    pq.write_table(pa.table({"doc": ["x", "x", "y"], "text": ["a", "b", "c"], "k": [1, 2, 2]}), tmp_path / "a.parquet")
    source = Source.open(SourceConfig((str(tmp_path),), "text", id="doc", filter=(("k", "==", 2),)))
    assert len(source.find_repeats(source.shards(None, 10, 1000))) == 0


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_line_formats_too(tmp_path: Path, name: str) -> None:
    lines = {
        "a.jsonl": ['{"doc": 1, "text": "a"}', "no json", '{"doc": 2, "text": "b"}', '{"doc": 1, "text": "c"}'],
        "a.csv": ["doc,text", "1,a", "1", "2,b", "1,c"],
    }[name]
    (tmp_path / name).write_text("\n".join(lines))
    source = Source.open(SourceConfig((str(tmp_path),), "text", id="doc", on_duplicate_id="keep_first"))
    assert [row["row"] for row in source.find_repeats(source.shards(None, 10, 1000)).to_pylist()] == [3]


def test_generated_ids_are_not_looked_through(folder: Path) -> None:
    source = Source.open(SourceConfig((str(folder),), "text"))
    assert len(source.find_repeats(source.shards(None, 10, 1000))) == 0
