"""The commit protocol: whatever crashes, and whoever comes late, each row counts once."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from outputs import FACTS, PRINT, RESOLVED, Crash, CrashingStore, Run, make_plan

from batchnlp.data.ledger import Ledger, open_ledgers
from batchnlp.data.parts import staging_folder
from batchnlp.data.store import LocalStore
from batchnlp.data.verify import verify
from batchnlp.errors import CorruptError, OutputError
from batchnlp.types import Part, Segment, Shard

# --- the plan


def test_the_plan_comes_back_as_it_was_and_the_first_one_stands(run: Run) -> None:
    run.ledger.create_plan(make_plan(9), FACTS, replace(RESOLVED, dtype="bfloat16"), {})
    plan, resolved = Ledger(LocalStore(run.store.root), PRINT).plan()
    assert plan == run.plan
    assert resolved == RESOLVED


def test_no_output_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no directory"):
        open_ledgers(str(tmp_path / "none"))
    with pytest.raises(OutputError, match="holds no run"):
        open_ledgers(str(tmp_path))


# --- commits


def test_the_first_commit_wins_and_the_second_attempt_leaves_no_trace(run: Run) -> None:
    first, second = run.write(0, "one"), run.write(0, "two", langs=("fr",))
    assert run.commit(first)
    assert not run.commit(second)
    assert run.ledger.commits() == {0: first}
    assert pq.read_table(run.store.path(first.files[0].name))["lang"].to_pylist()[0] == "en"
    assert run.staged() == []


def test_racing_commits_one_counts(run: Run) -> None:
    parts = [run.write(0, f"a{i}") for i in range(6)]
    gate, won = threading.Barrier(6), []

    def commit(part: Part) -> None:
        gate.wait()
        if Ledger(LocalStore(run.store.root), PRINT).commit(part, run.plan.shards[0], part.attempt):
            won.append(part)

    threads = [threading.Thread(target=commit, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert run.ledger.commits() == {0: won[0]}


@pytest.mark.parametrize("change", [{"rows": 5}, {"ok": 5}, {"dead": 1}, {"rows": 7, "ok": 7}])
def test_a_part_that_breaks_the_row_contract_is_refused(run: Run, change: dict[str, int]) -> None:
    part = replace(run.write(0), **change)
    with pytest.raises(CorruptError, match="shard 0 has 6 rows"):
        run.commit(part)
    assert run.ledger.commits() == {}


def test_a_part_whose_files_are_not_there_is_refused(run: Run) -> None:
    part = run.write(0)
    path = Path(run.store.path(staging_folder(run.ledger.control, 0, "one"))) / part.files[0].name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptError, match="is not there as written"):
        run.commit(part)
    path.unlink()
    with pytest.raises(CorruptError, match="is not there as written"):
        run.commit(part)
    assert run.ledger.commits() == {}


def test_publishing_again_changes_nothing(run: Run) -> None:
    part = run.write(0, dead=2)
    run.commit(part)
    before = {f.name: os.stat(run.store.path(f.name)).st_mtime_ns for f in part.files}
    assert len(before) == 2
    run.ledger.publish(part)
    assert before == {f.name: os.stat(run.store.path(f.name)).st_mtime_ns for f in part.files}


# --- recovery


def test_recover_adopts_finished_attempts_and_sweeps_the_rest(run: Run) -> None:
    run.commit(run.write(0))
    finished = run.write(1)
    torn = run.write(2, "torn")
    os.unlink(run.store.path(f"{staging_folder(run.ledger.control, 2, 'torn')}/part.json"))
    late = run.write(0, "late")
    done = run.ledger.recover(run.plan.shards, "next")
    assert sorted(done) == [0, 1]
    assert done[1] == finished
    assert run.ledger.commits() == done
    assert os.path.isfile(run.store.path(finished.files[0].name))
    assert not os.path.exists(run.store.path(torn.files[0].name))
    assert done[0].attempt != late.attempt
    assert run.staged() == []


@pytest.mark.parametrize("damage", ["flip", "shorten", "renamed", "garbage"])
def test_recover_does_not_adopt_what_is_not_whole(run: Run, damage: str) -> None:
    part = run.write(1)
    folder = Path(run.store.path(staging_folder(run.ledger.control, 1, "one")))
    file = folder / part.files[0].name
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "shorten":
        file.write_bytes(data[:-3])
    elif damage == "renamed":
        folder.rename(folder.with_name("00002.one"))
    else:
        (folder / "part.json").write_text('{"shard": 1')
    assert run.ledger.recover(run.plan.shards, "next") == {}
    assert run.staged() == []


def test_recover_adopts_one_of_several_attempts(run: Run) -> None:
    for attempt in ("a", "b", "c"):
        run.write(1, attempt)
    done = run.ledger.recover(run.plan.shards, "next")
    assert [p.attempt for p in done.values()] == ["a"]
    assert run.staged() == []


@pytest.mark.parametrize("point", ["publish", "remove"])
def test_a_crash_inside_a_commit_is_finished_by_the_next_run(run: Run, point: str) -> None:
    part = run.write(0, dead=1)
    store = CrashingStore(run.store.root)
    store.before = point
    with pytest.raises(Crash):
        Ledger(store, PRINT).commit(part, run.plan.shards[0], "dying")
    done = run.ledger.recover(run.plan.shards, "next")
    assert done == {0: part}
    assert all(os.path.isfile(run.store.path(f.name)) for f in part.files)
    assert run.staged() == []


def crash(run: Run, point: str) -> Part:
    """A part whose driver died inside its commit."""
    part, store = run.write(0, "dying", dead=1), CrashingStore(run.store.root)
    store.before = point
    with pytest.raises(Crash):
        Ledger(store, PRINT).commit(part, run.plan.shards[0], "dying")
    assert not os.path.exists(run.store.path(part.files[0].name))
    return part


def test_what_a_dying_driver_committed_is_published_by_whoever_comes_late(run: Run) -> None:
    part = crash(run, "publish")
    assert not run.commit(run.write(0, "late"))
    assert all(os.path.isfile(run.store.path(f.name)) for f in part.files)


def test_what_a_dying_driver_committed_is_published_before_the_manifest_names_it(run: Run) -> None:
    part = crash(run, "publish")
    run.commit(run.write(1))
    run.commit(run.write(2))
    run.finish()
    assert all(os.path.isfile(run.store.path(f.name)) for f in part.files)
    assert verify(run.store.root).problems == []


def test_a_damaged_file_is_repaired_when_its_shard_is_computed_again(run: Run) -> None:
    run.complete()
    part = run.ledger.commits()[1]
    path = Path(run.store.path(part.files[0].name))
    path.write_bytes(path.read_bytes()[:-9])
    run.store.remove(f"{run.ledger.control}/commits/00001.json")  # what the hint says
    run.commit(run.write(1, "again"))
    run.finish()
    assert verify(run.store.root).problems == []
    assert sorted(run.store.names("")) == [
        "_SUCCESS",
        "_batchnlp",
        *(f"part-{i:05d}-{PRINT[:8]}.parquet" for i in range(3)),
    ]


@pytest.mark.parametrize("shards", [[(0, 6)], [(0, 6), (6, 11)]], ids=["fewer", "other rows"])
def test_commits_of_another_plan_are_refused(run: Run, shards: list[tuple[int, int]]) -> None:
    run.commit(run.write(0))
    run.commit(run.write(1))
    other = [Shard(i, (Segment(0, a, b, b - a),)) for i, (a, b) in enumerate(shards)]
    with pytest.raises(
        CorruptError, match=r"commit of shard 1 belongs to another plan .*remove .* and run the job again"
    ):
        run.ledger.recover(other, "next")


def test_a_committed_file_that_is_gone_is_said_and_not_papered_over(run: Run) -> None:
    part = run.write(0)
    run.commit(part)
    os.unlink(run.store.path(part.files[0].name))
    with pytest.raises(CorruptError, match=r"was committed and is gone.*remove .*commits/00000\.json"):
        run.ledger.recover(run.plan.shards, "next")


# --- the end


def test_finish_sums_up_and_leaves_no_staging(run: Run) -> None:
    run.complete(dead=2)
    manifest = run.ledger.manifest()
    assert manifest is not None
    assert {k: manifest[k] for k in ("rows", "ok", "dead", "success")} == {
        "rows": 18,
        "ok": 12,
        "dead": 6,
        "success": True,
    }
    assert manifest["codes"] == {"null_text": 6}
    assert {f["shard"] for f in manifest["files"]} == {0, 1, 2}
    assert os.listdir(Path(run.store.root) / "_batchnlp" / PRINT).count("staging") == 0
    assert json.loads(run.store.read("_SUCCESS") or b"")["rows"] == 18


def test_finish_without_success_leaves_no_success_of_before(run: Run) -> None:
    run.complete()
    run.finish(success=False)
    assert run.store.read("_SUCCESS") is None
