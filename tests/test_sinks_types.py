"""Columns on their way into warehouses: what each of them makes of a type, nested results, text that one cannot hold."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warehouses import Warehouse, topics, write_output

from batchnlp.errors import SpecError
from batchnlp.sinks.columns import Types, fit, fit_schema
from batchnlp.sinks.json_text import to_json
from batchnlp.sinks.load import load

Make = Callable[[str], Warehouse]
ENTITY = pa.struct([("label", pa.string()), ("text", pa.string()), ("start", pa.int32()), ("score", pa.float32())])
WORD = {"label": "PER", "text": 'Änne "\\" 😀\n\t', "start": 3, "score": 0.5}
BLANK = {"label": None, "text": "", "start": 0, "score": None}
SCORES = pa.struct([("x", pa.float32()), ("y y", pa.float32())])
NESTED = pa.table({
    "id": ["a", "b", "c"],
    "entities": pa.array([[WORD, BLANK], [], None], pa.list_(ENTITY)),
    "scores": pa.array([{"x": 0.25, "y y": 0.75}, None, {"x": 1.0, "y y": None}], SCORES),
    "labels": pa.array([["x", "y"], [], None], pa.list_(pa.string())),
    "embedding": pa.array([[1.0, 2.0], None, [3.5, 4.0]], pa.list_(pa.float32(), 2)),
    "counts": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
})  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_nested_results_arrive_as_nested_or_as_json(warehouse: Warehouse, out: Path) -> None:
    write_output(out, NESTED)
    load(str(out), warehouse.spec(key="id"))
    write_output(out, NESTED.slice(0, 1), "b")
    load(str(out), warehouse.spec(key="id"))
    want = NESTED.to_pylist()
    if warehouse.kind == "postgres":  # maps are objects there
        want = [{**row, "counts": None if row["counts"] is None else dict(row["counts"])} for row in want]
    if warehouse.kind == "iceberg":  # pyiceberg's writer and reader make an empty list of structs of a null one
        want[2]["entities"] = []
    assert warehouse.rows() == want
    kinds = {field.name: str(field.type) for field in warehouse.table().schema}
    vector = "fixed_size_list" if warehouse.kind in ("duckdb", "parquet") else "list"
    assert kinds["embedding"].startswith(vector), "what is no list stays no list"
    assert ("json" in kinds["entities"]) == (warehouse.kind == "postgres")


def test_a_list_becomes_a_table_of_its_own(warehouse: Warehouse, out: Path) -> None:
    spec = warehouse.spec(key="id", unnest=["entities", "labels"])
    write_output(out, NESTED)
    assert load(str(out), spec).rows == 3
    assert set(warehouse.rows()[0]) == {"id", "scores", "embedding", "counts"}
    assert warehouse.rows("t_entities") == [
        {"id": "a", "position": 0, **WORD}, {"id": "a", "position": 1, **BLANK},
    ]  # fmt: skip
    assert [(row["id"], row["position"], row["labels"]) for row in warehouse.rows("t_labels")] == [
        ("a", 0, "x"), ("a", 1, "y"),
    ]  # fmt: skip
    other = [{**WORD, "label": "LOC"}]
    later = NESTED.set_column(1, "entities", pa.array([[], other, None], pa.list_(ENTITY))).slice(0, 2)
    write_output(out, later, "b")
    load(str(out), spec)
    found = [(row["id"], row["label"]) for row in warehouse.rows("t_entities")]
    assert found == [("b", "LOC")], "a document that has none any more has none there"


def test_unnested_rows_know_their_partition(warehouse: Warehouse, out: Path) -> None:
    table = topics(0, 6).append_column("entities", pa.array([[WORD]] * 6, pa.list_(ENTITY)))
    spec = warehouse.spec(write="replace_partition", partition_by="lang", unnest="entities")
    write_output(out, table)
    load(str(out), spec)
    found = warehouse.rows("t_entities")
    assert [(row["id"], row["lang"]) for row in found] == [(row["id"], row["lang"]) for row in table.to_pylist()]
    assert "entities_label" not in found[0]


def test_names_that_are_taken_get_the_lists_name(new_warehouse: Make, out: Path) -> None:
    kind = pa.list_(pa.struct([("id", pa.string()), ("position", pa.int32())]))
    table = topics(0, 1).append_column("entities", pa.array([[{"id": "Q1", "position": 7}]], kind))
    write_output(out, table)
    warehouse = new_warehouse("duckdb")
    load(str(out), warehouse.spec(unnest="entities"))
    assert warehouse.rows("t_entities") == [
        {"id": "doc-0", "position": 0, "entities_id": "Q1", "entities_position": 7}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"key": "idd"}, r"sinks.key names 'idd', which the results do not have \(did you mean id\?\)"),
        ({"unnest": "entity"}, r"sinks.unnest names 'entity', .*did you mean entities"),
        ({"unnest": "label"}, r"sinks.unnest names 'label', which is string \(only lists can be unnested\)"),
        ({"partition_by": "country"}, "sinks.partition_by names 'country'"),
        ({"key": "nothing"}, "sinks.key names 'nothing', which is null in every row"),
        ({"write": "replace_partition"}, "replace_partition needs partition columns"),
        ({"unnest": "../up"}, r"'../up', after which no table can be named"),
        ({"key": ["id", "entities"], "unnest": "entities"}, "which the table needs"),
    ],
)
def test_wrong_columns_are_refused(new_warehouse: Make, out: Path, more: dict[str, Any], message: str) -> None:
    table = topics(0, 2).append_column("entities", pa.array([[], []], pa.list_(ENTITY)))
    write_output(out, table.append_column("nothing", pa.nulls(2)).append_column("../up", pa.array([[1], []])))
    warehouse = new_warehouse("duckdb")
    with pytest.raises(SpecError, match=message):
        load(str(out), warehouse.spec(**more))
    assert not Path(warehouse.database).exists()


def test_nul_is_replaced_where_text_cannot_hold_it(warehouse: Warehouse, out: Path) -> None:
    table = pa.table({
        "id": ["a\0b", "c"], "text": pa.array(["x\0\0y", None]), "labels": pa.array([["\0", None], None]),
        "entities": pa.array([[{**WORD, "text": "\\u0000\0"}], None], pa.list_(ENTITY)),
    })  # fmt: skip
    write_output(out, table)
    load(str(out), warehouse.spec(key="id"))
    load(str(out), warehouse.spec(key="id"))
    nul = "\N{REPLACEMENT CHARACTER}" if warehouse.kind == "postgres" else "\0"
    found = warehouse.rows()[0]
    assert found["id"] == f"a{nul}b"
    assert found["text"] == f"x{nul}{nul}y"
    assert found["labels"] == [nul, None]
    assert found["entities"][0]["text"] == f"\\u0000{nul}"


# --- every type

MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, dt.UTC).replace(tzinfo=None)
TYPES: dict[str, tuple[pa.Array, Any]] = {  # a column, and what comes back
    "int8": (pa.array([1, None], pa.int8()), 1),
    "uint8": (pa.array([255, None], pa.uint8()), 255),
    "uint16": (pa.array([65535, None], pa.uint16()), 65535),
    "uint32": (pa.array([2**32 - 1, None], pa.uint32()), 2**32 - 1),
    "uint64": (pa.array([2**64 - 1, None], pa.uint64()), Decimal(2**64 - 1)),
    "half": (pa.array(np.array([1.5, 2], np.float16)), 1.5),
    "double": (pa.array([0.1, None]), 0.1),
    "nan": (pa.array([float("inf"), None], pa.float32()), float("inf")),
    "large": (pa.array(["ü", None], pa.large_string()), "ü"),
    "view": (pa.array(["ü", None]).cast(pa.string_view()), "ü"),
    "bytes": (pa.array([b"\0\xff", None]), b"\0\xff"),
    "fixed_bytes": (pa.array([b"\0\xff", None], pa.binary(2)), b"\0\xff"),
    "date": (pa.array([MOMENT.date(), None]), MOMENT.date()),
    "date64": (pa.array([MOMENT.date(), None], pa.date64()), MOMENT.date()),
    "nanoseconds": (pa.array([1767323045678901234, None], pa.timestamp("ns")), MOMENT),
    "seconds": (pa.array([MOMENT, None], pa.timestamp("s")), MOMENT.replace(microsecond=0)),
    "zone": (
        pa.array([MOMENT, None], pa.timestamp("us", "Europe/Berlin")), MOMENT.replace(tzinfo=dt.UTC),
    ),
    "time": (pa.array([MOMENT.time(), None], pa.time64("ns")), MOMENT.time()),
    "duration": (pa.array([dt.timedelta(seconds=90), None], pa.duration("s")), 90_000_000),
    "decimal": (pa.array([Decimal("1.50"), None], pa.decimal128(10, 2)), Decimal("1.50")),
    "small_decimal": (pa.array([Decimal("1.50"), None], pa.decimal32(5, 2)), Decimal("1.50")),
    "wide_decimal": (pa.array([Decimal("1.50"), None], pa.decimal256(50, 2)), "1.50"),
    "large_list": (pa.array([[1, None], None], pa.large_list(pa.uint8())), [1, None]),
    "lists": (pa.array([[[1.5], None], None], pa.list_(pa.list_(pa.float32()))), [[1.5], None]),
}  # fmt: skip


def test_every_type_arrives(warehouse: Warehouse, out: Path) -> None:
    columns = {name: values for name, (values, _) in TYPES.items()}
    write_output(out, pa.table({"id": [1, 2], **columns}))
    load(str(out), warehouse.spec(key="id"))
    write_output(out, pa.table({"id": [2, 3], **columns}), "b")
    load(str(out), warehouse.spec(key="id"))
    rows = warehouse.rows()
    assert [row["id"] for row in rows] == [1, 2, 3]
    found = rows[0]
    for name, (_, want) in TYPES.items():
        value = found[name]
        if warehouse.kind == "delta" and name == "time":
            want = "03:04:05.678901000"  # of nanoseconds, as text
        if warehouse.kind == "postgres" and isinstance(want, Decimal):
            value = Decimal(value)  # which its driver gives as text
        assert value == want, name
        assert type(value) is type(want), name
    assert rows[2]["bytes"] is None


# --- JSON

LEAVES = st.one_of(st.none(), st.text(), st.integers(-(2**31), 2**31 - 1), st.booleans())
ROWS = st.lists(
    st.one_of(
        st.none(),
        st.fixed_dictionaries({
            "text": st.one_of(st.none(), st.text()),
            "list": st.one_of(st.none(), st.lists(st.one_of(st.none(), st.text()))),
            "deep": st.one_of(
                st.none(), st.lists(st.one_of(st.none(), st.fixed_dictionaries({"n": st.integers(0, 9)})))
            ),
            "map": st.one_of(st.none(), st.dictionaries(st.text(), st.one_of(st.none(), st.integers(0, 9)))),
        }),
    ),
    max_size=5,
)  # fmt: skip
KIND = pa.struct([
    ("text", pa.string()), ("list", pa.large_list(pa.string())), ("deep", pa.list_(pa.struct([("n", pa.int64())]))),
    ("map", pa.map_(pa.string(), pa.int64())),
])  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, start=st.integers(0, 3))
def test_json_says_what_python_would(rows: list[Any], start: int) -> None:
    array = pa.array(rows, KIND)
    found = [None if text is None else json.loads(text) for text in to_json(array.slice(start)).to_pylist()]
    assert found == json.loads(json.dumps(rows[start:]).replace("\\u0000", "\\ufffd"))


def test_json_of_what_json_has_not() -> None:
    row = {"x": float("nan"), "y": float("-inf"), "b": b"\xff\0", "d": MOMENT.date(), "e": Decimal("1.50")}
    array = pa.array([row])
    found = json.loads(to_json(array)[0].as_py())
    assert found == {"x": None, "y": None, "b": base64.b64encode(b"\xff\0").decode(), "d": "2026-01-02", "e": 1.5}
    assert to_json(pa.array([{}], pa.struct([]))).to_pylist() == ["{}"]
    assert to_json(pa.array([[0.1, 1e20]], pa.list_(pa.float32()))).to_pylist() == ["[0.1,1e+20]"]


def test_what_a_schema_becomes_does_not_depend_on_the_rows() -> None:
    table = pa.table({name: values for name, (values, _) in TYPES.items()})
    for types in (Types(), Types(json=True, nul=False), Types(fixed_lists=True), Types(small_ints=False, times=False)):
        schema = fit_schema(table.schema, types)
        assert types.json or fit_schema(schema, types) == schema, "once is enough"
        for batch in (table, table.slice(1), table.slice(0, 0)):
            for part in batch.to_batches():
                assert fit(part, schema, types).schema == schema
