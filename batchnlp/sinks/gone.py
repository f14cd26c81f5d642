"""The rows of a table that make way for those of a load: all that agree with these values."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.data.results import batches
from batchnlp.errors import SpecError
from batchnlp.job.sinks import SinkSpec
from batchnlp.sinks.columns import Types, fit, fit_schema


class Gone:
    """Each value once, read when first asked for. For an upsert they are keys, and null or double ones are refused.

    `deletes` are files with keys of rows that make way for nothing.
    """

    def __init__(
        self, spec: SinkSpec, by: Sequence[str], paths: Sequence[str], deletes: Sequence[str], schema: pa.Schema, types: Types
    ) -> None:  # fmt: skip
        self._spec, self._paths, self._deletes, self._whole, self._types = spec, paths, deletes, schema, types
        self._by = list(by)
        upsert = spec.mode == "upsert"  # a run at a time, which has no id that is null or twice: no plan would let it
        self._unique, self._checks = upsert and self._by == ["id"], upsert and self._by != ["id"]
        self._lock = threading.Lock()
        self._found: tuple[pa.Table, pa.Table] | None = None

    def __call__(self) -> pa.Table:
        """The values, as the warehouse has them."""
        rows, deleted = self._both()
        return pa.concat_tables([rows, deleted]) if len(deleted) else rows

    def deleted(self) -> pa.Table:
        """Those of them that no row of the load has."""
        return self._both()[1]

    def _both(self) -> tuple[pa.Table, pa.Table]:
        with self._lock:
            if self._found is None:
                self._found = self._read() if self._by else (pa.table({}), pa.table({}))
            return self._found

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Meanwhile the keys of an upsert are looked at; bad ones are refused at the end."""
        with ThreadPoolExecutor(1) as thread:
            keys = thread.submit(self) if self._checks else None
            yield
            if keys is not None:
                keys.result()

    def _read(self) -> tuple[pa.Table, pa.Table]:
        schema = pa.schema([self._whole.field(name) for name in self._by])
        every = pa.Table.from_batches(batches(self._paths, self._whole, self._by), schema)
        distinct = every if self._unique else _distinct(every)
        if self._checks:
            self._check(every, distinct)
        deleted = pa.Table.from_batches(batches(self._deletes, self._whole, self._by), schema)
        if len(deleted):  # a retry may have brought back what failed
            deleted = deleted.filter(pc.invert(pc.is_in(deleted.column(0), value_set=distinct.column(0))))
        return self._fitted(distinct), self._fitted(deleted)

    def _fitted(self, rows: pa.Table) -> pa.Table:
        fitted = fit_schema(rows.schema, self._types)
        return pa.Table.from_batches([fit(batch, fitted, self._types) for batch in rows.to_batches()], fitted)

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
