"""A document that ends its worker, or never comes to an end: found, and a dead letter among the results of all others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from processes import DEADLINE, start

import batchnlp
from batchnlp import failpoints
from batchnlp.data.collect import read_dead, tables
from batchnlp.data.verify import verify
from batchnlp.engine.suspects import ALONE
from batchnlp.errors import WorkerLostError

ROWS, BAD = 40, 17
POISON = "poisonous"


@pytest.fixture
def spec(tmp_path: Path, classifier: str) -> dict[str, Any]:
    """Two shards, in one of which a document is deadly wherever a failpoint looks for it."""
    texts = tiny.texts(ROWS)
    texts[BAD] += f" {POISON}"
    pq.write_table(pa.table({"text": texts}), tmp_path / "docs.parquet")
    return {
        "source": {"path": str(tmp_path / "docs.parquet"), "rows_per_shard": ROWS // 2},
        "task": {"kind": "classify", "model": classifier},
        "engine": {"runner": "inline", "dtype": "float32", "device": "cpu", "backend": "torch"},
        "output": {"path": str(tmp_path / "out")},
        "limits": {"max_failed": 1},
    }


def assert_isolated(out: Path, code: str) -> None:
    """All rows but the bad one have results, in order; that one says how it ended its workers, in the Part of its shard."""
    assert verify(str(out)).problems == []
    ids = pa.concat_tables(tables(str(out)))["id"].to_pylist()
    assert ids == [f"docs.parquet#{i}" for i in range(ROWS) if i != BAD]
    (dead,) = pa.concat_tables(tables(str(out), read_dead)).to_pylist()
    assert (dead["id"], dead["stage"], dead["code"]) == (f"docs.parquet#{BAD}", "forward", code)
    assert dead["attempts"] > ALONE
    assert not list(out.glob("_batchnlp/*/suspects/*")), "what is done is suspected no more"


def test_a_document_that_ends_the_process_inline(spec: dict[str, Any], tmp_path: Path) -> None:
    """The attempt is on disk before it begins; each resume knows more, and the last one gets through."""
    codes: list[int] = []
    while not codes or codes[-1] == 1:
        process = start(tmp_path, spec, **{failpoints.VARIABLE: f"forward=exit?{POISON}"})
        _, stderr = process.communicate(timeout=DEADLINE)
        codes.append(process.returncode)
        assert len(codes) < 8, stderr
    assert codes == [1, 1, 1, 1, 0], "among others, alone with its shard, and twice as a row"
    assert_isolated(tmp_path / "out", "worker_lost")


def test_a_document_that_never_ends_inline(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread cannot be ended: the run ends instead, and says so."""
    monkeypatch.setattr(failpoints, "_POINTS", failpoints._parse(f"forward=hang?{POISON}"))
    spec["limits"]["batch_seconds"] = 3
    for _ in range(4):
        with pytest.raises(WorkerLostError, match=r"nothing has moved for \d+ s, with shard 0.* under way \(the same"):
            batchnlp.run(spec)
    assert batchnlp.run(spec).codes == {"hung": 1}
    assert_isolated(tmp_path / "out", "hung")


def test_a_document_that_ends_its_replica(spec: dict[str, Any], tmp_path: Path) -> None:
    """Ray's workers are replaced, and the run goes on by itself."""
    spec["engine"] |= {"runner": "ray", "replicas": 1}
    process = start(tmp_path, spec, **{failpoints.VARIABLE: f"forward=exit?{POISON}"})
    stdout, stderr = process.communicate(timeout=2 * DEADLINE)
    assert process.returncode == 0, stderr
    last = json.loads(stdout.splitlines()[-1])
    assert (last["status"], last["codes"]) == ("done", {"worker_lost": 1})
    assert "4 replicas lost" in last["notes"]
    assert "replica-0 was lost, with" in stderr
    assert_isolated(tmp_path / "out", "worker_lost")


def test_a_crash_of_the_driver_is_no_fault_of_its_documents(spec: dict[str, Any], tmp_path: Path) -> None:
    """What was under way by chance is suspected, runs alone, and has all of its results."""
    process = start(tmp_path, spec, **{failpoints.VARIABLE: "write=kill"})
    process.communicate(timeout=DEADLINE)
    assert process.returncode == -9
    assert list((tmp_path / "out").glob("_batchnlp/*/suspects/*")), "it was noted"
    result = batchnlp.run(spec)
    assert (result.status, result.rows, result.dead) == ("done", ROWS, 0)
    assert verify(result.output).problems == []
