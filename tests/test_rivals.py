"""Two runs into the same output at the same time. `make chaos` does it a hundred times."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Corpus
from rivals import rivals

import batchnlp
from batchnlp.data.collect import tables
from batchnlp.data.verify import verify
from batchnlp.engine.driver import Progress


def job(corpus: Path, out: Path, model: str) -> dict[str, Any]:
    return {
        "source": {"path": str(corpus), "id": "doc_id", "rows_per_shard": 1},
        "task": {"kind": "classify", "model": model}, "engine": {"runner": "inline", "backend": "torch"},
        "output": {"path": str(out)},
    }  # fmt: skip


def whole(out: Path) -> bool:
    ids = Counter(id_ for table in tables(str(out)) for id_ in table["id"].to_pylist())
    return verify(str(out)).problems == [] and ids == Counter(f"doc-{i:03}" for i in range(25))


def test_one_wins_and_the_other_names_it(corpus: Corpus, classifier: str, tmp_path: Path) -> None:
    folder = corpus()
    with rivals() as pair:
        for i in range(3):
            out = tmp_path / f"out{i}"
            ended = sorted(pair.run(job(folder, out, classifier)))
            assert [status for status, _ in ended] in (["LockedError", "done"], ["done", "done"])
            if ended[0][0] == "LockedError":
                assert f"is in use by process {ended[1][1]} on " in ended[0][1]
            assert whole(out)
        out = tmp_path / "nolock"
        ended = pair.run(job(folder, out, classifier), lock=False)
        assert "done" in [status for status, _ in ended], ended
        assert whole(out), "the lock is courtesy"


def test_a_clock_that_jumps_by_a_day_harms_nothing(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    days, now = iter(range(10**9)), time.time

    def leap() -> float:
        return now() + 86_400 * (next(days) % 3 - 1)

    seen: list[Progress] = []
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", leap)
        results = [
            batchnlp.run(job(corpus(name=f"in{i}"), tmp_path / f"out{i}", classifier), seen.append) for i in range(2)
        ]
    assert [result.status for result in results] == ["done", "done"]
    assert results[0].run != results[1].run
    assert all(progress.seconds >= 0 for progress in seen)
    assert all(whole(tmp_path / f"out{i}") for i in range(2))
