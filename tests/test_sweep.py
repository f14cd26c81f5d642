"""What dead invocations leave is swept, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from outputs import FACTS, PRINT, RESOLVED, Crash, CrashingStore, Run

from batchnlp.data.ledger import Ledger
from batchnlp.data.lock import Lock
from batchnlp.data.sweep import OLD, drop, sweep_dropped, sweep_temporary, sweep_unnamed


def touch(root: Path, *names: str, age: float = 0.0) -> list[Path]:
    paths = [root / name for name in names]
    now = (root / "_batchnlp" / "lock.json").stat().st_mtime
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (now - age, now - age))
    return paths


def test_old_temporary_files_go_and_those_of_now_stay(run: Run) -> None:
    root, lock = Path(run.store.root), Lock(run.store, "me")
    lock.acquire()
    try:
        places = (".tmp-{}", "_batchnlp/.tmp-{}", f"_batchnlp/{PRINT}/commits/.tmp-{{}}", "lang=en/day=1/.tmp-{}")
        old = touch(root, *(place.format("old") for place in places), age=OLD + 60)
        kept = touch(root, *(place.format("new") for place in places), age=OLD - 60)
        kept += touch(root, "mine/.tmp-mine", "mine.txt", f"_batchnlp/{PRINT}/staging/0.a/.tmp-x", age=OLD + 60)
        sweep_temporary(run.store)
    finally:
        lock.release()
    assert not [path for path in old if path.exists()]
    assert [path for path in kept if path.exists()] == kept


def test_without_the_lock_nothing_is_swept(run: Run) -> None:
    path = Path(run.store.root) / ".tmp-old"
    path.touch()
    os.utime(path, (0, 0))
    sweep_temporary(run.store)
    assert path.exists()


def test_part_files_that_no_commit_knows_go(tmp_path: Path) -> None:
    run = Run(tmp_path, partition_by=["lang"])
    part = run.write(0, dead=1)
    run.commit(part)
    fp8 = run.ledger.run
    for name in (f"part-00007-{fp8}.parquet", f"lang=xx/part-00000-{fp8}.parquet", "part-00000-ffffffff.parquet",
                 f"part-00001-{fp8}.parquet.bak", f"mine/part-00000-{fp8}.parquet"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sweep_unnamed(run.ledger)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("part-*")}
    assert left == {
        *(file.name for file in part.files if file.kind == "rows"),
        "part-00000-ffffffff.parquet", f"part-00001-{fp8}.parquet.bak", f"mine/part-00000-{fp8}.parquet",
    }  # fmt: skip
    assert not (tmp_path / "lang=xx").exists()


def test_drop_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", partition_by=["lang"])
    run.complete(dead=1)
    (tmp_path / "out" / "mine.txt").write_text("keep")
    drop(run.ledger)
    left = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert left == {"mine.txt", "_SUCCESS", "current.json"}
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith("lang=")]


def test_a_crash_while_dropping_a_run_leaves_nothing_of_it_to_the_same_job(run: Run) -> None:
    run.complete(dead=1)
    store = CrashingStore(run.store.root)
    store.before = "remove"
    with pytest.raises(Crash):
        drop(Ledger(store, PRINT))
    again = Ledger(run.store, PRINT)
    assert again.plan_tree() is None
    assert again.recover(run.plan.shards, "next") == {}, "nothing half"
    sweep_dropped(run.store)
    assert run.store.names("_batchnlp") == ["current.json"]
    assert [n for n in run.store.names("") if n.startswith("part-")] == []


def test_what_is_left_of_a_dropped_run_takes_no_new_run_along(run: Run) -> None:
    """Swept late: the same job has begun again meanwhile."""
    run.complete()
    os.rename(run.store.path(run.ledger.control), run.store.path(f"_batchnlp/.dropped-{PRINT}"))
    run.ledger.create_plan(run.plan, FACTS, RESOLVED, {})
    sweep_dropped(run.store)
    assert run.ledger.plan_tree() is not None


def test_a_damaged_commit_keeps_nothing_from_being_dropped(run: Run) -> None:
    run.complete()
    run.store.replace(f"{run.ledger.control}/commits/00001.json", b"{")
    drop(run.ledger)
    assert run.store.names("_batchnlp") == ["current.json"]
    assert run.store.names("") == ["_SUCCESS", "_batchnlp"]
