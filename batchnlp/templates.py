"""Templates: jinja2 in a sandbox, with limits, because chat templates come from the model's repository.

In a prompt `{{ text }}` is the document, every other name a column of the source; `job/dates.py` says what there is in the
strings of a job. No template may build more than `LONGEST` characters or run more than `STEPS` rounds of loops; what
breaks on one row is that row's fault alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from batchnlp.errors import SpecError

LONGEST_TEMPLATE = 100_000  # characters
LONGEST = 10_000_000  # characters that a template may build
STEPS = 200_000  # rounds of all loops of one row together


class TemplateFault(Exception):
    """A template broke on a row; the message is without the row's text."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Neither loops nor repetition without end."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Numbers may be multiplied; text and lists only as far as the limit goes."""
        if operator == "**" and not (abs(left) <= 1_000_000 and abs(right) <= 64):
            raise TemplateFault("a power is too large")
        if operator == "*":
            for some, times in ((left, right), (right, left)):
                if hasattr(some, "__len__") and len(some) * max(int(times), 0) > LONGEST:
                    raise TemplateFault(f"it builds more than {LONGEST:,} characters")
        if operator == "%" and isinstance(left, str):
            raise TemplateFault("write {{ name }} instead of formatting with %")
        return super().call_binop(context, operator, left, right)


class _Counted(NodeTransformer):
    """Wraps what every loop goes over, so that its rounds are counted."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        """One loop, and those in it."""
        self.generic_visit(node)
        node.iter = nodes.Call(nodes.Name("counted_", "load"), [node.iter], [], None, None).set_lineno(node.lineno)
        return node


class _Generation(Extension):
    """{% generation %} marks answers for training; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012 - so it is declared in jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Template:
    """A compiled template."""

    def __init__(
        self, source: str, name: str, *, chat: bool = False, hint: str = "write the document as {{ text }}"
    ) -> None:
        if len(source) > LONGEST_TEMPLATE:
            raise SpecError(f"{name} has more than {LONGEST_TEMPLATE:,} characters", "shorten it")
        environment = _environment(chat=chat)
        try:
            tree = environment.parse(source)
            self.names = sorted(meta.find_undeclared_variables(tree))
            self._template = environment.from_string(_Counted().visit(tree))
        except TemplateError as error:
            raise SpecError(f"{name} is no jinja2 template: {_line(error)}", hint) from None

    def render(self, values: Mapping[str, Any]) -> str:
        """The text for one row; TemplateFault where it breaks."""
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(**values, counted_=_counter()):
                parts.append(part)
                size += len(part)
                if size > LONGEST:
                    raise TemplateFault(f"it builds more than {LONGEST:,} characters")
        except TemplateFault:
            raise
        except Exception as error:  # noqa: BLE001 - a template can raise anything, and it is about this row
            raise TemplateFault(_line(error)) from None
        return "".join(parts)


def _counter() -> Any:
    left = STEPS

    def counted(values: Iterable[Any]) -> Iterator[Any]:
        nonlocal left
        for value in values:
            left -= 1
            if left < 0:
                raise TemplateFault(f"its loops take more than {STEPS:,} rounds")
            yield value

    return counted


def _environment(*, chat: bool) -> _Sandbox:
    """Chat templates are written for transformers' settings; those of a job are told of every name that is not there."""
    if not chat:
        return _Sandbox(undefined=StrictUndefined, keep_trailing_newline=True)
    extensions = ["jinja2.ext.loopcontrols", _Generation]
    made = _Sandbox(undefined=Undefined, trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = _today
    return made


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """As transformers has it: without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> None:
    raise TemplateFault(str(message))


def _today(form: str) -> str:
    """The time a template asks for; always the same, because the same job must give the same rows."""
    return datetime(2024, 7, 26).strftime(form)  # noqa: DTZ001 - a date in a prompt, in no time zone


def _line(error: BaseException) -> str:
    return " ".join(f"{error}".split())[:200] or type(error).__name__
