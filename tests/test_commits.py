"""Commits that nobody holds: read when asked for, compacted on resume, first come first served all the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from outputs import PRINT, Crash, CrashingStore, Run

from batchnlp.data import manifests
from batchnlp.data.commits import Commits, Segments, Tally
from batchnlp.data.ledger import Ledger
from batchnlp.data.store import LocalStore, to_json
from batchnlp.data.verify import verify
from batchnlp.errors import CorruptError
from batchnlp.types import Part


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Five shards, all committed; a segment holds two."""
    monkeypatch.setattr(Segments, "size", 2)
    run = Run(tmp_path / "out", shards=5)
    for shard in range(5):
        assert run.commit(run.write(shard, dead=shard % 2))
    return run


def loose(run: Run) -> list[str]:
    return run.store.names(f"{run.ledger.control}/commits")


def segments(run: Run) -> list[str]:
    return run.store.names(f"{run.ledger.control}/segments")


def test_commits_are_read_when_they_are_asked_for(run: Run) -> None:
    read: list[int] = []
    parts = {shard: run.ledger.committed(shard) for shard in range(5)}

    def reading(shard: int) -> object:
        read.append(shard)
        return parts[shard]

    commits = Commits(reading, [3, 0])  # type: ignore[arg-type]
    commits.add(3)
    assert (len(commits), list(commits), 3 in commits, 1 in commits, 9 in commits) == (2, [0, 3], True, False, False)
    assert read == []
    assert commits[3] == parts[3]
    assert read == [3]
    with pytest.raises(KeyError):
        commits[1]


def test_a_tally_is_the_sum_of_its_parts(run: Run) -> None:
    parts = list(run.ledger.commits().values())
    tally = Tally.of(parts)
    assert (tally.shards, tally.rows, tally.dead, tally.forward) == (5, 30, 2, pytest.approx(0.5))
    assert tally.codes == {"null_text": 2}


def test_a_resume_compacts_whole_ranges_and_nothing_is_lost(run: Run) -> None:
    before, total = dict(run.ledger.commits()), Tally()
    done = run.ledger.recover(run.plan.shards, "next", total)
    assert (segments(run), loose(run)) == (["00000.jsonl", "00002.jsonl"], ["00004.json"])
    assert total.rows == 30
    again = Ledger(LocalStore(run.store.root), PRINT)
    assert dict(again.commits()) == dict(done) == before
    assert again.committed_shards() == list(range(5))
    assert again.recover(run.plan.shards, "later") == before
    run.finish()
    assert verify(run.store.root).problems == []


def test_a_range_that_is_not_whole_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segments, "size", 2)
    run = Run(tmp_path / "out", shards=4)
    for shard in (0, 3):
        run.commit(run.write(shard))
    run.ledger.recover(run.plan.shards, "next")
    assert (segments(run), loose(run)) == ([], ["00000.json", "00003.json"])


def test_a_damaged_commit_is_not_compacted_but_named(run: Run) -> None:
    Path(run.store.path(f"{run.ledger.control}/commits/00001.json")).write_text("{")
    with pytest.raises(CorruptError, match=r"00001\.json is damaged"):
        run.ledger.recover(run.plan.shards, "next")
    assert segments(run) == ["00002.jsonl"]


def test_a_late_attempt_loses_against_a_segment(run: Run) -> None:
    first = run.ledger.committed(0)
    run.ledger.recover(run.plan.shards, "next")
    assert not run.commit(run.write(0, "late", langs=("fr",)))
    assert run.ledger.committed(0) == first
    assert "00000.json" not in loose(run)
    assert pq.read_table(run.store.path(first.files[0].name))["lang"].to_pylist()[0] == "en"


class _Compacting(LocalStore):
    """Another driver compacts between the look for a commit and its creation."""

    other: Run

    def create(self, name: str, data: bytes) -> bool:
        if "/commits/" in name:
            self.other.ledger._segments.compact(range(5), self.other.ledger._commit_name)
        return super().create(name, data)


def test_a_driver_that_finds_the_name_free_again_sees_that_it_was_compacted(run: Run) -> None:
    first, late = run.ledger.committed(0), run.write(0, "late", langs=("fr",))
    store = _Compacting(run.store.root)
    store.other = run
    zombie = Ledger(store, PRINT)
    looked = [True]

    def find(shard: int) -> Part | None:
        return None if looked and looked.pop() else Ledger.find(zombie, shard)

    zombie.find = find  # type: ignore[method-assign]  # the first look was before the commit was there
    assert not zombie.commit(late, run.plan.shards[0], "zombie")
    assert run.ledger.committed(0) == first
    assert "00000.json" not in loose(run)


def test_a_crash_in_the_middle_of_compacting_costs_nothing(run: Run) -> None:
    before = dict(run.ledger.commits())
    store = CrashingStore(run.store.root)
    store.before = "remove"
    with pytest.raises(Crash):
        Ledger(store, PRINT).recover(run.plan.shards, "next")
    assert segments(run) == ["00000.jsonl"]
    assert "00000.json" in loose(run), "in both"
    assert dict(run.ledger.commits()) == before
    run.ledger.recover(run.plan.shards, "next")
    assert loose(run) == ["00004.json"]
    assert dict(run.ledger.commits()) == before


def test_a_damaged_segment_is_named_and_its_removal_helps(run: Run) -> None:
    run.ledger.recover(run.plan.shards, "next")
    path = run.store.path(f"{run.ledger.control}/segments/00000.jsonl")
    Path(path).write_text("{\n")
    ledger = Ledger(LocalStore(run.store.root), PRINT)
    with pytest.raises(CorruptError, match=r"00000\.jsonl is damaged"):
        ledger.recover(run.plan.shards, "next")
    os.unlink(path)
    assert list(Ledger(LocalStore(run.store.root), PRINT).recover(run.plan.shards, "next")) == [2, 3, 4]


def test_the_head_of_a_manifest_is_all_but_its_files(run: Run) -> None:
    run.finish()
    whole, head = run.ledger.manifest(), run.ledger.outcome()
    assert whole is not None
    assert head == {key: value for key, value in whole.items() if key != "files"}
    assert (head["rows"], head["dead"], head["success"]) == (30, 2, True)
    assert len(whole["files"]) == 5 + 2
    name = f"{run.ledger.control}/manifest.json"
    assert json.loads(Path(run.store.path(name)).read_text()).keys() == whole.keys()
    run.store.replace(name, to_json(whole))  # laid out as before
    found = manifests.head(run.store, name)
    assert found is not None
    assert {key: found[key] for key in head} == head


def test_a_manifest_without_files_is_one_too(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", shards=0)
    run.finish()
    assert run.ledger.manifest() == {**(run.ledger.outcome() or {}), "files": []}
