"""Gates: bounds that a run's metrics must keep, or it has failed.

A metric is named as in evaluation.json, with what it is of after a colon where there are several: `accuracy`, `f1:sport`,
`accuracy:lang=en`, `demographic_parity_difference` (the largest of all columns) or `...:lang`, `flip_rate` or `flip_rate:gender`.
What could not be judged does not pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchnlp.errors import SpecError
from batchnlp.evaluate.counterfactual import METRICS as SWAPS
from batchnlp.evaluate.counterfactual import Swapped
from batchnlp.evaluate.groups import ODDS, PARITY, Comparison
from batchnlp.evaluate.judges import LOWER
from batchnlp.evaluate.sums import Metric
from batchnlp.job.evaluate import Gate
from batchnlp.words import nearest

BY_CLASS = ("precision", "recall", "f1")
WITH_CLASSES = ("classify", "zero-shot", "ner")
Scores = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bound of a gate, judged."""

    metric: str
    bound: str  # as "min 0.8"
    value: float | None
    passed: bool
    why: str  # one line for the user


def scores(
    metrics: Mapping[str, Metric], coverage: float | None, classes: Sequence[Mapping[str, Any]],
    groups: Sequence[Comparison], swapped: Sequence[Swapped],
) -> Scores:  # fmt: skip
    """All that a gate can be set on, by name."""
    found: Scores = {name: metric.value for name, metric in metrics.items()} | {"coverage": coverage}
    found |= {f"{name}:{row['label']}": row[name] for row in classes for name in BY_CLASS}
    for comparison in groups:
        for group in comparison.groups:
            found |= {f"{name}:{comparison.by}={group.group}": m.value for name, m in group.metrics.items()}
        _worst(found, comparison.by, comparison.differences)
    for swap in swapped:
        _worst(found, swap.pairs, swap.metrics or dict.fromkeys(SWAPS, Metric(None)))
    return found


def _worst(found: Scores, of: str, metrics: Mapping[str, Metric]) -> None:
    """Each by itself, and the largest of all."""
    for name, metric in metrics.items():
        found[f"{name}:{of}"] = metric.value
        known = [value for value in (found.get(name), metric.value) if value is not None]
        found[name] = max(known, default=None)


def known_names(task: str, metrics: Sequence[str], grouped: bool, swapped: bool) -> list[str]:
    """What stands before the colon."""
    names = [*metrics, *(SWAPS if swapped else ())]
    if metrics and task in WITH_CLASSES:
        names += BY_CLASS
    if grouped:
        names += [f"{name}_difference" for name in metrics if name != "coverage"]
        names += [PARITY, ODDS] if task in ("classify", "zero-shot") else []
    return names


def check(gates: Mapping[str, Gate], names: Sequence[str]) -> None:
    """SpecError where a gate is set on what this evaluation does not have."""
    for gate in gates:
        name = gate.partition(":")[0]
        if name not in names:
            near = nearest(name, names)
            hint = (
                f"did you mean {near}?"
                if near
                else f"there are: {', '.join(names)}"
                if names
                else "give evaluate.labels"
            )
            raise SpecError(f"gates.{gate}: this evaluation has no {name}", hint)
        if name in BY_CLASS and ":" not in gate:
            raise SpecError(f"gates.{gate}: of which label?", f"write {name}:LABEL, or macro_{name}")


def judge(gates: Mapping[str, Gate], now: Scores, last: Scores | None) -> list[Verdict]:
    """Every bound of every gate; `last` are the scores of the last run that passed."""
    found = []
    for name, gate in gates.items():
        value = now.get(name)
        if value is None:
            why = f"{name} could not be judged: " + ("too few documents" if name in now else "there is no such figure")
            found.append(Verdict(name, _bounds(gate), None, False, why))
            continue
        if gate.min is not None:
            found.append(_verdict(name, f"min {gate.min:g}", value, value >= gate.min))
        if gate.max is not None:
            found.append(_verdict(name, f"max {gate.max:g}", value, value <= gate.max))
        if gate.drop is not None:
            found.append(_dropped(name, gate.drop, value, last))
    return found


def _dropped(name: str, drop: float, value: float, last: Scores | None) -> Verdict:
    before = (last or {}).get(name)
    bound = f"drop {drop:g}"
    if before is None:
        return Verdict(name, bound, value, True, f"{name} {value:.4g}: no earlier run to hold it against")
    worse = value - before if lower_is_better(name) else before - value
    return _verdict(name, f"{bound} from {before:.4g}", value, worse <= drop)


def _verdict(name: str, bound: str, value: float, passed: bool) -> Verdict:
    return Verdict(name, bound, value, passed, f"{name} {value:.4g}, {bound}{'' if passed else ': failed'}")


def _bounds(gate: Gate) -> str:
    rules = ((rule, getattr(gate, rule)) for rule in ("min", "max", "drop"))
    return ", ".join(f"{rule} {bound:g}" for rule, bound in rules if bound is not None)


def lower_is_better(name: str) -> bool:
    """Whether less of it is better."""
    base = name.partition(":")[0]
    return base in (*LOWER, *SWAPS) or base.endswith("_difference")
