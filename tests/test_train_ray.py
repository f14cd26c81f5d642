"""Several processes through Ray Train, with the same command."""

from __future__ import annotations

from pathlib import Path

import tiny
from learning import record, rows, train, write


def test_two_workers_learn_one_model(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.parquet", rows(96))
    start = tiny.save_classifier(tmp_path / "start", ("data", "fonts", "games"))
    tree = record(train("classify", source, tmp_path / "m", "steps=6", "batch_size=8", "evaluate_every=3",
                        flags=("--model", start, "--workers", 2)))  # fmt: skip
    assert tree["result"]["steps"] == 6
    assert tree["result"]["metrics"]["validation"]["accuracy"] >= 0
    assert tree["files"]["model.safetensors"]
