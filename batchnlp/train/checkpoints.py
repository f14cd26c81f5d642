"""Checkpoints that count only when they are whole.

transformers takes the checkpoint with the highest number, even one that was half written when its process was killed.
Here a checkpoint counts when its marker is there, which is written last and names every file with its size; all others
are swept, and never resumed from.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from batchnlp.data.store import LocalStore, fsync, to_json

MARKER = "complete.json"
PREFIX = "checkpoint-"


def step_of(folder: Path) -> int:
    """The optimizer step of a checkpoint."""
    number = folder.name.removeprefix(PREFIX)
    return int(number) if number.isdecimal() else -1


def complete(folder: Path) -> None:
    """Say that a checkpoint is whole, after its files are on the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    for path in files:
        fsync(str(path))
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    LocalStore(folder).replace(MARKER, to_json(sizes))


def is_complete(folder: Path) -> bool:
    """Whether all that the marker names is there."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def last(work: Path) -> Path | None:
    """The newest whole checkpoint in `work`; those that are not whole are removed."""
    found = sorted((p for p in work.glob(f"{PREFIX}*") if step_of(p) >= 0), key=step_of)
    for folder in found:
        if not is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
    return next((p for p in reversed(found) if p.is_dir()), None)


def sweep(work: Path, keep: set[str]) -> None:
    """Remove the checkpoints that nothing needs any more."""
    for folder in work.glob(f"{PREFIX}*"):
        if step_of(folder) >= 0 and os.path.abspath(folder) not in keep:
            shutil.rmtree(folder, ignore_errors=True)
