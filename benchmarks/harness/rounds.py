"""Run a scenario: start the contenders, alternate them A B A B, and make medians and ratios of what they say."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from harness import venvs
from harness.process import Process, Unavailable
from harness.scenario import BEYOND, FACT, RATIO, Entry, Scenario

Facts = dict[str, Any]


@dataclass(slots=True)
class Outcome:
    """What one contender did."""

    entry: Entry
    facts: Facts = field(default_factory=dict)  # what it said when it was ready: settings, what was tried
    rounds: list[Facts | None] = field(default_factory=list)
    reason: str = ""  # why it did not run, or not to the end
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def rates(self) -> list[float]:
        """Units a second, a round each."""
        return [facts["rate"] for facts in self.rounds if facts]

    def of(self, key: str) -> float | None:
        """The median of a fact over the rounds; or what it said when it was ready."""
        values = [facts[key] for facts in self.rounds if facts and key in facts]
        if not values and key in self.facts:
            return float(self.facts[key])
        return float(median(values)) if values else None


class Match:
    """The contenders of a scenario."""

    def __init__(
        self, scenario: Scenario, work: Facts, folder: Path, scripts: Path, *, threads: int, dtype: str
    ) -> None:  # fmt: skip
        self.scenario, self._work, self._folder, self._scripts = scenario, work, folder, scripts
        self._threads, self._dtype = threads, dtype
        self.outcomes = {name: Outcome(entry) for name, entry in scenario.contenders.items()}
        self.idle_cpu = 0.0  # the largest share of a core that a waiting contender used
        self._alive: dict[str, Process] = {}

    def run(self, rounds: int, corpora: dict[str, Facts] | None = None) -> None:
        """All rounds. A peer that fails is out, with its reason; one of ours too, and `ours_failed` says so."""
        corpora = corpora or {}
        try:
            for name in self.outcomes:
                self._start(name, corpora.get(name, self._work))
            for i in range(rounds):
                for name, outcome in self.outcomes.items():
                    outcome.rounds.append(
                        self._round(name, corpora.get(name, self._work)) if not outcome.reason else None
                    )
                    if outcome.rounds[-1]:
                        print(
                            f"round {i + 1}: {name:24} {outcome.rounds[-1]['rate']:10.1f} {self.scenario.unit}/s",
                            flush=True,
                        )
        finally:
            for process in self._alive.values():
                process.close()

    @property
    def ours_failed(self) -> list[str]:
        """Contenders in our own environment that did not run to the end."""
        return [name for name, outcome in self.outcomes.items() if outcome.reason and outcome.entry.environment is None]

    def rate(self, name: str) -> list[float | None]:
        """Units a second of each round; of `limit`, what the sum of its contenders' times allows."""
        if name != "limit":
            return [facts["rate"] if facts else None for facts in self.outcomes[name].rounds]
        parts = [self.rate(part) for part in self.scenario.limit]
        return [1 / sum(1 / r for r in rates) if all(rates) else None for rates in zip(*parts, strict=True)]  # type: ignore[misc]

    def ratio(self, one: str, other: str) -> float | None:
        """The median of the rounds' ratios, each of two that ran one after the other."""
        pairs = zip(self.rate(one), self.rate(other), strict=True)
        values = [a / b for a, b in pairs if a and b]
        return median(values) if values else None

    def metric(self, text: str) -> float | None:
        """`a / b`: a ratio of rates; `a.fact`: what a said; `a.fact beyond b`: a's less 1.1 times b's and 50, which is
        what memory may grow by. None where it was not measured."""
        if match := RATIO.fullmatch(text):
            return self.ratio(*match.groups())
        if match := BEYOND.fullmatch(text):
            more, base = (
                self.outcomes[match.group(1)].of(match.group(2)),
                self.outcomes[match.group(3)].of(match.group(2)),
            )
            return more - (1.1 * base + 50) if more is not None and base is not None else None
        match = FACT.fullmatch(text)
        return self.outcomes[match.group(1)].of(match.group(2)) if match else None

    def _start(self, name: str, work: Facts) -> None:
        outcome = self.outcomes[name]
        try:
            python = venvs.python_of(outcome.entry.environment)
            outcome.versions = venvs.versions(python)
            process = self._process(name, python, work, outcome.entry.settings, outcome.entry.search)
            self._alive[name] = process
            outcome.facts = process.ready()
        except Unavailable as error:
            self._out(name, str(error))
            return
        print(f"ready: {name:25} {_settings(outcome.facts)}", flush=True)
        if outcome.entry.fresh:
            self._alive.pop(name).close()

    def _process(self, name: str, python: str, work: Facts, settings: Facts, search: Facts) -> Process:
        entry = self.outcomes[name].entry
        dtype = self._dtype if entry.dtype == "best" else entry.dtype
        setup = {
            "work": work, "settings": settings, "search": search, "threads": self._threads, "dtype": dtype,
            "fresh": entry.fresh, "warm_up": not entry.fresh and entry.warm_up,
        }  # fmt: skip
        script, log = self._scripts / f"{entry.script}.py", self._folder / f"{name}.log"
        return Process(python, script, setup, log, seconds=3600 + work.get("rows", 0))  # a night for the whole corpus, one by one

    def _round(self, name: str, work: Facts) -> Facts | None:
        before = {other: process.cpu_seconds() for other, process in self._alive.items() if other != name}
        began = perf_counter()
        try:
            facts = self._fresh(name, work) if self.outcomes[name].entry.fresh else self._alive[name].round()
        except Unavailable as error:
            self._out(name, str(error))
            return None
        wall = perf_counter() - began
        used = [(self._alive[other].cpu_seconds() - seconds) / wall for other, seconds in before.items()]
        if wall > 1:  # below it the clock of CPU time is too coarse
            self.idle_cpu = max(self.idle_cpu, *used, 0.0)
        return facts

    def _fresh(self, name: str, work: Facts) -> Facts:
        """A process from its start to its answer: all of that counts."""
        outcome, began = self.outcomes[name], perf_counter()
        python = venvs.python_of(outcome.entry.environment)
        process = self._process(name, python, work, outcome.facts["settings"], {})
        try:
            process.ready()
            facts = process.round()
        finally:
            process.close()
        seconds = perf_counter() - began
        return {**facts, "seconds": seconds, "rate": facts["units"] / seconds}

    def _out(self, name: str, reason: str) -> None:
        self.outcomes[name].reason = reason
        if process := self._alive.pop(name, None):
            process.close()
        print(f"out:   {name:25} {reason}", flush=True)


def _settings(facts: Facts) -> str:
    tried = len(facts.get("tried", []))
    said = ", ".join(f"{key} {value}" for key, value in facts["settings"].items())
    return f"{said} (the best of {tried})" if tried else said
