"""Load statements for warehouses that read the files themselves: BigQuery, Snowflake, ClickHouse.

They can be run again: what is loaded is noted in `_batchnlp_loads` under a key made of table, job, run and generation (in
ClickHouse, which has no transactions, of the file too), and each statement asks for that key first. Nothing is connected
to; the files must lie where `files` says, copied there as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from batchnlp import registry
from batchnlp.data.results import Finished, finished, schema_of
from batchnlp.errors import SpecError
from batchnlp.job.sinks import StatementSpec
from batchnlp.sinks.columns import Types, fit_schema
from batchnlp.sinks.shapes import check_names
from batchnlp.types import PartFile


@dataclass(frozen=True, slots=True)
class Portion:
    """Files that are loaded together: a generation of a run. Filled from its manifests."""

    job: str
    run: str
    generation: int
    files: tuple[PartFile, ...]
    schema: pa.Schema

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(file.rows for file in self.files)


class Dialect(Protocol):
    """A warehouse's SQL."""

    types: Types

    def account(self) -> str:
        """CREATE TABLE of the account."""

    def table(self, schema: pa.Schema) -> str:
        """CREATE TABLE of the results."""

    def load(self, portion: Portion) -> Iterator[str]:
        """What loads a portion, unless it is loaded already."""


def statements(root: str, spec: StatementSpec) -> list[str]:
    """The statements that load an output, in order. Raises OutputError where it is not finished."""
    runs = finished(root)
    dialect: Dialect = registry.load(registry.STATEMENTS, spec.kind)(spec)
    if any(run.log for run in runs) and spec.mode == "upsert":
        hint = "use write: append, and a view of the newest revision of each id"
        raise SpecError(f"the statements for {spec.kind} cannot upsert a log of changes, which also deletes", hint)
    schema = fit_schema(schema_of(runs), dialect.types)
    check_names(schema, spec.keys, "key")
    loads = (statement for portion in _portions(runs, dialect.types) for statement in dialect.load(portion))
    return [dialect.account(), dialect.table(schema), *loads]


def _portions(runs: Iterable[Finished], types: Types) -> Iterator[Portion]:
    for run in runs:
        schema = fit_schema(run.schema, types)
        earlier: set[str] = set()
        for generation in range(run.generation + 1):
            files = tuple(file for file in run.at(generation) if file.name not in earlier)
            earlier |= {file.name for file in files}
            yield Portion(run.job, run.run, generation, files, schema)


def text(value: str) -> str:
    """A string literal; backslashes are doubled, because all three warehouses take them for escapes."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Quote(Protocol):
    """How a dialect writes a column's name."""

    def __call__(self, name: str) -> str:
        """The name in quotes."""


def write(spec: StatementSpec, portion: Portion, table: str, staged: str, quoted: Quote, account: str) -> str:
    """INSERT or MERGE from the staging table, of nothing where the portion is loaded."""
    names: Sequence[str] = [quoted(name) for name in portion.schema.names]
    listed = ", ".join(names)
    rows = f"SELECT {listed} FROM {staged} WHERE {_lacking(spec, portion, account)}"
    if spec.mode == "append":
        return f"INSERT INTO {table} ({listed}) {rows}"
    keys = [quoted(name) for name in spec.keys]
    changes = ", ".join(f"{name} = s.{name}" for name in names if name not in keys)
    matched = f"WHEN MATCHED THEN UPDATE SET {changes} " if changes else ""
    values = ", ".join(f"s.{name}" for name in names)
    return (
        f"MERGE INTO {table} AS t USING ({rows}) AS s ON {' AND '.join(f't.{name} = s.{name}' for name in keys)} "
        f"{matched}WHEN NOT MATCHED THEN INSERT ({listed}) VALUES ({values})"
    )


def note(spec: StatementSpec, portion: Portion, account: str) -> str:
    """Note the portion as loaded, once."""
    values = ", ".join(map(text, (spec.table, portion.job, portion.run)))
    row = f"{values}, {portion.generation}, {portion.rows}, CURRENT_TIMESTAMP()"
    return f"INSERT INTO {account} SELECT {row} FROM (SELECT 1) WHERE {_lacking(spec, portion, account)}"


def _lacking(spec: StatementSpec, portion: Portion, account: str) -> str:
    key = {"table_name": spec.table, "job": portion.job, "run": portion.run}
    same = " AND ".join(f"{name} = {text(value)}" for name, value in key.items())
    return f"NOT EXISTS (SELECT 1 FROM {account} WHERE {same} AND generation = {portion.generation})"
