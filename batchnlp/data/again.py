"""Dead letters that are tried again (`batchnlp retry`): which rows they are, and where their results belong.

    generation 0    the run itself
    generation g    the dead letters that generation g - 1 has left, in the shards where one may fare better

A part of generation g covers all dead letters of its shard, and has results and dead letters like any other; its order
file tells their places in the shard. Its commit names the attempt whose dead letters these were: where the shard was
computed anew since, the part does not count.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from batchnlp.data.collect import read_dead
from batchnlp.data.commits import DEAD
from batchnlp.data.ledger import Ledger
from batchnlp.data.parts import shard_name
from batchnlp.errors import CorruptError
from batchnlp.types import Docs, InputFile, Int32, Int64, Part, Retried, Shard

LASTING = ("read", "encode")  # stages that judge a document by itself: they come to the same each time


def worth_trying(ledger: Ledger, shards: Iterable[Shard]) -> list[Shard]:
    """The shards with dead letters that may fare better, as these dead letters alone."""
    found = []
    for shard in shards:
        part = ledger.committed(shard.index)
        dead = read_dead(ledger, part) if part.dead else None
        if dead is not None and set(dead["stage"].to_pylist()) - set(LASTING):
            found.append(replace(shard, dead=part.dead))
    return found


def forget_stale(ledger: Ledger, retry: Ledger) -> None:
    """Remove commits of a retry under way whose shards were computed anew since."""
    for shard in retry.committed_shards():
        if retry.committed(shard).after != ledger.committed(shard).attempt:
            ledger.store.remove(f"{ledger.control}/commits/{shard_name(shard, retry.generation)}.json")


def put_away(ledger: Ledger, parts: Iterable[Part]) -> None:
    """Dead letters that were tried again leave the others, once the manifest says so."""
    for part in parts:
        for layer in part.layers[:-1] if isinstance(part, Retried) else ():
            for file in layer.files:
                if file.kind in DEAD and ledger.store.size(file.name) is not None:
                    ledger.store.publish(file.name, f"{ledger.control}/resolved/{os.path.basename(file.name)}")
                    ledger.store.remove(file.name)


@dataclass(frozen=True, slots=True)
class Again:
    """The dead letters of one shard. Filled by `of`."""

    part: Part  # that they are from
    place: Int64  # [dead letters] rows of the shard
    attempts: dict[tuple[str, int], int]  # by file and row: how often it was tried before

    @classmethod
    def of(cls, ledger: Ledger, shard: int, docs: Docs, files: tuple[InputFile, ...]) -> Again:
        """Those of the shard that was read into `docs`."""
        part = ledger.committed(shard)
        dead = read_dead(ledger, part)
        assert dead is not None
        names = {file.name: i for i, file in enumerate(files)}
        at = {(int(file), int(row)): i for i, (file, row) in enumerate(zip(docs.file, docs.row, strict=True))}
        places = dict(zip(_places(dead), dead["attempts"].to_pylist(), strict=True))
        try:
            place = sorted(at[names[file], row] for file, row in places)
        except KeyError as error:
            what = f"a dead letter of shard {shard} is not in its rows: {error}"
            raise CorruptError(what, ledger.redo_hint(shard)) from None
        return cls(part, np.array(place, np.int64), places)

    def aged(self, dead: pa.Table) -> pa.Table:
        """Dead letters with the attempts of before added."""
        if not len(dead):
            return dead
        attempts = [n + self.attempts[key] for key, n in zip(_places(dead), dead["attempts"].to_pylist(), strict=True)]
        at = dead.schema.get_field_index("attempts")
        return dead.set_column(at, dead.schema.field(at), pa.array(attempts, pa.int32()))

    def order(self, docs: Docs, files: tuple[InputFile, ...], dead: pa.Table, which: Int32) -> pa.Table:
        """[dead letters] its row in the shard, and which of the part's files its result is in, -1 for none."""
        still = set(_places(dead))
        alive = [(files[file].name, row) not in still for file, row in zip(docs.file, docs.row.tolist(), strict=True)]
        file = np.full(len(docs), -1, np.int32)
        file[np.array(alive, bool)] = which
        return pa.table({"place": self.place, "file": file})


def _places(dead: pa.Table) -> list[tuple[str, int]]:
    return list(zip(dead["file"].to_pylist(), dead["row"].to_pylist(), strict=True))
