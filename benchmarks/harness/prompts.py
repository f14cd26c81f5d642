"""The work of generation: prompts, and how long each answer is to become, drawn beforehand.

Answers are log-normal from 4 to 128 tokens and the models have no end token, so that all contenders write the same number
of tokens. Useful are the tokens of answers, none after an answer's end. Some prompts share a beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

SHORTEST, LONGEST = 4, 128
PROMPT = (8, 256)  # tokens
VOCABULARY = 16_000
SHARED = 24  # tokens that a third of the prompts begin with


@dataclass(frozen=True, slots=True)
class Prompts:
    """Flat, as everything is."""

    ids: Any  # [tokens] int32
    starts: Any  # [prompts + 1]
    most: Any  # [prompts] tokens of each answer

    @classmethod
    def draw(cls, count: int, vocabulary: int = VOCABULARY, longest: int = LONGEST) -> Prompts:
        """The same ones every time."""
        rng = np.random.RandomState(0)
        lengths = np.clip(rng.lognormal(4.1, 0.6, count).astype(int), PROMPT[0], 2 * longest)
        shared = rng.randint(5, vocabulary, SHARED)
        texts = [rng.randint(5, vocabulary, n) for n in lengths]
        texts = [np.concatenate([shared, t]) if i % 3 == 0 else t for i, t in enumerate(texts)]
        most = np.clip(rng.lognormal(3.3, 0.8, count).astype(int), SHORTEST, longest)
        starts = np.concatenate([[0], np.cumsum([len(t) for t in texts])]).astype(np.int64)
        return cls(np.concatenate(texts).astype(np.int32), starts, most.astype(np.int32))

    @classmethod
    def read(cls, path: str) -> Prompts:
        """From a file of `write`."""
        file = np.load(path)
        return cls(file["ids"], file["starts"], file["most"])

    def write(self, path: Path) -> str:
        """As a file."""
        np.savez(path, ids=self.ids, starts=self.starts, most=self.most)
        return str(path)

    def __len__(self) -> int:
        return len(self.most)

    @property
    def useful(self) -> int:
        """Tokens to write."""
        return int(self.most.sum())

    def lists(self) -> list[list[int]]:
        """The prompts as lists of token ids."""
        return [part.tolist() for part in np.split(self.ids, self.starts[1:-1])]

    def prefix_tree(self) -> int:
        """Nodes of the tree of all prompts: the fewest tokens that any prefill can compute."""
        ordered = sorted(self.lists())
        nodes = len(ordered[0])
        for before, text in pairwise(ordered):
            same = next(
                (i for i, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), min(len(before), len(text))
            )
            nodes += len(text) - same
        return nodes

    def pieces(self) -> Any:
        """As a task would hand them over; for contenders that have batchnlp."""
        from batchnlp.types import Pieces

        n = len(self)
        return Pieces(self.ids, self.starts, np.arange(n, dtype=np.int32), np.ones(n, np.int32), max_new=self.most)
