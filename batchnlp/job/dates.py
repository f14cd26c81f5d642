"""The date of a run, and `{{ ds }}` in the strings of a job.

    {{ ds }}                                 2026-11-24, text
    {{ run_date }}                           the same as a date: {{ run_date.year }}, {{ run_date.strftime('%Y/%m') }}
    {{ run_date - days(1) }}                 2026-11-23

It is put in after the YAML is parsed, so no date can change what the job consists of. The templates of documents
(`task.prompt`, `task.system`) are left alone: their names are columns of the source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from batchnlp.errors import SpecError
from batchnlp.templates import Template, TemplateFault
from batchnlp.words import nearest

NAMES = ("ds", "run_date", "days")
OTHERS = ("task.prompt", "task.system")  # templates, but of documents
ALWAYS = ("job", "date", "schedule.cron", "schedule.timezone")  # what a job is known by, whatever the date
HINT = "the names are {{ ds }}, {{ run_date }} and days(1)"


def parse_date(value: Any, name: str) -> date:
    """A date as YAML or a flag has it."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", str(value)):
            raise ValueError
        return date.fromisoformat(str(value))
    except ValueError:
        raise SpecError(f"{name}: {value} is no date", "write it as 2026-11-24") from None


def today(timezone: Any) -> date:
    """Today in a time zone; where none is named, on this machine."""
    try:
        zone = ZoneInfo(timezone) if isinstance(timezone, str) else None
    except (ValueError, OSError, LookupError):
        zone = None  # the spec's own check says what is wrong with it
    return datetime.now(zone).date()


def with_dates(tree: Mapping[str, Any], day: date, origin: Callable[[str], str]) -> tuple[dict[str, Any], bool]:
    """The job with its date put in, and whether it was in there at all. `origin` tells where the value of a key is from, for
    errors."""
    values = {"ds": day.isoformat(), "run_date": day, "days": lambda count: timedelta(days=count)}
    dated = False

    def walk(value: Any, key: str) -> Any:
        nonlocal dated
        if isinstance(value, Mapping):
            return {name: walk(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [walk(inner, key) for inner in value]
        if not isinstance(value, str) or "{{" not in value or key in OTHERS:
            return value
        if key in ALWAYS:
            raise SpecError(f"{origin(key)}: {key} is the same on all dates", f"write it without {{{{ }}}}: {value}")
        dated = True
        return _rendered(value, values, f"{origin(key)}: {key}")

    return walk(tree, ""), dated


def _rendered(source: str, values: Mapping[str, Any], where: str) -> str:
    template = Template(source, where, hint=HINT)
    for name in template.names:
        if name not in NAMES:
            near = nearest(name, NAMES)
            raise SpecError(f"{where}: there is no {{{{ {name} }}}}", f"did you mean {near}?" if near else HINT)
    try:
        return template.render(values)
    except TemplateFault as fault:
        raise SpecError(f"{where}: {source} cannot be filled in: {fault}", HINT) from None
