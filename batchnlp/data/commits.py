"""The commits of a run without holding them: a million parts would be gigabytes.

`Commits` knows which shards are committed and reads a part when it is asked for; `Tally` is what parts add up to.

A commit is a file of its own, because its exclusive creation is what makes it count. A million of them are slow to read, so a
resume compacts whole ranges of shards into one file each:

    commits/<shard>.json            one commit
    segments/<first>.jsonl          those of 4,096 shards from `first` on, a line each; created exclusively, never changed

A segment is there before the files that it stands for go, and it wins over them: who creates a commit looks for a segment
afterwards, because an old driver that still runs may find its shard's name free again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchnlp.data.store import Store
from batchnlp.types import Part, Retried

DEAD = ("dead", "text")  # kinds of files that tell of documents without a result


@dataclass(slots=True)
class Tally:
    """What parts add up to."""

    shards: int = 0
    rows: int = 0
    ok: int = 0
    dead: int = 0
    tokens: int = 0
    executed: int = 0
    cached: int = 0
    forward: float = 0.0  # seconds
    codes: Counter[str] = field(default_factory=Counter)
    notes: set[str] = field(default_factory=set)  # what the backends had to say, each once

    @classmethod
    def of(cls, parts: Iterable[Part]) -> Tally:
        """Of some parts, one after the other."""
        tally = cls()
        for part in parts:
            tally.add(part)
        return tally

    def add(self, part: Part) -> None:
        """One more."""
        self.shards += 1
        self.rows += part.rows
        self.ok += part.ok
        self.dead += part.dead
        self.tokens += part.tokens
        self.executed += part.executed
        self.cached += part.cached
        self.forward += part.seconds.get("forward", 0.0)
        self.codes.update(part.codes)
        self.notes.add(part.note)

    @property
    def failed(self) -> int:
        """Dead letters that count against the limit: all but those that the job itself asked for."""
        return self.dead - self.codes["duplicate_id"]

    def sums(self) -> dict[str, Any]:
        """As manifests and results tell them."""
        names = ("rows", "ok", "dead", "tokens", "executed")
        return {**{name: getattr(self, name) for name in names}, "codes": dict(self.codes)}


def merged(layers: Sequence[Part]) -> Part:
    """A shard's part and its retries as one: all results, and the dead letters that are left."""
    first, last = layers[0], layers[-1]
    if last is first:
        return first
    seconds: Counter[str] = Counter()
    for layer in layers:
        seconds.update(layer.seconds)
    files = [file for layer in layers for file in layer.files if file.kind not in DEAD or layer is last]
    return Retried(
        first.shard, last.attempt, first.rows, first.rows - last.dead, last.dead, first.ids_hash, tuple(files),
        sum(layer.tokens for layer in layers), sum(layer.executed for layer in layers), dict(seconds), last.codes,
        last.note or first.note, sum(layer.cached for layer in layers), last.after, last.invocation, last.committed,
        tuple(layers),
    )  # fmt: skip


class Commits(Mapping[int, Part]):
    """Which shards are committed: a byte each; their parts are read when they are asked for."""

    def __init__(self, read: Callable[[int], Part], shards: Iterable[int] = ()) -> None:
        self._read = read
        self._there = bytearray()
        self._count = 0
        for shard in shards:
            self.add(shard)

    def add(self, shard: int) -> None:
        """The shard is committed."""
        if shard >= len(self._there):
            self._there.extend(bytes(shard + 1 - len(self._there)))
        self._count += not self._there[shard]
        self._there[shard] = 1

    def __contains__(self, shard: object) -> bool:
        return isinstance(shard, int) and 0 <= shard < len(self._there) and bool(self._there[shard])

    def __getitem__(self, shard: int) -> Part:
        if shard not in self:
            raise KeyError(shard)
        return self._read(shard)

    def __iter__(self) -> Iterator[int]:
        return (shard for shard, there in enumerate(self._there) if there)

    def __len__(self) -> int:
        return self._count


class Segments:
    """The compacted commits of a run; `control` is its directory in the store."""

    size = 4096  # shards of a segment

    def __init__(self, store: Store, control: str) -> None:
        self._store, self._control = store, control
        self._last: tuple[int, list[bytes]] = (-1, [])  # the segment that was read last: parts are read in order

    def path(self, shard: int) -> str:
        """The file that the shard's commit is in once it is compacted."""
        return self._store.path(self._name(shard // self.size))

    def find(self, shard: int) -> bytes | None:
        """The commit as JSON, or None where its range is not compacted."""
        number, lines = self._last
        if number != shard // self.size:
            number = shard // self.size
            data = self._store.read(self._name(number))
            if data is None:
                return None
            lines = data.splitlines()
            self._last = number, lines
        return lines[shard % self.size] if shard % self.size < len(lines) else b""

    def shards(self) -> Iterator[int]:
        """The shards of all segments."""
        for name in self._store.names(f"{self._control}/segments"):
            first = name.removesuffix(".jsonl")
            if first.isdecimal():
                yield from range(int(first), int(first) + self.size)

    def compact(self, loose: Iterable[int], commit_name: Callable[[int], str]) -> None:
        """Put the commits of every range that is whole into a segment, and remove those that are in one."""
        ranges: dict[int, list[int]] = {}
        for shard in loose:
            ranges.setdefault(shard // self.size, []).append(shard)
        for number, shards in ranges.items():
            there = self.find(number * self.size) is not None
            if not there and len(shards) == self.size:
                there = self._create(number, [self._store.read(commit_name(shard)) for shard in sorted(shards)])
            if there:
                for shard in shards:
                    self._store.remove(commit_name(shard))

    def _create(self, number: int, commits: list[bytes | None]) -> bool:
        """Whether there is a segment now; none is made of damaged commits: whoever reads them says so."""
        lines = []
        for data in commits:
            try:
                lines.append(json.dumps(json.loads(data or b"")).encode())
            except ValueError:
                return False
        self._store.create(self._name(number), b"\n".join(lines) + b"\n")
        return True

    def _name(self, number: int) -> str:
        return f"{self._control}/segments/{number * self.size:05d}.jsonl"
