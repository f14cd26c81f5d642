"""Schemas become columns, answers become values, and what is neither is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
import tiny
from writing import TEXTS, Corpus, apply, spec

from batchnlp.engine.planner import prepare
from batchnlp.errors import MissingExtraError, SpecError
from batchnlp.tasks import json_answers
from batchnlp.tasks.json_answers import JsonColumns

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": ["integer", "null"]},
        "weight": {"type": "number"},
        "ok": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {"type": "object", "properties": {"city": {"type": "string"}, "floor": {"type": "integer"}}},
        "rest": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    },
    "required": ["name"],
}


def test_a_schema_becomes_typed_columns() -> None:
    columns = JsonColumns(SCHEMA, {"text"})
    assert [(field.name, field.type) for field in columns.fields] == [
        ("name", pa.string()), ("age", pa.int64()), ("weight", pa.float64()), ("ok", pa.bool_()),
        ("tags", pa.list_(pa.string())), ("place", pa.struct([("city", pa.string()), ("floor", pa.int64())])),
        ("rest", pa.large_string()),
    ]  # fmt: skip


def test_answers_become_values_and_what_is_none_is_bad_json() -> None:
    columns = JsonColumns(SCHEMA, set())
    texts = {
        0: '{"name":"a","age":3,"weight":1,"ok":true,"tags":["x"],"place":{"city":"y"},"rest":5}',
        1: '{"name":"b"}',
        3: '{"name":"cut o',
        4: '{"name":7}',
        5: "[]",
        6: '{"name":"c","age":99999999999999999999}',
        7: '{"name":"\\ud800"}',
        8: '{"name":"d","weight":NaN}',
    }
    arrays, failures = columns.columns(texts, 9)
    rows = pa.table(arrays, names=[field.name for field in columns.fields]).to_pylist()
    assert rows[0] == {"name": "a", "age": 3, "weight": 1.0, "ok": True, "tags": ["x"],
                       "place": {"city": "y", "floor": None}, "rest": "5"}  # fmt: skip
    assert rows[1]["name"] == "b"
    assert [failure.doc for failure in failures] == [3, 4, 5, 6, 7, 8]
    assert {(failure.stage, failure.code) for failure in failures} == {("decode", "bad_json")}
    assert "name breaks 'type'" in failures[1].message
    assert "cut o" not in failures[0].message, "a dead letter does not carry the text"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string"}, "describes no object with properties"),
        ({"type": "object", "properties": {}}, "describes no object with properties"),
        ({"type": "object", "properties": {"id": {"type": "string"}}}, "'id', which is a result column"),
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, "is no JSON Schema"),
        ({"type": "object", "properties": {"a": {"$ref": "http://x/y"}}}, "lies outside of it"),
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, "the grammar library refuses it"),
    ],
)
def test_a_schema_that_cannot_be_held_is_refused(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        JsonColumns(schema, {"text"})


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_answers, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'batchnlp\[json\]'"):
        JsonColumns(SCHEMA, set())


# --- whole answers


def test_a_schema_holds_the_answers_of_a_random_model(llama: str) -> None:
    properties = {"city": {"type": "string", "maxLength": 5}, "ok": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": ["city", "ok"], "additionalProperties": False}
    for row in apply("chat", TEXTS, llama, max_new_tokens=48, json_schema=schema):
        assert json.loads(row["reply"]) == {"city": row["city"], "ok": row["ok"]}, row["error"]
        assert row["finish_reason"] == "stop"


def test_thirty_of_thirty_answers_are_json_in_few_characters(gpt2: str) -> None:
    """A random GPT-2 with a byte-level tokenizer, which by itself would never write any."""
    schema = {
        "type": "object",
        "properties": {
            "mood": {"enum": ["good", "bad"]},
            "stars": {"type": "integer", "minimum": 1, "maximum": 5},
            "sure": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
            "by": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 4}}, "required": ["name"],
                   "additionalProperties": False},
        },
        "required": ["mood", "stars", "sure", "tags", "by"],
        "additionalProperties": False,
    }  # fmt: skip
    rows = apply("generate", tiny.texts(30, longest=4), gpt2, max_new_tokens=80, json_schema=schema)
    assert [row["error"] for row in rows] == [None] * 30
    for row in rows:
        answer = json.loads(row["text"])
        jsonschema.validate(answer, schema)
        compact = json.dumps(answer, separators=(",", ":"), ensure_ascii=False)
        assert len(row["text"]) == len(compact) or "\\" in row["text"], "no white space but in strings"
        assert json.loads(row["mood"]) == answer["mood"], "what has no one type is JSON in its column"
        assert all(row[name] == answer[name] for name in ("stars", "sure", "tags", "by"))
    assert {row["finish_reason"] for row in rows} == {"stop"}
    assert len({row["text"] for row in rows}) > 5, "the answers are the model's"


def test_json_answers_become_columns(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model writes no JSON, so here the tokenizer is made to say some."""
    from batchnlp.text.encode import Tokenizer

    answers = ['{"city":"x","n":3}', '{"city":"y"}', "no", '{"city":1}']
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids, starts: answers)
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["city"],
    }
    rows = apply("chat", TEXTS, llama, max_new_tokens=4, json_schema=schema)
    assert [(row["reply"], row["city"], row["n"]) for row in rows[:2]] == [
        (answers[0], "x", 3),
        (answers[1], "y", None),
    ]
    assert [row["error"].split(":")[0] for row in rows[2:]] == ["bad_json"] * 2


def test_a_schema_may_be_a_file_and_its_content_is_what_counts(tmp_path: Path, corpus: Corpus, llama: str) -> None:
    file, source = tmp_path / "schema.json", corpus()
    prints = []
    for kind in ("string", "integer"):
        file.write_text(json.dumps({"type": "object", "properties": {"a": {"type": kind}}}))
        prepared = prepare(spec(source, llama, tmp_path, kind="chat", json_schema=str(file)))
        prints.append(prepared.fingerprint)
        assert prepared.schema.field("a").type == {"string": pa.string(), "integer": pa.int64()}[kind]
        assert prepared.task.decoding is not None
        assert json.loads(prepared.task.decoding.json_schema or "")["properties"] == {"a": {"type": kind}}
    assert prints[0] != prints[1]
    with pytest.raises(SpecError, match=r"task\.json_schema: .* cannot be read as JSON"):
        spec(source, llama, tmp_path, kind="chat", json_schema=str(tmp_path / "none.json"))
