"""Apache Iceberg: one commit a table. What a table holds is in its properties, which outlive snapshots.

Without a catalog of its own the warehouse is a directory with a SQLite catalog in it. pyiceberg's upsert compares row by row,
and its writer takes a partitioned table only as a whole; so files are made one after the other by the function that its
own append uses, and rows make way file by file. It makes an empty list of structs of a null one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from batchnlp.errors import MissingExtraError
from batchnlp.job.sinks import SinkSpec
from batchnlp.sinks.base import Held, Load
from batchnlp.sinks.columns import Types, new_columns, spelling
from batchnlp.sinks.rewrite import Matcher, rewritten

try:
    from pyiceberg import exceptions
    from pyiceberg.catalog import load_catalog
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.expressions import AlwaysTrue, And, GreaterThanOrEqual, In, IsNull, LessThanOrEqual, Or
    from pyiceberg.io.pyarrow import ArrowScan, _dataframe_to_data_files
    from sqlalchemy.exc import SQLAlchemyError
except ModuleNotFoundError:
    raise MissingExtraError.of("pyiceberg", "iceberg") from None

NOTE = "batchnlp.load"
VALUES = 200  # that pyiceberg looks for one by one
DEFAULT = "default"  # the name that pyiceberg gives to a catalog and to a namespace without one


class Iceberg:
    """Upsert and replaced partitions are copy on write: files with such rows are written anew without them."""

    types = Types(small_ints=False)
    errors = (SQLAlchemyError, *(e for e in vars(exceptions).values() if isinstance(e, type)))

    def __init__(self, spec: SinkSpec) -> None:
        self._spec = spec
        self._catalog: Any = None

    def start(self) -> None:
        """Open the catalog."""
        if self._spec.catalog is not None:
            self._catalog = load_catalog(self._spec.catalog)
            return
        folder = os.path.abspath(self._spec.database)
        os.makedirs(folder, exist_ok=True)
        self._catalog = SqlCatalog(DEFAULT, uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")

    def held(self, table: str, runs: Sequence[tuple[str, str]]) -> Held:
        """From the table's properties."""
        name = self._name(table)
        if not self._catalog.table_exists(name):
            return {}
        properties = self._catalog.load_table(name).properties
        return {run: int(properties[_property(run)]) for run in runs if _property(run) in properties}

    def write(self, load: Load) -> None:
        """Make or widen the table and commit the rows."""
        table = self._table(load)
        transaction = table.transaction()
        self._widen(table, transaction, load)
        files = _Files(table, transaction)
        if load.mode == "append" or table.current_snapshot() is None:
            with transaction.update_snapshot().fast_append() as snapshot:
                files.append(snapshot, load)
        else:
            with transaction.update_snapshot().overwrite() as snapshot:
                files.append(snapshot, load)  # first, so that what makes way has gone by
                files.remove(snapshot, load)
        transaction.set_properties({_property(run): str(generation) for run, generation in load.runs.items()})
        transaction.commit_transaction()

    def finalize(self) -> None:
        """Everything is committed."""

    def close(self) -> None:
        """Let go of the catalog's connections."""
        if self._catalog is not None:
            self._catalog.close()

    def _name(self, table: str) -> tuple[str, ...]:
        if self._spec.catalog is not None:
            return (self._spec.database, *table.split("."))
        return tuple(table.split(".") if "." in table else (DEFAULT, table))

    def _table(self, load: Load) -> Any:
        """The table; made, with its partitions, in a commit of its own."""
        name = self._name(load.table)
        if not self._catalog.table_exists(name):
            self._catalog.create_namespace_if_not_exists(name[:-1])
            with self._catalog.create_table_transaction(name, load.schema) as made, made.update_spec() as spec:
                for column in load.partition_by:
                    spec.add_identity(column)
        return self._catalog.load_table(name)

    def _widen(self, table: Any, transaction: Any, load: Load) -> None:
        held = {field.name: spelling(field.type) for field in table.schema().as_arrow()}
        wanted = {field.name: spelling(field.type) for field in load.schema}
        if new := new_columns(held, wanted, load.table):
            with transaction.update_schema() as schema:
                schema.union_by_name(pa.schema([load.schema.field(name) for name in new]))


class _Files:
    """The data files of one commit."""

    def __init__(self, table: Any, transaction: Any) -> None:
        self._table, self._transaction = table, transaction
        self._counter = itertools.count()

    def append(self, snapshot: Any, load: Load) -> None:
        """New files with the rows of the load."""
        for rows in load.tables():
            self._add(snapshot, rows)

    def remove(self, snapshot: Any, load: Load) -> None:
        """Files that the table had, with rows that make way, are replaced by files without them."""
        gone = load.gone()
        rows = _within(gone, self._table)
        snapshot.delete_by_predicate(rows)
        tasks = self._table.scan(row_filter=rows).plan_files()
        sized = ((task, task.file.record_count) for task in tasks)
        for task, left in rewritten(sized, self._read, Matcher(gone)):
            snapshot.delete_data_file(task.file)
            if left is not None:
                self._add(snapshot, left)

    def _read(self, task: Any, columns: Sequence[str] | None) -> pa.Table:
        metadata = self._transaction.table_metadata
        schema = metadata.schema() if columns is None else metadata.schema().select(*columns)
        return ArrowScan(metadata, self._table.io, schema, AlwaysTrue()).to_table([task])

    def _add(self, snapshot: Any, rows: pa.Table) -> None:
        made = _dataframe_to_data_files(
            self._transaction.table_metadata, rows, self._table.io, snapshot.commit_uuid, self._counter
        )
        for file in made:
            snapshot.append_data_file(file)


def _property(run: tuple[str, str]) -> str:
    return ".".join([NOTE, *run])


def _within(gone: pa.Table, table: Any) -> Any:
    """A condition that holds for all rows like these, and perhaps for others: by it files are passed over.

    pyiceberg cannot compare the null of a partition, only look for it among values.
    """
    partitioned = {table.schema().find_column_name(field.source_id) for field in table.spec().fields}
    condition: Any = AlwaysTrue()
    for name in set(gone.column_names) & set(table.schema().column_names):
        column = gone[name]
        values = pc.unique(column).drop_null()
        if len(values) <= VALUES:
            inside = In(name, values.to_pylist())
        elif name not in partitioned and (pt.is_integer(column.type) or pt.is_string(column.type)):
            ends = pc.min_max(values).as_py()
            inside = And(GreaterThanOrEqual(name, ends["min"]), LessThanOrEqual(name, ends["max"]))
        else:
            continue
        condition = And(condition, Or(inside, IsNull(name)) if column.null_count else inside)
    return condition
