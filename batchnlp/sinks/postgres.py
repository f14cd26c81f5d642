"""PostgreSQL: one transaction, rows by COPY. Lists of plain values are arrays, other nested columns jsonb.

PostgreSQL has no NUL in text; the replacement character stands for it. The password comes from where libpq looks for it:
PGPASSWORD or ~/.pgpass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from batchnlp.errors import MissingExtraError
from batchnlp.job.sinks import SinkSpec
from batchnlp.sinks.base import Held, Load
from batchnlp.sinks.columns import Types, new_columns
from batchnlp.sinks.sql import Account, alike, listed, quoted, quoted_column

try:
    from adbc_driver_postgresql import dbapi
except ModuleNotFoundError:
    raise MissingExtraError.of("adbc-driver-postgresql", "postgres") from None

STAGED, GONE = "_batchnlp_staged", "_batchnlp_gone"
NAMES = {
    pa.bool_(): "boolean", pa.int8(): "smallint", pa.int16(): "smallint", pa.int32(): "integer", pa.int64(): "bigint",
    pa.float32(): "real", pa.float64(): "double precision", pa.string(): "text", pa.binary(): "bytea",
    pa.date32(): "date", pa.time64("us"): "time without time zone", pa.json_(): "jsonb",
    pa.timestamp("us"): "timestamp without time zone", pa.timestamp("us", "UTC"): "timestamp with time zone",
}  # fmt: skip


class Postgres:
    """Upsert is a staging table and INSERT ... ON CONFLICT; the table gets a unique index on the key."""

    types = Types(json=True, nul=False)
    errors = (dbapi.Error,)

    def __init__(self, spec: SinkSpec) -> None:
        self._spec = spec
        self._connection: Any = None
        self._cursor: Any = None
        self._account = Account(self._execute, spec.table)

    def start(self) -> None:
        """Connect; wait until no other load into this table is under way."""
        self._connection = dbapi.connect(self._spec.database)
        self._cursor = self._connection.cursor()
        self._execute("select pg_advisory_xact_lock(hashtext('batchnlp'), hashtext($1))", [self._spec.table])
        self._account.create()

    def held(self, table: str, runs: Sequence[tuple[str, str]]) -> Held:
        """From the account; nothing where the table was dropped."""
        if self._columns(table):
            return self._account.held(table)
        self._account.forget(table)
        return {}

    def write(self, load: Load) -> None:
        """Make or widen the table, take rows away, put rows in, note it."""
        self._shape(load)
        if load.mode == "upsert":
            self._upsert(load)
            if len(load.gone.deleted()):
                self._remove(load.table, load.gone.deleted())
        else:
            if load.mode == "replace":
                self._remove(load.table, load.gone() if load.by else None)
            self._copy(load.table, load.reader())
        self._account.note(load)

    def _shape(self, load: Load) -> None:
        table, wanted = quoted(load.table), {field.name: type_name(field.type) for field in load.schema}
        held = self._columns(load.table)
        if not held:
            self._execute(f"create table {table} ({_declared(wanted)})")
            return
        for name in new_columns(held, wanted, load.table):
            self._execute(f"alter table {table} add column {quoted_column(name)} {wanted[name]}")

    def _upsert(self, load: Load) -> None:
        table, keys = quoted(load.table), listed(load.by)
        if not self._execute(f"select 1 from {table} limit 1"):
            self._copy(load.table, load.reader())
            self._index(load, keys)
            return
        self._index(load, keys)
        self._stage(STAGED, load.schema, load.reader())
        others = [quoted_column(name) for name in load.schema.names if name not in load.by]
        changes = ", ".join(f"{name} = excluded.{name}" for name in others)
        action = f"update set {changes}" if others else "nothing"
        names = listed(load.schema.names)
        statement = f"insert into {table} ({names}) select {names} from {STAGED} on conflict ({keys}) do {action}"
        self._execute(statement)
        self._execute(f"drop table {STAGED}")

    def _index(self, load: Load, keys: str) -> None:
        """ON CONFLICT wants a unique index on just these columns."""
        columns = ",".join(sorted(load.by))
        found = self._execute(
            "select 1 from pg_index where indrelid = to_regclass($1) and indisunique and indpred is null and $2 = ("
            "select string_agg(attname, ',' order by attname collate \"C\") from pg_attribute "
            "where attrelid = indrelid and attnum = any(indkey))", [quoted(load.table), columns],
        )  # fmt: skip
        if not found:
            self._execute(f"create unique index on {quoted(load.table)} ({keys})")

    def _remove(self, table: str, gone: pa.Table | None) -> None:
        """The rows like these; all rows without any."""
        if gone is None:
            self._execute(f"delete from {quoted(table)}")
            return
        self._stage(GONE, gone.schema, gone)
        self._execute(f"analyze {GONE}")
        self._execute(f"delete from {quoted(table)} as t using {GONE} as g where {alike(gone, 't', 'g')}")
        self._execute(f"drop table {GONE}")

    def _stage(self, name: str, schema: pa.Schema, rows: Any) -> None:
        declared = _declared({field.name: type_name(field.type) for field in schema})
        self._execute(f"create temporary table {name} ({declared}) on commit drop")
        self._cursor.adbc_ingest(name, rows, mode="append", temporary=True)

    def _copy(self, table: str, rows: pa.RecordBatchReader) -> None:
        *outer, name = table.split(".")
        self._cursor.adbc_ingest(name, rows, mode="append", db_schema_name=outer[-1] if outer else None)

    def finalize(self) -> None:
        """Commit."""
        self._connection.commit()

    def close(self) -> None:
        """Roll back what was not committed."""
        for opened in (self._cursor, self._connection):
            if opened is not None:
                opened.close()

    def _columns(self, table: str) -> dict[str, str]:
        """Column → type, as PostgreSQL writes it; empty where there is no such table."""
        found = self._execute(
            "select attname, format_type(atttypid, atttypmod) from pg_attribute where attrelid = to_regclass($1) "
            "and attnum > 0 and not attisdropped order by attnum", [quoted(table)],
        )  # fmt: skip
        return dict(found)

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        self._cursor.execute(statement, tuple(values))
        return list(self._cursor.fetchall()) if self._cursor.description else []


def type_name(kind: pa.DataType) -> str:
    """The name that PostgreSQL gives to a type."""
    if pt.is_list(kind):
        return f"{type_name(kind.value_type)}[]"
    return f"numeric({kind.precision},{kind.scale})" if pt.is_decimal(kind) else NAMES[kind]


def _declared(columns: dict[str, str]) -> str:
    return ", ".join(f"{quoted_column(name)} {kind}" for name, kind in columns.items())
