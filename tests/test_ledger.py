"""The commit protocol: whatever crashes, and whoever comes late, each row counts once."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchnlp.data.collect import read_part
from batchnlp.data.ledger import Ledger, live, open_ledgers, set_live, sums
from batchnlp.data.parts import DEAD_SCHEMA, PartWriter, ids_hash, part_from_json, staging_folder
from batchnlp.data.store import LocalStore
from batchnlp.data.verify import verify
from batchnlp.errors import BatchnlpError, CorruptError, OutputError
from batchnlp.types import InputFile, Part, Plan, Resolved, Segment, Shard

PRINT = "0123456789abcdef" * 4
SCHEMA = pa.schema([("id", pa.string()), ("lang", pa.string()), ("score", pa.float32())])
RESOLVED = Resolved("cpu", "float32", "torch", 4096, "as asked")
FACTS: dict[str, Any] = {"source": {"id": None}}
ROWS = 6  # of a shard


def make_plan(shards: int, rows: int = ROWS) -> Plan:
    files = (InputFile("/in/a.parquet", "a.parquet", 10, "1", "parquet", None, (("k", "v"),)),)
    cuts = tuple(Shard(i, (Segment(0, i * rows, (i + 1) * rows, rows),)) for i in range(shards))
    return Plan(PRINT, files, cuts, SCHEMA)


def results(shard: int, rows: int = ROWS, langs: Sequence[str | None] = ("en", "de"), dead: int = 0) -> pa.Table:
    ids = [f"a.parquet#{shard * rows + i}" for i in range(rows - dead)]
    return pa.table(
        [ids, [langs[i % len(langs)] for i in range(rows - dead)], np.arange(rows - dead, dtype=np.float32)],
        schema=SCHEMA,
    )


def letters(shard: int, dead: int, rows: int = ROWS) -> pa.Table:
    found = [
        {"id": f"a.parquet#{shard * rows + rows - 1 - i}", "file": "a.parquet", "code": "null_text"}
        for i in range(dead)
    ]
    return pa.Table.from_pylist(found, DEAD_SCHEMA)


class Run:
    """An output with a plan, and workers that write parts."""

    def __init__(self, root: Path | str, shards: int = 3, partition_by: Sequence[str] = ()) -> None:
        self.store = LocalStore(root)
        self.ledger = Ledger(self.store, PRINT)
        self.plan = make_plan(shards)
        self.writer = PartWriter(self.store, PRINT, partition_by)
        self.ledger.create_plan(self.plan, FACTS, RESOLVED, {"job": "j"})
        set_live(self.store, [PRINT])

    def write(self, shard: int, attempt: str = "one", dead: int = 0, **more: Any) -> Part:
        measured: dict[str, Any] = {"tokens": 1, "executed": 2, "seconds": {"forward": 0.1}}
        return self.writer.write(shard, attempt, results(shard, dead=dead, **more), letters(shard, dead), measured)

    def commit(self, part: Part) -> bool:
        return self.ledger.commit(part, self.plan.shards[part.shard], "invocation")

    def complete(self, dead: int = 0) -> None:
        for shard in self.plan.shards:
            assert self.commit(self.write(shard.index, dead=dead))
        self.ledger.finish(self.ledger.commits(), {}, success=True)

    def staged(self) -> list[str]:
        return self.store.names(f"{self.ledger.control}/staging")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "out")


# --- the store


def test_of_many_creators_one_wins_and_its_content_stands(tmp_path: Path) -> None:
    store, gate, wins = LocalStore(tmp_path), threading.Barrier(8), []

    def create(i: int) -> None:
        for n in range(20):
            gate.wait()
            if store.create(f"deep/{n}", f"{i}".encode() * 1000):
                wins.append((n, i))

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for n, _ in wins) == list(range(20))
    for n, i in wins:
        assert store.read(f"deep/{n}") == f"{i}".encode() * 1000
    assert len(os.listdir(tmp_path / "deep")) == 20, "temporary files are gone"


def test_replace_swaps_and_names_are_sorted_without_temporary_files(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.replace("b", b"1")
    store.replace("b", b"2")
    store.create("a", b"3")
    (tmp_path / ".tmp-left").write_bytes(b"")
    assert store.names("") == ["a", "b"]
    assert (store.read("b"), store.read("none"), store.names("none")) == (b"2", None, [])


def test_an_output_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"another output\.path"):
        LocalStore(tmp_path / "file").replace("x", b"")


def test_publish_is_idempotent_and_shows_whole_files(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("staging/x", b"data")
    store.publish("staging/x", "deep/x")
    store.publish("staging/x", "deep/x")
    store.remove("staging")
    assert store.read("deep/x") == b"data"


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


class Crash(Exception):
    """The process ends here."""


class CrashingStore(LocalStore):
    """Ends the process before the operation of that name."""

    before = ""

    def publish(self, source: str, name: str) -> None:
        if self.before == "publish":
            raise Crash
        super().publish(source, name)

    def remove(self, name: str) -> None:
        if self.before == "remove":
            raise Crash
        super().remove(name)


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
    run.ledger.finish(run.ledger.commits(), {}, success=False)
    assert run.store.read("_SUCCESS") is None


def test_drop_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", partition_by=["lang"])
    run.complete(dead=1)
    (tmp_path / "out" / "mine.txt").write_text("keep")
    run.ledger.drop()
    left = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert left == {"mine.txt", "_SUCCESS", "current.json"}
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith("lang=")]


# --- verify


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
    assert f"{run.store.path(name)} is missing" in the_problem(run)


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
    run.ledger.finish(run.ledger.commits(), {}, success=True)
    verdict = verify(run.store.root)
    assert verdict.duplicate_ids == ROWS
    assert verdict.problems == [f"run {run.ledger.run}: {ROWS} generated ids are there twice"]


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
    run.ledger.finish(run.ledger.commits(), {}, success=True)
    assert verify(run.store.root).problems == []


def test_part_json_is_the_part(run: Run) -> None:
    part = run.write(0, dead=1)
    text = run.store.read(f"{staging_folder(run.ledger.control, 0, 'one')}/part.json")
    assert part_from_json(json.loads(text or b"")) == part


# --- everything at once


class Protocol(RuleBasedStateMachine):
    """Workers, drivers and zombies in any order; what is committed stays, and at the end every row is there once."""

    SHARDS = 3

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.run = Run(Path(self.folder.name) / "out", self.SHARDS)
        self.staged: list[Part] = []  # parts that some driver, living or thought dead, still holds in its hands
        self.won: dict[int, Part] = {}
        self.attempts = 0

    @rule(shard=st.integers(0, SHARDS - 1), dead=st.integers(0, ROWS), torn=st.booleans())
    def write(self, shard: int, dead: int, torn: bool) -> None:
        self.attempts += 1
        part = self.run.write(shard, f"a{self.attempts}", dead=dead)
        if torn:
            os.unlink(self.run.store.path(f"{staging_folder(self.run.ledger.control, shard, part.attempt)}/part.json"))
        else:
            self.staged.append(part)

    def _commit(self, ledger: Ledger, part: Part) -> None:
        try:
            first = ledger.commit(part, self.run.plan.shards[part.shard], "some driver")
        except CorruptError:  # swept by a driver that came after: refused, so nothing is lost or doubled
            folder = staging_folder(ledger.control, part.shard, part.attempt)
            assert not os.path.exists(self.run.store.path(folder))
            return
        assert first == (part.shard not in self.won)
        if first:
            self.won[part.shard] = part

    @precondition(lambda self: self.staged)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        part = data.draw(st.sampled_from(self.staged))
        self.staged.remove(part)
        self._commit(self.run.ledger, part)

    @precondition(lambda self: self.staged)
    @rule(data=st.data(), point=st.sampled_from(["publish", "remove"]))
    def crash_in_commit(self, data: st.DataObject, point: str) -> None:
        part = data.draw(st.sampled_from(self.staged))
        store = CrashingStore(self.run.store.root)
        store.before = point
        try:
            self._commit(Ledger(store, PRINT), part)
        except Crash:
            self.won.setdefault(part.shard, part)
            self.resume()  # nobody commits in a run whose driver is dead, before the next one has recovered

    @precondition(lambda self: self.staged)
    @rule(data=st.data())
    def zombie_commits(self, data: st.DataObject) -> None:
        """A driver that was thought dead: it still believes in its part, which may be swept, adopted or beaten."""
        self._commit(Ledger(LocalStore(self.run.store.root), PRINT), data.draw(st.sampled_from(self.staged)))

    @rule()
    def resume(self) -> None:
        done = Ledger(LocalStore(self.run.store.root), PRINT).recover(self.run.plan.shards, "next")
        for index, part in done.items():
            self.won.setdefault(index, part)
        for part in self.staged:
            assert part.shard in done, "a finished attempt was thrown away although its shard was open"
        assert self.run.staged() == []

    @rule()
    def finish(self) -> None:
        """Compute what is missing, as a resumed run does, and prove the whole."""
        self.resume()
        for shard in self.run.plan.shards:
            if shard.index not in self.won:
                self.attempts += 1
                self._commit(self.run.ledger, self.run.write(shard.index, f"a{self.attempts}"))
        self.run.ledger.finish(self.run.ledger.commits(), {}, success=True)
        verdict = verify(self.run.store.root)
        assert verdict.problems == []
        assert verdict.rows == verdict.ok + verdict.dead == self.SHARDS * ROWS

    @invariant()
    def committed_stays_committed_and_whole(self) -> None:
        if not hasattr(self, "run"):
            return
        commits = self.run.ledger.commits()
        assert commits == self.won
        total = sums(commits.values())
        assert total["rows"] == total["ok"] + total["dead"] == len(commits) * ROWS
        for part in commits.values():
            ids: Counter[str] = Counter()
            for file in part.files:
                ids.update(pq.ParquetFile(self.run.store.path(file.name)).read(["id"])["id"].to_pylist())
            want = range(part.shard * ROWS, (part.shard + 1) * ROWS)
            assert ids == Counter(f"a.parquet#{i}" for i in want)
        published = {n for n in self.run.store.names("") if n.startswith("part-")}
        assert published == {f.name for p in commits.values() for f in p.files if f.kind == "rows"}
        assert live(self.run.store) == [PRINT]

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


Protocol.TestCase.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
TestProtocol = Protocol.TestCase
