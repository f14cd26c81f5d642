"""The store of an output that is no directory: what ObjectStore makes of the answers, good and bad, of what is below it."""

from __future__ import annotations

import errno
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from flaky_files import FlakyFiles
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from outputs import PRINT, ROWS, Run

from batchnlp.data import object_store
from batchnlp.data.ledger import Ledger
from batchnlp.data.lock import Lock
from batchnlp.data.object_store import ObjectStore
from batchnlp.data.parts import PartWriter, staging_folder
from batchnlp.data.store import LocalStore, Store
from batchnlp.data.sweep import collect_garbage, drop
from batchnlp.data.verify import verify_store
from batchnlp.errors import CorruptError, LockedError, OutputError, StoppedError
from batchnlp.types import Part


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "PAUSE", 0.0)


def test_a_store_that_makes_names_exclusively_is_told_from_one_that_does_not() -> None:
    class Obliging(FlakyFiles):
        """Takes the condition and ignores it."""

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
            super().pipe_file(path, value)

    class Ignorant(FlakyFiles):
        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
            if mode == "create":
                raise OSError(errno.ENOSYS, "501 Not Implemented")
            super().pipe_file(path, value)

    class Other(FlakyFiles):
        protocol = ("sftp",)  # type: ignore[assignment]

    assert FlakyFiles().store().check() == ""
    for files in (Obliging(), Ignorant(), Other()):
        warning = files.store().check()
        assert warning.startswith("mem://out does not keep two runs from writing at once")
        assert files.objects == {}, "the probe is gone"
        assert files.store().create("x", b"1")
        assert not files.store().create("x", b"2"), "whoever is alone is told the truth all the same"


def test_of_two_creators_one_wins_and_a_lost_answer_is_no_loss() -> None:
    class Losing(FlakyFiles):
        """The first answer to every write is lost."""

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
            known = path in self.objects
            super().pipe_file(path, value, mode)
            if not known:
                raise ConnectionError("reset")

    files = Losing()
    assert files.store().create("commit", b"mine"), "the name is taken, but by himself"
    assert not files.store().create("commit", b"theirs")
    assert files.store().read("commit") == b"mine"


def test_what_a_store_refuses_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(FlakyFiles):
        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
            self.asked += 1
            raise PermissionError(errno.EACCES, "403 Access Denied")

    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    files = Refusing()
    with pytest.raises(OutputError, match=r"mem://out refuses: .*403.*check address and credentials"):
        files.store().check()
    assert files.asked == 1


def test_a_store_that_never_answers_stops_the_run() -> None:
    class Deaf(FlakyFiles):
        def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
            self.asked += 1
            raise TimeoutError

    files = Deaf()
    with pytest.raises(StoppedError, match=r"does not answer, 8 times in a row.*the same command resumes"):
        files.store().read("x")
    assert files.asked == object_store.TRIES


def test_files_read_in_ranges_are_the_files(tmp_path: Path) -> None:
    files = FlakyFiles(errors=0.3)
    store, data = files.store(), bytes(range(256)) * 1000
    with store.writing("deep/x") as path:
        Path(path).write_bytes(data)
    with store.open("deep/x") as handle:
        assert handle.read(10) == data[:10]
        assert handle.seek(-5, 2) == 255_995
        assert (handle.read(), handle.read()) == (data[-5:], b"")
    with pytest.raises(FileNotFoundError):
        store.open("deep/none")
    assert (store.names("deep"), store.names("none"), store.size("deep/x")) == (["x"], [], len(data))
    store.remove("deep")
    assert files.objects == {}
    assert not Path(path).exists(), "the temporary file is gone"


def test_a_retry_keeps_the_manifest_of_before() -> None:
    """By it a warehouse knows what it holds already."""
    run = Run("mem://out", store=FlakyFiles().store())
    run.complete()
    before = run.ledger.manifest()
    run.ledger.adopt(1)
    run.finish()
    assert run.ledger.manifest(f"{run.ledger.control}/manifest-0.json") == before
    assert (run.ledger.manifest() or {})["run"] == f"{run.ledger.run}-r1"


def test_a_lock_has_one_holder_and_the_dead_have_none() -> None:
    files = FlakyFiles()
    mine, theirs = Lock(files.store(), "mine"), Lock(files.store(), "theirs")
    mine.acquire()
    with pytest.raises(LockedError, match=r"mem://out is in use by process \d+"):
        theirs.acquire()
    theirs.release()
    mine.release()
    again = Lock(files.store(), "again")
    again.acquire()
    again.release()
    assert files.objects == {}


def test_a_crash_while_dropping_a_run_leaves_nothing_of_it_to_the_same_job(monkeypatch: pytest.MonkeyPatch) -> None:
    files = FlakyFiles()
    run = Run("", store=files.store())
    run.complete(dead=1)

    def crash(name: str) -> None:
        raise KeyboardInterrupt

    store = files.store()
    monkeypatch.setattr(store, "remove", crash)
    with pytest.raises(KeyboardInterrupt):
        drop(Ledger(store, PRINT))
    collect_garbage(files.store(), 0)
    assert sorted(files.objects) == ["out/_SUCCESS", "out/_batchnlp/current.json"]


