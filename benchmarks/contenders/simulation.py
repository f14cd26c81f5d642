"""A thousand replicas and a million shards, without a model and without Ray: what one driver can carry.

Planner, driver, leases, ledger are the real ones; only the runner is made up. Its replicas lease shards and hand over parts
of one row, whose file is written without a worker's Parquet and fsyncs: those are the replicas' time, not the driver's.

    a run to the end · the same command again, when all is done · a run that ends half-way, and is resumed
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from harness.contender import Facts, Settings, serve

import batchnlp
from batchnlp import registry
from batchnlp.data.parts import staging_folder
from batchnlp.engine.leases import LeaseQueue
from batchnlp.engine.worker import WorkerSetup
from batchnlp.types import Part, PartFile, Shard

CONTENT = b"PAR1" + bytes(500) + b"PAR1"
AT_ONCE = 32  # parts that are ready when the driver looks


class Stop(Exception):
    """The driver dies here."""


class Replicas:
    """Instead of workers: every replica is always done when it is looked at."""

    count = 1000
    stop_after = 0  # parts, or 0
    seconds = 0.0  # spent in here: the replicas' time
    sampled: dict[int, float] = {}  # noqa: RUF012 - commits → resident MB, filled while it runs; one simulation a process

    def __init__(self, setup: WorkerSetup, shards: Sequence[Shard], replicas: int, address: str | None) -> None:
        self._leases = LeaseQueue(shards)
        self._store, self._print = setup.spec.output.path, setup.plan.fingerprint
        self._done = 0
        self.replicas = self.count
        self._held: list[tuple[str, Shard]] = []
        for i in range(self.count):
            self._lease(f"replica-{i}")
        Replicas.seconds = 0.0

    def ready(self, timeout: float) -> bool:
        """At once."""
        return True

    def note(self) -> str:
        """Nothing."""
        return ""

    def wait(self, timeout: float) -> list[Part]:
        """Some parts."""
        began = perf_counter()
        if self.stop_after and self._done >= self.stop_after:
            raise Stop
        if self._done in self.marks:
            gc.collect()
            self.sampled[self._done] = psutil.Process().memory_info().rss / 2**20
        parts = []
        held, self._held = self._held[:AT_ONCE], self._held[AT_ONCE:]
        for name, shard in held:
            parts.append(self._part(shard))
            self._leases.done(name, shard.index)
            self._lease(name)
        self._done += len(parts)
        Replicas.seconds += perf_counter() - began
        return parts

    marks: set[int] = set()  # noqa: RUF012 - as above

    def progress(self, timeout: float = 0.0) -> dict[str, float]:
        """Nothing."""
        return {}

    def events(self) -> list[str]:
        """Nothing happens."""
        return []

    def summary(self) -> list[str]:
        """Nor has anything happened."""
        return []

    def stop(self) -> None:
        """Lease no more."""
        self._leases.close()

    def idle(self) -> bool:
        """Whether all is handed over."""
        return not self._held

    def close(self) -> None:
        """Nothing to end."""

    def _lease(self, name: str) -> None:
        if (shard := self._leases.lease(name)) is not None:
            self._held.append((name, shard))

    def _part(self, shard: Shard) -> Part:
        name, attempt = f"part-{shard.index:05d}-{self._print[:8]}.parquet", "simulated"
        folder = os.path.join(self._store, staging_folder(f"_batchnlp/{self._print}", shard.index, attempt))
        os.makedirs(folder)
        with open(os.path.join(folder, name), "wb") as handle:
            handle.write(CONTENT)
        file = PartFile(name, shard.rows, len(CONTENT), "0" * 64)
        seconds = {"encode": 0.1, "forward": 1.0, "write": 0.1}
        return Part(shard.index, attempt, shard.rows, shard.rows, 0, "0" * 16, (file,), 10, 10, seconds)


class Simulation:
    """Runs of `rows` shards in a directory that is removed."""

    def __init__(self, setup: Facts) -> None:
        registry.RUNNERS["inline"] = f"{__name__}:Replicas"
        work = setup["work"]
        self._model, self._rows = work["path"], work["options"]["rows"]
        Replicas.count = setup["settings"].get("replicas", 1000)
        self._folder = Path(setup["settings"].get("folder") or tempfile.gettempdir())

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """The three runs; the rate is that of the driver alone in the first one."""
        rows = min(self._rows, 200) if sample else self._rows
        folder = Path(tempfile.mkdtemp(prefix="bench-simulation-", dir=self._folder))
        try:
            return self._runs(rows, folder)
        finally:
            shutil.rmtree(folder)

    def _runs(self, rows: int, folder: Path) -> Facts:
        corpus = folder / "corpus.parquet"
        pq.write_table(pa.table({"text": pa.array(["a"] * rows)}), corpus)
        tenth = rows // 10 // AT_ONCE * AT_ONCE
        last = (rows - 1) // AT_ONCE * AT_ONCE  # when the driver asks for the last ones
        Replicas.marks, Replicas.sampled = {tenth, last}, {}
        first, _ = self._timed(corpus, folder / "out", rows)
        driver = first - Replicas.seconds
        again, _ = self._timed(corpus, folder / "out", rows)
        Replicas.stop_after = rows // 2
        with suppress(Stop):
            self._timed(corpus, folder / "half", rows)
        Replicas.stop_after, Replicas.marks = rows // 2 + AT_ONCE, set()
        resumed, seconds = perf_counter(), Replicas.seconds
        Replicas.stop_after = 0
        self._timed(corpus, folder / "half", rows)
        seconds = perf_counter() - resumed - Replicas.seconds
        return {
            "units": rows, "seconds": driver, "again_seconds": again, "resumed_half_seconds": seconds,
            "early_mb": Replicas.sampled[tenth], "late_mb": Replicas.sampled[last],
            "beyond_mb": Replicas.sampled[last] - (1.1 * Replicas.sampled[tenth] + 50),
        }  # fmt: skip

    def _timed(self, corpus: Path, out: Path, rows: int) -> tuple[float, Any]:
        """(seconds, result) of a job."""
        began = perf_counter()
        result = batchnlp.run({
            "source": {"path": str(corpus), "rows_per_shard": 1}, "task": {"kind": "classify", "model": self._model},
            "engine": {"runner": "inline"}, "output": {"path": str(out)},
        })  # fmt: skip
        if result.rows != rows or result.dead:
            raise RuntimeError(f"{result.rows} rows, {result.dead} dead")
        return perf_counter() - began, result


if __name__ == "__main__":
    serve(Simulation)
