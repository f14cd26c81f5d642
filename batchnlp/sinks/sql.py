"""What the SQL warehouses share: names, and the account of loads, a table `_batchnlp_loads` beside the tables it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from batchnlp.sinks.base import Held, Load

ACCOUNT = "_batchnlp_loads"
Execute = Callable[[str, Sequence[Any]], list[Any]]  # (statement with $1, $2, ...; values) → all rows


def quoted(name: str) -> str:
    """A name, perhaps with schema and catalog before it, as SQL takes it whatever it is."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


def listed(columns: Iterable[str], before: str = "") -> str:
    """Quoted columns with commas between, each perhaps with a table's alias before it."""
    return ", ".join(before + quoted_column(name) for name in columns)


def quoted_column(name: str) -> str:
    """A column's name, dots and all."""
    return '"' + name.replace('"', '""') + '"'


def alike(rows: pa.Table, one: str, other: str) -> str:
    """The condition that two rows agree in all columns of `rows`, nulls included where there are any."""
    signs = {name: "is not distinct from" if rows[name].null_count else "=" for name in rows.column_names}
    return " and ".join(f"{one}.{quoted_column(n)} {sign} {other}.{quoted_column(n)}" for n, sign in signs.items())


def equal(columns: Iterable[str], one: str, other: str) -> str:
    """The condition that two rows have the same key, of which nothing is null."""
    return " and ".join(f"{one}.{name} = {other}.{name}" for name in map(quoted_column, columns))


def beside(table: str, name: str) -> str:
    """The quoted name of another table in the same schema."""
    return quoted(".".join([*table.split(".")[:-1], name]))


class Account:
    """The table `_batchnlp_loads`, written in the transaction of the load itself."""

    def __init__(self, execute: Execute, table: str) -> None:
        self._execute, self._name = execute, beside(table, ACCOUNT)

    def create(self) -> None:
        """Make it where it is not there."""
        self._execute(
            f"create table if not exists {self._name} (table_name text, job text, run text, generation integer, "
            "rows bigint, loaded_at timestamp with time zone, primary key (table_name, job, run))", (),
        )  # fmt: skip

    def held(self, table: str) -> Held:
        """The runs that a table holds."""
        found = self._execute(f"select job, run, generation from {self._name} where table_name = $1", [_last(table)])
        return {(job, run): generation for job, run, generation in found}

    def forget(self, table: str) -> None:
        """The table is gone, and with it what it held."""
        self._execute(f"delete from {self._name} where table_name = $1", [_last(table)])

    def note(self, load: Load) -> None:
        """The table holds the runs of the load."""
        for (job, run), generation in load.runs.items():
            self._execute(
                f"insert into {self._name} values ($1, $2, $3, $4, $5, now()) on conflict (table_name, job, run) do update "
                "set generation = excluded.generation, rows = excluded.rows, loaded_at = excluded.loaded_at",
                [_last(load.table), job, run, generation, load.rows],
            )  # fmt: skip


def _last(table: str) -> str:
    return table.split(".")[-1]
