"""What work has taken: of a worker, and of a shard."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Meter:
    """What a worker has done so far; written by its threads, read by anyone at any time."""

    docs: float = 0.0  # through the model; inside a shard estimated from its pieces
    tokens: int = 0
    executed: int = 0
    dead: int = 0
    busy: float = 0.0  # seconds of forward
    encode: float = 0.0
    write: float = 0.0
    idle: float = 0.0  # seconds that the device waited for a shard
    steps: int = 0  # batches, and shards read or written: what grows while a worker is not stuck
    slowest: float = 0.0  # seconds of one step

    def step(self, seconds: float) -> None:
        """One more."""
        self.steps += 1
        self.slowest = max(self.slowest, seconds)

    def snapshot(self) -> dict[str, float]:
        """The counters as a dictionary."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(slots=True)
class Cost:
    """What a shard has taken."""

    tokens: int = 0
    executed: int = 0
    cached: int = 0  # rows
    seconds: dict[str, float] = field(default_factory=lambda: {"encode": 0.0, "forward": 0.0, "write": 0.0})

    def add(self, other: Cost) -> None:
        """Something more."""
        self.tokens += other.tokens
        self.executed += other.executed
        self.cached += other.cached
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds
