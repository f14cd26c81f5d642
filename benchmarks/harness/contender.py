"""A contender's side of the line protocol: load once, then run rounds on command.

    stdin   one JSON object in one line: the setup; then lines `round`, until it is closed
    stdout  one JSON object a line: {"ready": facts} or {"unavailable": reason}, then {"round": facts} or {"failed": reason}

Whatever libraries print goes to stderr. This file knows neither batchnlp nor torch, because it runs in every peer's own
environment.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, Protocol, TextIO

Settings = Mapping[str, Any]
Facts = dict[str, Any]


class Contender(Protocol):
    """Something that does the scenario's work."""

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """Do all of the work once, or a sample of it. `units` says how much that was (documents, useful tokens);
        `seconds` is told only where it is not simply the time of this call."""


def serve(load: Callable[[Facts], Contender]) -> None:
    """Speak the protocol for the contender that `load` makes of a setup."""
    say = _own_stdout()
    setup = json.loads(sys.stdin.readline())
    try:
        contender = load(setup)
        settings, tried = search(contender, setup["settings"], setup["search"])
        if not tried and setup["warm_up"]:
            measure(contender, settings, sample=True)
    except Exception as error:  # noqa: BLE001 - a peer that does not run here is named with its reason
        _tell(say, "unavailable", _reason(error))
        return
    _tell(say, "ready", {"settings": settings, "tried": tried, **getattr(contender, "facts", {})})
    for line in sys.stdin:
        if line.strip() != "round":
            continue
        try:
            facts = measure(contender, settings, sample=False)
        except Exception as error:  # noqa: BLE001 - as above
            _tell(say, "failed", _reason(error))
        else:
            _tell(say, "round", facts)


def search(contender: Contender, fixed: Settings, choices: Mapping[str, list[Any]]) -> tuple[Facts, list[Facts]]:
    """(the settings with the highest rate on the sample, all that were tried); one that fails is not the best."""
    tried: list[Facts] = []
    if not choices:
        return dict(fixed), tried
    for values in itertools.product(*choices.values()):
        settings = {**fixed, **dict(zip(choices, values, strict=True))}
        try:
            measure(contender, settings, sample=True)  # pays for allocations
            tried.append({"settings": settings, "rate": measure(contender, settings, sample=True)["rate"]})
        except Exception as error:  # noqa: BLE001 - as above
            tried.append({"settings": settings, "rate": 0.0, "reason": _reason(error)})
    best = max(tried, key=lambda one: float(one["rate"]))
    if not best["rate"]:
        raise RuntimeError(best["reason"])
    return best["settings"], tried


def measure(contender: Contender, settings: Settings, *, sample: bool) -> Facts:
    """The facts of one pass, with `seconds`, `rate` (units a second) and the peak memory of the process so far."""
    began = perf_counter()
    facts = contender.run(settings, sample=sample)
    facts.setdefault("seconds", perf_counter() - began)
    facts["rate"] = facts["units"] / facts["seconds"]
    facts["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return facts


def _own_stdout() -> TextIO:
    """The stdout of the protocol; what anyone else writes to stdout, C libraries too, goes to stderr."""
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return say


def _tell(say: TextIO, what: str, content: Any) -> None:
    say.write(json.dumps({what: content}, default=float) + "\n")
    say.flush()


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
