"""The join of a corpus with what is known of it: over many partitions it is that of two dictionaries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nightly import counts

from batchnlp.data import changes
from batchnlp.data.changes import Before, Bits, Changes, Record, Spill, compare
from batchnlp.data.known import KnownRows, known_rows, known_schema, parquet_writer
from batchnlp.data.sources.selection import pack, positions
from batchnlp.data.store import LocalStore
from batchnlp.types import Docs

Known = dict[int, str]


def as_rows(rows: Known) -> pa.Table:
    docs = Docs.of(pa.array(list(rows.values()), pa.large_string()))
    ids = pa.array([f"id-{i}" for i in rows], pa.string())
    return known_rows(Docs(ids, docs.text, docs.keep, docs.columns, docs.file, docs.row))


@given(
    st.dictionaries(st.integers(0, 60), st.sampled_from("abc")), st.dictionaries(st.integers(0, 60), st.sampled_from("abc")),
    st.sets(st.integers(0, 60)), st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_the_join_over_many_partitions_is_that_of_two_dictionaries(
    tmp_path_factory: pytest.TempPathFactory, then: Known, now: Known, failed: set[int], same_recipe: bool
) -> None:
    folder = tmp_path_factory.mktemp("join")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "PARTITION", 4)
        patch.setattr(changes, "FLUSH", 7)
        store, schema = LocalStore(folder), known_schema(pa.string())
        first = Spill(str(folder / "a"), len(then))
        first.add(as_rows(then).append_column("at", pa.array(range(len(then)), pa.int64())))
        with parquet_writer(store, "state.parquet", schema) as writer:
            keep = Record(lambda rows: writer.write_table(rows.select(schema.names).cast(schema)))
            compare(first, None, Changes(), lambda at: None, keep)
        dead = as_rows({i: then[i] for i in sorted(failed & then.keys())}).select(["key", "id"])
        dead = dead.set_column(1, "id", dead["id"].cast(pa.large_string())).sort_by("key")
        before = Before(KnownRows(store.path("state.parquet"), ""), dead, same_recipe)
        assert before.rows.rows == len(then)
        second, found, bits, gone = Spill(str(folder / "b"), 2 * len(now)), Changes(rows=len(now)), Bits(len(now)), []
        for start in range(0, len(now), 3):
            some = as_rows(now).append_column("at", pa.array(range(len(now)), pa.int64())).slice(start, 3)
            second.add(some)
        compare(second, before, found, bits.set, Record(gone=lambda ids: gone.extend(ids.to_pylist())))
        before.rows.close()

    def why(i: int) -> str:
        if i not in then:
            return "new"
        if then[i] != now[i]:
            return "changed"
        return "previously_failed" if i in failed else "unchanged" if same_recipe else "model_changed"

    reasons = [why(i) for i in now]
    want = counts(rows=len(now), deleted=len(then.keys() - now.keys()), **{r: reasons.count(r) for r in {*reasons}})
    assert {name: getattr(found, name) for name in want} == want
    assert bits.between(0, len(now)).tolist() == [reason != "unchanged" for reason in reasons]
    assert sorted(gone) == sorted(f"id-{i}" for i in then.keys() - now.keys())


@given(st.lists(st.booleans()))
def test_a_selection_is_read_as_it_was_written(chosen: list[bool]) -> None:
    assert positions(pack(np.array(chosen, np.bool_))).tolist() == [i for i, one in enumerate(chosen) if one]


def test_rows_are_told_apart_by_all_their_columns() -> None:
    def content(text: str | None, keep: dict[str, list[Any]]) -> bytes:
        docs = Docs.of(pa.array([text], pa.large_string()))
        rows = known_rows(
            Docs(docs.ids.cast(pa.string()), docs.text, pa.table(keep), docs.columns, docs.file, docs.row)
        )
        return bytes(rows["content"][0].as_py())

    found = [
        content("ab", {"k": ["c"]}), content("a", {"k": ["bc"]}), content(None, {"k": ["c"]}), content("", {"k": ["c"]}),
        content("ab", {"k": [None]}), content("ab", {"k": [["c"]]}), content("ab", {"k": [{"c": 1}]}),
        content("ab", {"k": [1.5]}),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
