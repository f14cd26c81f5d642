"""Delta Lake: a directory or URI a table, one commit a table. What a table holds is in its own transaction identifiers.

A commit that carries a transaction identifier is not skipped where the table has it already: it is looked for first.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from batchnlp.errors import MissingExtraError
from batchnlp.job.sinks import SinkSpec
from batchnlp.sinks.base import Held, Load
from batchnlp.sinks.columns import Types, new_columns, spelling
from batchnlp.sinks.sql import alike, equal, quoted_column

try:
    from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
    from deltalake.exceptions import DeltaError
except ModuleNotFoundError:
    raise MissingExtraError.of("deltalake", "delta") from None

FLAG = "_batchnlp_gone"


class Delta:
    """Upsert is MERGE; replaced partitions are overwritten by predicate."""

    types = Types(times=False)
    errors = (DeltaError,)

    def __init__(self, spec: SinkSpec) -> None:
        self._folder = spec.database.rstrip("/")

    def start(self) -> None:
        """Every commit stands alone."""

    def held(self, table: str, runs: Sequence[tuple[str, str]]) -> Held:
        """From the table's transaction identifiers."""
        if (delta := self._open(table)) is None:
            return {}
        versions = {run: delta.transaction_version(_identifier(run)) for run in runs}
        return {run: version for run, version in versions.items() if version is not None}

    def write(self, load: Load) -> None:
        """Make or widen the table, and commit the rows."""
        delta = self._widened(load)
        if delta is None or load.mode == "append":
            self._append(load, delta)
        elif load.mode == "upsert":
            self._merge(load, delta)
        elif _has_literals(load) and set(load.by) <= set(delta.metadata().partition_columns):
            self._overwrite(load, delta)
        else:
            self._replace(load, delta)

    def finalize(self) -> None:
        """Everything is committed."""

    def close(self) -> None:
        """Nothing is open."""

    def _open(self, table: str) -> Any:
        uri = f"{self._folder}/{table}"
        return DeltaTable(uri) if DeltaTable.is_deltatable(uri) else None

    def _widened(self, load: Load) -> Any:
        """The table with all columns of the load, in a commit of its own that may be done again; None without a table."""
        if (delta := self._open(load.table)) is None:
            return None
        held = {field.name: spelling(field.type) for field in pa.schema(delta.schema())}
        wanted = {field.name: spelling(field.type) for field in load.schema}
        if new := new_columns(held, wanted, load.table):
            delta.alter.add_columns(list(_delta_schema([load.schema.field(name) for name in new]).fields))
        return self._open(load.table)

    def _append(self, load: Load, delta: Any) -> None:
        write_deltalake(
            delta or f"{self._folder}/{load.table}", load.reader(), mode="append", schema_mode="merge",
            partition_by=None if delta else list(load.partition_by), commit_properties=_properties(load),
        )  # fmt: skip

    def _overwrite(self, load: Load, delta: Any) -> None:
        write_deltalake(
            delta, load.reader(), mode="overwrite", schema_mode="merge", predicate=_predicate(load.gone()),
            commit_properties=_properties(load),
        )  # fmt: skip

    def _merge(self, load: Load, delta: Any) -> None:
        names = {quoted_column(name): f"s.{quoted_column(name)}" for name in load.schema.names}
        changes = {name: value for name, value in names.items() if name[1:-1] not in load.by}
        source, stays = load.reader(), None
        if deleted := len(load.gone.deleted()):
            source, stays = _flagged(load, load.gone.deleted()), f"not s.{FLAG}"
        merger = _merger(delta, source, equal(load.by, "t", "s"), load)
        if deleted:
            merger = merger.when_matched_delete(predicate=f"s.{FLAG}")
        if changes:
            merger = merger.when_matched_update(changes, predicate=stays)
        merger.when_not_matched_insert(names, predicate=stays).execute()

    def _replace(self, load: Load, delta: Any) -> None:
        """One MERGE: rows like those flagged are deleted; the others match nothing, and are inserted."""
        names = {quoted_column(name): f"s.{quoted_column(name)}" for name in load.schema.names}
        source = _flagged(load, load.gone())
        merger = _merger(delta, source, f"s.{FLAG} and {alike(load.gone(), 't', 's')}", load).when_matched_delete()
        merger.when_not_matched_insert(names, predicate=f"not s.{FLAG}").execute()


def _merger(delta: Any, source: pa.RecordBatchReader, predicate: str, load: Load) -> Any:
    return delta.merge(
        source, predicate=predicate, source_alias="s", target_alias="t", commit_properties=_properties(load)
    )


def _flagged(load: Load, gone: pa.Table) -> pa.RecordBatchReader:
    """The rows that make way, which are flagged, and then those of the load."""
    schema = load.schema.append(pa.field(FLAG, pa.bool_()))

    def rows() -> Iterator[pa.RecordBatch]:
        for batch in gone.to_batches():
            columns = [
                batch.column(field.name) if field.name in load.by else pa.nulls(len(batch), field.type)
                for field in load.schema
            ]
            yield pa.record_batch([*columns, pa.repeat(True, len(batch))], schema=schema)
        for batch in load.batches():
            yield pa.record_batch([*batch.columns, pa.repeat(False, len(batch))], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, rows())


def _identifier(run: tuple[str, str]) -> str:
    return "batchnlp/" + "/".join(run)


def _properties(load: Load) -> Any:
    noted = [Transaction(_identifier(run), generation) for run, generation in load.runs.items()]
    return CommitProperties(app_transactions=noted)


def _delta_schema(fields: list[pa.Field]) -> Any:
    from deltalake import Schema

    return Schema.from_arrow(pa.schema(fields))


def _has_literals(load: Load) -> bool:
    """Whether predicates can name the values; timestamps they take for nanoseconds, which the table does not have."""
    checks = pt.is_string, pt.is_integer, pt.is_boolean, pt.is_date
    return all(any(check(load.schema.field(name).type) for check in checks) for name in load.by)


def _predicate(gone: pa.Table) -> str | None:
    """The condition of rows like these; None for all rows."""
    rows = [" and ".join(_condition(name, value) for name, value in row.items()) for row in gone.to_pylist()]
    return " or ".join(f"({row})" for row in rows) if gone.column_names else None


def _condition(name: str, value: Any) -> str:
    column = quoted_column(name)
    return f"{column} is null" if value is None else f"{column} = {_literal(value)}"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, datetime.date):
        return f"date '{value.isoformat()}'"
    return str(value).lower() if isinstance(value, bool) else str(value)
