"""DuckDB: a file, written in one transaction. Nested columns keep their types, vectors become arrays.

Another process that has the file open keeps this one out; DuckDB says so, and who it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from batchnlp.errors import MissingExtraError
from batchnlp.job.sinks import SinkSpec
from batchnlp.sinks.base import Held, Load
from batchnlp.sinks.columns import Types, new_columns
from batchnlp.sinks.sql import Account, alike, equal, listed, quoted, quoted_column

try:
    import duckdb
except ModuleNotFoundError:
    raise MissingExtraError.of("duckdb", "duckdb") from None


PATTERN = set("*?[")  # what DuckDB looks for in a file's name


class DuckDB:
    """Upsert is MERGE, without a primary key: an index would cost more than it finds."""

    types = Types(fixed_lists=True)
    errors = (duckdb.Error,)

    def __init__(self, spec: SinkSpec) -> None:
        self._spec = spec
        self._connection: Any = None
        self._account = Account(self._execute, spec.table)

    def start(self) -> None:
        """Open the file, begin."""
        self._connection = duckdb.connect(self._spec.database)
        self._execute("begin")
        self._account.create()

    def held(self, table: str, runs: Sequence[tuple[str, str]]) -> Held:
        """From the account; nothing where the table was dropped."""
        if self._columns(table):
            return self._account.held(table)
        self._account.forget(table)
        return {}

    def write(self, load: Load) -> None:
        """Make or widen the table, take rows away, put rows in, note it."""
        table = quoted(load.table)
        self._connection.register("_batchnlp_wanted", load.schema.empty_table())
        self._execute(f"create table if not exists {table} as from _batchnlp_wanted")
        wanted = {row[0]: row[1] for row in self._execute("describe _batchnlp_wanted")}
        for name in new_columns(self._columns(load.table), wanted, load.table):
            self._execute(f"alter table {table} add column {quoted_column(name)} {wanted[name]}")
        if load.mode == "replace":
            self._remove(table, load.gone() if load.by else None)
        with load.gone.checked():
            rows, values = self._rows(load, wanted)
            self._execute(_merge(table, rows, load) if load.mode == "upsert" else _insert(table, rows, load), values)
        if load.mode == "upsert" and len(load.gone.deleted()):
            self._remove(table, load.gone.deleted())
        self._account.note(load)

    def _rows(self, load: Load, wanted: dict[str, str]) -> tuple[str, list[Any]]:
        """(what to select from, its values): files, which DuckDB reads on all cores, or a stream, which it reads on one."""
        paths = load.files() if load.files is not None else []
        if not paths or any(set(path) & PATTERN for path in paths):
            self._connection.register("_batchnlp_rows", load.reader())
            return "_batchnlp_rows", []
        named = {quoted_column(name): kind for name, kind in wanted.items()}
        columns = ", ".join(f"{name}::{kind} as {name}" for name, kind in named.items())  # vectors are lists in Parquet
        return f"(select {columns} from read_parquet($1, hive_partitioning = false))", [paths]

    def _remove(self, table: str, gone: pa.Table | None) -> None:
        """The rows like these; all rows without any."""
        if gone is None:
            self._execute(f"delete from {table}")
            return
        self._connection.register("_batchnlp_gone", gone)
        self._execute(f"delete from {table} as t using _batchnlp_gone as g where {alike(gone, 't', 'g')}")

    def finalize(self) -> None:
        """Commit."""
        self._execute("commit")

    def close(self) -> None:
        """Roll back what was not committed."""
        if self._connection is not None:
            self._connection.close()

    def _columns(self, table: str) -> dict[str, str]:
        """Column → type, as DuckDB writes it; empty where there is no such table."""
        *outer, name = table.split(".")
        catalog, schema = [None, None, *outer][-2:]  # asked, not tried: an error would end the transaction
        found = self._execute(
            "select column_name, data_type from duckdb_columns() where table_name = $1 and schema_name = "
            "coalesce($2, current_schema()) and database_name = coalesce($3, current_database()) order by column_index",
            [name, schema, catalog],
        )
        return dict(found)

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        # A result that is not fetched whole blocks the next statement.
        return list(self._connection.execute(statement, list(values)).fetchall())


def _insert(table: str, rows: str, load: Load) -> str:
    return f"insert into {table} ({listed(load.schema.names)}) from {rows}"


def _merge(table: str, rows: str, load: Load) -> str:
    others = [name for name in load.schema.names if name not in load.by]
    changes = ", ".join(f"{name} = s.{name}" for name in map(quoted_column, others))
    matched = f"when matched then update set {changes}" if others else ""
    names = listed(load.schema.names)
    return (
        f"merge into {table} as t using {rows} as s on {equal(load.by, 't', 's')} {matched} "
        f"when not matched then insert ({names}) values ({listed(load.schema.names, 's.')})"
    )
