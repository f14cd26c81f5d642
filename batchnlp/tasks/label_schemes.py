"""What the labels of a token classifier mean: begin, inside, end, or a whole entity of a type, or none.

    BIO     B-PER I-PER O           also IOB1, where B- stands only between neighbours of one type
    BIOES   B-PER I-PER E-PER S-PER O   also IOBES; BILOU with L- and U-, BMES with M-
    IO      PER O                   neighbours of one type are one entity

Each label is read by itself. B- and I- always mean begin and inside; the other letters only where the same type has a B-,
so that a label like S-Bahn is a name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from batchnlp.text.characters import Bool
from batchnlp.types import Int32

OUTSIDE = "O"
INSIDE, BEGIN, END, SINGLE = range(4)
PREFIXES = {"B": BEGIN, "I": INSIDE, "M": INSIDE, "E": END, "L": END, "S": SINGLE, "U": SINGLE, "W": SINGLE}


@dataclass(frozen=True, slots=True)
class LabelScheme:
    """Labels taken apart, to be looked up by their number."""

    types: list[str]  # PER, LOC, ...; the first is the outside
    type: Int32  # [labels] index into `types`
    part: Int32  # [labels] INSIDE, BEGIN, END or SINGLE

    @classmethod
    def of(cls, labels: list[str]) -> LabelScheme:
        """The scheme of a model's labels, in the order of its logits."""
        parts = [_split(label, set(labels)) for label in labels]
        types = list(dict.fromkeys([OUTSIDE, *(name for _, name in parts)]))
        return cls(types, np.array([types.index(name) for _, name in parts], np.int32),
                   np.array([part for part, _ in parts], np.int32))  # fmt: skip

    @property
    def note(self) -> str:
        """What to know of labels that are neither BIO nor BIOES; else empty."""
        some = ", ".join(self.types[1:6]) + (", ..." if len(self.types) > 6 else "")
        if (self.part != INSIDE).any():
            return ""
        outside = "" if (self.type == 0).any() else "; none is O, so every word is part of an entity"
        return f"the labels ({some}) have no B-: neighbours of one label are one entity{outside}"

    def borders(self, label: Int32, inner: Bool) -> Bool:
        """[units] whether an entity begins at a word or token with this `label`, other than with the one before it;
        `inner` are tokens within a word, which E- and S- may have several of."""
        kind, part = self.type[label], self.part[label]
        begins = part == BEGIN
        closed = (part[:-1] == END) | (part[:-1] == SINGLE)
        begins[1:] |= (kind[1:] != kind[:-1]) | (~inner[1:] & (closed | (part[1:] == SINGLE)))
        begins[:1] = True
        return np.asarray(begins, np.bool_)


def _split(label: str, labels: set[str]) -> tuple[int, str]:
    """(part, type)."""
    found = re.fullmatch(r"([BIMELSUW])-(.+)", label)
    if found and (found[1] in "BI" or f"B-{found[2]}" in labels):
        return PREFIXES[found[1]], found[2]
    return INSIDE, label
