"""What is to go: dropped runs, and what dead invocations left lying about. All of it under the lock."""

from __future__ import annotations

import os
import re
from contextlib import suppress

from batchnlp.data.deletes import deletes
from batchnlp.data.ledger import Ledger, fingerprints
from batchnlp.data.lock import NAME as LOCK
from batchnlp.data.store import CONTROL, Store, published_or_control
from batchnlp.errors import CorruptError

DROPPED = ".dropped-"
OLD = 3600.0  # seconds after which nobody writes a temporary file any more: it takes milliseconds


def drop(ledger: Ledger) -> None:
    """Remove a run's published files and its control directory.

    The directory is renamed first, or noted where nothing can be renamed: a crash in between must not leave half of it to
    a later run of the same job.
    """
    dropped = f"{CONTROL}/{DROPPED}{ledger.fingerprint}"
    if not ledger.store.set_aside(ledger.control, dropped):
        ledger.store.replace(dropped, b"")
    sweep_dropped(ledger.store)


def sweep_dropped(store: Store) -> None:
    """Remove the files of dropped runs; also those that a crash left half removed."""
    for name in store.names(CONTROL):
        if name.startswith(DROPPED):
            ledger = Ledger(store, name.removeprefix(DROPPED))
            if store.size(f"{CONTROL}/{name}") is not None:  # a note, and not the directory itself
                store.remove(ledger.control)
            sweep_unnamed(ledger)
            store.remove(f"{CONTROL}/{name}")


def sweep_temporary(store: Store, seconds: float = OLD) -> None:
    """Remove what writers left that were cut off in the middle, if that is long ago by the store's own clock."""
    if store.modified(LOCK) is None:
        return  # it is not ours any more
    for name in store.unfinished(seconds):
        store.abandon(name)


def sweep_unnamed(ledger: Ledger) -> None:
    """Remove part files of this run's name that no commit knows, as a control directory leaves them that was removed.

    What is listed before the commits are read was committed before it was published, or never.
    """
    mine = re.compile(rf"part-((r\d+-)?\d+|delete)-{ledger.run}\.parquet")
    folders = ledger.store.walk(published_or_control)
    listed = [os.path.join(folder, name) for folder, names in folders for name in names]
    found = [name for name in listed if mine.fullmatch(os.path.basename(name))]
    if not found:
        return
    named = {file.name for part in ledger.commits().values() for file in part.files}
    for name in set(found) - named - {file.name for file in deletes(ledger)}:
        ledger.store.remove(name)
        ledger.store.prune(os.path.dirname(name))


def orphans(store: Store, seconds: float) -> list[str]:
    """Attempts in staging that nobody will ask for, if they are older than so many seconds by the store's own clock.

    A finished attempt whose shard is open is none: the next resume adopts it.
    """
    attempts: dict[str, list[str]] = {}
    for folder, names in store.walk(_to_staging):
        steps = folder.split("/")
        if steps[0] == CONTROL and len(steps) > 3:
            attempts.setdefault("/".join(steps[:4]), []).extend(f"{folder}/{name}" for name in names)
    now, ledgers = store.now(), {name: Ledger(store, name) for name in fingerprints(store)}
    return sorted(
        attempt
        for attempt, names in attempts.items()
        if not _wanted(ledgers.get(attempt.split("/")[1]), attempt, names)
        and names
        and all(now - (store.modified(name) or 0.0) > seconds for name in names)
    )


def _to_staging(folder: str, name: str) -> bool:
    depth = len(folder.split("/")) if folder else 0
    return name == CONTROL if depth == 0 else name == "staging" if depth == 2 else True


def _wanted(ledger: Ledger | None, attempt: str, names: list[str]) -> bool:
    found = re.fullmatch(r"(?:r(\d+)-)?(\d+)\..*", attempt.rpartition("/")[2])
    generation = int(found[1] or 0) if found else 0
    if ledger is None or not found or f"{attempt}/part.json" not in names or (ledger.complete() and not generation):
        return False
    with suppress(CorruptError):  # of a retry that has ended the commits are found, or its folder is gone
        return Ledger(ledger.store, ledger.fingerprint, generation).find(int(found[2])) is None
    return True


def collect_garbage(store: Store, seconds: float, *, dry: bool = False) -> list[str]:
    """Remove what is left of writers that died more than so many seconds ago; the names of what went, or would go."""
    unfinished, attempts = store.unfinished(seconds), orphans(store, seconds)
    if not dry:
        sweep_dropped(store)
        for name in unfinished:
            store.abandon(name)
        for name in attempts:
            store.remove(name)
    return [*unfinished, *attempts]