def test_garbage_is_what_nobody_will_ask_for(tmp_path: Path) -> None:
    for store in (FlakyFiles().store(), LocalStore(tmp_path)):
        work = Run("", store=store, shards=4)
        torn, late, open_ = (work.write(shard, name) for shard, name in ((0, "torn"), (1, "late"), (2, "open")))
        store.remove(f"{staging_folder(work.ledger.control, 0, torn.attempt)}/part.json")
        work.commit(work.write(1, "first"))
        assert collect_garbage(store, 3600) == [], "all of it is young"
        orphans = [staging_folder(work.ledger.control, part.shard, part.attempt) for part in (torn, late)]
        assert collect_garbage(store, -1, dry=True) == orphans
        assert len(store.names(f"{work.ledger.control}/staging")) == 3
        assert collect_garbage(store, -1) == orphans
        assert store.names(f"{work.ledger.control}/staging") == [f"{open_.shard:05}.{open_.attempt}"]


class OnObjects(RuleBasedStateMachine):
    """Workers and drivers over a store that fails, loses answers and lets writes come late. What is committed stays; when
    the weather is fair again the same command reaches every row once."""

    SHARDS = 3

    @initialize(seed=st.integers(0, 2**16), errors=st.sampled_from([0.0, 0.2, 0.5]))
    def begin(self, seed: int, errors: float) -> None:
        object_store.PAUSE = 0.0
        self.files = FlakyFiles(seed)
        self.run = Run("", self.SHARDS, store=self.files.store())
        self.calm = FlakyFiles()
        self.calm.objects = self.files.objects
        self.files.errors = errors
        self.staged: list[Part] = []
        self.attempts = 0
        self.written: dict[tuple[int, str], Part] = {}
        self.won: dict[int, Part] = {}

    def _store(self) -> Store:
        return self.files.store()

    def _write(self, shard: int, dead: int = 0) -> Part:
        self.attempts += 1
        self.run.writer = PartWriter(self._store(), PRINT, [])
        part = self.run.write(shard, f"a{self.attempts}", dead=dead)
        self.written[shard, part.attempt] = part
        return part

    @rule(shard=st.integers(0, SHARDS - 1), dead=st.integers(0, ROWS))
    def write(self, shard: int, dead: int) -> None:
        try:
            self.staged.append(self._write(shard, dead))
        except StoppedError:
            return

    @precondition(lambda self: self.staged)
    @rule(data=st.data(), again=st.booleans())
    def commit(self, data: st.DataObject, again: bool) -> None:
        """By any of several drivers, each of which may think that it is the only one."""
        part = data.draw(st.sampled_from(self.staged))
        if not again:
            self.staged.remove(part)
        try:
            first = Ledger(self._store(), PRINT).commit(part, self.run.plan.shards[part.shard], "driver")
        except (StoppedError, OutputError):
            return
        except CorruptError as error:  # swept by a driver that resumed
            if "is not there as written" not in error.message:
                raise
            return
        stands = Ledger(self.calm.store(), PRINT).committed(part.shard)
        assert stands == part or not first

    @rule()
    def resume(self) -> None:
        try:
            done = Ledger(self._store(), PRINT).recover(self.run.plan.shards, "next")
        except (StoppedError, OutputError):
            return
        for shard in done:
            assert Ledger(self.calm.store(), PRINT).find(shard) is not None

    @rule()
    def late_writes_come_through(self) -> None:
        self.files.settle()

    @rule()
    def finish(self) -> None:
        errors, self.files.errors = self.files.errors, 0.0
        self.files.settle()
        ledger = Ledger(self._store(), PRINT)
        done = ledger.recover(self.run.plan.shards, "last")
        for shard in self.run.plan.shards:
            if shard.index not in done:
                assert ledger.commit(self._write(shard.index), shard, "last")
        self.run.finish()
        verdict = verify_store(self.calm.store())
        assert verdict.problems == []
        assert verdict.rows == verdict.ok + verdict.dead == self.SHARDS * ROWS
        self.files.errors = errors

    @invariant()
    def committed_stays_committed_and_whole(self) -> None:
        if not hasattr(self, "run"):
            return
        store = self.calm.store()
        for shard, part in Ledger(store, PRINT).commits().items():
            assert self.won.setdefault(shard, part) == part == self.written[shard, part.attempt]
            ids: Counter[str] = Counter()
            for file in part.files:
                staged = f"{staging_folder(self.run.ledger.control, shard, part.attempt)}/{file.name}"
                name = file.name if store.size(file.name) is not None else staged
                with store.open(name) as handle:
                    ids.update(pq.ParquetFile(handle).read(["id"])["id"].to_pylist())
            assert ids == Counter(f"a.parquet#{i}" for i in range(shard * ROWS, (shard + 1) * ROWS))
        assert set(self.won) == set(Ledger(store, PRINT).commits())


OnObjects.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestOnObjects = OnObjects.TestCase


def test_an_address_that_no_store_has_is_a_usage_error() -> None:
    with pytest.raises(OutputError, match="nosuch://place/out"):
        ObjectStore.at("nosuch://place/out")
