"""How far the runs of an output have come, from the files alone: what is damaged is named, and hides nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from batchnlp.data.commits import Tally
from batchnlp.data.deletes import deletes
from batchnlp.data.ledger import Ledger, fingerprints, open_ledgers
from batchnlp.data.lock import running
from batchnlp.errors import CorruptError, OutputError
from batchnlp.types import Part

Found = TypeVar("Found")
NAMED = 3  # lost or damaged result files that are named; the rest is counted


@dataclass(slots=True)
class Status:
    """Where a run stands. Filled by `status_of`; None where a damaged plan hides it."""

    status: str  # done, failed (over the limit, or below a gate), incomplete, running (...), damaged
    run: str
    job: str | None
    output: str
    shards: int | None
    shards_done: int
    rows: int | None
    rows_done: int
    ok: int
    dead: int
    codes: dict[str, int]
    dead_letters: str  # the folder they are in
    live: bool
    retries: int  # times that dead letters were tried again
    gates: str = ""  # those that are not kept
    damage: list[str] = field(default_factory=list)
    changes: dict[str, int] = field(default_factory=dict)  # of an incremental run: all rows of the corpus by reason
    deleted: int = 0  # ids that have no result any more


def ledgers(root: str) -> list[tuple[Ledger, bool]]:
    """(a run, whether it is live) for all of an output: the live ones first, oldest first. OutputError where none is."""
    standing = open_ledgers(root)
    store, names = standing[0].store, [ledger.fingerprint for ledger in standing]
    others = [Ledger(store, name) for name in fingerprints(store) if name not in names]
    return [*((ledger, True) for ledger in standing), *((ledger, False) for ledger in others)]


def status_of(ledger: Ledger, live: bool, watch: Callable[[Part], None] = lambda part: None) -> Status:
    """What is known of a run; `watch` sees every committed part on the way, in the order of the shards."""
    with ledger.store.snapshot():
        return _status_of(ledger, live, watch)


def _status_of(ledger: Ledger, live: bool, watch: Callable[[Part], None]) -> Status:
    damage: list[str] = []
    tree = read(ledger.plan_tree, damage) or {}
    plan, _ = (read(ledger.plan, damage) if tree or not damage else None) or (None, None)
    complaint: list[str] = []
    manifest = read(ledger.manifest, complaint)
    total, lost = Tally(), _Lost(ledger)
    for part in _parts(ledger, damage):
        total.add(part)
        watch(part)
        if manifest is not None:  # by then all files are where they are read
            lost.look(part)
    damage += complaint + lost.told()
    holder = running(ledger.store)
    unfinished = f"running (process {holder.pid} on {holder.host})" if holder else "incomplete"
    state = unfinished if manifest is None else "done" if manifest["success"] else "failed"
    return Status(
        "damaged" if damage else state, ledger.run, tree.get("job"), ledger.store.root,
        len(plan.shards) if plan else None, total.shards, plan.rows if plan else None, total.rows, total.ok, total.dead,
        dict(total.codes), ledger.store.path(f"{ledger.control}/dead"), live, ledger.retries,
        str((manifest or {}).get("gates") or ""), damage,
        tree.get("changes") or {}, sum(file.rows for file in read(partial(deletes, ledger), damage) or ()),
    )  # fmt: skip


def read(what: Callable[[], Found], damage: list[str]) -> Found | None:
    """What is read; None, and what is wrong in `damage`, where it cannot be."""
    try:
        return what()
    except (CorruptError, OutputError) as error:
        damage.append(str(error))
        return None


def _parts(ledger: Ledger, damage: list[str]) -> Iterator[Part]:
    for shard in ledger.committed_shards():
        part = read(partial(ledger.committed, shard), damage)
        if part is not None:
            yield part


class _Lost:
    """What a look at names and sizes finds wrong with published files: the first are kept, all are counted."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._found, self._count = ledger, list[str](), 0

    def look(self, part: Part) -> None:
        for file in part.files:
            if damage := self._ledger.damage(file):
                self._count += 1
                if len(self._found) <= NAMED:
                    self._found.append(f"{self._ledger.store.path(file.name)} {damage}")

    def told(self) -> list[str]:
        """In words; one more than NAMED is named too, because saying so takes as long."""
        more = self._count - NAMED
        if more <= 1:
            return self._found
        return [*self._found[:NAMED], f"and {more:,} files more; batchnlp verify names them all"]
