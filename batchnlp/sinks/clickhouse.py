"""Load statements for ClickHouse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pyarrow as pa
import pyarrow.types as pt

from batchnlp.job.sinks import StatementSpec
from batchnlp.sinks.columns import Types
from batchnlp.sinks.sql import ACCOUNT
from batchnlp.sinks.statements import Portion, text


class ClickHouse:
    """A file at a time, each with a deduplication token: it covers a crash between the rows and the note of them.

    Upsert is a ReplacingMergeTree ordered by the key: of rows with the same key the one inserted last stays, at the latest
    where it is read with FINAL.
    """

    types = Types(times=False)
    names: ClassVar[dict[pa.DataType, str]] = {
        pa.bool_(): "Bool", pa.int8(): "Int8", pa.int16(): "Int16", pa.int32(): "Int32", pa.int64(): "Int64",
        pa.float32(): "Float32", pa.float64(): "Float64", pa.string(): "String", pa.binary(): "String",
        pa.date32(): "Date32", pa.timestamp("us"): "DateTime64(6)", pa.timestamp("us", "UTC"): "DateTime64(6, 'UTC')",
    }  # fmt: skip

    def __init__(self, spec: StatementSpec) -> None:
        self._spec = spec
        self._table = self._beside(spec.table)

    def account(self) -> str:
        """In the same database."""
        columns = (
            "table_name String, job String, run String, generation Int32, file String, row_count Int64, "
            "loaded_at DateTime DEFAULT now()"
        )
        order = "ORDER BY (table_name, job, run, generation, file)"
        return f"CREATE TABLE IF NOT EXISTS {self._beside(ACCOUNT)} ({columns}) ENGINE = MergeTree {order}"

    def table(self, schema: pa.Schema) -> str:
        """The key cannot be null; without replication tokens are kept only as many as the setting says."""
        columns = ", ".join(
            f"{self._quoted(f.name)} {self.type_name(f.type, nullable=f.name not in self._spec.keys)}" for f in schema
        )
        engine = "ReplacingMergeTree" if self._spec.mode == "upsert" else "MergeTree"
        order = ", ".join(self._quoted(name) for name in self._spec.keys)
        settings = "SETTINGS non_replicated_deduplication_window = 1000"
        return f"CREATE TABLE IF NOT EXISTS {self._table} ({columns}) ENGINE = {engine} ORDER BY ({order}) {settings}"

    def load(self, portion: Portion) -> Iterator[str]:
        """The token is noted as loaded right after its file."""
        names = ", ".join(map(self._quoted, portion.schema.names))
        account = self._beside(ACCOUNT)
        for file in portion.files:
            key = {"table_name": self._spec.table, "job": portion.job, "run": portion.run}
            same = " AND ".join(f"{name} = {text(value)}" for name, value in key.items())
            same += f" AND generation = {portion.generation} AND file = {text(file.name)}"
            lacking = f"(SELECT count() FROM {account} WHERE {same}) = 0"
            token = text("/".join([*key.values(), str(portion.generation), file.name]))
            yield (
                f"INSERT INTO {self._table} ({names}) SELECT {names} FROM {self._source(file.name)} WHERE {lacking} "
                f"SETTINGS insert_deduplication_token = {token}"
            )
            values = ", ".join([*map(text, key.values()), str(portion.generation), text(file.name), str(file.rows)])
            columns = "table_name, job, run, generation, file, row_count"
            yield f"INSERT INTO {account} ({columns}) SELECT {values} WHERE {lacking}"

    def type_name(self, kind: pa.DataType, *, nullable: bool = True) -> str:
        """Arrays, tuples and maps cannot be null; they are empty instead."""
        if pt.is_struct(kind):
            return f"Tuple({', '.join(f'{self._quoted(f.name)} {self.type_name(f.type)}' for f in kind.fields)})"
        if pt.is_map(kind):
            return f"Map({self.type_name(kind.key_type, nullable=False)}, {self.type_name(kind.item_type)})"
        if pt.is_list(kind):
            return f"Array({self.type_name(kind.value_type)})"
        name = f"Decimal({kind.precision}, {kind.scale})" if pt.is_decimal(kind) else self.names[kind]
        return f"Nullable({name})" if nullable else name

    def _source(self, name: str) -> str:
        where = f"{self._spec.files.rstrip('/')}/{name}"
        return f"{'s3' if '://' in where else 'file'}({text(where)}, 'Parquet')"

    def _beside(self, name: str) -> str:
        return ".".join(self._quoted(part) for part in (self._spec.database, name) if part)

    @staticmethod
    def _quoted(name: str) -> str:
        return f"`{name}`"
