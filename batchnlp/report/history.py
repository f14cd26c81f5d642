"""The digests of runs that were, and among them the last one of the same job.

    OUT/_batchnlp/history/<run>.json     written with a report; outlives the run, which an overwrite removes

Where a job writes into a directory of its own every night, its last run is found beside it: in the directories next to OUT,
those before it by name, as dates are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import islice

from pydantic import TypeAdapter, ValidationError

from batchnlp.data.ledger import Ledger, open_ledgers
from batchnlp.data.store import CONTROL, Store, open_store, to_json
from batchnlp.errors import BatchnlpError
from batchnlp.report.page import Digest

KEPT = 30  # digests in an output
BESIDE = 20  # directories that are looked at
FOLDER = f"{CONTROL}/history"
DIGEST = TypeAdapter(Digest)
Make = Callable[[Ledger], Digest]


def keep(store: Store, digest: Digest) -> None:
    """Remember a run that is done; the oldest of too many goes."""
    if digest.state != "done":
        return
    store.replace(f"{FOLDER}/{digest.run}.json", to_json(asdict(digest)))
    for old in sorted(kept(store), key=lambda one: -one.ended)[KEPT:]:
        store.remove(f"{FOLDER}/{old.run}.json")


def kept(store: Store) -> list[Digest]:
    """The digests of an output; those of another version that cannot be read are passed over."""
    found = []
    for name in store.names(FOLDER):
        with suppress(ValidationError, BatchnlpError):
            found.append(DIGEST.validate_json(store.read(f"{FOLDER}/{name}") or b""))
    return found


def last_before(mine: Digest, store: Store, make: Make) -> Digest | None:
    """The last run of the same job that was done before this one: in this output, else in the nearest one beside it."""
    for root in (store.root, *_beside(store.root)):
        except_for = mine.run if root == mine.output else ""
        earlier = [one for one in _of_job(root, mine.job, except_for, make) if not mine.ended or one.ended < mine.ended]
        if earlier:
            return max(earlier, key=lambda one: one.ended)
    return None


def _of_job(root: str, job: str, except_for: str, make: Make) -> Iterator[Digest]:
    """Digests of the job's runs that are done, but for one: as they were kept, or made now."""
    there = {digest.run: digest for digest in kept(open_store(root))}
    yield from (digest for digest in there.values() if digest.job == job and digest.run != except_for)
    with suppress(BatchnlpError):
        for ledger in open_ledgers(root):
            manifest = ledger.succeeded() if ledger.run not in {*there, except_for} else None
            if manifest is not None and manifest.get("job") == job:
                yield make(ledger)


def _beside(root: str) -> list[str]:
    """Outputs in the same directory: those before this one by name, the nearest first."""
    parent, _, mine = root.rpartition("/")
    if parent.endswith(":/"):
        return []  # a bucket has none beside it
    store = open_store(parent or "/")
    with suppress(BatchnlpError):
        names = sorted((name for name in store.names("") if name < mine), reverse=True)
        return [store.path(name) for name in islice((n for n in names if _is_output(store, n)), BESIDE)]
    return []


def _is_output(store: Store, name: str) -> bool:
    with suppress(BatchnlpError):
        return bool(store.names(f"{name}/{CONTROL}"))
    return False
