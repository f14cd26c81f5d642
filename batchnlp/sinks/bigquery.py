"""Load statements for BigQuery."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pyarrow as pa
import pyarrow.types as pt

from batchnlp.job.sinks import StatementSpec
from batchnlp.sinks.columns import Types
from batchnlp.sinks.sql import ACCOUNT
from batchnlp.sinks.statements import Portion, note, text, write


class BigQuery:
    """A staging table by LOAD DATA, then one transaction."""

    types = Types(small_ints=False)
    names: ClassVar[dict[pa.DataType, str]] = {
        pa.bool_(): "BOOL", pa.int32(): "INT64", pa.int64(): "INT64", pa.float32(): "FLOAT64", pa.float64(): "FLOAT64",
        pa.string(): "STRING", pa.binary(): "BYTES", pa.date32(): "DATE", pa.time64("us"): "TIME",
        pa.timestamp("us"): "DATETIME", pa.timestamp("us", "UTC"): "TIMESTAMP",
    }  # fmt: skip

    def __init__(self, spec: StatementSpec) -> None:
        self._spec = spec
        self._table = self._beside(spec.table)

    def account(self) -> str:
        """In the same data set."""
        columns = "table_name STRING, job STRING, run STRING, generation INT64, row_count INT64, loaded_at TIMESTAMP"
        return f"CREATE TABLE IF NOT EXISTS {self._beside(ACCOUNT)} ({columns})"

    def table(self, schema: pa.Schema) -> str:
        """Every column may be null."""
        columns = ", ".join(f"{self._quoted(field.name)} {self.type_name(field.type)}" for field in schema)
        return f"CREATE TABLE IF NOT EXISTS {self._table} ({columns})"

    def load(self, portion: Portion) -> Iterator[str]:
        """LOAD DATA cannot be part of a transaction."""
        staged = self._beside(f"_batchnlp_{self._spec.table}_{portion.run}_{portion.generation}")
        uris = ", ".join(text(f"{self._spec.files.rstrip('/')}/{file.name}") for file in portion.files)
        if portion.files:
            yield (
                f"LOAD DATA OVERWRITE {staged} FROM FILES (format = 'PARQUET', enable_list_inference = true, uris = [{uris}])"
            )
        yield "BEGIN TRANSACTION"
        if portion.files:
            yield write(self._spec, portion, self._table, staged, self._quoted, self._beside(ACCOUNT))
        yield note(self._spec, portion, self._beside(ACCOUNT))
        yield "COMMIT TRANSACTION"
        yield f"DROP TABLE IF EXISTS {staged}"

    def type_name(self, kind: pa.DataType) -> str:
        """BigQuery has no maps; they are arrays of pairs there."""
        if pt.is_struct(kind):
            return f"STRUCT<{', '.join(f'{self._quoted(f.name)} {self.type_name(f.type)}' for f in kind.fields)}>"
        if pt.is_map(kind):
            return f"ARRAY<STRUCT<key {self.type_name(kind.key_type)}, value {self.type_name(kind.item_type)}>>"
        if pt.is_list(kind):
            return f"ARRAY<{self.type_name(kind.value_type)}>"
        if pt.is_decimal(kind):
            return f"BIGNUMERIC({kind.precision}, {kind.scale})"
        return self.names[kind]

    def _beside(self, name: str) -> str:
        return f"`{name}`" if self._spec.database is None else f"`{self._spec.database}.{name}`"

    @staticmethod
    def _quoted(name: str) -> str:
        return f"`{name}`"
