"""Load statements for Snowflake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pyarrow as pa
import pyarrow.types as pt

from batchnlp.job.sinks import StatementSpec
from batchnlp.sinks.columns import Types
from batchnlp.sinks.sql import ACCOUNT
from batchnlp.sinks.statements import Portion, note, text, write

COPY_FILES = 1000  # the most that one COPY takes


class Snowflake:
    """A temporary table by COPY, then one transaction. Names are upper case, as Snowflake makes those without quotes."""

    types = Types()
    names: ClassVar[dict[pa.DataType, str]] = {
        pa.bool_(): "BOOLEAN", pa.float32(): "FLOAT", pa.float64(): "FLOAT", pa.string(): "VARCHAR", pa.binary(): "BINARY",
        pa.date32(): "DATE", pa.time64("us"): "TIME", pa.timestamp("us"): "TIMESTAMP_NTZ",
        pa.timestamp("us", "UTC"): "TIMESTAMP_TZ",
    }  # fmt: skip

    def __init__(self, spec: StatementSpec) -> None:
        self._spec = spec
        self._table = self._beside(spec.table)

    def account(self) -> str:
        """In the same schema."""
        columns = "TABLE_NAME VARCHAR, JOB VARCHAR, RUN VARCHAR, GENERATION INTEGER, ROW_COUNT BIGINT, LOADED_AT TIMESTAMP_LTZ"
        return f"CREATE TABLE IF NOT EXISTS {self._beside(ACCOUNT)} ({columns})"

    def table(self, schema: pa.Schema) -> str:
        """Nested columns are VARIANT."""
        columns = ", ".join(f"{self._quoted(field.name)} {self.type_name(field.type)}" for field in schema)
        return f"CREATE TABLE IF NOT EXISTS {self._table} ({columns})"

    def load(self, portion: Portion) -> Iterator[str]:
        """CREATE would end a transaction, so it comes before."""
        staged = self._beside(f"_batchnlp_{self._spec.table}_{portion.run}_{portion.generation}")
        stage = "@" + self._spec.files.strip("@/")
        yield f"CREATE OR REPLACE TEMPORARY TABLE {staged} LIKE {self._table}"
        for start in range(0, len(portion.files), COPY_FILES):
            files = ", ".join(text(file.name) for file in portion.files[start : start + COPY_FILES])
            yield (
                f"COPY INTO {staged} FROM {text(stage + '/')} FILES = ({files}) "
                "FILE_FORMAT = (TYPE = PARQUET USE_LOGICAL_TYPE = TRUE) MATCH_BY_COLUMN_NAME = CASE_INSENSITIVE"
            )
        yield "BEGIN"
        yield write(self._spec, portion, self._table, staged, self._quoted, self._beside(ACCOUNT))
        yield note(self._spec, portion, self._beside(ACCOUNT))
        yield "COMMIT"

    def type_name(self, kind: pa.DataType) -> str:
        """What is nested is VARIANT."""
        if pt.is_decimal(kind):
            return f"NUMBER({kind.precision}, {kind.scale})"
        return "VARIANT" if pt.is_nested(kind) else "BIGINT" if pt.is_integer(kind) else self.names[kind]

    def _beside(self, name: str) -> str:
        outer = self._spec.database.split(".") if self._spec.database else []
        return ".".join(self._quoted(part) for part in (*outer, *name.split(".")))

    @staticmethod
    def _quoted(name: str) -> str:
        return '"' + name.upper().replace('"', '""') + '"'
