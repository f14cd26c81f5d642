"""An output is proved from its files alone, and each kind of damage is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from outputs import ROWS, Run, letters, results

from batchnlp.data.verify import verify


def test_verify_of_a_whole_run(run: Run) -> None:
    run.complete(dead=1)
    verdict = verify(run.store.root)
    assert verdict.problems == []
    assert (verdict.rows, verdict.ok, verdict.dead, verdict.files, verdict.duplicate_ids) == (18, 15, 3, 6, 0)


def the_problem(run: Run) -> str:
    problems = verify(run.store.root).problems
    assert problems, "verify found nothing"
    return "\n".join(problems)


@pytest.mark.parametrize("kind", ["rows", "dead"])
def test_verify_finds_a_missing_file(run: Run, kind: str) -> None:
    run.complete(dead=1)
    name = next(f.name for f in run.ledger.commits()[1].files if f.kind == kind)
    os.unlink(run.store.path(name))
    assert f"{run.store.path(name)} was committed and is gone" in the_problem(run)


def test_verify_finds_a_damaged_byte_anywhere(run: Run) -> None:
    run.complete()
    path = Path(run.store.path(run.ledger.commits()[1].files[0].name))
    whole = path.read_bytes()
    for at in (0, 4, len(whole) // 2, len(whole) - 1):
        data = bytearray(whole)
        data[at] ^= 1
        path.write_bytes(data)
        assert f"{path} is damaged" in the_problem(run)
    path.write_bytes(whole + b"\0")
    assert f"{path} has {len(whole) + 1:,} bytes instead of {len(whole):,}" in the_problem(run)
    path.write_bytes(whole)
    assert verify(run.store.root).problems == []


def test_verify_finds_a_missing_commit(run: Run) -> None:
    run.complete()
    run.store.remove(f"{run.ledger.control}/commits/00001.json")
    assert "shard 1 is not committed" in the_problem(run)


def test_many_missing_commits_are_one_line(tmp_path: Path) -> None:
    run = Run(tmp_path, shards=9)
    run.commit(run.write(0))
    assert verify(run.store.root).problems == [
        f"run {run.ledger.run}: 8 of 9 shards (the first: 1) are not committed; run the job again",
        f"run {run.ledger.run} is not complete: no manifest; run the job again",
    ]


def test_rows_without_an_id_are_no_duplicates(tmp_path: Path) -> None:
    run = Run(tmp_path, shards=1, facts={"source": {"id": "key"}})
    lost = letters(0, 2)
    lost = lost.set_column(0, "id", pa.nulls(2, pa.string()))
    measured: dict[str, Any] = {"tokens": 1, "executed": 1, "seconds": {}}
    run.commit(run.writer.write(0, "a", results(0, dead=2), lost, measured))
    run.finish()
    verdict = verify(run.store.root)
    assert (verdict.problems, verdict.duplicate_ids) == ([], 0)


@pytest.mark.parametrize(("key", "value"), [("rows", 1), ("ok", 1), ("dead", 1), ("files", [])])
def test_verify_finds_a_changed_manifest(run: Run, key: str, value: Any) -> None:
    run.complete()
    path = Path(run.store.path(f"{run.ledger.control}/manifest.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert "manifest" in the_problem(run)


def test_verify_finds_what_is_missing_at_the_end(run: Run) -> None:
    run.complete()
    run.store.remove("_SUCCESS")
    assert "_SUCCESS is missing" in the_problem(run)
    run.store.remove(f"{run.ledger.control}/manifest.json")
    assert "no manifest" in the_problem(run)


def test_verify_compares_the_ids_with_those_that_went_in(run: Run) -> None:
    """A file swapped for another with as many rows, its checksum put right: only the ids tell."""
    run.complete()
    path = Path(run.store.path(f"{run.ledger.control}/commits/00001.json"))
    tree = json.loads(path.read_text())
    tree["ids_hash"] = run.ledger.commits()[0].ids_hash
    path.write_text(json.dumps(tree))
    assert "the ids are not those that went in" in the_problem(run)


def test_verify_reports_generated_ids_that_are_there_twice(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", shards=2)
    measured: dict[str, Any] = {"tokens": 1, "executed": 1, "seconds": {}}
    for shard in (0, 1):
        run.commit(run.writer.write(shard, "a", results(0), letters(0, 0), measured))
    run.finish()
    verdict = verify(run.store.root)
    assert verdict.duplicate_ids == ROWS
    assert verdict.problems == [f"run {run.ledger.run}: {ROWS} generated ids are there twice"]


OTHER = "fedcba98" * 8


@pytest.mark.parametrize(("facts", "problems"), [({"source": {"id": None}}, 1), ({"source": {"id": "key"}}, 0)])
def test_verify_finds_ids_that_two_appended_runs_share(tmp_path: Path, facts: dict[str, Any], problems: int) -> None:
    Run(tmp_path, shards=3, facts=facts).complete()
    Run(tmp_path, shards=2, facts=facts, print_=OTHER).complete()
    verdict = verify(str(tmp_path))
    assert verdict.duplicate_ids == 2 * ROWS
    assert len(verdict.problems) == problems
    assert not problems or verdict.problems[0].startswith(
        f"run fedcba98: {2 * ROWS} generated ids are in a run before it"
    )


def test_success_speaks_for_all_live_runs(tmp_path: Path) -> None:
    first, second = Run(tmp_path, shards=1), Run(tmp_path, shards=1, facts={"source": {"id": "key"}}, print_=OTHER)
    first.complete()
    assert first.store.read("_SUCCESS") is None, "the second one is not complete"
    second.complete()
    assert json.loads(second.store.read("_SUCCESS") or b"") == {"runs": ["01234567", "fedcba98"], "rows": 12, "dead": 0}
    success = second.store.read("_SUCCESS") or b""
    second.finish(success=False)
    assert second.store.read("_SUCCESS") is None
    assert verify(str(tmp_path)).problems == []
    second.store.replace("_SUCCESS", success)
    assert "_SUCCESS is there, but not all runs are complete" in the_problem(second)


DAMAGE = [b"", b"{", b"[1]", b"null", b"{}", b"\xff\xfe", b'{"format": 1, "files": 3, "shards": [[7]], "rows": "x"}']


@pytest.mark.parametrize("data", DAMAGE)
@pytest.mark.parametrize("name", ["plan.json", "manifest.json", "commits/00001.json"])
def test_a_damaged_control_file_is_a_problem_that_names_it(run: Run, name: str, data: bytes) -> None:
    run.complete()
    run.store.replace(f"{run.ledger.control}/{name}", data)
    problems = [p for p in verify(run.store.root).problems if run.store.path(f"{run.ledger.control}/{name}") in p]
    assert len(problems) == 1
    assert " is damaged" in problems[0]
    assert "run the job again" in problems[0]


def test_every_damaged_commit_is_named_and_those_that_belong_nowhere(run: Run) -> None:
    run.complete()
    commits = f"{run.ledger.control}/commits"
    for name in ("00000.json", "00002.json"):
        run.store.replace(f"{commits}/{name}", b"{")
    run.store.replace(f"{commits}/00007.json", b"{")
    run.store.replace(f"{commits}/00001.json~", b"an editor's")
    problems = the_problem(run)
    assert "00000.json is damaged" in problems
    assert "00002.json is damaged" in problems
    assert "the commit of shard 7 belongs to another plan" in problems
