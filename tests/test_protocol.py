"""Crashes, zombies and late drivers in any order."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from outputs import PRINT, ROWS, Crash, CrashingStore, Run

from batchnlp.data.commits import Tally
from batchnlp.data.ledger import Ledger, live
from batchnlp.data.parts import staging_folder
from batchnlp.data.store import LocalStore
from batchnlp.data.verify import verify
from batchnlp.errors import CorruptError
from batchnlp.types import Part


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
        self.run.finish()
        verdict = verify(self.run.store.root)
        assert verdict.problems == []
        assert verdict.rows == verdict.ok + verdict.dead == self.SHARDS * ROWS

    @invariant()
    def committed_stays_committed_and_whole(self) -> None:
        if not hasattr(self, "run"):
            return
        commits = self.run.ledger.commits()
        assert commits == self.won
        total = Tally.of(commits.values()).sums()
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
