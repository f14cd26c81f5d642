"""Results that are to be judged: the columns a judge asks for, and the documents they were made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.data.collect import tables_of
from batchnlp.data.ledger import Ledger, live, open_ledgers
from batchnlp.data.parts import is_log
from batchnlp.data.sources import Source
from batchnlp.data.sources.repeats import Repeats
from batchnlp.errors import OutputError, SourceError
from batchnlp.job.spec import SourceSpec
from batchnlp.types import DELETE, OP, Docs, many
from batchnlp.words import nearest

TEXT = {"summarize": "summary", "translate": "translation", "generate": "text", "chat": "reply", "qa": "answer"}
READ = 20_000, 32 << 20  # rows and bytes of text that are read at a time


@dataclass(frozen=True, slots=True)
class Output:
    """Runs of one task whose shards are all there."""

    ledgers: tuple[Ledger, ...]
    tree: dict[str, Any]  # the plan of the newest
    schema: pa.Schema

    @classmethod
    def of(cls, ledgers: Sequence[Ledger]) -> Output:
        """OutputError where they do not go together."""
        trees = [ledger.plan_tree() or {} for ledger in ledgers]
        schemas = [ledger.plan()[0].schema.remove_metadata() for ledger in ledgers]
        root = ledgers[0].store.root
        if len({tree["spec"]["task"]["kind"] for tree in trees}) > 1 or any(s != schemas[0] for s in schemas):
            raise OutputError(f"{root} holds runs with different columns", "evaluate them in outputs of their own")
        return cls(tuple(ledgers), trees[-1], schemas[-1])

    @classmethod
    def at(cls, root: str) -> Output:
        """The live runs of an output, all of which must be complete."""
        ledgers = open_ledgers(root)
        for ledger in ledgers:
            if not ledger.complete():
                raise OutputError(f"run {ledger.run} in {root} is not complete", "run the job again first")
        return cls.of_run(ledgers[-1]) if is_log(ledgers[-1].plan()[0].schema) else cls.of(ledgers)

    @classmethod
    def of_run(cls, ledger: Ledger) -> Output:
        """A run by itself; of a log of changes with the good runs before it, on which it stands."""
        schema = ledger.plan()[0].schema
        names = live(ledger.store) if is_log(schema) else []
        before = [Ledger(ledger.store, name) for name in names if name != ledger.fingerprint]
        stand = [one for one in before if one.succeeded() and _like(one, schema)]  # else all is new
        return cls.of([*stand, ledger])

    @property
    def root(self) -> str:
        """Where it is."""
        return self.ledgers[-1].store.root

    @property
    def kind(self) -> str:
        """The task."""
        return str(self.tree["spec"]["task"]["kind"])

    @property
    def task(self) -> dict[str, Any]:
        """The job's task section."""
        return dict(self.tree["spec"]["task"])

    @property
    def id_column(self) -> str:
        """What the source calls the ids."""
        return str(self.tree["spec"]["source"]["id"] or "id")

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Those columns of all results, in input order, and `id` as text."""
        names = list(dict.fromkeys(["id", *columns, *([OP] if self.log else [])]))
        schema = pa.schema([self.schema.field(name) for name in names])
        tables = [table.select(names).cast(schema) for table in tables_of(self.ledgers)]
        table = pa.concat_tables(tables) if tables else schema.empty_table()
        table = table.set_column(0, "id", table["id"].cast(pa.string()))
        return _newest(table).drop_columns([OP]) if self.log else table

    @property
    def log(self) -> bool:
        """Whether it is a log of changes; what it comes to is judged."""
        return is_log(self.schema)

    def documents(self) -> Iterator[Docs]:
        """What was read, a shard at a time. SourceError or CorruptError where the source is not as it was."""
        for ledger in self.ledgers[-1:] if self.log else self.ledgers:
            plan, _ = ledger.plan()
            config = SourceSpec.model_validate((ledger.plan_tree() or {})["spec"]["source"]).config()
            source = Source(config, plan.files, Source.open(config, self.root).schema)
            if plan.repeats:
                source.repeats = Repeats(ledger.store, ledger.repeats)
            for shard in source.shards(None, *READ) if self.log else plan.shards:  # a plan has what changed alone
                yield source.read(shard)

    def texts(self, ids: pa.Array) -> pa.Array:
        """The texts of some documents, by id."""
        names, texts = [], []
        for docs in self.documents():
            wanted = pc.is_in(docs.ids.cast(pa.string()), ids)
            names.append(docs.ids.cast(pa.string()).filter(wanted))
            texts.append(docs.text.filter(wanted))
        found = pc.index_in(ids, pa.concat_arrays(names) if names else pa.array([], pa.string()))
        text = pa.concat_arrays(texts) if texts else pa.array([], pa.large_string())
        if found.null_count:
            missing = many(found.null_count, "document")
            raise SourceError(f"{missing} of the results are not in the source any more", "evaluate where it is")
        return text.take(found)


def _like(ledger: Ledger, schema: pa.Schema) -> bool:
    return bool(ledger.plan()[0].schema.remove_metadata() == schema.remove_metadata())


def _newest(log: pa.Table) -> pa.Table:
    """The last row of each id, unless it is a delete."""
    at = pa.array(np.arange(len(log)))
    last = pa.table([log["id"], at], names=["id", "at"]).group_by("id").aggregate([("at", "max")])["at_max"]
    rows = log.take(pa.array(np.sort(np.asarray(last))))
    return rows.filter(pc.not_equal(rows[OP], DELETE))


def column(names: Sequence[str], name: str, where: str) -> str:
    """The name, if it is there; SourceError that names the nearest if not."""
    if name not in names:
        near = nearest(name, names)
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(names)}"
        raise SourceError(f"no column {name!r} in {where}", hint)
    return name


def as_vectors(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[documents, width] of a fixed-size list."""
    size = column.type.list_size
    flat = [np.asarray(chunk.flatten(), np.float32) for chunk in column.chunks]
    return np.concatenate([*flat, np.empty(0, np.float32)]).reshape(-1, size)
