"""Rows as the model sees them: token ids as columns, and the order and the tensors they go through the model in.

An example is one sequence. Padding is decided when a batch is made, up to its longest sequence; examples of like length
meet in a batch, so there is little of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchnlp.text.encode import offsets, ranges
from batchnlp.types import Int32, Int64

NOTHING = -100  # the label of a token that is not judged, as torch's cross-entropy has it
POOL = 50  # batches that are sorted by length together


@dataclass(frozen=True, slots=True)
class Ragged:
    """Sequences of whole numbers: sequence i is `flat[starts[i]:starts[i + 1]]`."""

    flat: Int32
    starts: Int64

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Int64:
        """[sequences]."""
        return np.asarray(np.diff(self.starts), np.int64)

    def padded(self, index: Int64, fill: int) -> Int64:
        """[len(index), longest] these sequences, filled up at their ends."""
        lengths = self.lengths[index]
        out = np.full((len(index), int(lengths.max(initial=1))), fill, np.int64)
        out[np.arange(out.shape[1]) < lengths[:, None]] = self.flat[ranges(self.starts[index], lengths)]
        return out

    @classmethod
    def of(cls, flat: Int32, lengths: Int64) -> Ragged:
        """From the sequences' lengths."""
        return cls(np.asarray(flat, np.int32), offsets(lengths))


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of one part. Filled by a kind's `encode`; `targets` and `label` are what that kind learns."""

    inputs: Ragged  # [examples] token ids, special tokens included
    row: Int32  # [examples] which row of the part it is of
    targets: Ragged | None = None  # [examples] labels of tokens, or the tokens of another text
    positions: Ragged | None = None  # [examples] position ids, where several documents share an example
    label: Int32 | None = None  # [examples] the class
    truncated: int = 0  # rows of which not all is seen
    counts: tuple[tuple[str, int], ...] = ()  # what else the kind has to say of the part

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def lengths(self) -> Int64:
        """[examples] what an example weighs: its tokens, those of another text included."""
        own = self.inputs.lengths
        other = self.targets.lengths if self.targets is not None else own
        return np.maximum(own, other)

    def save(self, path: Path) -> None:
        """For other processes."""
        arrays: dict[str, Any] = {"row": self.row, "truncated": np.int64(self.truncated)}
        arrays["counts"] = np.array(json.dumps(self.counts))
        for name in ("inputs", "targets", "positions"):
            value = getattr(self, name)
            if value is not None:
                arrays |= {f"{name}_flat": value.flat, f"{name}_starts": value.starts}
        if self.label is not None:
            arrays["label"] = self.label
        np.savez(path, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Examples:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as found:
            ragged = {
                name: Ragged(found[f"{name}_flat"], found[f"{name}_starts"])
                for name in ("inputs", "targets", "positions")
                if f"{name}_flat" in found
            }
            label = found.get("label", None)
            counts = tuple((str(name), int(n)) for name, n in json.loads(str(found["counts"])))
            return cls(ragged["inputs"], found["row"], ragged.get("targets"), ragged.get("positions"), label,
                       int(found["truncated"]), counts)  # fmt: skip


class ByLength:
    """The order of training: at random, but examples of like length one after the other.

    Trainer's own sampler draws from torch's global generator, so that a training which resumes in its second epoch sees
    another order. Here the epoch and the seed decide, and nothing else.
    """

    def __init__(self, lengths: Int64, batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Another epoch, another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(order(self.lengths, self.batch, np.random.default_rng([self.seed, self.epoch])).tolist())


def order(lengths: Int64, batch: int, generator: np.random.Generator) -> Int64:
    """Examples drawn into pools of `POOL` batches, sorted by length there, and the batches drawn again; those that do not
    fill a batch come last."""
    drawn = generator.permutation(len(lengths))
    size = POOL * batch
    pools = [drawn[start : start + size] for start in range(0, len(drawn), size)]
    sorted_ = np.concatenate([p[np.argsort(-lengths[p], kind="stable")] for p in pools]) if pools else drawn
    whole = len(sorted_) // batch * batch
    batches = sorted_[:whole].reshape(-1, batch)
    return np.concatenate([batches[generator.permutation(len(batches))].reshape(-1), sorted_[whole:]])


def batches(lengths: Int64, tokens: int) -> Iterator[Int64]:
    """Indices of examples, longest first, as many at a time as make `tokens` padded tokens; for judging."""
    by_length = np.argsort(-lengths, kind="stable")
    at = 0
    while at < len(by_length):
        count = max(int(tokens // max(int(lengths[by_length[at]]), 1)), 1)
        yield by_length[at : at + count]
        at += count


def mask(lengths: Int64) -> npt.NDArray[np.int64]:
    """[len(lengths), longest] 1 where there is a token."""
    return (np.arange(int(lengths.max(initial=1))) < lengths[:, None]).astype(np.int64)
