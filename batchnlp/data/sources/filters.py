"""The row filter: a conjunction of comparisons, checked once and then asked table by table."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchnlp.data.remote import reason
from batchnlp.data.sources.columns import nulls
from batchnlp.errors import SourceError
from batchnlp.types import Int64

Filter = tuple[tuple[str, str, Any], ...]

POSITION = "__batchnlp_position"


def check(filters: Filter, schema: pa.Schema) -> None:
    """Fails when a comparison makes no sense for its column's type."""
    for column, operator, value in filters:
        try:
            nulls(schema, 0).filter(expression(((column, operator, value),), schema))
        except (ValueError, TypeError, pa.ArrowException) as error:
            kind = schema.field(column).type
            raise SourceError(
                f"source.filter: {column} {operator} {value!r} does not fit the column's type {kind}: {reason(error)}",
                f"compare {column} with a value of that type",
            ) from error


def matching(filters: Filter, table: pa.Table, always: Iterable[int]) -> Int64:
    """Positions of the rows that pass, and of those in `always`, in order."""
    rows = pa.array(np.arange(table.num_rows, dtype=np.int64))
    passed = table.append_column(POSITION, rows).filter(expression(filters, table.schema))
    return np.union1d(passed.column(POSITION).to_numpy(), np.fromiter(always, np.int64)).astype(np.int64)


def expression(filters: Filter, schema: pa.Schema) -> Any:
    """The conjunction as pyarrow takes it."""
    return pq.filters_to_expression(
        [(name, how, _typed(value, schema.field(name).type)) for name, how, value in filters]
    )


def _typed(value: Any, kind: pa.DataType) -> Any:
    """Dates and times may be written as text, as `{{ ds }}` is; Arrow compares them with their own type only."""
    if isinstance(value, list | tuple | set):
        return [_typed(one, kind) for one in value]
    if isinstance(value, str) and pa.types.is_temporal(kind):
        with suppress(pa.ArrowException):  # text that is no date: the comparison says what does not fit
            return pa.scalar(value).cast(kind).as_py()
    return value
