"""Where results go beside files: warehouses, and those that load by themselves."""

from __future__ import annotations

import os
import re
import urllib.parse
from typing import Literal

from pydantic import Field, field_validator, model_validator

from batchnlp.job.section import Names, Section

TABLE = r"^[\w-]+(\.[\w-]+){0,2}$"  # perhaps with schema and catalog before it; it becomes a directory's name too
Write = Literal["append", "upsert", "replace_partition"]


class SinkSpec(Section):
    """A warehouse that gets the results when all of them are there."""

    kind: Literal["duckdb", "delta", "iceberg", "postgres", "parquet"] = Field(description="The warehouse.")
    database: str = Field(
        min_length=1,
        description="duckdb: a file. delta: a directory or URI. iceberg, parquet: a directory. postgres: a URI without "
        "password, which PGPASSWORD or ~/.pgpass has.",
    )
    table: str = Field(pattern=TABLE, description="The table, as topics or schema.topics; made where it is not there.")
    catalog: str | None = Field(
        None, description="iceberg: a catalog of pyiceberg's own configuration, as a REST one; SQLite without it."
    )
    write: Write | None = Field(
        None, description="append; upsert: by key; replace_partition. Without it upsert where there is a key."
    )
    key: Names = Field(default_factory=list, description="The columns that tell rows apart; id without it.")
    partition_by: Names | None = Field(
        None, description="The table's partitions, and those replaced; output.partition_by without it."
    )
    unnest: Names = Field(default_factory=list, description="Lists that become tables of their own, as entities.")

    @field_validator("database")
    @classmethod
    def _check_database(cls, value: str) -> str:
        if urllib.parse.urlsplit(value).password or re.search(r"\bpassword\s*=", value):
            raise ValueError("a password in sinks.database would be written into the plan; use PGPASSWORD or ~/.pgpass")
        return os.path.expanduser(value)

    @model_validator(mode="after")
    def _check(self) -> SinkSpec:
        if self.catalog is not None and self.kind != "iceberg":
            raise ValueError(f"catalog belongs to iceberg, not to {self.kind}")
        return self

    @property
    def mode(self) -> Write:
        """How rows are written."""
        return self.write or ("upsert" if self.key else "append")

    @property
    def keys(self) -> list[str]:
        """The columns that tell rows apart."""
        return self.key or ["id"]


class StatementSpec(Section):
    """A table of a warehouse that reads the files itself."""

    kind: Literal["bigquery", "snowflake", "clickhouse"] = Field(description="The warehouse.")
    table: str = Field(pattern=TABLE, description="The table.")
    database: str | None = Field(
        None, pattern=TABLE, description="What the table is in: a data set, a schema, a database."
    )
    files: str = Field(
        min_length=1,
        description="Where the warehouse sees the output. bigquery: gs://bucket/out. snowflake: stage/out. clickhouse: an "
        "s3:// or https:// URL, or a path below user_files.",
    )
    write: Literal["append", "upsert"] | None = Field(None, description="Without it upsert where there is a key.")
    key: Names = Field(default_factory=list, description="The columns that tell rows apart; id without it.")

    @property
    def mode(self) -> Literal["append", "upsert"]:
        """How rows are written."""
        return self.write or ("upsert" if self.key else "append")

    @property
    def keys(self) -> list[str]:
        """The columns that tell rows apart."""
        return self.key or ["id"]

    @property
    def name(self) -> str:
        """The table, with what it is in."""
        return self.table if self.database is None else f"{self.database}.{self.table}"
