"""Fast and careful ways to read lines agree where the fast one dares to answer, or filters would count twice."""

import io
import json

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnlp.data.sources import delimited, jsonl
from batchnlp.data.sources.storage import Store
from batchnlp.types import Segment, SourceConfig

SCHEMA = pa.schema(
    [
        ("text", pa.large_string()),
        ("i", pa.int64()),
        ("f", pa.float64()),
        ("b", pa.bool_()),
        ("l", pa.list_(pa.struct([("a", pa.string())]))),
    ]
)
null = st.none()
items = st.fixed_dictionaries({"a": null | st.text(max_size=2)}, optional={"z": st.integers()})
objects = st.fixed_dictionaries(
    {},
    optional={
        "text": null | st.text(max_size=5),
        "i": null | st.integers(-(2**64), 2**64),
        "f": null | st.floats() | st.integers(-(2**54), 2**54),
        "b": null | st.booleans() | st.integers(0, 1),
        "l": null | st.lists(null | items, max_size=2),
        "other": st.text(max_size=3),
    },
)


@settings(max_examples=150, deadline=None)
@given(st.lists(objects, min_size=1, max_size=4))
def test_json_lines(rows: list[dict[str, object]]) -> None:
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    fast = jsonl._fast(raw, len(rows), SCHEMA)
    if fast is not None:
        reader = jsonl.JsonlReader(Store(), SourceConfig((), "text"))
        slow = reader._slow(Segment(0, 0, len(rows), len(rows)), raw, SCHEMA)
        assert not slow.bad
        assert repr(slow.table.to_pylist()) == repr(fast.to_pylist())  # NaN is not equal to itself


def test_json_lines_that_are_clean_are_read_fast() -> None:
    raw = b'{"text": "a}{", "i": 1}\n'
    assert jsonl._fast(raw, 1, SCHEMA) is None  # a false alarm costs speed only
    assert jsonl._fast(b'{"text": "a", "i": 1, "f": 2, "zz": {}}\n{}', 2, SCHEMA) is not None


@settings(max_examples=300, deadline=None)
@given(st.text('a,"\n\r \x00é', max_size=14))
def test_csv(body: str) -> None:
    raw = body.encode()
    rows = len(list(delimited.find_records(io.BytesIO(raw), ",")))
    fast = delimited._fast(raw, rows, ["x", "y"], ["x", "y"], ",")
    if fast is not None and rows:
        slow, bad = delimited._slow(raw, ["x", "y"], ["x", "y"], ",")
        assert not bad
        assert slow.to_pylist() == fast.to_pylist()
