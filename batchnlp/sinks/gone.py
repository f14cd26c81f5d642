"""The rows of a table that make way for those of a load: all that agree with these values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.data.results import batches
from batchnlp.errors import SpecError
from batchnlp.job.sinks import SinkSpec
from batchnlp.sinks.columns import Types, fit, fit_schema


class Gone:
    """Each value once. Taken from the rows where they have gone by already, else read from the files.

    For an upsert the values are keys, and those that are null or there twice are refused: at the end of the rows, before
    anything can be committed, if nobody asks earlier.
    """

    def __init__(
        self, spec: SinkSpec, by: Sequence[str], paths: Sequence[str], schema: pa.Schema, types: Types
    ) -> None:
        self._spec, self._paths, self._whole, self._types = spec, paths, schema, types
        self._by = list(by)
        self._schema = pa.schema([schema.field(name) for name in by])
        self._passed: list[pa.RecordBatch] | None = None
        self._found: pa.Table | None = None

    def watch(self, rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pass the rows on and remember their values; the end of the rows is where bad keys are refused."""
        passed = []
        for batch in rows:
            passed.append(batch.select(self._by))
            yield batch
        self._passed = passed
        if self._spec.mode == "upsert":
            self()

    def __call__(self) -> pa.Table:
        """The values, as the warehouse has them."""
        if self._found is None:
            self._found = self._distinct() if self._by else pa.table({})
        return self._found

    def _distinct(self) -> pa.Table:
        rows = batches(self._paths, self._whole, self._by) if self._passed is None else self._passed
        every = pa.Table.from_batches(rows, self._schema)
        distinct = _distinct(every)
        if self._spec.mode == "upsert":
            self._check(every, distinct)
        schema = fit_schema(self._schema, self._types)
        return pa.Table.from_batches([fit(batch, schema, self._types) for batch in distinct.to_batches()], schema)

    def _check(self, every: pa.Table, distinct: pa.Table) -> None:
        for name in self._by:
            if nulls := every[name].null_count:
                raise SpecError(f"sinks.key: {name} is null in {nulls:,} rows", "name columns that are never null")
        if double := len(every) - len(distinct):
            counts = every.group_by(self._by).aggregate([([], "count_all")])
            first = counts.filter(pc.greater(counts["count_all"], 1)).slice(0, 1).to_pylist()[0]
            first.pop("count_all")
            message = f"sinks.key: {double:,} rows have the {', '.join(self._by)} of another one, as {first}"
            raise SpecError(message, "name more columns in sinks.key, or use write: append")


def _distinct(rows: pa.Table) -> pa.Table:
    if rows.num_columns == 1:  # where it takes two thirds of the time
        return pa.table([pc.unique(rows.column(0))], rows.schema)
    return rows.group_by(rows.column_names, use_threads=False).aggregate([])
