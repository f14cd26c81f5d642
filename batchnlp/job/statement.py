"""What load statements are generated from, for the warehouses that load by themselves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from batchnlp.job.spec import TABLE, Names, Section


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
