"""JSON answers: a schema becomes typed columns, and an answer that does not keep to it a dead letter.

string, integer, number, boolean → string, int64, float64, bool; arrays of these → lists; objects → structs; whatever else
a schema can say → a string that holds JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from batchnlp.errors import MissingExtraError, SpecError
from batchnlp.types import Decoding, Failure

JSON = pa.large_string()  # told from text by its type: this column holds JSON
KINDS = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
TAKEN = {"id", "n_tokens", "n_tokens_used", "n_windows", "truncated"}


class JsonColumns:
    """The columns of a schema's object."""

    def __init__(self, schema: dict[str, Any], taken: set[str]) -> None:
        for package in ("llguidance", "jsonschema"):
            if find_spec(package) is None:
                raise MissingExtraError.of(package, "json")
        properties = schema.get("properties")
        if schema.get("type") != "object" or not isinstance(properties, dict) or not properties:
            hint = "write {type: object, properties: {name: {type: string}, ...}}"
            raise SpecError("task.json_schema describes no object with properties", hint)
        if double := sorted((taken | TAKEN) & properties.keys()):
            raise SpecError(f"task.json_schema has a property {double[0]!r}, which is a result column", "rename it")
        self._text = json.dumps(schema)
        self._validator = _validator(schema)
        _check_grammar(self._text)
        self.fields = [pa.field(name, _type(inner)) for name, inner in properties.items()]

    def constrain(self, decoding: Decoding) -> Decoding:
        """The same decoding, kept to the schema."""
        return replace(decoding, json_schema=self._text)

    def columns(self, texts: dict[int, str], rows: int) -> tuple[list[pa.Array], list[Failure]]:
        """(one array a property, answers that are no such object)."""
        values: list[list[Any]] = [[None] * rows for _ in self.fields]
        failures = []
        for row, text in texts.items():
            try:
                answer = self._parse(text)
                fitted = [_fit(answer.get(field.name), field.type) for field in self.fields]
            except (ValueError, RecursionError) as error:
                failures.append(
                    Failure(row, "decode", "bad_json", f"the answer is not as task.json_schema says: {error}")
                )
                continue
            for column, value in zip(values, fitted, strict=True):
                column[row] = value
        return [pa.array(v, field.type) for v, field in zip(values, self.fields, strict=True)], failures

    def _parse(self, text: str) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(text, parse_constant=_no_constant)
            json.dumps(answer, ensure_ascii=False).encode()  # half a surrogate pair can be escaped, but not written
        except ValueError as error:
            place = error.pos if isinstance(error, json.JSONDecodeError) else 0
            raise ValueError(f"it stops being JSON at character {place}") from None
        problem = next(self._validator.iter_errors(answer), None)
        if problem is not None:
            where = ".".join(map(str, problem.absolute_path)) or "the object"
            raise ValueError(f"{where} breaks {problem.validator!r}")
        return answer


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _validator(schema: dict[str, Any]) -> Any:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    outside = next((ref for ref in _references(schema) if not str(ref).startswith("#")), None)
    if outside is not None:
        raise SpecError(f"task.json_schema refers to {outside!r}, which lies outside of it", "write it out")
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise SpecError(f"task.json_schema is no JSON Schema: {error.message[:200]}") from None
    return kind(schema)


def _references(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        yield from (value for key, value in tree.items() if key in ("$ref", "$dynamicRef") and isinstance(value, str))
    for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _references(inner)


def _check_grammar(schema: str) -> None:
    """SpecError where llguidance cannot hold a model to the schema."""
    from llguidance import LLMatcher

    problem = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))
    if problem:
        message = " ".join(str(problem).split())[:200]
        raise SpecError(f"task.json_schema: the grammar library refuses it: {message}", "say it in simpler keywords")


def _type(schema: Any) -> pa.DataType:
    """The column type of a schema; JSON in a string where there is none."""
    if not isinstance(schema, dict):
        return JSON
    kind = schema.get("type")
    if isinstance(kind, list):
        kinds = [name for name in kind if name != "null"]
        kind = kinds[0] if len(kinds) == 1 else None
    properties = schema.get("properties")
    if kind == "object" and isinstance(properties, dict) and properties:
        return pa.struct([(name, _type(inner)) for name, inner in properties.items()])
    if kind == "array" and isinstance(items := schema.get("items"), dict) and _is_plain(items):
        return pa.list_(_type(items))
    return KINDS.get(kind, JSON) if isinstance(kind, str) else JSON


def _is_plain(schema: dict[str, Any]) -> bool:
    kind = schema.get("type")
    return isinstance(kind, str) and kind in KINDS


def _fit(value: Any, kind: pa.DataType) -> Any:
    """The value as its column takes it; ValueError where it does not."""
    if value is None:
        return None
    if kind == JSON:
        return json.dumps(value, ensure_ascii=False)
    if pt.is_struct(kind):
        return {field.name: _fit(value.get(field.name), field.type) for field in kind}
    if pt.is_list(kind):
        return [_fit(inner, kind.value_type) for inner in value]
    if pt.is_integer(kind):
        if not -(2**63) <= value < 2**63:
            raise ValueError("a number is too large for int64")
        return int(value)
    return float(value) if pt.is_floating(kind) else value
