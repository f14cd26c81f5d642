"""What is to go: dropped runs, and what dead invocations left lying about. All of it under the lock."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress

from batchnlp.data.deletes import deletes
from batchnlp.data.ledger import Ledger
from batchnlp.data.lock import NAME as LOCK
from batchnlp.data.store import CONTROL, TEMPORARY, LocalStore

DROPPED = ".dropped-"
OLD = 3600.0  # seconds after which nobody writes a temporary file any more: it takes milliseconds


def drop(ledger: Ledger) -> None:
    """Remove a run's published files and its control directory.

    The directory is renamed first: a crash in between must not leave half of it to a later run of the same job.
    """
    store = ledger.store
    if os.path.isdir(store.path(ledger.control)):
        os.rename(store.path(ledger.control), store.path(f"{CONTROL}/{DROPPED}{ledger.fingerprint}"))
    sweep_dropped(store)


def sweep_dropped(store: LocalStore) -> None:
    """Remove the files of dropped runs; also those that a crash left half removed."""
    for name in store.names(CONTROL):
        if name.startswith(DROPPED):
            sweep_unnamed(Ledger(store, name.removeprefix(DROPPED)))
            store.remove(f"{CONTROL}/{name}")


def sweep_temporary(store: LocalStore) -> None:
    """Remove temporary files that a crash left, by the file system's own clock: that of the lock, just written."""
    try:
        now = os.stat(store.path(LOCK)).st_mtime
    except FileNotFoundError:
        return  # it is not ours any more
    for folder, names in _folders(store):
        for name in (name for name in names if name.startswith(TEMPORARY)):
            with suppress(FileNotFoundError):
                if now - os.stat(store.path(os.path.join(folder, name))).st_mtime > OLD:
                    store.remove(os.path.join(folder, name))


def sweep_unnamed(ledger: Ledger) -> None:
    """Remove part files of this run's name that no commit knows, as a control directory leaves them that was removed.

    What is listed before the commits are read was committed before it was published, or never.
    """
    mine = re.compile(rf"part-((r\d+-)?\d+|delete)-{ledger.run}\.parquet")
    listed = [os.path.join(folder, name) for folder, names in _folders(ledger.store) for name in names]
    found = [name for name in listed if mine.fullmatch(os.path.basename(name))]
    named = {file.name for part in ledger.commits().values() for file in part.files} if found else set()
    named |= {file.name for file in deletes(ledger)}
    for name in set(found) - named:
        ledger.store.remove(name)
        _remove_empty(ledger.store, os.path.dirname(name))


def _folders(store: LocalStore) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) below the output: where results are published, and the control files."""
    for directory, inner, names in os.walk(store.root):
        folder = os.path.relpath(directory, store.root)
        folder = "" if folder == "." else folder
        control = folder.split(os.sep)[0] == CONTROL
        inner[:] = [name for name in inner if (name != "staging" if control else "=" in name or name == CONTROL)]
        yield folder, names


def _remove_empty(store: LocalStore, folder: str) -> None:
    while folder and os.path.isdir(store.path(folder)) and not os.listdir(store.path(folder)):
        os.rmdir(store.path(folder))
        folder = os.path.dirname(folder)
