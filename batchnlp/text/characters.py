"""Where tokens are in their texts: Python string indices, at the borders of what people see as characters.

What a tokenizer tells is not yet that. Some take the space before a word along; byte-level ones tell of a character once
for each of its bytes; all of them cut between a letter and its accent, or inside of an emoji that is made of several. So
the borders are moved: inwards over white space, then outwards to whole characters. Characters are the grapheme clusters
of Unicode, without the conjuncts of Indic scripts and of old Korean.

A block of texts is one array of code points, each text followed by a NUL, so that nothing runs over into the next text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np
import numpy.typing as npt

from batchnlp.types import Int32, Int64

Bool = npt.NDArray[np.bool_]
NUL, SPACE, JOINER = "\0", 0x20, 0x200D
LAST = 0x10FFFF
# Where white space, marks and symbols are: not among the many ideographs and syllables, and nowhere beyond.
WITH_MARKS = ((0, 0x3400), (0xA000, 0xAC00), (0xD7B0, 0xD800), (0xF900, 0x20000), (0xE0000, 0xE0200))
FLAGS = (0x1F1E6, 0x1F1FF)  # regional indicators, two of which are a flag
# What joins the character before it though it is no mark: jamo, half-width sound marks, Thai and Lao am, skin tones, tags.
JOINING = ((0x1160, 0x11FF), (0xD7B0, 0xD7FF), (0xFF9E, 0xFF9F), (0x0E33, 0x0E33), (0x0EB3, 0x0EB3), (0x200C, 0x200D),
           (0x1F3FB, 0x1F3FF), (0xE0020, 0xE007F))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Places:
    """Where tokens are in their texts: the tokens i to j are `text[start[i]:end[j]]`, nothing where that is empty."""

    start: Int32  # [tokens] index of the first character that is no white space, from the token's begin on
    end: Int32  # [tokens] one past the last one that is none, up to the token's end
    word: Bool  # [tokens] whether a word begins here

    @classmethod
    def join(cls, parts: Sequence[Places]) -> Places:
        """Those of several blocks."""
        empty = cls(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.bool_))
        columns = zip(*((p.start, p.end, p.word) for p in (empty, *parts)), strict=True)
        return cls(*map(np.concatenate, columns))

    def take(self, which: Bool | Int64) -> Places:
        """Some of them."""
        return Places(self.start[which], self.end[which], self.word[which])


class Block:
    """Some texts as code points, and tokens in them."""

    def __init__(self, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]) -> None:
        lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
        first = np.cumsum(lengths) - lengths
        self._codes = np.frombuffer(f"{NUL.join(texts)}{NUL}".encode("utf-32-le"), np.uint32)
        sizes = np.fromiter(map(len, spans), np.int64, len(spans))
        flat = chain.from_iterable(chain.from_iterable(spans))
        self._spans = np.fromiter(flat, np.int64, 2 * int(sizes.sum())).reshape(-1, 2)
        self._base = np.repeat(first, sizes)  # [tokens] where the token's text begins

    @property
    def sizes(self) -> Int64:
        """[tokens] characters of each token, as the tokenizer tells."""
        return np.asarray(self._spans[:, 1] - self._spans[:, 0], np.int64)

    def spaced(self) -> Bool:
        """[tokens] whether a token begins its text, or with a space, or after one."""
        at = self._spans[:, 0] + self._base
        after = self._codes[np.maximum(at - 1, 0)] == SPACE
        return np.asarray((self._spans[:, 0] == 0) | after | (self._codes[at] == SPACE), np.bool_)

    def places(self, word: Bool) -> Places:
        """The places of the tokens; `word` is handed on."""
        n, at = len(self._codes), np.arange(len(self._codes))
        space = _tables()[0][self._codes]
        following = np.minimum.accumulate(np.where(space, n, at)[::-1])[::-1]  # the next that is no space
        preceding = np.r_[0, np.maximum.accumulate(np.where(space, -1, at)) + 1]  # one past the last that is none
        begins = self._breaks()
        back = np.maximum.accumulate(np.where(begins, at, 0))
        forth = np.r_[np.minimum.accumulate(np.where(begins, at, n)[::-1])[::-1], n]
        start = back[following[self._spans[:, 0] + self._base]] - self._base
        end = forth[preceding[self._spans[:, 1] + self._base]] - self._base
        return Places(start.astype(np.int32), end.astype(np.int32), word)

    def _breaks(self) -> Bool:
        """[code points] whether a character begins here."""
        codes = self._codes
        _, joins, symbol = _tables()
        out = ~joins[codes]
        out[1:] &= ~((codes[:-1] == JOINER) & symbol[codes[1:]])
        flag = (codes >= FLAGS[0]) & (codes <= FLAGS[1])
        if flag.any():
            at = np.arange(len(codes))
            nth = at - np.maximum.accumulate(np.where(flag, -1, at))  # in a row of them, from 1
            out &= ~(flag & (nth % 2 == 0))
        out[1:] |= codes[:-1] < SPACE  # controls join nothing, and so does the end of the text before
        out[0] = True
        return out


@cache
def _tables() -> tuple[Bool, Bool, Bool]:
    """[code points] white space; what joins the character before it; what a zero-width joiner joins."""
    space, joins, symbol = (np.zeros(LAST + 1, np.bool_) for _ in range(3))
    for low, high in WITH_MARKS:
        for code in range(low, high):
            char = chr(code)
            kind = unicodedata.category(char)
            space[code] = char.isspace()
            joins[code] = kind[0] == "M"
            symbol[code] = kind in ("So", "Sm") or code >= 0x1F000
    for low, high in JOINING:
        joins[low : high + 1] = True
    return space, joins, symbol
