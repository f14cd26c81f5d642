"""A scenario: what is done, by whom, and the floors. One small YAML file each; a key that nobody knows is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

RATIO = re.compile(r"(\w+) / (\w+)")
FACT = re.compile(r"(\w+)\.(\w+)")
BEYOND = re.compile(r"(\w+)\.(\w+) beyond (\w+)")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Strict):
    """A contender."""

    script: str  # contenders/SCRIPT.py
    environment: str | None = None  # of harness/venvs.py; ours without it
    settings: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, list[Any]] = Field(default_factory=dict)  # every combination is tried on a sample
    dtype: Literal["best", "float32", "bfloat16"] = "best"  # best: bfloat16 where the hardware computes in it
    fresh: bool = False  # a new process each round, start-up included
    warm_up: bool = True  # a sample before the first round, which pays for allocations
    times: int = Field(1, ge=1)  # the corpus so many times over


class Floor(_Strict):
    """A bound of a metric."""

    min: float | None = None
    max: float | None = None

    def holds(self, value: float) -> bool:
        """Whether the value keeps to it."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def __str__(self) -> str:
        return " ".join(f"{sign} {x:g}" for sign, x in ((">=", self.min), ("<=", self.max)) if x is not None)


class Scenario(_Strict):
    """All of a scenario's file."""

    name: str
    about: str
    unit: str  # what rates count: documents, useful tokens
    work: Literal["encode", "generate", "none"]  # what harness/work.py makes ready
    task: dict[str, Any] = Field(default_factory=dict)  # of the job, for work encode
    model: str
    corpus: str = "debian"  # debian, spread, long, short
    rows: int  # documents or prompts
    rounds: int = 5
    contenders: dict[str, Entry]
    limit: list[str] = Field(default_factory=list)  # contenders whose times add up to the least there can be
    floors: dict[str, Floor] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Scenario:
        names = {*self.contenders, *(["limit"] if self.limit else [])}
        for metric in self.floors:
            if strange := named_in(metric) - names:
                raise ValueError(f"the floor {metric!r} names {sorted(strange)[0]!r}, which is no contender")
        if strange := set(self.limit) - set(self.contenders):
            raise ValueError(f"the limit names {sorted(strange)[0]!r}, which is no contender")
        return self


def named_in(metric: str) -> set[str]:
    """The contenders that a metric is about; the metric itself where it is written wrongly."""
    if match := RATIO.fullmatch(metric):
        return set(match.groups())
    if match := BEYOND.fullmatch(metric):
        return {match.group(1), match.group(3)}
    return {match.group(1)} if (match := FACT.fullmatch(metric)) else {metric}


def load(name: str, folder: Path) -> Scenario:
    """The scenario of that name in folder/scenarios. SystemExit where there is none, ValueError where it is wrong."""
    path = folder / "scenarios" / f"{name}.yaml"
    if not path.is_file():
        raise SystemExit(f"there is no scenario {name}; there are: {', '.join(names(folder))}")
    return Scenario(name=name, **yaml.safe_load(path.read_text(encoding="utf-8")))


def names(folder: Path) -> list[str]:
    """All scenarios."""
    return sorted(path.stem for path in (folder / "scenarios").glob("*.yaml"))


def only(scenario: Scenario, contenders: list[str]) -> Scenario:
    """The scenario with some of its contenders, and the floors that these can be held to."""
    if strange := set(contenders) - set(scenario.contenders):
        there = ", ".join(scenario.contenders)
        raise SystemExit(f"{scenario.name} has no contender {sorted(strange)[0]}; there are: {there}")
    limit = scenario.limit if set(scenario.limit) <= set(contenders) else []
    kept = {*contenders, *(["limit"] if limit else [])}
    floors = {metric: floor for metric, floor in scenario.floors.items() if named_in(metric) <= kept}
    entries = {name: entry for name, entry in scenario.contenders.items() if name in contenders}
    return scenario.model_copy(update={"contenders": entries, "limit": limit, "floors": floors})
