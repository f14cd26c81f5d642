"""What a report says, as data: filled by `gather`, compared by `changes`, drawn by the templates.

A `Digest` is the part of it that outlives the run: kept beside the results, and compared with the next run of the job.
Times are Unix times in UTC, shares lie between 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Level = Literal["good", "look", "bad", "going"]


@dataclass(frozen=True, slots=True)
class Bars:
    """How often some names are there, the most frequent first. Filled by `results`."""

    name: str  # what it is compared by
    title: str
    unit: str  # what is counted, in the plural
    counts: tuple[tuple[str, int], ...]
    rest: int  # counted under names that are not among them
    of: int  # what shares are shares of: not the sum where one thing may have several names


@dataclass(frozen=True, slots=True)
class Histogram:
    """How some numbers are spread. Filled by `results`."""

    name: str
    title: str
    unit: str
    edges: tuple[float, ...]  # [bins + 1]; the last bin holds what is above them too
    counts: tuple[int, ...]  # [bins]
    median: float
    p95: float
    largest: float

    @property
    def of(self) -> int:
        """How many numbers there are."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Number:
    """One number about the results. Filled by `results`."""

    name: str
    title: str
    value: float
    kind: Literal["share", "mean"]
    of: int  # documents that it stands on


@dataclass(frozen=True, slots=True)
class Results:
    """The results at a glance. Filled by `results`."""

    bars: tuple[Bars, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    numbers: tuple[Number, ...] = ()
    looked_at: int = 0  # rows that all this stands on
    of: int = 0  # rows with results


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a run was, over all its invocations. Filled by `gather`; zeros where nobody knows."""

    seconds: float = 0.0  # at work: from the first lease of an invocation to its last commit
    docs_per_second: float = 0.0
    tokens_per_second: float = 0.0
    padding: float | None = None
    device_busy: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)  # seconds: start, encode, forward, write, idle, total


@dataclass(frozen=True, slots=True)
class Digest:
    """A run in numbers. Filled by `gather`."""

    job: str
    run: str
    output: str
    task: str
    model: str
    state: str  # as `batchnlp status` says
    live: bool
    ended: float  # the last commit, or the end of the last invocation; 0 where nobody knows
    rows: int | None  # in the plan
    rows_done: int
    ok: int
    dead: int
    codes: dict[str, int]
    shards: int | None
    shards_done: int
    files: int  # of the corpus
    speed: Speed
    results: Results
    settings: dict[str, str]  # what is not as by default, and what `auto` became
    versions: dict[str, str]
    reused: int = 0  # of an incremental run: rows whose results of before stand; they are not in `rows`
    deleted: int = 0  # ids that have no result any more
    reasons: dict[str, int] = field(default_factory=dict)  # all rows of the corpus by what has become of them

    @property
    def came(self) -> int | None:
        """The rows of the corpus."""
        return None if self.rows is None else self.rows + self.reused

    @property
    def known(self) -> int:
        """The rows of which is known by now what they come to."""
        return self.rows_done + self.reused


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be read first. Filled by `verdict`."""

    level: Level
    word: str
    sentence: str
    points: tuple[str, ...]  # what to look at


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is otherwise than before. Filled by `changes`."""

    what: str
    before: str
    after: str
    delta: str
    notable: str = ""  # a sentence where it is more than chance and matters; then it is among the verdict's points
    chief: bool = False  # of interest every morning, notable or not


@dataclass(frozen=True, slots=True)
class Timeline:
    """Documents a second over the time at work, pauses between invocations left out. Filled by `gather`."""

    rates: tuple[float, ...]  # of bins of equal length
    seconds: float
    starts: tuple[tuple[float, float], ...]  # (seconds of work before, time) of each invocation
    mean: float


@dataclass(frozen=True, slots=True)
class Reason:
    """Dead letters of one code. Filled by `gather`."""

    code: str
    count: int
    stage: str = ""
    message: str = ""  # of an example, as the id and the place
    id: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True)
class Samples:
    """Some rows of the results, as text. Filled by `results`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Worked:
    """An invocation. Filled by `gather`."""

    began: float
    ended: float | None
    status: str
    message: str
    shards: int
    host: str


@dataclass(frozen=True, slots=True)
class Load:
    """What a warehouse was given. Filled by `gather`."""

    name: str
    status: str
    rows: int
    seconds: float
    message: str


@dataclass(frozen=True, slots=True)
class Other:
    """Another run in the same output. Filled by `gather`."""

    run: str
    job: str
    state: str
    live: bool
    rows_done: int
    dead: int


@dataclass(frozen=True, slots=True)
class Page:
    """All of a report. Filled by `gather.page`."""

    made: float
    version: str
    digest: Digest
    verdict: Verdict
    allowed: int | None  # dead letters
    limit: int  # tokens the model takes; 0 where nobody knows
    before: Digest | None  # the last run of the same job
    changes: tuple[Change, ...]
    settings_changed: tuple[Change, ...]
    timeline: Timeline | None
    reasons: tuple[Reason, ...]
    samples: Samples
    worked: tuple[Worked, ...]
    loads: tuple[Load, ...]
    others: tuple[Other, ...]
    notes: tuple[str, ...]
    unread: tuple[str, ...]  # what of the results could not be read


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two runs say of the same documents. Filled by `agreement`."""

    column: str
    shared: int  # documents looked at that both have
    same: int
    moves: tuple[tuple[str, str, int], ...]  # (in A, in B, how many), the most frequent first


@dataclass(frozen=True, slots=True)
class Comparison:
    """All of a report on two runs. Filled by `gather.comparison`."""

    made: float
    version: str
    before: Digest
    after: Digest
    changes: tuple[Change, ...]
    settings_changed: tuple[Change, ...]
    agreement: Agreement | None
