"""Which published file of an incremental run has the ids that have no result any more: `deletes.json`, beside its plan."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from batchnlp.data.store import to_json
from batchnlp.errors import CorruptError
from batchnlp.types import PartFile

if TYPE_CHECKING:
    from batchnlp.data.ledger import Ledger


def set_deletes(ledger: Ledger, file: PartFile | None) -> None:
    """From now on it is that file; None where all ids have a result."""
    if file is None:
        ledger.store.remove(_name(ledger))
    else:
        ledger.store.replace(_name(ledger), to_json(asdict(file)))


def deletes(ledger: Ledger) -> list[PartFile]:
    """That file, where there is one."""
    data = ledger.store.read(_name(ledger))
    try:
        return [] if data is None else [PartFile(**json.loads(data))]
    except (ValueError, TypeError) as error:
        what = f"{ledger.store.path(_name(ledger))} is damaged: {type(error).__name__}: {error}"
        raise CorruptError(what, "remove it and manifest.json beside it, and run the job again") from None


def _name(ledger: Ledger) -> str:
    return f"{ledger.control}/deletes.json"
