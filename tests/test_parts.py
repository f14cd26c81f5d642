"""What a worker writes: partitions that stay below the output, and a hash of ids that counts."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st
from outputs import ROWS, SCHEMA, Run, letters, results

from batchnlp.data.collect import read_part
from batchnlp.data.parts import ids_hash, part_from_json, staging_folder
from batchnlp.data.verify import verify
from batchnlp.errors import BatchnlpError
from batchnlp.types import Segment, Shard

# --- hash of ids


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5)), st.randoms())
def test_the_hash_of_ids_knows_no_order(ids: list[str], random: Any) -> None:
    shuffled = [*ids]
    random.shuffle(shuffled)
    assert ids_hash(pa.array(ids, pa.string())) == ids_hash(pa.array(shuffled, pa.large_string()))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.lists(st.integers(0, 50), max_size=9))
def test_the_hash_of_ids_counts(a: list[int], b: list[int]) -> None:
    """Twice is not never: an exclusive-or would say so."""
    assert (ids_hash(pa.array(a, pa.int64())) == ids_hash(pa.array(b, pa.int64()))) == (Counter(a) == Counter(b))


def test_a_null_id_is_not_an_empty_one() -> None:
    assert ids_hash(pa.array([None], pa.string())) != ids_hash(pa.array([""], pa.string()))


# --- partitions

HOSTILE = ["..", ".", "a/b", "/etc/passwd", "", None, "__HIVE_DEFAULT_PARTITION__", "a=b", "ü %2F", "nul\x00", "x" * 60]


def test_hostile_partition_values_stay_below_the_output_and_the_order_comes_back(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "out"
    run = Run(root, shards=1, partition_by=["lang"])
    langs = [HOSTILE[i % len(HOSTILE)] for i in range(len(HOSTILE) * 3)]
    table = pa.table(
        [[f"a#{i}" for i in range(len(langs))], langs, np.arange(len(langs), dtype=np.float32)], schema=SCHEMA
    )
    part = run.writer.write(0, "a", table, letters(0, 0), {"tokens": 1, "executed": 1, "seconds": {}})
    run.ledger.commit(part, Shard(0, (Segment(0, 0, len(langs), len(langs)),)), "i")
    assert read_part(run.ledger, part) == table
    rows = [f for f in part.files if f.kind == "rows"]
    assert sum(f.rows for f in rows) == len(langs)
    for file in rows:
        path = Path(os.path.realpath(run.store.path(file.name)))
        assert path.is_relative_to(root), file.name
        assert path.parent.parent == root, "one folder a value, directly below the output"
        assert len(set(pq.ParquetFile(path).read()["lang"].to_pylist())) <= 2
    assert {p.name for p in tmp_path.rglob("*.parquet")} == {p.name for p in root.rglob("*.parquet")}


def test_a_partition_value_too_long_for_a_file_name_is_no_traceback(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", partition_by=["lang"])
    with suppress(BatchnlpError):  # a refusal in one line would do as well
        part = run.write(0, langs=("日" * 100,))
        assert run.commit(part)
        assert read_part(run.ledger, part) == results(0, langs=("日" * 100,))


def test_partitions_of_two_keys_nest_in_order(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", partition_by=["lang", "id"])
    part = run.write(0)
    names = [f.name for f in part.files if f.kind == "rows"]
    assert len(names) == ROWS
    assert all(n.startswith("lang=") and "/id=a.parquet%23" in n and n.count("/") == 2 for n in names)
    run.commit(part)
    assert read_part(run.ledger, part) == results(0)


def test_a_shard_of_dead_letters_alone(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", shards=1, partition_by=["lang"])
    part = run.write(0, dead=ROWS)
    assert [f.kind for f in part.files] == ["dead"]
    run.commit(part)
    assert read_part(run.ledger, part) is None
    run.finish()
    assert verify(run.store.root).problems == []


def test_part_json_is_the_part(run: Run) -> None:
    part = run.write(0, dead=1)
    tree = json.loads(run.store.read(f"{staging_folder(run.ledger.control, 0, 'one')}/part.json") or b"")
    assert part_from_json(tree) == part
    assert tree.pop("note") == ""
    assert part_from_json(tree) == part, "outputs begun before parts had a note go on"
