"""Two nights of an incremental job over a generated corpus, without a model: what it costs to know what has changed.

Planner, driver and ledger are the real ones; the runner hands over parts that nobody computed. A tenth of the rows first, then
all of them: memory must not follow (anonymous memory: that of mapped files is told as `peak_mb`).

    first night     all rows are new: read, hashed, spilled, kept as the state
    second night    0.5 % new, 0.5 % changed, 0.2 % gone: read, hashed, spilled, joined with the state
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from harness.contender import Facts, Settings, serve
from simulation import Replicas

import batchnlp
from batchnlp import registry

PADDING = " lorem ipsum dolor sit amet" * 10  # a text of about 280 characters, as half of Debian's have
CHUNK = 250_000  # rows written at a time


class Anonymous:
    """The most anonymous memory that the process has meanwhile, in bytes; pages of the corpus, which is mapped, are the
    kernel's to take back."""

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()

    def __enter__(self) -> Anonymous:
        self._ended.clear()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            lines = Path("/proc/self/status").read_text().splitlines()
            kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, kilobytes * 1024)


class Nights:
    """Both nights, at a tenth of the size and at all of it."""

    def __init__(self, setup: Facts) -> None:
        registry.RUNNERS["inline"] = f"{Replicas.__module__}:Replicas"
        Replicas.count = 4
        self._model, self._rows = setup["work"]["path"], setup["work"]["options"]["rows"]
        self._folder = Path(setup["settings"].get("folder") or tempfile.gettempdir())

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """Its rate is that of the second night."""
        rows = min(self._rows, 20_000) if sample else self._rows
        early = self._nights(rows // 10)
        late = self._nights(rows)
        return {
            "units": rows, "seconds": late["second"], "first_seconds": late["first"], "state_mb": late["state_mb"],
            "early_mb": early["peak_mb"], "late_mb": late["peak_mb"],
            "beyond_mb": late["peak_mb"] - (1.1 * early["peak_mb"] + 50),
        }  # fmt: skip

    def _nights(self, rows: int) -> Facts:
        folder = Path(tempfile.mkdtemp(prefix="bench-incremental-", dir=self._folder))
        try:
            corpus, out = folder / "corpus.parquet", folder / "out"
            write(corpus, 0, rows, 0)
            with Anonymous() as memory:
                first = self._timed(corpus, out, {"rows": rows, "new": rows})
            state = sum(path.stat().st_size for path in out.glob("_batchnlp/state/*/*"))
            gone, some = rows // 500, rows // 200
            write(corpus, gone, rows + some, some)
            want = {"new": some, "changed": some, "deleted": gone, "unchanged": rows - gone - some}
            with memory:
                second = self._timed(corpus, out, {"rows": rows + some - gone, **want})
            return {"first": first, "second": second, "state_mb": state / 2**20, "peak_mb": memory.peak / 2**20}
        finally:
            shutil.rmtree(folder)

    def _timed(self, corpus: Path, out: Path, want: dict[str, int]) -> float:
        began = perf_counter()
        result = batchnlp.run({
            "source": {"path": str(corpus), "id": "id"}, "task": {"kind": "classify", "model": self._model},
            "engine": {"runner": "inline"}, "output": {"path": str(out), "mode": "incremental"},
        })  # fmt: skip
        found: dict[str, Any] = {name: n for name, n in result.changes.items() if n}
        if found != {name: n for name, n in want.items() if n}:
            raise RuntimeError(f"{found} instead of {want}")
        return perf_counter() - began


def write(path: Path, start: int, stop: int, changed: int) -> None:
    """Rows `start` to `stop`, of which the first have another text."""
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(start, stop, CHUNK):
            numbers = np.arange(first, min(first + CHUNK, stop))
            ids = pc.binary_join_element_wise("doc", pa.array(numbers).cast(pa.string()), "-")
            tails = np.where(numbers < start + changed, "again", "")
            texts = pc.binary_join_element_wise(ids, PADDING, pa.array(tails), "")
            writer.write_table(pa.table([ids, texts], schema=schema))


if __name__ == "__main__":
    serve(Nights)
