"""Two models on the same documents: the difference of each metric with its interval, and whether it may be chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from batchnlp.evaluate.library import need
from batchnlp.evaluate.sums import Bool, Sums, interval, known, resampled


@dataclass(frozen=True, slots=True)
class Difference:
    """Ours less theirs."""

    ours: float | None
    theirs: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None  # two-sided, by the paired bootstrap


def differences(ours: Sums, theirs: Sums) -> dict[str, Difference]:
    """Of every metric that both have; row i of both is the same document."""
    a, b = ours.values(), theirs.values()
    ours_drawn, theirs_drawn = ours.metrics(resampled(ours)), theirs.metrics(resampled(theirs))
    found = {}
    for name in (name for name in a if name in b):
        apart = ours_drawn[name] - theirs_drawn[name]
        sound = apart[~np.isnan(apart)]
        p = min(1.0, 2 * (1 + min((sound <= 0).sum(), (sound >= 0).sum())) / (1 + len(sound))) if len(sound) else None
        difference = known(a[name] - b[name])
        found[name] = Difference(known(a[name]), known(b[name]), difference, *interval(apart), p and float(p))
    return found


def mcnemar(ours: Bool, theirs: Bool) -> dict[str, Any]:
    """The exact test of whether both are right equally often, from the documents on which only one of them is."""
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    count = only_ours + only_theirs
    p = float(need("scipy.stats").binomtest(only_ours, count, 0.5).pvalue) if count else 1.0
    return {"only_ours_right": only_ours, "only_theirs_right": only_theirs, "p": p}
