"""From data to one HTML file: nothing in it is loaded from elsewhere, runs as a script, or came in unescaped."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from batchnlp.report import svg, words
from batchnlp.report.changes import shares
from batchnlp.report.page import Comparison, Page

HERE = Path(__file__).parent / "templates"
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # what HTML has no place for


def render(page: Page | Comparison) -> bytes:
    """The whole file, as UTF-8."""
    name = "report.html.j2" if isinstance(page, Page) else "comparison.html.j2"
    html = _environment().get_template(name).render(page=page)
    return UNPRINTABLE.sub("\ufffd", html).encode()


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= {
        name: getattr(words, name) for name in ("count", "number", "brief", "share", "duration", "stamp", "clock")
    }
    found.globals |= {"svg": svg, "shares": shares, "style": _style, "of_name": _of_name}
    return found


def _style() -> Markup:
    return Markup((HERE / "style.css").read_text(encoding="utf-8"))


def _of_name(facts: Any, name: str) -> Any:
    """The one of some bars, histograms or numbers that has the name, or None."""
    return next((fact for fact in facts if fact.name == name), None)
