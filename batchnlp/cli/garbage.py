"""The body of `gc`."""

from __future__ import annotations

from batchnlp.cli.show import message, print_json
from batchnlp.data.ledger import open_ledgers
from batchnlp.data.lock import locked
from batchnlp.data.sweep import collect_garbage
from batchnlp.types import many


def remove_garbage(out: str, hours: float, dry: bool, as_json: bool) -> None:
    """Remove what dead writers left in an output, which nobody may use meanwhile."""
    store = open_ledgers(out)[0].store
    with locked(store):
        found = collect_garbage(store, hours * 3600, dry=dry)
    for name in found:
        message(store.path(name))
    message(f"{many(len(found), 'orphan')} older than {hours:g} h {'would go' if dry else 'removed'}")
    if as_json:
        print_json({"status": "done", "output": store.root, "removed": [] if dry else found, "found": found})
