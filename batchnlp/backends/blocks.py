"""Who has which blocks of a paged cache of keys and values: a table of blocks for each row's slot."""

from __future__ import annotations

import heapq
from collections import Counter


class Blocks:
    """`count` blocks of `size` positions; leaving is giving blocks back, moving is handing the table on."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.clear()

    def clear(self) -> None:
        """All of them are free."""
        self.free = list(range(self.count))  # a heap: low blocks first, so that the others are never touched
        self.users: Counter[int] = Counter()
        self.tables: list[list[int]] = []

    @property
    def held(self) -> int:
        """Positions in the blocks that are taken."""
        return (self.count - len(self.free)) * self.size

    def reserve(self, slots: int) -> None:
        """No tables beyond these slots."""
        for table in self.tables[slots:]:
            self.release(table)
        self.tables += [[] for _ in range(slots - len(self.tables))]

    def begin(self, slot: int, shared: list[int] | None = None) -> None:
        """A new row in a slot, which may begin with blocks that others have too."""
        self.release(self.tables[slot])
        self.tables[slot] = list(shared or [])
        self.users.update(self.tables[slot])

    def extend(self, slot: int, length: int) -> None:
        """Room for `length` positions. Raises MemoryError where no block is free."""
        table = self.tables[slot]
        while len(table) * self.size < length:
            if not self.free:
                raise MemoryError("no block of keys and values is free")
            table.append(heapq.heappop(self.free))
            self.users[table[-1]] += 1

    def move(self, source: int, target: int) -> None:
        """The row in slot `source` goes on in `target`."""
        self.release(self.tables[target])
        self.tables[target], self.tables[source] = self.tables[source], []

    def release(self, table: list[int]) -> None:
        """Give up a table's blocks."""
        for block in table:
            self.users[block] -= 1
            if not self.users[block]:
                heapq.heappush(self.free, block)
        table.clear()
